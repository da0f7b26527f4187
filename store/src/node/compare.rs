//! Finds members that hold something else than the majority, and gives them the state of
//! the majority.
//!
//! Two comparisons: of the hash that is kept with every batch, often, as it costs nothing;
//! and of the contents read anew, rarely, which also finds what a disk has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use metrics::counter;
use quorate_proto::etcd::AlarmType;
use quorate_proto::raft as wire;
use quorate_proto::raft::state_hash_response::Answer as WireAnswer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Inner;
use crate::command::{AlarmChange, Operation};
use crate::mvcc::{Engine, ReadError};
use crate::peer::Lane;
use crate::raft::View;
use crate::raft::snapshot;

/// How long a peer may take to say what it has at hand.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a peer may take to read all it has: 100 GB at 10 MB/s.
const CONTENTS_TIMEOUT: Duration = Duration::from_secs(3 * 3600);
/// A state that takes longer to send is sent anew.
const RESEED_TIMEOUT: Duration = Duration::from_secs(3600);
/// Messages read ahead of the network.
const RESEED_QUEUE: usize = 4;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    Hashes,
    Contents,
}

/// What a member says it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Hash(u64),
    /// It cannot read what it holds.
    Damaged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// All who answered hold the same.
    Agree,
    /// These differ from a majority that agrees.
    Corrupt(Vec<u64>),
    /// Members differ, and there is no majority.
    Split,
    /// Too few answered to tell.
    Unknown,
}

/// Whom the majority of `voters` contradicts. Those who did not answer count against
/// every majority, and are accused of nothing.
fn judge(answers: &BTreeMap<u64, Answer>, voters: &BTreeSet<u64>) -> Verdict {
    let different: BTreeSet<Answer> = answers.values().copied().collect();
    if different.len() <= 1 && !different.contains(&Answer::Damaged) {
        return Verdict::Agree;
    }
    let votes = |wanted: Answer| {
        answers.iter().filter(|(member, answer)| **answer == wanted && voters.contains(member)).count()
    };
    let whole = different.iter().copied().filter(|answer| *answer != Answer::Damaged);
    match whole.max_by_key(|answer| votes(*answer)).filter(|answer| votes(*answer) > voters.len() / 2) {
        Some(held) => {
            let others = answers.iter().filter(|(_, answer)| **answer != held);
            Verdict::Corrupt(others.map(|(member, _)| *member).collect())
        }
        None if voters.iter().all(|voter| answers.contains_key(voter)) => Verdict::Split,
        None => Verdict::Unknown,
    }
}

/// On the leader: compares all members once, puts aside those that differ, and re-seeds
/// those that are put aside.
pub(super) async fn compare(inner: &Inner, depth: Depth) {
    if inner.leadership.borrow().is_none() {
        return;
    }
    let view = inner.raft.view();
    let own = inner.identity.member_id;
    if view.members.len() < 2 {
        return;
    }
    let answers = ask(inner, &view, depth).await;
    let voters: BTreeSet<u64> = view.members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id).collect();
    match judge(&answers, &voters) {
        Verdict::Agree | Verdict::Unknown => {}
        Verdict::Corrupt(members) => {
            for member in members {
                if inner.engine.alarm(member, AlarmType::Corrupt).is_none() {
                    tracing::error!(member = format!("{member:x}"), ?depth, "a member differs from the majority");
                    counter!("quorate_store_corrupt_members_total").increment(1);
                    inner.change_alarm_of(member, true, AlarmType::Corrupt).await;
                }
            }
        }
        Verdict::Split => {
            tracing::error!(?answers, ?depth, "members differ, and no majority agrees: the cluster stops");
            stop_cluster(inner, &answers).await;
        }
    }
    let Ok(_turn) = inner.house.reseeding.try_lock() else { return };
    for alarm in inner.engine.alarms().automatic() {
        if alarm.alarm() == AlarmType::Corrupt
            && alarm.member_id != own
            && let Some((node, _)) = view.members.get(&alarm.member_id)
        {
            match reseed(inner, alarm.member_id, &node.peer_address).await {
                Ok(()) => {
                    tracing::info!(member = format!("{:x}", alarm.member_id), "re-seeded a member");
                    inner.change_alarm_of(alarm.member_id, false, AlarmType::Corrupt).await;
                }
                // Tried again with the next comparison.
                Err(status) => tracing::warn!(%status, member = format!("{:x}", alarm.member_id), "not re-seeded yet"),
            }
        }
    }
}

/// Raises the alarm that stops the cluster, for every member that differs from this one:
/// which of them is right, only a person can tell.
async fn stop_cluster(inner: &Inner, answers: &BTreeMap<u64, Answer>) {
    let own = answers.get(&inner.identity.member_id);
    for (member, _) in answers.iter().filter(|(_, answer)| Some(*answer) != own) {
        let alarm = AlarmType::Corrupt.into();
        let change = AlarmChange { raise: true, member: *member, alarm, automatic: false };
        if inner.engine.alarm(*member, AlarmType::Corrupt) != Some(false)
            && let Err(error) = inner.proposer.propose(Operation::Alarm(change), None).await
        {
            tracing::warn!(%error, "an alarm was not raised yet");
        }
    }
}

