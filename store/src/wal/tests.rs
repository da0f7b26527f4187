//! Crashes at every operation, from seeds: what was confirmed survives.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::fs::{Fault, Faulty, Memory};

const SEGMENT: u64 = 8192;

fn config() -> Config {
    Config { directory: "/log".into(), segment_size_bytes: SEGMENT, ring_size_bytes: 2048 }
}

fn entry(term: u64, index: u64, fill: usize) -> LogEntry {
    let text = format!("{term}.{index}-");
    let payload = Bytes::from(text.repeat(1 + fill / text.len()));
    LogEntry { id: EntryId { term, node: 1, index }, payload }
}

fn open(disk: &Memory) -> (Wal, Recovered) {
    Wal::open(config(), Arc::new(disk.clone())).expect("the log opens")
}

/// What was asked for and what was confirmed.
#[derive(Clone, Default)]
struct History {
    /// The log after everything asked for.
    asked: Vec<LogEntry>,
    purge_asked: u64,
    vote: u64,
    vote_asked: u64,
}

/// Runs a random history until the disk stops; then what was confirmed lies in `confirmed`.
fn run(wal: &Wal, seed: u64, confirmed: &Arc<Mutex<Vec<LogEntry>>>) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut history = History::default();
    let mut term = 1;
    for _ in 0..60 {
        let last = history.asked.last().map_or(history.purge_asked, |entry| entry.id.index);
        let failed = match random.random_range(0..10) {
            0 => {
                history.vote_asked = term + 1;
                let saved = runtime.block_on(wal.save_vote(vote_bytes(term + 1)));
                if saved.is_ok() {
                    term += 1;
                    history.vote = term;
                }
                saved.is_err()
            }
            1 if last > history.purge_asked + 2 => {
                let upto = random.random_range(history.purge_asked + 1..last);
                let position = (upto - history.asked[0].id.index) as usize;
                let id = history.asked[position].id;
                history.asked.drain(..=position);
                history.purge_asked = upto;
                wal.purge(id).is_err()
            }
            2 if history.asked.len() > 3 => {
                // Raft truncates only in a later term.
                term += 1;
                let keep = random.random_range(1..history.asked.len());
                history.asked.truncate(keep);
                let last = history.asked[keep - 1].id;
                wal.truncate_after(Some(last)).is_err()
            }
            _ => {
                let count = random.random_range(1..6);
                let entries: Vec<_> = (1..=count).map(|n| entry(term, last + n, random.random_range(1..900))).collect();
                history.asked.extend(entries.iter().cloned());
                let confirmed = confirmed.clone();
                let own = entries.clone();
                let done = move |result: io::Result<()>| {
                    if result.is_ok() {
                        confirmed.lock().expect("lock").extend(own);
                    }
                };
                wal.append(entries, done).is_err()
            }
        };
        if failed {
            break;
        }
    }
    history
}

fn vote_bytes(term: u64) -> Bytes {
    Bytes::from(term.to_be_bytes().to_vec())
}

fn all(wal: &Wal) -> Vec<LogEntry> {
    let state = wal.state();
    let start = state.purged.map_or(1, |id| id.index + 1);
    let end = state.last.map_or(start, |id| id.index + 1);
    let mut entries = Vec::new();
    let mut at = start;
    while at < end {
        let read = wal.read(at..end, 4000).expect("a read");
        assert!(!read.is_empty(), "entry {at} of {start}..{end} is missing");
        at += read.len() as u64;
        entries.extend(read);
    }
    entries
}

