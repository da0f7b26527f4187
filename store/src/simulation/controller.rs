//! Controllers: one beside each member, which acts while that leads, and through whichever
//! member it reaches.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcd::PutRequest;
use quorate_proto::fence::Fence;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Planted;
use super::check;
use super::client::{PATIENCE, next, propose};
use super::cluster::Cluster;
use super::member::TIMING;
use crate::command::{Command, Operation, RequestId};
use crate::mvcc::{Engine, KeyRange};

/// Holds the term in which a controller acted last, and which one.
static KEY: Bytes = Bytes::from_static(b"controllers");

const PAUSE_MILLIS: std::ops::Range<u64> = 5..60;

/// Between what a controller sees and what it does about it.
const THOUGHT_MILLIS: std::ops::Range<u64> = 0..30;

/// Their ids as clients begin behind those of others.
const FIRST_CLIENT: u64 = 1_000;

/// The controller beside `member`, until the cluster stops its clients.
pub(super) async fn run(member: u64, cluster: Cluster, planted: Planted, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let stop = cluster.stopping();
    for sequence in 1.. {
        let act = async {
            tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MILLIS))).await;
            let Some(own) = cluster.access(member) else { return };
            let view = own.raft.view();
            if !view.reign.may_act(view.quorum_age, TIMING.election_max * 2) {
                return;
            }
            let term = view.reign.term;
            let fence = Fence { generation: own.engine.generation(), term };
            let since = own.applied.borrow().index;
            tokio::time::sleep(Duration::from_millis(random.random_range(THOUGHT_MILLIS))).await;
            let value = Bytes::from(format!("{term}.{member}.{sequence}"));
            let put = PutRequest { key: KEY.clone(), value, ..PutRequest::default() };
            let command = Command {
                request: Some(RequestId { client: FIRST_CLIENT + member, sequence, since }),
                fence: (planted != Planted::NoFences).then_some(fence),
                ..Command::new(Operation::Put(put))
            };
            let Some(through) = next(&cluster, &mut random) else { return };
            let asked = tokio::time::timeout(PATIENCE, propose(&through, &command));
            // What comes of it, the end of the run shows.
            let _ = through.dead.run_until_cancelled(asked).await;
        };
        if stop.run_until_cancelled(act).await.is_none() {
            return;
        }
    }
}

/// How often controllers acted, each in the term that was current (C1, C6).
///
/// # Errors
/// When one acted in a term after another had in a later one, or two in the same.
pub(super) fn check(engine: &Engine) -> Result<usize, String> {
    let (mut acts, mut last) = (0, None::<(u64, u64)>);
    check::changes(engine, KeyRange::One(&KEY), |revision, value| {
        let text = String::from_utf8_lossy(value).into_owned();
        let numbers: Vec<u64> = text.split('.').flat_map(str::parse).collect();
        let &[term, member, _] = numbers.as_slice() else { return Err(format!("{text} is no act of a controller")) };
        if let Some((latest, of)) = last
            && (term < latest || (term == latest && of != member))
        {
            return Err(format!(
                "the controller of member {member} acted in term {term} at revision {revision}, after that of member \
                 {of} in term {latest}"
            ));
        }
        (acts, last) = (acts + 1, Some((term, member)));
        Ok(())
    })?;
    Ok(acts)
}