async fn ask(inner: &Inner, view: &View, depth: Depth) -> BTreeMap<u64, Answer> {
    let own = inner.identity.member_id;
    let (index, hash) = inner.engine.applied_hash();
    let (revision, compact_revision) = match depth {
        Depth::Hashes => (0, 0),
        Depth::Contents => (inner.engine.revision(), inner.engine.compact_revision()),
    };
    let question = wire::StateHashRequest { origin: None, index, revision, compact_revision };
    let limit = if depth == Depth::Hashes { ANSWER_TIMEOUT } else { CONTENTS_TIMEOUT };
    let peers = view.members.iter().filter(|(id, _)| **id != own).map(|(id, (node, _))| async move {
        let question = wire::StateHashRequest { origin: Some(inner.peers.origin(*id)), ..question };
        let mut client = inner.peers.client(*id, &node.peer_address, Lane::Presence);
        let answer = tokio::time::timeout(limit, client.state_hash(question)).await.ok()?.ok()?;
        let answer = match answer.into_inner().answer? {
            WireAnswer::Hash(hash) => Answer::Hash(hash),
            WireAnswer::Damaged(reason) => {
                tracing::error!(member = format!("{id:x}"), reason, "a member cannot read its state");
                Answer::Damaged
            }
        };
        Some((*id, answer))
    });
    let here = async {
        match depth {
            Depth::Hashes => Some(Answer::Hash(hash)),
            Depth::Contents => match contents(&inner.engine, revision, compact_revision).await? {
                Ok(hash) => Some(Answer::Hash(hash)),
                Err(_) => Some(Answer::Damaged),
            },
        }
    };
    let (theirs, here) = futures::join!(join_all(peers), here);
    theirs.into_iter().flatten().chain(here.map(|answer| (own, answer))).collect()
}

/// Reads everything and sums it up. None when it cannot be compared: something else is
/// compacted by now.
pub(crate) async fn contents(engine: &Arc<Engine>, revision: i64, compacted: i64) -> Option<Result<u64, String>> {
    let engine = Arc::clone(engine);
    let hash = tokio::task::spawn_blocking(move || engine.hash_kv_slowly(revision)).await.ok()?;
    match hash {
        Ok(hash) => (hash.compact_revision == compacted).then_some(Ok(hash.hash.into())),
        Err(ReadError::Apply(_)) => None,
        Err(ReadError::Engine(error)) => Some(Err(error.to_string())),
    }
}

/// Sends this member's state to one that holds another.
async fn reseed(inner: &Inner, member: u64, address: &str) -> Result<(), Status> {
    let internal = |error: String| Status::internal(format!("quorate: {error}"));
    let checkpoint = inner.raft.checkpoint().await.map_err(|error| internal(error.to_string()))?;
    let mut client = inner.peers.client(member, address, Lane::Snapshots);
    let origin = inner.peers.origin(member);
    let (sender, receiver) = mpsc::channel(RESEED_QUEUE);
    let reader = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let directory = checkpoint.directory;
        let files = snapshot::describe(directory.path())?;
        let header = wire::ReseedHeader { origin: Some(origin), index: checkpoint.index, files: files.clone() };
        let send = |part| sender.blocking_send(wire::ReseedChunk { part: Some(part) }).is_ok();
        if send(wire::reseed_chunk::Part::Header(header)) {
            snapshot::read_files(directory.path(), &files, |data| send(wire::reseed_chunk::Part::Data(data)))?;
        }
        Ok(())
    });
    let answer = tokio::time::timeout(RESEED_TIMEOUT, client.reseed(ReceiverStream::new(receiver))).await;
    if let Ok(Err(error)) = reader.await {
        return Err(internal(format!("cannot read the state to send: {error}")));
    }
    answer.map_err(|_| Status::deadline_exceeded("quorate: the member takes too long"))?.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_says_who_is_corrupt() {
        use Answer::{Damaged, Hash};
        let check = |voters: &[u64], answers: &[(u64, Answer)], expected: Verdict| {
            let judged = judge(&answers.iter().copied().collect(), &voters.iter().copied().collect());
            assert_eq!(judged, expected, "{voters:?} {answers:?}");
        };
        let three = &[1, 2, 3];
        check(three, &[(1, Hash(7)), (2, Hash(7)), (3, Hash(7))], Verdict::Agree);
        check(three, &[(1, Hash(7)), (2, Hash(7)), (3, Hash(8))], Verdict::Corrupt(vec![3]));
        check(three, &[(1, Hash(8)), (2, Hash(7)), (3, Hash(7))], Verdict::Corrupt(vec![1]));
        check(three, &[(1, Hash(7)), (2, Hash(7)), (3, Damaged)], Verdict::Corrupt(vec![3]));
        check(three, &[(1, Hash(7)), (2, Hash(8))], Verdict::Unknown);
        check(three, &[(1, Hash(7)), (2, Damaged)], Verdict::Unknown);
        check(three, &[(1, Hash(7))], Verdict::Agree);
        check(three, &[], Verdict::Agree);
        check(three, &[(1, Hash(7)), (2, Hash(8)), (3, Hash(9))], Verdict::Split);
        check(three, &[(1, Damaged), (2, Damaged), (3, Hash(9))], Verdict::Split);
        check(&[1, 2], &[(1, Hash(7)), (2, Hash(8))], Verdict::Split);
        // A learner is judged, and judges nobody.
        check(&[1, 2], &[(1, Hash(7)), (2, Hash(7)), (3, Hash(8))], Verdict::Corrupt(vec![3]));
        check(&[1], &[(1, Hash(7)), (2, Hash(8)), (3, Hash(8))], Verdict::Corrupt(vec![2, 3]));
        let five = &[1, 2, 3, 4, 5];
        check(five, &[(1, Hash(7)), (2, Hash(7)), (3, Hash(7)), (4, Hash(8))], Verdict::Corrupt(vec![4]));
        check(five, &[(1, Hash(7)), (2, Hash(7)), (3, Hash(8)), (4, Hash(8))], Verdict::Unknown);
    }
}
