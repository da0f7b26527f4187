//! Scripts: what is sent to both clusters, in which order, and how the answers compare.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use quorate_proto::etcd::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, RangeRequest, RangeResponse, WatchRequest, WatchResponse,
};

use crate::call::{Call, Memory, Newer, Target, Who, clip, unary};
use crate::server::{Cluster, Program};
use crate::stream::{Act, converse};

/// Differences after which a group is given up: each costs a new pair of clusters.
const MOST_DIFFERENCES: usize = 40;

/// Lines of each answer that a report shows around the first difference.
const SHOWN_LINES: usize = 14;

/// Bytes of a line that a report shows.
const SHOWN_BYTES: usize = 200;

/// One thing to do with both clusters.
#[derive(Clone)]
pub(crate) enum Step {
    Call(Call),
    Watch(Who, Vec<Act<WatchRequest>>),
    /// A watch of which a newer etcd says something else than 3.4.
    NewerWatch(Vec<Act<WatchRequest>>, Newer),
    KeepAlive(Who, Vec<Act<LeaseKeepAliveRequest>>),
}

impl From<Call> for Step {
    fn from(call: Call) -> Self {
        Self::Call(call)
    }
}

/// A case: named steps in their order.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

impl Script {
    pub(crate) fn new(name: impl Into<String>, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { name: name.into(), steps: steps.into_iter().collect() }
    }

    pub(crate) fn calls(name: impl Into<String>, calls: impl IntoIterator<Item = Call>) -> Self {
        Self::new(name, calls.into_iter().map(Step::Call))
    }

    fn has_newer(&self) -> bool {
        let newer = |step: &Step| match step {
            Step::Call(call) => call.newer.is_some(),
            Step::NewerWatch(..) => true,
            Step::Watch(..) | Step::KeepAlive(..) => false,
        };
        self.steps.iter().any(newer)
    }

    /// A case of one request, named by it.
    pub(crate) fn one(call: Call) -> Self {
        Self { name: call.text(), steps: vec![call.into()] }
    }
}

/// Scripts that run one after the other on one pair of clusters.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) flags: &'static [&'static str],
    /// What every new pair hears first.
    pub(crate) setup: Vec<Call>,
    pub(crate) scripts: Vec<Script>,
}

impl Group {
    pub(crate) fn new(name: &'static str, scripts: Vec<Script>) -> Self {
        Self { name, size: 1, flags: &[], setup: Vec::new(), scripts }
    }

    /// Tables that overlap: what they have in common runs once.
    pub(crate) fn distinct(mut self) -> Self {
        let mut seen = BTreeSet::new();
        self.scripts.retain(|script| seen.insert(script.name.clone()));
        self
    }

    pub(crate) fn with_setup(mut self, setup: Vec<Call>) -> Self {
        self.setup = setup;
        self
    }

    pub(crate) fn of_three(mut self) -> Self {
        self.size = 3;
        self
    }
}

/// What came out of a group.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The names of the scripts that ran.
    pub(crate) ran: BTreeSet<String>,
    /// The scripts whose answers differ, and how.
    pub(crate) differences: Vec<String>,
}

/// Both clusters of one group.
struct Pair {
    _clusters: [Cluster; 2],
    targets: [Target; 2],
}

impl Pair {
    async fn start(group: &Group) -> Result<Self> {
        let programs = programs();
        let (first, second) = tokio::join!(
            Cluster::start(programs[0], group.size, group.flags),
            Cluster::start(programs[1], group.size, group.flags),
        );
        let clusters = [first?, second?];
        let targets = [target(&clusters[0]).await?, target(&clusters[1]).await?];
        let pair = Self { _clusters: clusters, targets };
        for call in &group.setup {
            pair.ask(call).await;
        }
        Ok(pair)
    }

    async fn ask(&self, call: &Call) -> [String; 2] {
        let (first, second) = tokio::join!(call.send(&self.targets[0]), call.send(&self.targets[1]));
        [first, second]
    }

    /// The answers to a step, with the newer etcd's in the place of 3.4's.
    async fn answers(&self, step: &Step) -> [String; 2] {
        match step {
            Step::Call(call) => {
                let [first, second] = self.ask(call).await;
                match &call.newer {
                    Some(newer) if !compares_with_itself() => [(newer.answer)(&first), second],
                    _ => [first, second],
                }
            }
            Step::Watch(who, acts) => {
                let path = "/etcdserverpb.Watch/Watch";
                converse::<WatchRequest, WatchResponse>(&self.targets, *who, path, acts, &[]).await
            }
            Step::NewerWatch(acts, newer) => {
                let path = "/etcdserverpb.Watch/Watch";
                let who = Who::default();
                let [first, second] =
                    converse::<WatchRequest, WatchResponse>(&self.targets, who, path, acts, &[]).await;
                if compares_with_itself() { [first, second] } else { [(newer.answer)(&first), second] }
            }
            Step::KeepAlive(who, acts) => {
                let path = "/etcdserverpb.Lease/LeaseKeepAlive";
                converse::<LeaseKeepAliveRequest, LeaseKeepAliveResponse>(&self.targets, *who, path, acts, &[]).await
            }
        }
    }

