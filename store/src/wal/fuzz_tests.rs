//! Records and segments that are not what was written.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::record::{self, Operation, SegmentHeader};
use super::*;
use crate::fs::{Disk, Memory};
use crate::fuzz::fuzz;

fn entry(index: u64) -> LogEntry {
    LogEntry { id: EntryId { term: 1, node: 1, index }, payload: Bytes::from_static(b"payload") }
}

#[test]
fn records() {
    let id = entry(4).id;
    let operations = [
        Operation::Entries(vec![entry(4), entry(5)]),
        Operation::Vote(Bytes::from_static(b"vote")),
        Operation::Committed(Some(id)),
        Operation::TruncateAfter(None),
        Operation::Purge(id),
        Operation::State { purged: Some(id), vote: None, committed: Some(id) },
    ];
    let encode = |operations: &[Operation]| {
        let mut body = Vec::new();
        operations.iter().for_each(|operation| record::put_operation(&mut body, operation));
        body
    };
    let mut corpus: Vec<Vec<u8>> = operations.iter().map(|operation| encode(std::slice::from_ref(operation))).collect();
    corpus.push(encode(&operations));
    fuzz("record body", corpus, |input| {
        if let Ok(operations) = record::parse_body(Bytes::copy_from_slice(input)) {
            assert_eq!(record::parse_body(encode(&operations).into()), Ok(operations));
        }
    });
    let mut whole = Vec::new();
    record::begin(&mut whole);
    operations.iter().for_each(|operation| record::put_operation(&mut whole, operation));
    record::finish(&mut whole, 9, 0, 1, 1);
    let segment = SegmentHeader { log_id: 9, number: 1 }.encode().to_vec();
    fuzz("record header", vec![whole, segment], |input| {
        if let Some(header) = record::parse_header(input) {
            let _ = record::is_valid(9, &header, input);
        }
        let _ = SegmentHeader::decode(input);
    });
}

#[test]
fn segments() {
    let path = Path::new("/log");
    let config = || Config { directory: path.into(), segment_size_bytes: 8192, ring_size_bytes: 2048 };
    let disk = Memory::new();
    let (wal, _) = Wal::open(config(), Arc::new(disk.clone())).expect("a new log");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for index in 1..10 {
        let (done, written) = tokio::sync::oneshot::channel();
        let done = move |result: io::Result<()>| drop(done.send(result));
        wal.append(vec![entry(index)], done).expect("it takes it");
        runtime.block_on(written).expect("an answer").expect("written");
    }
    wal.close();
    drop(wal);
    let read = |name: &String| {
        let file = disk.open(&path.join(name)).expect("a segment");
        let mut bytes = vec![0; usize::try_from(file.size().expect("a size")).expect("it is small")];
        let count = file.read_at(&mut bytes, 0).expect("its bytes");
        bytes.truncate(count);
        bytes
    };
    let names = disk.list(path).expect("segments");
    let first = names.first().expect("a segment").clone();
    let others: Vec<(String, Vec<u8>)> = names.iter().skip(1).map(|name| (name.clone(), read(name))).collect();
    fuzz("segment", vec![read(&first)], |input| {
        let damaged = Memory::new();
        damaged.create_dir_all(path).expect("a directory");
        let write = |name: &String, bytes: &[u8]| {
            let file = damaged.create(&path.join(name)).expect("a file");
            file.write_all_at(bytes, 0).expect("written");
            file.sync_data().expect("synced");
        };
        write(&first, input);
        others.iter().for_each(|(name, bytes)| write(name, bytes));
        damaged.sync_dir(path).expect("synced");
        if let Ok((wal, recovered)) = Wal::open(config(), Arc::new(damaged)) {
            let last = recovered.state.last.map_or(0, |id| id.index);
            assert!(last <= 9, "an entry that was never written: {last}");
            wal.close();
        }
    });
}
