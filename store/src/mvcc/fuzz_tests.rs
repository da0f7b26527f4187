//! Rows that a damaged disk brings: refused or read, never a panic.

use super::rows::{self, Request, Revision, Row, State};
use crate::fuzz::fuzz;

#[test]
fn rows_of_the_state_machine() {
    let revision = Revision { main: 7, sub: 1 };
    let row = Row { revision, tombstone: false, create: 3, version: 2, lease: 1, value: "value".into() };
    let (mut version, mut change, mut key) = (Vec::new(), Vec::new(), Vec::new());
    rows::put_row(&mut version, &row);
    rows::put_change(&mut change, b"a\0key", true);
    rows::put_key_prefix(&mut key, b"a\0key");
    rows::put_version(&mut key, revision);
    let mut requests = Vec::new();
    for sequence in 1..3 {
        rows::put_request(&mut requests, Request { index: 9, client: 7, sequence, result: b"result" });
    }
    let state = State { revision: 7, compact_revision: 3, ..State::EMPTY }.encode().to_vec();
    let corpus = vec![
        version,
        change,
        key,
        requests,
        state,
        rows::change_key(revision).to_vec(),
        rows::lease_row(60, 30).to_vec(),
        rows::lease_key(5).to_vec(),
        rows::request_key(9).to_vec(),
        rows::attachment_key(5, b"key"),
    ];
    fuzz("rows", corpus, |input| {
        let _ = rows::parse_row(input, revision, true);
        let _ = rows::parse_change(input);
        let _ = rows::parse_change_key(input);
        let _ = rows::parse_lease_row(input);
        let _ = rows::parse_number(input);
        let mut rest = input;
        while let Ok(Some(_)) = rows::take_request(&mut rest) {}
        if let Ok(state) = State::decode(input) {
            assert_eq!(State::decode(&state.encode()).map(|again| again.encode()), Ok(state.encode()));
        }
        if let Ok((prefix, revision)) = rows::split_version(input)
            && let Ok(key) = rows::unescape(prefix)
        {
            let mut again = Vec::new();
            rows::put_key_prefix(&mut again, &key);
            rows::put_version(&mut again, revision);
            assert_eq!(again.len(), input.len(), "a key reads back as written");
        }
    });
}