    /// Whether both are still where the same requests lead.
    async fn agrees(&self) -> bool {
        let request = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() };
        let call = unary::<_, RangeResponse>("/etcdserverpb.KV/Range", request);
        let [mut first, mut second] = self.ask(&call).await;
        if first == second && first.starts_with("InvalidArgument") {
            // Users are asked for; root may read.
            [first, second] = self.ask(&call.by("root")).await;
        }
        // A process that is gone is no agreement.
        first == second && ![first, second].iter().any(|answer| answer.starts_with("Unavailable"))
    }
}

/// `QUORATE_DIFF_SELF` compares etcd with itself, to prove the cases: what differs then
/// depends on chance.
fn compares_with_itself() -> bool {
    std::env::var_os("QUORATE_DIFF_SELF").is_some()
}

fn programs() -> [Program; 2] {
    if compares_with_itself() { [Program::Etcd; 2] } else { [Program::Etcd, Program::Quorate] }
}

async fn target(cluster: &Cluster) -> Result<Target> {
    let (ids, leader) = cluster.who().await.with_context(|| format!("{:?} has no leader", cluster.program))?;
    let mut memory = Memory::default();
    for (name, id) in ["m0", "m1", "m2"].into_iter().zip(&ids) {
        memory.numbers.insert(name, *id);
    }
    memory.numbers.insert("leader", ids[leader]);
    memory.numbers.insert("follower", ids[(leader + 1) % ids.len()]);
    Ok(Target {
        channels: cluster.members.iter().map(|member| member.channel.clone()).collect(),
        addresses: cluster.members.iter().map(|member| member.client).collect(),
        leader,
        memory: Arc::new(Mutex::new(memory)),
    })
}

/// Runs all scripts of a group. A pair that no longer agrees is replaced, so that one
/// difference is one difference.
pub(crate) async fn run(group: &Group) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut pair = Pair::start(group).await.with_context(|| format!("the group {}", group.name))?;
    for script in &group.scripts {
        if outcome.differences.len() == MOST_DIFFERENCES {
            let left = group.scripts.len() - outcome.ran.len();
            outcome.differences.push(format!("{}: given up, {left} cases did not run", group.name));
            break;
        }
        let mut report = String::new();
        for step in &script.steps {
            let [expected, found] = pair.answers(step).await;
            if expected != found {
                report = format!("{}\n{}", text(step), difference(&expected, &found));
                break;
            }
        }
        let name = format!("{}: {}", group.name, clip(&script.name, 700));
        if !outcome.ran.insert(name.clone()) {
            outcome.differences.push(format!("{name}\n  two cases bear this name"));
        }
        if report.is_empty() && pair.agrees().await {
            continue;
        }
        // Where 3.4 differs it may have done something else, or have ended.
        if !report.is_empty() {
            outcome.differences.push(format!("{}\n{report}", clip(&name, 200)));
        } else if !script.has_newer() {
            outcome.differences.push(format!("{}\n  the keys differ afterwards", clip(&name, 200)));
        }
        // Steps that were left out, or other revisions: a new pair is like the first.
        pair = Pair::start(group).await?;
    }
    Ok(outcome)
}

fn text(step: &Step) -> String {
    let text = match step {
        Step::Call(call) => match &call.newer {
            Some(newer) => format!("{} (newer: {})", call.text(), newer.why),
            None => call.text(),
        },
        Step::NewerWatch(acts, newer) => format!("watch (newer: {}): {}", newer.why, acts_text(acts)),
        Step::Watch(who, acts) => format!("watch at the {who:?}: {}", acts_text(acts)),
        Step::KeepAlive(who, acts) => format!("keep alive at the {who:?}: {}", acts_text(acts)),
    };
    clip(&format!("  {text}"), 900)
}

fn acts_text<Q: std::fmt::Debug>(acts: &[Act<Q>]) -> String {
    let act = |act: &Act<Q>| match act {
        Act::Send(message) => format!("{message:?}"),
        Act::SendAll(messages) => format!("{messages:?}"),
        Act::Do(call) => call.text(),
        Act::Hear(count) => format!("until {count} messages are heard"),
        Act::HalfClose => "half close".to_owned(),
    };
    acts.iter().map(act).collect::<Vec<_>>().join("; ")
}

/// What two answers have in common is left out, but for a line before.
pub(crate) fn difference(expected: &str, found: &str) -> String {
    let (left, right): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = left.iter().zip(&right).take_while(|(left, right)| left == right).count();
    let tail = left[same..].iter().rev().zip(right[same..].iter().rev()).take_while(|(a, b)| a == b).count();
    let mut text = String::new();
    let begin = same.saturating_sub(3);
    for line in &left[begin..same] {
        text += &format!("        {}\n", clip(line, SHOWN_BYTES));
    }
    for (name, lines) in [("etcd   ", &left[same..left.len() - tail]), ("quorate", &right[same..right.len() - tail])] {
        for line in lines.iter().take(SHOWN_LINES) {
            text += &format!("{name} {}\n", clip(line, SHOWN_BYTES));
        }
        if lines.len() > SHOWN_LINES {
            text += &format!("{name} … and {} more lines\n", lines.len() - SHOWN_LINES);
        }
    }
    text
}

#[test]
fn a_difference_is_shown_with_its_surroundings() {
    let shown = difference("a\nb\nc: 1\nd", "a\nb\nc: 2\nd");
    assert_eq!(shown, "        a\n        b\netcd    c: 1\nquorate c: 2\n");
}