fn check_survival(seed: u64, at: u64) -> bool {
    let disk = Memory::new();
    drop(open(&disk));
    let faulty = Faulty::new(Arc::new(disk.clone()), at, Fault::Stop);
    let confirmed = Arc::new(Mutex::new(Vec::new()));
    let mut history = History::default();
    if let Ok((wal, _)) = Wal::open(config(), Arc::new(faulty.clone())) {
        history = run(&wal, seed, &confirmed);
        wal.close();
    }
    let context = format!("seed {seed}, crash at operation {at}");
    let crashed = disk.crash(seed.wrapping_mul(31).wrapping_add(at) % 5);
    let (wal, recovered) =
        Wal::open(config(), Arc::new(crashed.clone())).unwrap_or_else(|error| panic!("{context}: {error}"));
    let entries = all(&wal);
    let purged = recovered.state.purged.map_or(0, |id| id.index);
    assert!(purged <= history.purge_asked, "{context}: purged {purged}");
    for pair in entries.windows(2) {
        assert_eq!(pair[0].id.index + 1, pair[1].id.index, "{context}: a hole");
    }
    // A truncation that was asked for may or may not have become durable; entries that
    // it did not touch must be there.
    let wanted = |entry: &&LogEntry| entry.id.index > purged && history.asked.contains(entry);
    for entry in confirmed.lock().expect("lock").iter().filter(wanted) {
        let found = entries.iter().find(|other| other.id.index == entry.id.index);
        assert_eq!(found, Some(entry), "{context}: a confirmed entry is lost");
    }
    let vote = recovered.vote.map_or(0, |vote| u64::from_be_bytes(vote[..].try_into().expect("a vote")));
    assert!(vote == history.vote || vote == history.vote_asked, "{context}: vote {vote}, confirmed {}", history.vote);
    // And the log goes on, through one more life.
    let next = recovered.state.last.map_or(1, |id| id.index + 1);
    let (sender, done) = std::sync::mpsc::channel();
    wal.append(vec![entry(99, next, 100)], move |result| sender.send(result).expect("a receiver")).expect("an append");
    done.recv().expect("an answer").expect("a durable entry");
    drop(wal);
    let (wal, _) = open(&crashed.crash(0));
    assert_eq!(wal.state().last.map(|id| (id.term, id.index)), Some((99, next)), "{context}");
    faulty.operations() < at
}

/// Replay one with: `cargo test -p quorate-store crash_at_every_operation`; the message of
/// a failure holds the seed and the operation for `check_survival`.
#[test]
fn a_crash_at_every_operation_loses_nothing_confirmed() {
    for seed in 1..=12 {
        for at in 0..400 {
            if check_survival(seed, at) {
                break;
            }
        }
    }
}

#[test]
fn a_failed_write_or_sync_stops_the_log() {
    for fault in [Fault::Error(io::ErrorKind::StorageFull), Fault::ShortWrite] {
        for at in 0..80 {
            let disk = Memory::new();
            drop(open(&disk));
            let faulty = Faulty::new(Arc::new(disk.clone()), at, fault);
            let Ok((wal, _)) = Wal::open(config(), Arc::new(faulty)) else { continue };
            let confirmed = Arc::new(Mutex::new(Vec::new()));
            let history = run(&wal, at + 1, &confirmed);
            wal.close();
            let (recovered, _) = open(&disk.crash(0));
            let entries = all(&recovered);
            let purged = recovered.state().purged.map_or(0, |id| id.index);
            let wanted = |entry: &&LogEntry| entry.id.index > purged && history.asked.contains(entry);
            for entry in confirmed.lock().expect("lock").iter().filter(wanted) {
                assert!(entries.contains(entry), "{fault:?} at {at}: entry {:?} is lost", entry.id);
            }
        }
    }
}

fn filled(disk: &Memory, count: u64) {
    let (wal, _) = open(disk);
    for index in 1..=count {
        let (sender, done) = std::sync::mpsc::channel();
        wal.append(vec![entry(1, index, 200)], move |result| sender.send(result).expect("a receiver"))
            .expect("an append");
        done.recv().expect("an answer").expect("a durable entry");
    }
}

