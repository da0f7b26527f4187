//! Whether all members hold the same again.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{self, Instant};

use super::report::Check;
use super::store::Store;

/// How long members may take to become the same once nobody writes for the drill.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(2);

/// Waits until every member tells the same hash of the same revision.
pub(super) async fn check(stores: &[Store]) -> Check {
    let name = "members hold the same".to_owned();
    let began = Instant::now();
    loop {
        let last = match look(stores).await {
            Ok((revision, hash)) => {
                let detail = format!(
                    "{} members, revision {revision}, hash {hash:08x}, {:.1} s after the last probe",
                    stores.len(),
                    began.elapsed().as_secs_f64()
                );
                return Check { name, passed: true, detail };
            }
            Err(why) => why,
        };
        if began.elapsed() > PATIENCE {
            return Check { name, passed: false, detail: format!("not within {} s: {last}", PATIENCE.as_secs()) };
        }
        time::sleep(LOOK).await;
    }
}

/// The revision and the hash that all members agree on.
async fn look(stores: &[Store]) -> Result<(i64, u32), String> {
    let statuses = join_all(stores.iter().map(|store| store.status(ANSWER))).await;
    let mut revisions = Vec::new();
    for (store, status) in stores.iter().zip(statuses) {
        let status = status.map_err(|status| format!("{}: {}", store.name, status.message()))?;
        if status.leader == 0 {
            return Err(format!("{} knows no leader", store.name));
        }
        revisions.push(status.header.map_or(0, |header| header.revision));
    }
    // Controllers and nodes may write all the time: the newest revision that all have.
    let revision = revisions.iter().copied().min().unwrap_or(0);
    let hashes = join_all(stores.iter().map(|store| store.hash(revision, ANSWER))).await;
    let mut agreed = None;
    for (store, hash) in stores.iter().zip(hashes) {
        let hash = hash.map_err(|status| format!("{}: {}", store.name, status.message()))?;
        if *agreed.get_or_insert(hash) != hash {
            return Err(format!("{} has another hash at revision {revision}", store.name));
        }
    }
    agreed.map(|hash| (revision, hash)).ok_or_else(|| "there are no members".to_owned())
}
