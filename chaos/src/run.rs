//! One run: a cluster, clients that record what they see, faults from a seed, and a verdict.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use crate::check::linearizable::{self, Verdict};
use crate::check::{Broken, Log, convergence, durability, leader, lease, reads, watch};
use crate::fault::network::Network;
use crate::history::{Client, Event, History, Keys, Member, Outcome, Read, Recorder, Request, Revision, WatchRequest};
use crate::members::{self, Members};
use crate::nemesis::{self, After, Fault, Schedule, Step};
use crate::workload::store::Run;

/// How long the cluster may take to be whole again after the last fault.
const RECOVERY: Duration = Duration::from_secs(40);

/// After that a member whose syncs fail must be gone.
const END_AFTER_ERROR: Duration = Duration::from_secs(10);

/// How long a member may take to refuse a damaged log.
const REFUSAL: Duration = Duration::from_secs(3);

/// How long members may take to start and to elect.
const START: Duration = Duration::from_secs(3);

/// How long the search for an order may take.
const SEARCH: Duration = Duration::from_secs(60);

/// Clients of keys and of leases.
const KEY_CLIENTS: u32 = 6;
const LEASE_CLIENTS: u32 = 2;

/// The first of the clients that write through one member each.
const FIRST_PROBE: u32 = 60;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    pub members: members::Options,
    pub seed: u64,
    /// For how long there are faults.
    pub lasts: Duration,
    /// In namespaces of their own, for faults of the network; needs root.
    pub network: bool,
}

/// What happened, and what it says of the store.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seed: u64,
    pub faults: BTreeMap<Fault, usize>,
    /// Bits that were inverted, and the logs that were refused for it.
    pub refused_logs: usize,
    pub acknowledged: usize,
    pub failed: usize,
    pub unknown: usize,
    pub watches: usize,
    pub events: usize,
    pub revision: i64,
    pub terms: u64,
    /// The longest time without an acknowledged write, where a majority was in order.
    pub longest_gap: Duration,
    pub checked_in: Duration,
    /// Keys for which the search had no time.
    pub undecided: Vec<String>,
    pub broken: Vec<Broken>,
    /// The victim of the last fault, if that may end it.
    excused: Option<usize>,
    /// Spans without a majority in order.
    no_majority: Vec<(u64, u64)>,
    /// When clients were told to end.
    asked_until: u64,
}

/// Runs and checks. The history and the logs stay in the folder of the members.
///
/// # Errors
/// When the run could not be made; what the store did wrong is in the summary.
pub fn run(options: &Options) -> Result<Summary> {
    let network = if options.network { Some(Network::new(options.members.members)?) } else { None };
    // A thread of its own: it moves to where the clients are, and members end with it.
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            if let Some(network) = &network {
                network.enter()?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(record(options, network.as_ref()))
        });
        runner.join().map_err(|_| anyhow::anyhow!("the run panicked"))?
    })
}

/// Makes the history.
async fn record(options: &Options, network: Option<&Network>) -> Result<Summary> {
    let mut members = Members::start(options.members.clone(), network)?;
    let path = history_path(options);
    let recorder = Recorder::new(BufWriter::new(File::create(&path).context("cannot make the history")?));
    let count = members.count();
    let addresses: Vec<_> = (0..count).map(|member| members.client(member)).collect();
    let run = Arc::new(Run::new(recorder, addresses.into_iter(), count)?);
    let mut summary = Summary { seed: options.seed, ..Summary::default() };
    whole(&run, &mut members, &mut summary).await?;

    let (goal, watched) = tokio::sync::watch::channel(0);
    let (mut clients, mut watches, mut polls) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for (number, request) in watch_requests(count).into_iter().enumerate() {
        let (run, watched) = (Arc::clone(&run), watched.clone());
        let place = (number < count).then_some(number);
        let watcher = Client(100 + number as u32);
        watches.spawn(async move { run.watch(watcher, place, request, watched).await });
    }
    for member in 0..count {
        let run = Arc::clone(&run);
        polls.spawn(async move { run.role(member).await });
    }
    for client in 0..KEY_CLIENTS {
        let (run, seed) = (Arc::clone(&run), options.seed.wrapping_mul(1_000).wrapping_add(client.into()));
        clients.spawn(async move { run.keys(Client(client), seed).await });
    }
    for client in KEY_CLIENTS..KEY_CLIENTS + LEASE_CLIENTS {
        let (run, seed) = (Arc::clone(&run), options.seed.wrapping_mul(1_000).wrapping_add(client.into()));
        clients.spawn(async move { run.leases(Client(client), seed).await });
    }
    for member in 0..count {
        let run = Arc::clone(&run);
        clients.spawn(async move { run.probe(Client(FIRST_PROBE + member as u32), member).await });
    }
    let compaction = Arc::clone(&run);
    clients.spawn(async move { compaction.compaction(Client(50)).await });

    let until = Instant::now() + options.lasts;
    let schedule = Schedule::new(options.seed, count, options.network, options.members.disks);
    for step in schedule {
        time::sleep(step.pause).await;
        if Instant::now() > until {
            break;
        }
        strike(&step, &run, &mut members, &mut summary).await?;
    }
    members.mend()?;
    whole(&run, &mut members, &mut summary).await?;
    summary.asked_until = run.recorder.now_nanos();
    run.end();
    while clients.join_next().await.is_some() {}

    // What is there at the end, from everywhere; and a last write for watches to come to.
    let last = Client(999);
    let mark = Request::Put { key: "end".to_owned(), value: "end".to_owned(), lease: 0 };
    let revision = run.ask(last, 0, mark).await.and_then(|reply| reply.revision).context("the last write failed")?;
    for member in 0..count {
        for key in 0..12 {
            let get = Request::Get { key: format!("k{key}"), read: Read::Linearizable };
            run.ask(last, member, get).await;
        }
    }
    goal.send_replace(revision.0);
    let deadline = Instant::now() + RECOVERY;
    let all = async { while watches.join_next().await.is_some() {} };
    if time::timeout_at(deadline, all).await.is_err() {
        let proof = format!("{} watches did not come to revision {revision}", watches.len());
        summary.broken.push(Broken { promise: "W11", proof });
        watches.shutdown().await;
    }
    for member in 0..count {
        // A hash that is missing is the convergence checker's business.
        let _ = run.hash(member, revision, deadline).await;
    }
    polls.shutdown().await;
    drop(watched);
    let run = Arc::into_inner(run).context("somebody still records")?;
    run.recorder.finish()?;
    drop(members);
    verdict(options, summary)
}

