//! The trait's words as etcd v3 messages and back, for both implementations.

use bytes::Bytes;
use quorate_proto::etcd::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchResponse, compare, mvccpb, request_op, response_op,
};

use super::{
    Event, Got, KeyValue, ListPage, ListRequest, Result, StorageError, Transaction, WatchMessage, Write, prefix_end,
};

pub(super) fn get(key: &str) -> RangeRequest {
    RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..RangeRequest::default() }
}

/// A linearizable read that carries nothing but the revision.
pub(super) fn read_index() -> RangeRequest {
    RangeRequest { key: Bytes::from_static(b"/registry"), count_only: true, ..RangeRequest::default() }
}

pub(super) fn list(request: &ListRequest) -> RangeRequest {
    RangeRequest {
        key: Bytes::copy_from_slice(request.start.as_bytes()),
        range_end: Bytes::copy_from_slice(request.end.as_bytes()),
        limit: i64::try_from(request.limit).unwrap_or(0),
        revision: request.revision.map_or(0, to_wire),
        ..RangeRequest::default()
    }
}

pub(super) fn watch(prefix: &str, from: u64, previous: bool) -> WatchCreateRequest {
    WatchCreateRequest {
        key: Bytes::copy_from_slice(prefix.as_bytes()),
        range_end: Bytes::from(prefix_end(prefix)),
        start_revision: to_wire(from),
        progress_notify: true,
        prev_kv: previous,
        ..WatchCreateRequest::default()
    }
}

/// The transaction; when it fails, the values at its conditions' keys are read instead.
pub(super) fn txn(transaction: Transaction) -> TxnRequest {
    let compare = transaction
        .conditions
        .iter()
        .map(|condition| Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Mod.into(),
            key: Bytes::copy_from_slice(condition.key.as_bytes()),
            target_union: Some(compare::TargetUnion::ModRevision(to_wire(condition.mod_revision))),
            ..Compare::default()
        })
        .collect();
    let failure = transaction
        .conditions
        .iter()
        .map(|condition| RequestOp { request: Some(request_op::Request::RequestRange(get(&condition.key))) })
        .collect();
    let success = transaction.writes.into_iter().map(write).collect();
    TxnRequest { compare, success, failure }
}

fn write(write: Write) -> RequestOp {
    let request = match write {
        Write::Put { key, value } => {
            request_op::Request::RequestPut(PutRequest { key: key.into(), value, ..PutRequest::default() })
        }
        Write::Delete { key } => request_op::Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            ..DeleteRangeRequest::default()
        }),
    };
    RequestOp { request: Some(request) }
}

/// The revision of a commit.
pub(super) fn committed(response: TxnResponse) -> Result<u64> {
    if response.succeeded {
        return revision(response.header.as_ref());
    }
    let found = response
        .responses
        .into_iter()
        .map(|op| match op.response {
            Some(response_op::Response::ResponseRange(range)) => Ok(range.kvs.into_iter().next().and_then(key_value)),
            _ => Err(StorageError::Failed("a transaction was answered out of order".to_owned())),
        })
        .collect::<Result<_>>()?;
    Err(StorageError::Conflict { found })
}

pub(super) fn got(response: RangeResponse) -> Result<Got> {
    let revision = revision(response.header.as_ref())?;
    Ok(Got { value: response.kvs.into_iter().next().and_then(key_value), revision })
}

pub(super) fn page(response: RangeResponse) -> Result<ListPage> {
    Ok(ListPage {
        revision: revision(response.header.as_ref())?,
        count: u64::try_from(response.count).unwrap_or(0),
        more: response.more,
        items: response.kvs.into_iter().filter_map(key_value).collect(),
    })
}

/// `None` for messages that say nothing about the keys: a watch was created.
pub(super) fn watched(response: WatchResponse) -> Result<Option<WatchMessage>> {
    if response.compact_revision > 0 {
        return Err(StorageError::Compacted { compacted: from_wire(response.compact_revision) });
    }
    if response.canceled {
        return Err(StorageError::Unavailable(format!("the watch was canceled: {}", response.cancel_reason)));
    }
    if !response.events.is_empty() {
        return Ok(Some(WatchMessage::Events(response.events.into_iter().filter_map(event).collect())));
    }
    if response.created {
        return Ok(None);
    }
    Ok(Some(WatchMessage::Progress(revision(response.header.as_ref())?)))
}

fn event(event: mvccpb::Event) -> Option<Event> {
    let is_delete = event.r#type() == mvccpb::event::EventType::Delete;
    let kv = event.kv?;
    let is_creation = !is_delete && kv.create_revision == kv.mod_revision;
    let item = key_value(kv)?;
    Some(Event {
        key: item.key,
        revision: item.mod_revision,
        value: (!is_delete).then_some(item.value),
        previous: event.prev_kv.and_then(key_value),
        is_creation,
    })
}

/// Keys that are not UTF-8 cannot be ours: they are left out.
fn key_value(item: mvccpb::KeyValue) -> Option<KeyValue> {
    let key = String::from_utf8(item.key.to_vec()).ok()?;
    Some(KeyValue { key, value: item.value, mod_revision: from_wire(item.mod_revision) })
}

fn revision(header: Option<&ResponseHeader>) -> Result<u64> {
    let header = header.ok_or_else(|| StorageError::Failed("an answer has no header".to_owned()))?;
    Ok(from_wire(header.revision))
}

pub(super) fn to_wire(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(super) fn from_wire(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// What a gRPC error of an etcd-like store means. The texts are etcd's.
pub(super) fn error(status: &tonic::Status) -> StorageError {
    use tonic::Code;
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.contains("compacted") => StorageError::Compacted { compacted: 0 },
        Code::OutOfRange => StorageError::FutureRevision,
        Code::FailedPrecondition if message == "quorate: fence is no longer current" => StorageError::Fenced,
        Code::InvalidArgument if message.contains("too large") => StorageError::TooLarge,
        Code::ResourceExhausted if message.contains("larger than max") => StorageError::TooLarge,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => StorageError::Unavailable(message.to_owned()),
        _ => StorageError::Failed(message.to_owned()),
    }
}
