//! The cases, one file per service, and the short words they are written in.

mod auth;
mod cluster;
mod gateway;
mod lease;
mod limits;
mod lock;
mod maintenance;
mod random;
mod range;
mod three;
mod txn;
mod watch;
mod write;

use bytes::Bytes;
use quorate_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
    LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    RequestOp, TxnRequest, TxnResponse,
};

use crate::call::{Call, unary};
use crate::script::Group;

/// Every group, the slowest first.
pub(crate) fn all() -> Vec<Group> {
    let mut groups = Vec::new();
    groups.extend(watch::groups());
    groups.extend(auth::groups());
    groups.extend(lease::groups());
    groups.extend(random::groups());
    groups.extend(three::groups());
    groups.extend(range::groups());
    groups.extend(txn::groups());
    groups.extend(write::groups());
    groups.extend(limits::groups());
    groups.extend(cluster::groups());
    groups.extend(maintenance::groups());
    groups.extend(gateway::groups());
    groups.extend(lock::groups());
    groups
}

/// The end of the interval that begins with `prefix`.
fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn key(key: &str) -> RangeRequest {
    RangeRequest { key: bytes(key), ..RangeRequest::default() }
}

fn prefix(prefix: &str) -> RangeRequest {
    RangeRequest { key: bytes(prefix), range_end: prefix_end(prefix), ..RangeRequest::default() }
}

fn interval(from: &str, end: &str) -> RangeRequest {
    RangeRequest { key: bytes(from), range_end: bytes(end), ..RangeRequest::default() }
}

fn everything() -> RangeRequest {
    interval("\0", "\0")
}

fn range(request: RangeRequest) -> Call {
    unary::<_, RangeResponse>("/etcdserverpb.KV/Range", request)
}

fn value(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() }
}

fn put(request: PutRequest) -> Call {
    unary::<_, PutResponse>("/etcdserverpb.KV/Put", request)
}

fn deletion(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false }
}

fn delete(request: DeleteRangeRequest) -> Call {
    unary::<_, DeleteRangeResponse>("/etcdserverpb.KV/DeleteRange", request)
}

fn txn(request: TxnRequest) -> Call {
    unary::<_, TxnResponse>("/etcdserverpb.KV/Txn", request)
}

fn compact(revision: i64, physical: bool) -> Call {
    unary::<_, CompactionResponse>("/etcdserverpb.KV/Compact", CompactionRequest { revision, physical })
}

fn grant(id: i64, ttl: i64) -> Call {
    unary::<_, LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl, id })
}

fn revoke(id: i64) -> Call {
    unary::<_, LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id })
}

fn op_range(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(request)) }
}

fn op_put(request: PutRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(request)) }
}

fn op_delete(request: DeleteRangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestDeleteRange(request)) }
}

fn op_txn(request: TxnRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestTxn(request)) }
}

fn operations(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn conditional(compare: Vec<Compare>, success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { compare, success, failure }
}

const RESULTS: [CompareResult; 4] =
    [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Greater, CompareResult::Less];

const TARGETS: [CompareTarget; 5] =
    [CompareTarget::Version, CompareTarget::Create, CompareTarget::Mod, CompareTarget::Value, CompareTarget::Lease];

fn compare(key: &str, result: CompareResult, union: TargetUnion) -> Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare {
        result: result.into(),
        target: target.into(),
        key: bytes(key),
        range_end: Bytes::new(),
        target_union: Some(union),
    }
}

/// True of every store: a key that is not there has version 0.
fn always() -> Compare {
    compare("nothing", CompareResult::Equal, TargetUnion::Version(0))
}

/// False of every store.
fn never() -> Compare {
    compare("nothing", CompareResult::Greater, TargetUnion::Version(0))
}
