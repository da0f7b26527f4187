//! What clients were told, held against what the cluster holds in the end.
//!
//! Every operation names a revision: a write its own, a read that of the store when it
//! looked. If what each was told is what the store was at that revision, and no operation
//! that began after another had ended has a lower revision (for writes: none but a higher),
//! then the order of revisions explains every answer, and the run is strictly serializable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_proto::etcd::RangeRequest;

use crate::mvcc::{Engine, KeyRange};

/// What a read saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The store's.
    pub(super) revision: i64,
    /// The key's last revision and value.
    pub(super) value: Option<(i64, Bytes)>,
}

#[derive(Clone, Debug)]
enum What {
    Write(Bytes),
    Read(Option<(i64, Bytes)>),
}

#[derive(Clone, Debug)]
struct Operation {
    key: Bytes,
    what: What,
    /// Its place among all beginnings and ends.
    begun: usize,
    /// The same, and the revision it named, if its outcome is known.
    ended: Option<(usize, i64)>,
}

#[derive(Default)]
struct Record {
    /// Of beginnings and ends.
    clock: usize,
    operations: Vec<Operation>,
}

/// What clients did and saw. Clones are of the same one.
#[derive(Clone, Default)]
pub(super) struct History(Arc<Mutex<Record>>);

impl History {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment at which a read begins.
    pub(super) fn begin(&self) -> usize {
        let mut record = self.lock();
        record.clock += 1;
        record.clock
    }

    pub(super) fn read(&self, begun: usize, key: Bytes, seen: Seen) {
        let mut record = self.lock();
        record.clock += 1;
        let ended = Some((record.clock, seen.revision));
        record.operations.push(Operation { key, what: What::Read(seen.value), begun, ended });
    }

    /// A write begins; returns its number.
    pub(super) fn write(&self, key: Bytes, value: Bytes) -> usize {
        let begun = self.begin();
        let mut record = self.lock();
        record.operations.push(Operation { key, what: What::Write(value), begun, ended: None });
        record.operations.len() - 1
    }

    pub(super) fn written(&self, number: usize, revision: i64) {
        let mut record = self.lock();
        record.clock += 1;
        let ended = Some((record.clock, revision));
        record.operations[number].ended = ended;
    }

    /// How many operations ended, all of them as they should.
    ///
    /// # Errors
    /// The first that did not.
    pub(super) fn check(&self, engine: &Engine) -> Result<usize, String> {
        let record = self.lock();
        once(engine)?;
        for operation in &record.operations {
            told_the_truth(engine, operation)?;
        }
        in_order(&record.operations)?;
        Ok(record.operations.iter().filter(|operation| operation.ended.is_some()).count())
    }
}

/// No write took effect twice: each value is of its own.
fn once(engine: &Engine) -> Result<(), String> {
    let mut found: BTreeMap<Bytes, i64> = BTreeMap::new();
    changes(engine, KeyRange::From(&Bytes::from_static(&[0])), |revision, value| {
        let Some(before) = found.insert(value.clone(), revision) else { return Ok(()) };
        let value = String::from_utf8_lossy(value).into_owned();
        Err(format!("write {value} took effect twice, at revisions {before} and {revision}"))
    })
}

/// Visits every value that was ever written to `range`, in the order of revisions.
pub(super) fn changes(
    engine: &Engine,
    range: KeyRange<'_>,
    mut visit: impl FnMut(i64, &Bytes) -> Result<(), String>,
) -> Result<(), String> {
    let mut from = 1;
    loop {
        let history = engine.changes(from, range, 1_000, 1 << 20).map_err(|error| error.to_string())?;
        for change in &history.changes {
            visit(change.row.revision.main, &change.row.value)?;
        }
        if history.upto >= engine.revision() {
            return Ok(());
        }
        from = history.upto + 1;
    }
}

/// What the operation was told is what the store was at its revision.
fn told_the_truth(engine: &Engine, operation: &Operation) -> Result<(), String> {
    let Some((_, revision)) = operation.ended else { return Ok(()) };
    let request = RangeRequest { key: operation.key.clone(), revision, ..RangeRequest::default() };
    let answer = engine.range(&request).map_err(|error| format!("{operation:?} is lost: {error}"))?;
    let held = answer.kvs.into_iter().next().map(|kv| (kv.mod_revision, kv.value));
    match &operation.what {
        What::Write(value) if held != Some((revision, value.clone())) => {
            Err(format!("{operation:?} is lost: at its revision there is {held:?}"))
        }
        What::Read(seen) if *seen != held => Err(format!("{operation:?} saw what never was: there is {held:?}")),
        _ => Ok(()),
    }
}

/// Who begins after another has ended comes after it.
fn in_order(operations: &[Operation]) -> Result<(), String> {
    let mut ends: Vec<(usize, i64, &Operation)> = operations
        .iter()
        .filter_map(|operation| operation.ended.map(|(at, revision)| (at, revision, operation)))
        .collect();
    ends.sort_by_key(|(at, ..)| *at);
    let mut begins: Vec<&Operation> = operations.iter().filter(|operation| operation.ended.is_some()).collect();
    begins.sort_by_key(|operation| operation.begun);
    let mut passed = ends.iter().peekable();
    let mut newest: Option<(i64, &Operation)> = None;
    for operation in begins {
        while let Some((_, revision, ended)) = passed.next_if(|(at, ..)| *at < operation.begun) {
            if newest.is_none_or(|(before, _)| before < *revision) {
                newest = Some((*revision, ended));
            }
        }
        let (Some((_, revision)), Some((before, ended))) = (operation.ended, newest) else { continue };
        let too_low = match operation.what {
            What::Write(_) => revision <= before,
            What::Read(_) => revision < before,
        };
        if too_low {
            return Err(format!("stale: {operation:?} began after {ended:?} had ended"));
        }
    }
    Ok(())
}
