//! The store's contract: the same scripts against Debian's etcd and against Quorate,
//! whole answers compared.
//!
//! Where a newer etcd differs from 3.4 on purpose, the case says why and what it answers.

mod bench;
mod call;
mod cases;
mod clients;
mod commands;
mod etcdctl;
mod http;
mod known;
mod script;
mod server;
mod stream;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use quorate_tests::report;

use self::script::{Group, Outcome};

/// Fewer different cases than this are not the contract.
const LEAST_CASES: usize = 400;

/// Groups that run at a time: they wait more than they compute.
const AT_A_TIME: usize = 4;

/// Runs the groups whose names begin with `QUORATE_DIFF`, or all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_and_quorate_answer_alike() -> Result<()> {
    let wanted = std::env::var("QUORATE_DIFF").unwrap_or_default();
    let groups: Vec<Group> = cases::all().into_iter().filter(|group| group.name.starts_with(&wanted)).collect();
    let runs = groups.iter().map(|group| async move {
        let begin = std::time::Instant::now();
        let outcome = script::run(group).await.with_context(|| format!("the group {}", group.name));
        if let Ok(Outcome { ran, differences }) = &outcome {
            let (name, time) = (group.name, begin.elapsed().as_secs_f64());
            report(&format!("{name}: {} cases in {time:.1} s, {} differ", ran.len(), differences.len()));
        }
        outcome
    });
    let outcomes: Vec<_> = futures::stream::iter(runs).buffer_unordered(AT_A_TIME).collect().await;
    let (mut ran, mut differences) = (BTreeSet::new(), Vec::new());
    for outcome in outcomes {
        let outcome = outcome?;
        ran.extend(outcome.ran);
        differences.extend(outcome.differences);
    }
    report(&format!("{} cases, {} differ", ran.len(), differences.len()));
    if wanted.is_empty() {
        differences = known::unknown(known::SCRIPTS, differences);
    }
    ensure!(
        differences.is_empty(),
        "{} of {} cases differ, not counting what is known:\n\n{}",
        differences.len(),
        ran.len(),
        differences.join("\n")
    );
    ensure!(!wanted.is_empty() || ran.len() >= LEAST_CASES, "only {} cases ran", ran.len());
    Ok(())
}
