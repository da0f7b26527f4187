//! Commands on keys: checks before any write, then the writes of one revision.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::response_op::Response;
use quorate_proto::etcd::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};

use super::counts::Counts;
use super::pending::Pending;
use super::rows::Row;
use super::view::{KeyRange, Keys};
use super::{EngineError, LeaseRecord, ReadError};
use super::{alarms, range};
use crate::command::{ApplyError, CommandResult, Operation};

/// etcd's: more seconds than this overflow its clock.
const MAX_LEASE_TTL: i64 = 9_000_000_000;

/// The checks of a command that need no state; to be made before it is proposed. They
/// are made again when it is applied, except for the number of operations: members may
/// be set to different limits, and have to apply the same.
///
/// # Errors
/// What the client is told.
pub fn check(operation: &Operation, max_txn_ops: usize) -> Result<(), ApplyError> {
    match operation {
        Operation::Put(request) => check_put(request),
        Operation::DeleteRange(request) => check_delete(request),
        Operation::Txn(request) => check_txn(request, max_txn_ops),
        Operation::LeaseGrant { ttl, .. } if *ttl > MAX_LEASE_TTL => Err(ApplyError::LeaseTtlTooLarge),
        _ => Ok(()),
    }
}

/// Whether a transaction can only read. A nested one counts as a write.
pub fn is_read_only(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.all(|operation| matches!(operation.request, Some(Request::RequestRange(_))))
}

fn check_put(request: &PutRequest) -> Result<(), ApplyError> {
    if request.key.is_empty() {
        Err(ApplyError::EmptyKey)
    } else if request.ignore_value && !request.value.is_empty() {
        Err(ApplyError::ValueProvided)
    } else if request.ignore_lease && request.lease != 0 {
        Err(ApplyError::LeaseProvided)
    } else {
        Ok(())
    }
}

fn check_delete(request: &DeleteRangeRequest) -> Result<(), ApplyError> {
    if request.key.is_empty() { Err(ApplyError::EmptyKey) } else { Ok(()) }
}

/// The checks of a transaction that need no state.
pub(super) fn check_txn(request: &TxnRequest, max_ops: usize) -> Result<(), ApplyError> {
    check_limits(request, max_ops)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// A nested transaction has what its parent leaves of the limit.
fn check_limits(request: &TxnRequest, limit: usize) -> Result<(), ApplyError> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    let rest = limit.checked_sub(count).ok_or(ApplyError::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(ApplyError::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range::check(request)?,
            Some(Request::RequestPut(request)) => check_put(request)?,
            Some(Request::RequestDeleteRange(request)) => check_delete(request)?,
            Some(Request::RequestTxn(request)) => check_limits(request, rest)?,
            // etcd's words for an operation it does not know.
            None => return Err(ApplyError::KeyNotFound),
        }
    }
    Ok(())
}

/// What a branch may write.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<KeyRange<'a>>,
}

