//! What peers send.

use bytes::Bytes;
use prost::Message;
use quorate_proto::raft as wire;
use wire::snapshot_chunk::Part;

use super::{encoded, fuzz};
use crate::raft::snapshot::{Area, Receiver};
use crate::raft::{Proposal, fuzzing};

fn origin() -> Option<wire::Origin> {
    Some(wire::Origin {
        cluster_id: 1,
        generation: 2,
        from_member: 3,
        to_member: 4,
        from_directory: 5,
        to_directory: 6,
    })
}

fn log_id(index: u64) -> Option<wire::LogId> {
    Some(wire::LogId { term: 3, index })
}

fn membership() -> wire::StoredMembership {
    let node = |id: u64| wire::Node { id, name: "n".into(), peer_address: "h:1".into(), ..Default::default() };
    let sets = vec![wire::VoterSet { voters: vec![1, 2] }];
    let membership = wire::Membership { sets, nodes: vec![node(1), node(2), node(3)] };
    wire::StoredMembership { log_id: log_id(4), membership: Some(membership) }
}

#[test]
fn entries_and_votes() {
    let vote = wire::Ballot { term: 3, candidate: 1, committed: true };
    let mut tagged = vec![2];
    tagged.extend(encoded(&membership().membership.unwrap_or_default()));
    let entry = |payload: Vec<u8>| wire::Entry { log_id: log_id(7), payload: payload.into() };
    let entries = vec![entry(vec![0]), entry(vec![1, 9, 9]), entry(tagged)];
    let append = wire::AppendRequest { vote: Some(vote), previous: log_id(6), entries, commit: log_id(5) };
    fuzz("append request", vec![encoded(&append)], |input| {
        if let Ok(request) = wire::AppendRequest::decode(Bytes::copy_from_slice(input)) {
            fuzzing::append_request(request);
        }
    });
    let matched = wire::append_response::Result::Matched(wire::Matched { last: log_id(8) });
    fuzz("append response", vec![encoded(&wire::AppendResponse { result: Some(matched) })], |input| {
        if let Ok(response) = wire::AppendResponse::decode(input) {
            fuzzing::append_response(response);
        }
    });
    fuzz("vote", vec![encoded(&vote)], |input| {
        fuzzing::vote(Bytes::copy_from_slice(input));
    });
    fuzz("membership", vec![encoded(&membership())], |input| {
        fuzzing::stored_membership(Bytes::copy_from_slice(input));
    });
    fuzz("forwarded command", vec![vec![1, 1, 0, 9]], |input| {
        if let Some(proposal) = Proposal::from_wire(Bytes::copy_from_slice(input)) {
            let _ = crate::command::Command::decode(proposal.command());
        }
    });
}

#[test]
fn snapshots() {
    let directory = tempfile::tempdir().expect("a directory");
    let area = Area::open(directory.path().join("area")).expect("an area");
    let file = |name: &str, size_bytes| wire::SnapshotFile { name: name.into(), size_bytes, ..Default::default() };
    let files = [file("a.sst", 3), file("CURRENT", 0), file("../b", 1), file("/c", u64::MAX)];
    let header = |files: Vec<wire::SnapshotFile>| wire::SnapshotHeader {
        origin: origin(),
        last_log_id: log_id(9),
        membership: Some(membership()),
        following: (0..4).take(files.len()).collect(),
        files,
        ..Default::default()
    };
    let corpus = (0..=files.len())
        .map(|count| encoded(&wire::SnapshotChunk { part: Some(Part::Header(header(files[..count].to_vec()))) }));
    fuzz("snapshot header", corpus.collect(), |input| {
        let Ok(chunk) = wire::SnapshotChunk::decode(Bytes::copy_from_slice(input)) else { return };
        let Some(Part::Header(header)) = chunk.part else { return };
        if area.missing(&header.files).is_err() {
            return;
        }
        let Ok(mut receiver) = Receiver::new(&area, &header) else { return };
        if receiver.write(b"some bytes of files").is_ok() {
            let _ = receiver.finish();
        }
        fuzzing::snapshot_header(header);
    });
    let beside: Vec<_> = std::fs::read_dir(directory.path()).expect("it is there").flatten().collect();
    assert_eq!(beside.len(), 1, "nothing is written beside the area: {beside:?}");
    let left = std::fs::read_dir(directory.path().join("area")).expect("it is there").flatten();
    let others: Vec<_> = left.filter(|entry| entry.file_name() != "incoming").collect();
    assert!(others.is_empty(), "what was refused leaves nothing but what has arrived: {others:?}");
}
