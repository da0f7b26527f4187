//! Bytes that nobody sane sent, for every decoder: it may refuse them, and no more.
//!
//! Each test runs for a moment, or for `QUORATE_FUZZ_SECONDS`. A failure prints the seed
//! and the input; `SEED` replays it.

mod clients;
mod peers;

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How long a decoder is tried, unless told otherwise.
const MOMENT: Duration = Duration::from_millis(300);

/// Random inputs that begin with nothing are so long at most.
const MAX_RANDOM_LEN: usize = 300;

/// More memory than all tests of this process take together, and less than a length
/// that was believed would take.
const MAX_RESIDENT_BYTES: usize = 2 << 30;

const LOOK_AT_MEMORY_EVERY: u64 = 16;

/// Says how to repeat what failed.
struct Trial<'a> {
    name: &'static str,
    seed: u64,
    input: &'a [u8],
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Trial { name, seed, input } = self;
            eprintln!("{name}: failed on {input:02x?}\nreplay with SEED={seed} cargo test -p quorate-store fuzz");
        }
    }
}

/// Makes inputs from valid ones.
pub(crate) struct Inputs {
    random: StdRng,
    corpus: Vec<Vec<u8>>,
}

impl Inputs {
    fn next(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        if self.corpus.is_empty() || random.random_ratio(1, 10) {
            let length = random.random_range(0..MAX_RANDOM_LEN);
            return (0..length).map(|_| random.random()).collect();
        }
        let mut input = self.corpus[random.random_range(0..self.corpus.len())].clone();
        for _ in 0..random.random_range(1..4) {
            self.mutate(&mut input);
        }
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.random_range(0..=input.len());
        match random.random_range(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => input.truncate(at),
            3 => {
                // Numbers at the edges: lengths, revisions, counts.
                let edge: &[u8] = match random.random_range(0..4) {
                    0 => &[255; 8],
                    1 => &[0; 8],
                    2 => &[255, 255, 255, 127],
                    _ => &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                };
                let end = (at + edge.len()).min(input.len());
                input.splice(at..end, edge.iter().copied());
            }
            4 => {
                let piece: Vec<u8> = input[at..].to_vec();
                input.extend(piece);
            }
            5 => {
                let other = &self.corpus[random.random_range(0..self.corpus.len())];
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.insert(at, random.random()),
        }
    }
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// Tries `decode` on inputs made from `corpus`, which it must take as they are.
pub(crate) fn fuzz(name: &'static str, corpus: Vec<Vec<u8>>, mut decode: impl FnMut(&[u8])) {
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let seconds = std::env::var("QUORATE_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let budget = seconds.map_or(MOMENT, Duration::from_secs);
    let began = Instant::now();
    for input in &corpus {
        let trial = Trial { name, seed, input };
        decode(trial.input);
    }
    let mut inputs = Inputs { random: StdRng::seed_from_u64(seed), corpus };
    let mut count = 0u64;
    while began.elapsed() < budget {
        let input = inputs.next();
        let trial = Trial { name, seed, input: &input };
        decode(trial.input);
        count += 1;
        if count.is_multiple_of(LOOK_AT_MEMORY_EVERY) {
            let resident = resident_bytes();
            assert!(resident < MAX_RESIDENT_BYTES, "{name}: {resident} bytes resident, SEED={seed}");
        }
    }
    eprintln!("{name}: {count} inputs, SEED={seed}");
}

/// Messages with every field set to something, as far as a few bytes reach.
pub(crate) fn encoded(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

#[test]
fn the_fuzzer_finds_a_planted_panic() {
    let found = std::panic::catch_unwind(|| {
        fuzz("planted", vec![b"length 4".to_vec()], |input| {
            assert!(!input.starts_with(b"length") || input.ends_with(b"4"), "a believed length");
        });
    });
    assert!(found.is_err());
}

#[test]
fn commands_and_results_of_commands() {
    use crate::command::{ApplyError, Command, CommandResult, Operation, RequestId};
    use quorate_proto::etcd::{PutRequest, PutResponse, ResponseHeader, TxnRequest, TxnResponse};
    let put = PutRequest { key: "k".into(), value: "v".into(), lease: 7, ..Default::default() };
    let txn = TxnRequest { compare: vec![Default::default()], ..Default::default() };
    let request = Some(RequestId { client: 1, sequence: 2, since: 3 });
    let operations = [
        Operation::Put(put),
        Operation::Txn(txn),
        Operation::LeaseGrant { id: 5, ttl: 60 },
        Operation::LeaseCheckpoint(vec![(1, 2), (3, 4)]),
        Operation::MemberAttributes { member: 7, attributes: "x".into() },
    ];
    let commands = operations.map(|operation| Command { request, ..Command::new(operation) }.encode().to_vec());
    fuzz("command", commands.into(), |input| {
        let Ok(command) = Command::decode(Bytes::copy_from_slice(input)) else { return };
        // What was understood is said again in as many bytes, or a few more.
        assert!(command.encode().len() <= 8 * input.len() + 64, "{} bytes of {}", command.encode().len(), input.len());
        assert_eq!(Command::decode(command.encode()).expect("its own bytes"), command);
    });
    let header = Some(ResponseHeader { revision: 9, ..Default::default() });
    let results = [
        CommandResult::Put(PutResponse { header, ..Default::default() }),
        CommandResult::Txn(TxnResponse { header, succeeded: true, ..Default::default() }),
        CommandResult::LeaseGrant { id: 1, ttl: 2, revision: 3 },
        CommandResult::Error(ApplyError::Compacted),
        CommandResult::Error(ApplyError::Undecodable("because".into())),
    ];
    let results = results.map(|result| result.encode().to_vec());
    fuzz("command result", results.into(), |input| {
        let Ok(result) = CommandResult::decode(Bytes::copy_from_slice(input)) else { return };
        assert_eq!(CommandResult::decode(result.encode()).expect("its own bytes"), result);
    });
}