#[test]
fn a_bit_flipped_before_the_tail_refuses_with_file_and_offset() {
    let clean = Memory::new();
    filled(&clean, 60);
    let first = Path::new("/log/0000000000000001.wal");
    let mut refused = 0;
    for offset in (0..SEGMENT).step_by(97) {
        let disk = clean.crash(0);
        disk.flip_bit(first, offset, 3).expect("a flip");
        match Wal::open(config(), Arc::new(disk)) {
            Err(WalError::Damaged { path, .. }) => {
                assert_eq!(path, first);
                refused += 1;
            }
            Err(other) => panic!("offset {offset}: {other}"),
            // The zeros after the last record of a segment are nobody's data.
            Ok((wal, _)) => assert_eq!(all(&wal).len(), 60, "offset {offset}: entries are lost"),
        }
    }
    assert!(refused > 70, "only {refused} flips were noticed");
}

#[test]
fn a_bit_flipped_in_the_last_record_is_a_torn_tail() {
    let disk = Memory::new();
    filled(&disk, 3);
    let file = Path::new("/log/0000000000000001.wal");
    // Three records of at least 200 bytes each: byte 600 is in the third.
    disk.flip_bit(file, 700, 0).expect("a flip");
    let (wal, recovered) = open(&disk);
    assert!(recovered.truncated_tail);
    assert_eq!(wal.state().last.map(|id| id.index), Some(2));
}

#[test]
fn segments_are_recycled_after_a_purge() {
    let disk = Memory::new();
    let (wal, _) = open(&disk);
    for index in 1..=400 {
        wal.append(vec![entry(1, index, 300)], |_| ()).expect("an append");
        if index % 50 == 0 {
            wal.purge(EntryId { term: 1, node: 1, index: index - 10 }).expect("a purge");
        }
    }
    wal.close();
    let names = disk.list(Path::new("/log")).expect("names");
    assert!(names.len() <= 6, "segments pile up: {names:?}");
    drop(wal);
    let (wal, recovered) = open(&disk);
    assert_eq!(recovered.state.purged.map(|id| id.index), Some(390));
    assert_eq!(all(&wal).len(), 10);
}

#[test]
fn a_purge_beyond_the_end_moves_the_log() {
    let disk = Memory::new();
    filled(&disk, 5);
    let (wal, _) = open(&disk);
    let snapshot = EntryId { term: 4, node: 2, index: 100 };
    wal.purge(snapshot).expect("a purge");
    let hole = wal.append(vec![entry(4, 6, 1)], |_| ()).expect_err("a hole");
    assert!(matches!(hole, WalError::Hole { expected: 101, got: 6 }));
    wal.append(vec![entry(4, 101, 1)], |_| ()).expect("an append");
    assert!(matches!(wal.read(5..7, 10), Err(WalError::Purged { wanted: 5, last: 100 })));
    wal.close();
    drop(wal);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.state.purged, Some(snapshot));
    assert_eq!(recovered.state.last.map(|id| id.index), Some(101));
}

#[test]
fn a_record_larger_than_a_segment_is_kept() {
    let disk = Memory::new();
    let large = entry(1, 1, 3 * SEGMENT as usize);
    let (wal, _) = open(&disk);
    wal.append(vec![large.clone(), entry(1, 2, 10)], |_| ()).expect("an append");
    wal.append(vec![entry(1, 3, 10)], |_| ()).expect("an append");
    wal.close();
    drop(wal);
    let (wal, _) = open(&disk);
    assert_eq!(all(&wal).len(), 3);
    assert_eq!(wal.read(1..2, 1).expect("a read"), [large]);
}

#[test]
fn a_large_append_is_not_one_record() {
    let (wal, _) = open(&Memory::new());
    let (done, saved) = std::sync::mpsc::channel();
    let entries = (1..=40).map(|index| entry(1, index, 1 << 20)).collect();
    wal.append(entries, move |result| drop(done.send(result))).expect("an append");
    saved.recv().expect("an answer").expect("it is durable");
    let mut places = Vec::new();
    for slot in wal.0.shared.log().slots(1, 41).expect("they are there") {
        places.push(slot.location.expect("it is on the disk"));
    }
    places.dedup();
    // An entry that is read back brings its whole record.
    assert!(places.len() >= 5, "40 MiB lie in {places:?}");
}
