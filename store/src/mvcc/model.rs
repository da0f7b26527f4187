//! etcd's semantics in the plainest possible way, to compare the engine with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcd::range_request::{SortOrder, SortTarget};
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::response_op::Response;
use quorate_proto::etcd::*;
use quorate_proto::mvccpb::KeyValue;

use crate::command::{ApplyError, CommandResult, Operation};

/// A key's state after one revision; `None` is deleted.
type Version = (i64, Option<KeyValue>);

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) revision: i64,
    pub(super) compacted: i64,
    keys: BTreeMap<Bytes, Vec<Version>>,
    leases: BTreeSet<i64>,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

pub(super) fn in_range(key: &[u8], from: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == from,
        [0] => key >= from,
        _ => key >= from && key < end,
    }
}

impl Model {
    pub(super) fn new() -> Model {
        Model { revision: 1, compacted: -1, keys: BTreeMap::new(), leases: BTreeSet::new() }
    }

    fn at(&self, key: &Bytes, revision: i64) -> Option<KeyValue> {
        self.keys.get(key)?.iter().rev().find(|(at, _)| *at <= revision)?.1.clone()
    }

    fn all(&self, from: &[u8], end: &[u8], revision: i64) -> Vec<KeyValue> {
        let keys = self.keys.keys().filter(|key| in_range(key, from, end));
        keys.filter_map(|key| self.at(key, revision)).collect()
    }

    /// Every change of keys in the range from a revision on: revision, key, value or gone,
    /// and what was before.
    pub(super) fn changes(&self, from: i64) -> Vec<(i64, Bytes, Option<KeyValue>, Option<KeyValue>)> {
        let mut all = Vec::new();
        for (key, versions) in &self.keys {
            for (revision, kv) in versions.iter().filter(|(revision, _)| *revision >= from) {
                all.push((*revision, key.clone(), kv.clone(), self.at(key, revision - 1)));
            }
        }
        all.sort_by_key(|change| (change.0, change.1.clone()));
        all
    }

