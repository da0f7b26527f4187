//! Clients: one operation at a time, asked again until its outcome is known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcd::{PutRequest, RangeRequest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Planted;
use super::check::{History, Seen};
use super::cluster::{Access, Cluster, MEMBERS};
use crate::command::{ApplyError, Command, CommandResult, Operation, RequestId};
use crate::raft::{self, Proposal};

const KEYS: u64 = 5;
const PAUSE_MILLIS: std::ops::Range<u64> = 0..40;

/// Of so many operations one is a read.
const READ_ONE_OF: u32 = 3;

/// How long one member is waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(700);
const RETRY: Duration = Duration::from_millis(20);

/// Until the cluster stops its clients; what has begun then is not waited for.
pub(super) async fn run(client: u64, cluster: Cluster, history: History, planted: Planted, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sequence = 0;
    while !cluster.stopping().is_cancelled() {
        tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MILLIS))).await;
        let key = Bytes::from(format!("k{}", random.random_range(0..KEYS)));
        sequence += 1;
        if random.random_range(0..READ_ONE_OF) == 0 {
            let begun = history.begin();
            let stop = cluster.stopping();
            let read = stop.run_until_cancelled(read(&cluster, &key, planted, &mut random)).await;
            if let Some(seen) = read {
                history.read(begun, key, seen);
            }
        } else {
            let value = Bytes::from(format!("{client}.{sequence}"));
            let begun = history.write(key.clone(), value.clone());
            let put = PutRequest { key, value, ..PutRequest::default() };
            let stop = cluster.stopping();
            let written = write(&cluster, put, (client, sequence), planted, &mut random);
            if let Some(revision) = stop.run_until_cancelled(written).await {
                history.written(begun, revision);
            }
        }
    }
}

/// The member that is asked next: the leader as a rule, any other by chance.
pub(super) fn next(cluster: &Cluster, random: &mut StdRng) -> Option<Access> {
    let any = random.random_range(1..=MEMBERS);
    let leader = cluster.leader().filter(|_| random.random_range(0..4) > 0);
    cluster.access(leader.unwrap_or(any))
}

/// The revision of the write, once it is known.
async fn write(
    cluster: &Cluster,
    put: PutRequest,
    (client, sequence): (u64, u64),
    planted: Planted,
    random: &mut StdRng,
) -> i64 {
    let mut since = None;
    let mut attempt = 0;
    loop {
        if let Some(member) = next(cluster, random) {
            // What the proposer had applied before it first asked.
            let since = *since.get_or_insert(member.applied.borrow().index);
            attempt += 1;
            let sequence = match planted {
                Planted::NoRequestIds => sequence * 1_000_000 + attempt,
                _ => sequence,
            };
            let request = Some(RequestId { client, sequence, since });
            let command = Command { request, ..Command::new(Operation::Put(put.clone())) };
            let asked = tokio::time::timeout(PATIENCE, propose(&member, &command));
            if let Some(Ok(Some(CommandResult::Put(answer)))) = member.dead.run_until_cancelled(asked).await {
                return answer.header.map_or(0, |header| header.revision);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

pub(super) async fn propose(member: &Access, command: &Command) -> Option<CommandResult> {
    let id = command.request?;
    let outcome = member.waiters.register(&id);
    let proposal = Proposal::new(command);
    let room = member.raft.room(proposal.len()).await?;
    let proposed = member.raft.propose(proposal, room).await;
    let told = match proposed {
        Ok(_) => outcome.await.ok(),
        Err(_) => None,
    };
    member.waiters.forget(&id);
    told.filter(|result| *result != CommandResult::Error(ApplyError::RequestExpired))
}

/// What the key holds, as some member says that has caught up with a leader.
async fn read(cluster: &Cluster, key: &Bytes, planted: Planted, random: &mut StdRng) -> Seen {
    loop {
        let (asked, reader) = (next(cluster, random), next(cluster, random));
        if let (Some(leader), Some(mut reader)) = (asked, reader) {
            let seen = async {
                let index = if planted == Planted::ReadsOfAnyLeader {
                    let view = leader.raft.view();
                    view.reign.leads().then_some(view.applied)?
                } else {
                    leader.raft.read_index().await.ok()?
                };
                raft::applied_at_least(&mut reader.applied, index).await.ok()?;
                look(&reader, key)
            };
            if let Ok(Some(seen)) = tokio::time::timeout(PATIENCE, seen).await {
                return seen;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn look(member: &Access, key: &Bytes) -> Option<Seen> {
    let engine = Arc::clone(&member.engine);
    let answer = engine.range(&RangeRequest { key: key.clone(), ..RangeRequest::default() }).ok()?;
    let revision = answer.header.as_ref()?.revision;
    Some(Seen { revision, value: answer.kvs.into_iter().next().map(|kv| (kv.mod_revision, kv.value)) })
}