fn history_path(options: &Options) -> PathBuf {
    options.members.folder.join("history.jsonl")
}

/// One watch of all keys for each member, and some that ask for less.
fn watch_requests(members: usize) -> Vec<WatchRequest> {
    let all =
        WatchRequest { keys: Keys::All, start_revision: Revision(1), prev_kv: true, no_put: false, no_delete: false };
    let mut requests = vec![all.clone(); members];
    let prefix = Keys::Prefix("k1".to_owned());
    requests.push(WatchRequest { keys: prefix.clone(), no_delete: true, prev_kv: false, ..all.clone() });
    requests.push(WatchRequest { keys: Keys::One("k3".to_owned()), start_revision: Revision(0), ..all.clone() });
    requests.push(WatchRequest { keys: Keys::Prefix("lease/".to_owned()), no_put: true, ..all.clone() });
    requests.push(WatchRequest { keys: prefix, start_revision: Revision(300), ..all });
    requests
}

/// Waits until every member answers a linearizable read.
async fn whole(run: &Run, members: &mut Members<'_>, summary: &mut Summary) -> Result<()> {
    let deadline = Instant::now() + RECOVERY;
    for member in 0..members.count() {
        loop {
            let get = Request::Get { key: "k0".to_owned(), read: Read::Linearizable };
            if run.ask(Client(998), member, get).await.is_some() {
                break;
            }
            ensure!(Instant::now() < deadline, "m{member} does not answer\n{}", members.says(member));
            keep_running(member, members, summary)?;
            time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// One fault, from its beginning until everything is mended.
async fn strike(step: &Step, run: &Run, members: &mut Members<'_>, summary: &mut Summary) -> Result<()> {
    let victim = run.leader().filter(|_| step.leader).unwrap_or(step.member);
    for member in 0..members.count() {
        keep_running(member, members, summary)?;
    }
    summary.excused = step.fault.may_end().then_some(victim);
    let from_nanos = run.recorder.now_nanos();
    let after = nemesis::begin(step, victim, members)?;
    time::sleep(step.lasts).await;
    match after {
        After::Nothing => {}
        After::MustHaveEnded => {
            let deadline = Instant::now() + END_AFTER_ERROR;
            while members.ended(victim)?.is_none() && members.runs(victim) {
                if Instant::now() > deadline {
                    let proof = format!("m{victim} goes on although its syncs fail\n{}", members.says(victim));
                    summary.broken.push(Broken { promise: "C12", proof });
                    break;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        }
        After::Bit(bit) => {
            time::sleep(REFUSAL).await;
            summary.refused_logs += usize::from(nemesis::restore(victim, members, &bit)?);
        }
    }
    // Stopping takes its time, and starting twice would not do.
    let deadline = Instant::now() + END_AFTER_ERROR;
    while step.fault == Fault::Restart && members.runs(victim) && members.ended(victim)?.is_none() {
        ensure!(Instant::now() < deadline, "m{victim} does not end\n{}", members.says(victim));
        time::sleep(Duration::from_millis(20)).await;
    }
    for member in 0..members.count() {
        note_end(member, members, summary)?;
    }
    members.mend()?;
    let until_nanos = run.recorder.now_nanos();
    if !step.fault.leaves_majority() {
        // Members that start take a moment.
        summary.no_majority.push((from_nanos, until_nanos + START.as_nanos() as u64));
    }
    run.recorder.record(Event::Fault { fault: format!("{:?} m{victim}", step.fault), from_nanos, until_nanos });
    *summary.faults.entry(step.fault).or_default() += 1;
    Ok(())
}

/// Notes a member that has ended, unless the last fault may end it.
fn note_end(member: usize, members: &mut Members<'_>, summary: &mut Summary) -> Result<()> {
    if let Some(status) = members.ended(member)?
        && summary.excused != Some(member)
    {
        let proof = format!("m{member} ended by itself: {status}\n{}", members.says(member));
        summary.broken.push(Broken { promise: "O3", proof });
    }
    Ok(())
}

/// As [`note_end`], and starts it again; disks are in order.
fn keep_running(member: usize, members: &mut Members<'_>, summary: &mut Summary) -> Result<()> {
    note_end(member, members, summary)?;
    if members.runs(member) { Ok(()) } else { members.launch(member) }
}

/// Checks what was recorded.
fn verdict(options: &Options, mut summary: Summary) -> Result<Summary> {
    let file = File::open(history_path(options)).context("the history is gone")?;
    let history = History::read(BufReader::new(file))?;
    let began = std::time::Instant::now();
    let members: Vec<Member> = (0..options.members.members).map(|member| Member(member as u16)).collect();
    check(&history, &members, &mut summary);
    summary.checked_in = began.elapsed();
    for operation in &history.operations {
        match operation.outcome {
            Outcome::Ok { .. } => summary.acknowledged += 1,
            Outcome::Fail { .. } => summary.failed += 1,
            Outcome::Unknown { .. } => summary.unknown += 1,
        }
    }
    summary.watches = history.watches.len();
    let responses = history.watches.iter().flat_map(|watch| &watch.responses);
    summary.events = responses.map(|(_, response)| response.events.len()).sum();
    summary.revision =
        history.operations.iter().filter_map(|operation| operation.written_at()).max().unwrap_or_default().0;
    summary.terms = history.roles.iter().map(|report| report.term.0).max().unwrap_or_default();
    summary.longest_gap = longest_gap(&history, &summary.no_majority, summary.asked_until);
    Ok(summary)
}

/// Runs every checker over a history.
pub fn check(history: &History, members: &[Member], summary: &mut Summary) {
    let (log, broken) = Log::of(history);
    summary.broken.extend(broken);
    summary.broken.extend(watch::check(history, &log));
    summary.broken.extend(durability::check(history, &log));
    summary.broken.extend(reads::check(history, &log));
    summary.broken.extend(lease::check(history, &log));
    summary.broken.extend(leader::check(history));
    summary.broken.extend(convergence::check(history, members));
    if let Err(stale) = linearizable::revisions_follow_time(history) {
        summary.broken.push(Broken { promise: "K3", proof: stale.to_string() });
    }
    match linearizable::check(history, SEARCH) {
        Verdict::Linearizable => {}
        Verdict::Violated(violation) => {
            summary.broken.push(Broken { promise: "K1", proof: violation.to_string() });
        }
        Verdict::Unknown { keys } => summary.undecided = keys,
    }
}

/// The longest time between two acknowledged writes that touches none of the spans, as long as
/// clients asked for writes.
fn longest_gap(history: &History, no_majority: &[(u64, u64)], asked_until: u64) -> Duration {
    let writes = history.operations.iter().filter(|operation| operation.written_at().is_some());
    let times = writes.filter_map(|operation| operation.acknowledged_nanos());
    let mut times: Vec<u64> = times.filter(|at| *at <= asked_until).collect();
    times.sort_unstable();
    let gaps = times.windows(2).filter(|pair| !no_majority.iter().any(|span| span.0 < pair[1] && pair[0] < span.1));
    Duration::from_nanos(gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default())
}

impl Summary {
    pub fn passed(&self) -> bool {
        self.broken.is_empty()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: usize = self.faults.values().sum();
        writeln!(
            f,
            "seed {}: {} faults survived, {} operations ({} acknowledged, {} failed, {} unknown), {} events in {} \
             watches, revision {}, term {}, longest gap {:.2} s, checked in {:.1} s",
            self.seed,
            faults,
            self.acknowledged + self.failed + self.unknown,
            self.acknowledged,
            self.failed,
            self.unknown,
            self.events,
            self.watches,
            self.revision,
            self.terms,
            self.longest_gap.as_secs_f64(),
            self.checked_in.as_secs_f64(),
        )?;
        let kinds: Vec<String> = self.faults.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        writeln!(f, "  {} (damaged logs refused: {})", kinds.join(", "), self.refused_logs)?;
        if !self.undecided.is_empty() {
            writeln!(f, "  no time to decide: {}", self.undecided.join(", "))?;
        }
        self.broken.iter().try_for_each(|broken| writeln!(f, "  broken {broken}"))?;
        f.write_str(if self.passed() { "  no promise was broken" } else { "  PROMISES WERE BROKEN" })
    }
}