impl<'a> Writes<'a> {
    /// # Errors
    /// `DuplicateKey` when one key would be written twice. The branches of a nested
    /// transaction exclude each other and may overlap. etcd overlooks some: a delete in a
    /// later nested transaction, and one whose end is open. Its history then has two
    /// changes of a key in one revision; here there is never more than one.
    fn of(operations: &'a [RequestOp]) -> Result<Writes<'a>, ApplyError> {
        let mut all = Writes::default();
        for operation in operations {
            match &operation.request {
                Some(Request::RequestPut(request)) => {
                    all.add(Writes { puts: BTreeSet::from([&request.key]), deletes: Vec::new() })?;
                }
                Some(Request::RequestDeleteRange(request)) => {
                    let deletes = vec![KeyRange::new(&request.key, &request.range_end)];
                    all.add(Writes { puts: BTreeSet::new(), deletes })?;
                }
                Some(Request::RequestTxn(request)) => {
                    let mut either = Writes::of(&request.success)?;
                    let failure = Writes::of(&request.failure)?;
                    either.puts.extend(failure.puts);
                    either.deletes.extend(failure.deletes);
                    all.add(either)?;
                }
                Some(Request::RequestRange(_)) | None => {}
            }
        }
        Ok(all)
    }

    fn add(&mut self, other: Writes<'a>) -> Result<(), ApplyError> {
        let twice = other.puts.iter().any(|key| self.puts.contains(key) || self.deleted(key))
            || self.puts.iter().any(|key| other.deleted(key));
        if twice {
            return Err(ApplyError::DuplicateKey);
        }
        self.puts.extend(other.puts);
        self.deletes.extend(other.deletes);
        Ok(())
    }

    fn deleted(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// Where compares and ranges of a transaction read.
pub(super) trait Source {
    fn keys(&self, range: KeyRange<'_>, at: i64, with_values: bool) -> Result<Keys<'_>, EngineError>;

    /// What is known of how many keys ranges have, if that is of what `keys` reads.
    fn counts(&self) -> Option<&Counts>;
}

impl Source for Pending<'_> {
    fn keys(&self, range: KeyRange<'_>, at: i64, with_values: bool) -> Result<Keys<'_>, EngineError> {
        Pending::keys(self, range, at, with_values)
    }

    fn counts(&self) -> Option<&Counts> {
        None
    }
}

fn holds(compare: &Compare, row: Option<&Row>) -> bool {
    let number = |row: Option<i64>, wanted: Option<i64>| row.unwrap_or(0).cmp(&wanted.unwrap_or(0));
    let union = compare.target_union.as_ref();
    let order = match compare.target() {
        CompareTarget::Value => {
            // A value that is not there equals nothing.
            let Some(row) = row else { return false };
            let wanted = match union {
                Some(TargetUnion::Value(value)) => &value[..],
                _ => &[],
            };
            row.value[..].cmp(wanted)
        }
        CompareTarget::Version => number(
            row.map(|row| row.version),
            match union {
                Some(TargetUnion::Version(version)) => Some(*version),
                _ => None,
            },
        ),
        CompareTarget::Create => number(
            row.map(|row| row.create),
            match union {
                Some(TargetUnion::CreateRevision(revision)) => Some(*revision),
                _ => None,
            },
        ),
        CompareTarget::Mod => number(
            row.map(|row| row.revision.main),
            match union {
                Some(TargetUnion::ModRevision(revision)) => Some(*revision),
                _ => None,
            },
        ),
        CompareTarget::Lease => number(
            row.map(|row| row.lease),
            match union {
                Some(TargetUnion::Lease(lease)) => Some(*lease),
                _ => None,
            },
        ),
    };
    match compare.result() {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    }
}

/// Whether all compares hold at revision `at`; of a range, for each of its keys.
pub(super) fn compares_hold(source: &impl Source, compares: &[Compare], at: i64) -> Result<bool, EngineError> {
    for compare in compares {
        let with_values = compare.target() == CompareTarget::Value;
        let mut keys = source.keys(KeyRange::new(&compare.key, &compare.range_end), at, with_values)?;
        let mut any = false;
        while let Some((_, row)) = keys.next()? {
            any = true;
            if !holds(compare, Some(&row)) {
                return Ok(false);
            }
        }
        if !any && !holds(compare, None) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Answers a range at revision `at`.
pub(super) fn read_range(
    source: &impl Source,
    request: &RangeRequest,
    at: i64,
    header_revision: i64,
) -> Result<RangeResponse, EngineError> {
    let keys = || source.keys(range::key_range(request), at, range::needs_values(request));
    range::collect(request, keys, at, source.counts(), header_revision)
}

/// Applies a command to the batch in progress. An error of kind `Apply` means that
/// nothing was changed.
pub(crate) fn execute(pending: &mut Pending<'_>, operation: &Operation) -> Result<CommandResult, ReadError> {
    // Before the checks, as in etcd.
    if let Some(refusal) = pending.refusal(operation) {
        return Err(refusal.into());
    }
    check(operation, usize::MAX)?;
    let mut writer = Writer { changes: 0, pending };
    let result = match operation {
        Operation::Put(request) => {
            writer.check_lease(request)?;
            writer.check_previous(request)?;
            CommandResult::Put(writer.put(request)?)
        }
        Operation::DeleteRange(request) => CommandResult::DeleteRange(writer.delete(request)?),
        Operation::Txn(request) => {
            let mut path = Vec::new();
            writer.choose(request, &mut path)?;
            writer.check_puts(request, &mut path.iter())?;
            writer.check_ranges(request, &mut path.iter())?;
            CommandResult::Txn(writer.run(request, &mut path.iter())?)
        }
        Operation::Compact(request) => writer.compact(request.revision)?,
        Operation::LeaseGrant { id, ttl } => writer.grant(*id, *ttl)?,
        Operation::LeaseRevoke { id } => writer.revoke(*id)?,
        Operation::LeaseCheckpoint(leases) => {
            for (id, remaining) in leases {
                if let Some(lease) = writer.pending.lease(*id) {
                    writer.pending.put_lease(LeaseRecord { remaining: *remaining, ..lease });
                }
            }
            CommandResult::Done { revision: writer.revision() }
        }
        Operation::MemberAttributes { member, attributes } => {
            writer.pending.set_attributes(*member, attributes)?;
            CommandResult::Done { revision: writer.revision() }
        }
        Operation::Alarm(change) => CommandResult::Alarm(alarms::change(writer.pending, *change)),
        Operation::Downgrade { target } => writer.downgrade(target.as_deref())?,
        Operation::Noop => CommandResult::Done { revision: writer.revision() },
        Operation::Auth(change) => {
            writer.pending.change_auth(change)?;
            CommandResult::Done { revision: writer.revision() }
        }
    };
    if writer.changes > 0 {
        pending.state.revision += 1;
    }
    Ok(result)
}

/// Makes the changes of one command, all at the next revision.
struct Writer<'p, 'a> {
    pending: &'p mut Pending<'a>,
    changes: u32,
}

impl Writer<'_, '_> {
    /// The revision once this command is done, going by what it has done so far.
    fn revision(&self) -> i64 {
        self.pending.revision() + i64::from(self.changes > 0)
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision(), ..Default::default() })
    }

    /// Reads see what this command has written.
    fn now(&self) -> i64 {
        self.pending.next_revision(0).main
    }

    fn check_lease(&self, request: &PutRequest) -> Result<(), ApplyError> {
        let missing = request.lease != 0 && self.pending.lease(request.lease).is_none();
        if missing { Err(ApplyError::LeaseNotFound) } else { Ok(()) }
    }

    fn check_previous(&self, request: &PutRequest) -> Result<(), ReadError> {
        let needed = request.ignore_value || request.ignore_lease;
        if needed && self.pending.get(&request.key)?.is_none() {
            return Err(ApplyError::KeyNotFound.into());
        }
        Ok(())
    }

    fn put(&mut self, request: &PutRequest) -> Result<PutResponse, EngineError> {
        let previous = self.pending.get(&request.key)?;
        let revision = self.pending.next_revision(self.changes);
        let kept = previous.as_ref();
        let row = Row {
            revision,
            tombstone: false,
            create: kept.map_or(revision.main, |row| row.create),
            version: kept.map_or(1, |row| row.version + 1),
            lease: kept.filter(|_| request.ignore_lease).map_or(request.lease, |row| row.lease),
            value: match kept.filter(|_| request.ignore_value) {
                Some(row) => row.value.clone(),
                None => request.value.clone(),
            },
        };
        let prev_kv = previous.as_ref().filter(|_| request.prev_kv);
        let prev_kv = prev_kv.map(|row| row.to_key_value(request.key.clone()));
        self.pending.write(&request.key, row, previous);
        self.changes += 1;
        Ok(PutResponse { header: self.header(), prev_kv })
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, EngineError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut found = Vec::new();
        let mut keys = self.pending.keys(range, self.now(), true)?;
        while let Some(pair) = keys.next()? {
            found.push(pair);
        }
        drop(keys);
        let mut prev_kvs = Vec::new();
        let deleted = found.len() as i64;
        for (key, row) in found {
            if request.prev_kv {
                prev_kvs.push(row.to_key_value(key.clone()));
            }
            self.bury(key, row);
        }
        Ok(DeleteRangeResponse { header: self.header(), deleted, prev_kvs })
    }

    fn bury(&mut self, key: Bytes, previous: Row) {
        let row = Row {
            revision: self.pending.next_revision(self.changes),
            tombstone: true,
            create: 0,
            version: 0,
            lease: 0,
            value: Bytes::new(),
        };
        self.pending.write(&key, row, Some(previous));
        self.changes += 1;
    }

    /// Decides every compare, nested ones too, before anything is written.
    fn choose(&mut self, request: &TxnRequest, path: &mut Vec<bool>) -> Result<(), EngineError> {
        let succeeded = compares_hold(self.pending, &request.compare, self.pending.revision())?;
        path.push(succeeded);
        for operation in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &operation.request {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    /// The checks that need state, of everything that will run: all of them before the
    /// first write, so that a failure changes nothing. In etcd's order: puts, then ranges.
    fn check_puts(&self, request: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<(), ReadError> {
        let succeeded = path.next().copied().unwrap_or_default();
        for operation in branch(request, succeeded) {
            match &operation.request {
                // Not in the order of a put that stands alone: as etcd.
                Some(Request::RequestPut(request)) => {
                    self.check_previous(request)?;
                    self.check_lease(request)?;
                }
                Some(Request::RequestTxn(nested)) => self.check_puts(nested, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_ranges(&self, request: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<(), ApplyError> {
        let succeeded = path.next().copied().unwrap_or_default();
        let (current, compacted) = (self.pending.revision(), self.pending.state.compact_revision);
        for operation in branch(request, succeeded) {
            match &operation.request {
                Some(Request::RequestRange(request)) => range::check_in_txn(request, current, compacted)?,
                Some(Request::RequestTxn(nested)) => self.check_ranges(nested, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, request: &TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<TxnResponse, EngineError> {
        let succeeded = path.next().copied().unwrap_or_default();
        let mut responses = Vec::new();
        for operation in branch(request, succeeded) {
            let response = match &operation.request {
                Some(Request::RequestRange(request)) => {
                    let at = if request.revision > 0 { request.revision } else { self.now() };
                    Response::ResponseRange(read_range(self.pending, request, at, self.revision())?)
                }
                Some(Request::RequestPut(request)) => Response::ResponsePut(self.put(request)?),
                Some(Request::RequestDeleteRange(request)) => Response::ResponseDeleteRange(self.delete(request)?),
                Some(Request::RequestTxn(nested)) => {
                    // As etcd: the header of the whole says when.
                    let header = Some(ResponseHeader::default());
                    Response::ResponseTxn(TxnResponse { header, ..self.run(nested, path)? })
                }
                None => continue,
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: self.header(), succeeded, responses })
    }

    fn compact(&mut self, revision: i64) -> Result<CommandResult, ApplyError> {
        let state = &mut self.pending.state;
        if revision <= state.compact_revision {
            return Err(ApplyError::Compacted);
        }
        if revision > state.revision {
            return Err(ApplyError::FutureRevision);
        }
        state.compact_revision = revision;
        Ok(CommandResult::Compact { revision: state.revision })
    }

    fn downgrade(&mut self, target: Option<&str>) -> Result<CommandResult, ApplyError> {
        match (target, self.pending.downgrade()) {
            (Some(_), Some(_)) => return Err(ApplyError::DowngradeInProgress),
            (None, None) => return Err(ApplyError::NoDowngrade),
            _ => self.pending.set_downgrade(target),
        }
        Ok(CommandResult::Done { revision: self.revision() })
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Result<CommandResult, ApplyError> {
        if self.pending.lease(id).is_some() {
            return Err(ApplyError::LeaseExists);
        }
        self.pending.put_lease(LeaseRecord { id, ttl, remaining: 0 });
        Ok(CommandResult::LeaseGrant { id, ttl, revision: self.revision() })
    }

    fn revoke(&mut self, id: i64) -> Result<CommandResult, ReadError> {
        if self.pending.lease(id).is_none() {
            return Err(ApplyError::LeaseNotFound.into());
        }
        for key in self.pending.lease_keys(id)? {
            if let Some(row) = self.pending.get(&key)? {
                self.bury(key, row);
            }
        }
        self.pending.remove_lease(id);
        Ok(CommandResult::LeaseRevoke { revision: self.revision() })
    }
}

pub(super) fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}
