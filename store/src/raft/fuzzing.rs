//! The way of a peer's message into the library's types, for the fuzzer.

use bytes::Bytes;
use quorate_proto::raft as wire;

use super::types;

pub(crate) fn append_request(request: wire::AppendRequest) {
    if let Ok(request) = types::append_from_wire(request) {
        for entry in request.entries {
            let again = types::entry_from_log(types::entry_to_log(&entry));
            assert!(again.is_ok_and(|again| again == entry), "an entry reads back as written");
        }
    }
}

pub(crate) fn append_response(response: wire::AppendResponse) {
    if let Ok(result) = types::append_result_from_wire(response) {
        types::append_result_to_wire(result);
    }
}

pub(crate) fn vote(bytes: Bytes) {
    if let Ok(vote) = types::decode_vote(bytes) {
        assert_eq!(types::decode_vote(types::encode_vote(&vote)).ok(), Some(vote), "a vote reads back as written");
    }
}

pub(crate) fn stored_membership(bytes: Bytes) {
    if let Ok(stored) = types::decode_stored(Some(bytes)) {
        let again = types::stored_from_wire(types::stored_to_wire(&stored));
        assert!(again.is_ok_and(|again| again == stored), "a membership reads back as written");
    }
}

pub(crate) fn snapshot_header(header: wire::SnapshotHeader) {
    let _ = types::required_vote(header.vote);
    let _ = types::snapshot_meta_from_wire(header.last_log_id, header.membership);
}