    pub(super) fn range(&self, request: &RangeRequest, now: i64, current: i64) -> Result<RangeResponse, ApplyError> {
        if request.revision > current {
            return Err(ApplyError::FutureRevision);
        }
        if request.revision > 0 && request.revision < self.compacted {
            return Err(ApplyError::Compacted);
        }
        let at = if request.revision > 0 { request.revision } else { now };
        let mut kvs = self.all(&request.key, &request.range_end, at);
        let count = kvs.len() as i64;
        let mut more = false;
        if request.count_only {
            kvs.clear();
        }
        kvs.retain(|kv| {
            (request.min_mod_revision == 0 || kv.mod_revision >= request.min_mod_revision)
                && (request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision)
                && (request.min_create_revision == 0 || kv.create_revision >= request.min_create_revision)
                && (request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision)
        });
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if request.sort_order() == SortOrder::None && filters == [0; 4] && request.limit > 0 {
            kvs.truncate(request.limit as usize + 1);
        }
        match request.sort_target() {
            SortTarget::Key => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if request.sort_order() == SortOrder::Descend {
            // Descending among equals: the order of keys stays.
            let mut groups: Vec<Vec<KeyValue>> = Vec::new();
            for kv in kvs {
                match groups.last_mut() {
                    Some(group) if equal(request.sort_target(), &group[0], &kv) => group.push(kv),
                    _ => groups.push(vec![kv]),
                }
            }
            kvs = groups.into_iter().rev().flatten().collect();
        }
        if request.limit > 0 && kvs.len() as i64 > request.limit {
            kvs.truncate(request.limit as usize);
            more = true;
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { header: header(0), kvs, more, count })
    }

    fn write(&mut self, key: &Bytes, revision: i64, kv: Option<KeyValue>) {
        self.keys.entry(key.clone()).or_default().push((revision, kv));
    }

    fn check_put(&self, request: &PutRequest, in_txn: bool) -> Result<(), ApplyError> {
        let no_lease = request.lease != 0 && !self.leases.contains(&request.lease);
        let no_key = (request.ignore_value || request.ignore_lease) && self.at(&request.key, self.revision).is_none();
        match (no_lease, no_key) {
            (false, false) => Ok(()),
            (true, true) if in_txn => Err(ApplyError::KeyNotFound),
            (true, _) => Err(ApplyError::LeaseNotFound),
            (false, true) => Err(ApplyError::KeyNotFound),
        }
    }

    fn put(&mut self, request: &PutRequest, next: i64) -> PutResponse {
        let previous = self.at(&request.key, next);
        let mut kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            lease: request.lease,
            create_revision: next,
            mod_revision: next,
            version: 1,
        };
        if let Some(previous) = &previous {
            kv.create_revision = previous.create_revision;
            kv.version = previous.version + 1;
            if request.ignore_value {
                kv.value = previous.value.clone();
            }
            if request.ignore_lease {
                kv.lease = previous.lease;
            }
        }
        self.write(&request.key, next, Some(kv));
        PutResponse { header: header(next), prev_kv: previous.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest, next: i64) -> DeleteRangeResponse {
        let dead = self.all(&request.key, &request.range_end, next);
        for kv in &dead {
            self.write(&kv.key, next, None);
        }
        let deleted = dead.len() as i64;
        let prev_kvs = if request.prev_kv { dead } else { Vec::new() };
        DeleteRangeResponse { header: header(0), deleted, prev_kvs }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.all(&compare.key, &compare.range_end, self.revision);
        let check = |kv: &KeyValue| {
            let numbers = |have: i64| match compare.target_union {
                Some(
                    TargetUnion::Version(n)
                    | TargetUnion::CreateRevision(n)
                    | TargetUnion::ModRevision(n)
                    | TargetUnion::Lease(n),
                ) => have.cmp(&n),
                _ => have.cmp(&0),
            };
            let order = match compare.target() {
                CompareTarget::Version => numbers(kv.version),
                CompareTarget::Create => numbers(kv.create_revision),
                CompareTarget::Mod => numbers(kv.mod_revision),
                CompareTarget::Lease => numbers(kv.lease),
                CompareTarget::Value => match &compare.target_union {
                    Some(TargetUnion::Value(value)) => kv.value.cmp(value),
                    _ => kv.value.cmp(&Bytes::new()),
                },
            };
            match compare.result() {
                CompareResult::Equal => order.is_eq(),
                CompareResult::NotEqual => order.is_ne(),
                CompareResult::Greater => order.is_gt(),
                CompareResult::Less => order.is_lt(),
            }
        };
        if found.is_empty() {
            return compare.target() != CompareTarget::Value && check(&KeyValue::default());
        }
        found.iter().all(check)
    }

    /// What a transaction will run, nested ones flattened.
    fn chosen<'a>(&self, request: &'a TxnRequest, found: &mut Vec<&'a Request>) {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        for operation in if succeeded { &request.success } else { &request.failure } {
            match operation.request.as_ref().expect("an operation") {
                Request::RequestTxn(request) => self.chosen(request, found),
                other => found.push(other),
            }
        }
    }

    fn check(&self, request: &TxnRequest) -> Result<(), ApplyError> {
        let mut chosen = Vec::new();
        self.chosen(request, &mut chosen);
        for request in &chosen {
            if let Request::RequestPut(request) = request {
                self.check_put(request, true)?;
            }
        }
        for request in &chosen {
            if let Request::RequestRange(request) = request {
                if request.revision > self.revision {
                    return Err(ApplyError::FutureRevision);
                }
                if request.revision != 0 && request.revision < self.compacted {
                    return Err(ApplyError::Compacted);
                }
            }
        }
        Ok(())
    }

    /// Runs a transaction that was checked.
    fn txn(&mut self, before: &Model, request: &TxnRequest, next: i64) -> Result<TxnResponse, ApplyError> {
        let succeeded = request.compare.iter().all(|compare| before.holds(compare));
        let branch = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::new();
        for operation in branch {
            let response = match operation.request.as_ref().expect("an operation") {
                Request::RequestRange(request) => {
                    Response::ResponseRange(self.range(request, next, before.revision)?)
                }
                Request::RequestPut(request) => Response::ResponsePut(self.put(request, next)),
                Request::RequestDeleteRange(request) => Response::ResponseDeleteRange(self.delete(request, next)),
                Request::RequestTxn(request) => Response::ResponseTxn(self.txn(before, request, next)?),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: header(0), succeeded, responses })
    }

    fn wrote(&self, next: i64) -> bool {
        self.keys.values().any(|versions| versions.last().is_some_and(|(at, _)| *at == next))
    }

    pub(super) fn apply(&mut self, operation: &Operation) -> CommandResult {
        let before = self.clone();
        let next = self.revision + 1;
        let result = self.run(&before, operation, next);
        match result {
            Ok(result) => {
                if self.wrote(next) {
                    self.revision = next;
                }
                result
            }
            Err(error) => {
                *self = before;
                CommandResult::Error(error)
            }
        }
    }

    fn run(&mut self, before: &Model, operation: &Operation, next: i64) -> Result<CommandResult, ApplyError> {
        super::check(operation, usize::MAX)?;
        Ok(match operation {
            Operation::Put(request) => {
                self.check_put(request, false)?;
                CommandResult::Put(self.put(request, next))
            }
            Operation::DeleteRange(request) => CommandResult::DeleteRange(self.delete(request, next)),
            Operation::Txn(request) => {
                self.check(request)?;
                CommandResult::Txn(self.txn(before, request, next)?)
            }
            Operation::Compact(request) => {
                if request.revision <= self.compacted {
                    return Err(ApplyError::Compacted);
                }
                if request.revision > self.revision {
                    return Err(ApplyError::FutureRevision);
                }
                self.compacted = request.revision;
                CommandResult::Compact { revision: self.revision }
            }
            Operation::LeaseGrant { id, ttl } => {
                if !self.leases.insert(*id) {
                    return Err(ApplyError::LeaseExists);
                }
                CommandResult::LeaseGrant { id: *id, ttl: *ttl, revision: self.revision }
            }
            Operation::LeaseRevoke { id } => {
                if !self.leases.remove(id) {
                    return Err(ApplyError::LeaseNotFound);
                }
                let all = self.all(&[], &[0], next);
                for kv in all.iter().filter(|kv| kv.lease == *id) {
                    self.write(&kv.key, next, None);
                }
                CommandResult::LeaseRevoke { revision: self.revision + i64::from(self.wrote(next)) }
            }
            _ => CommandResult::Done { revision: self.revision },
        })
    }

    pub(super) fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        let all = self.all(&[], &[0], self.revision);
        all.into_iter().filter(|kv| kv.lease == id).map(|kv| kv.key).collect()
    }
}

fn equal(target: SortTarget, a: &KeyValue, b: &KeyValue) -> bool {
    match target {
        SortTarget::Key => a.key == b.key,
        SortTarget::Version => a.version == b.version,
        SortTarget::Create => a.create_revision == b.create_revision,
        SortTarget::Mod => a.mod_revision == b.mod_revision,
        SortTarget::Value => a.value == b.value,
    }
}
