//! The decision: nodes and a pod in, a node or every node's reason out.
//!
//! Always: no clock, no I/O; the same nodes, pod and turn give the same answer.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::node::NodeInfo;
use super::plugins::{self, pod_affinity, topology_spread};
use super::pod::PodInfo;
use super::terms::Labels;

/// What may have let a pod fit that did not. A set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake(u8);

impl Wake {
    pub const NOTHING: Self = Self(0);
    pub const NODE_ADDED: Self = Self(1);
    pub const NODE_ALLOCATABLE: Self = Self(1 << 1);
    pub const NODE_LABELS: Self = Self(1 << 2);
    pub const NODE_TAINTS: Self = Self(1 << 3);
    pub const POD_GONE: Self = Self(1 << 4);
    pub const POD_BOUND: Self = Self(1 << 5);
    pub const NODE_GONE: Self = Self(1 << 6);
    pub const NAMESPACE_LABELS: Self = Self(1 << 7);

    pub fn touches(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Wake {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Wake {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Why a pod cannot run on one node. Display is Kubernetes' text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Unschedulable,
    NodeName,
    Taint,
    NodeAffinity,
    HostPorts,
    Insufficient(Insufficient),
    SpreadLabel,
    Spread,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
}

/// What a node has too little of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Insufficient {
    pub pods: bool,
    pub cpu: bool,
    pub memory: bool,
    pub ephemeral_storage: bool,
    /// Bit n for the n-th extended resource that the pod asks for; the last bit for all from the 64th on.
    pub extended: u64,
}

impl Reason {
    fn texts(self, pod: &PodInfo) -> Vec<String> {
        let text = match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::NodeName => "node(s) didn't match the requested node name",
            Self::Taint => "node(s) had untolerated taint(s)",
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::HostPorts => "node(s) didn't have free ports for the requested pod ports",
            Self::SpreadLabel => "node(s) didn't match pod topology spread constraints (missing required label)",
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
            Self::Insufficient(lacks) => return lacks.texts(pod),
        };
        vec![text.to_owned()]
    }

    /// What may mend it.
    pub fn wakes_on(self) -> Wake {
        Wake::NODE_ADDED
            | match self {
                Self::Unschedulable | Self::Taint => Wake::NODE_TAINTS,
                Self::NodeName => Wake::NOTHING,
                Self::NodeAffinity => Wake::NODE_LABELS,
                Self::HostPorts => Wake::POD_GONE,
                Self::Insufficient(_) => Wake::NODE_ALLOCATABLE | Wake::POD_GONE,
                Self::SpreadLabel | Self::Spread => {
                    Wake::NODE_LABELS | Wake::NODE_TAINTS | Wake::POD_GONE | Wake::POD_BOUND | Wake::NODE_GONE
                }
                Self::PodAffinity | Self::PodAntiAffinity | Self::ExistingAntiAffinity => {
                    Wake::NODE_LABELS | Wake::POD_GONE | Wake::POD_BOUND | Wake::NAMESPACE_LABELS
                }
            }
    }
}

impl Insufficient {
    fn texts(self, pod: &PodInfo) -> Vec<String> {
        let mut texts = Vec::new();
        if self.pods {
            texts.push("Too many pods".to_owned());
        }
        for (lacks, name) in [(self.cpu, "cpu"), (self.memory, "memory"), (self.ephemeral_storage, "ephemeral-storage")]
        {
            if lacks {
                texts.push(format!("Insufficient {name}"));
            }
        }
        for (index, name) in pod.requests.extended.keys().enumerate() {
            if self.extended & (1 << index.min(63)) != 0 {
                texts.push(format!("Insufficient {name}"));
            }
        }
        texts
    }
}

/// One node's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: Reason,
    /// Whether removing other pods could mend it.
    pub resolvable: bool,
}

impl Rejection {
    pub(super) fn resolvable(reason: Reason) -> Option<Self> {
        Some(Self { reason, resolvable: true })
    }

    pub(super) fn unresolvable(reason: Reason) -> Option<Self> {
        Some(Self { reason, resolvable: false })
    }
}

/// A pod, and what was worked out about it before the nodes are looked at one by one.
pub struct Context<'a> {
    pub pod: &'a PodInfo,
    pub cluster: Cluster<'a>,
    pub affinity: pod_affinity::State,
    pub spread: topology_spread::State,
}

/// Everything that does not belong to a single pod or node.
#[derive(Clone, Copy)]
pub struct Cluster<'a> {
    pub nodes: &'a [NodeInfo],
    /// How many nodes hold an image.
    pub image_nodes: &'a HashMap<String, usize>,
    /// Labels by name.
    pub namespaces: &'a BTreeMap<String, Labels>,
}

impl<'a> Context<'a> {
    pub fn new(pod: &'a PodInfo, cluster: Cluster<'a>) -> Self {
        Self {
            pod,
            cluster,
            affinity: pod_affinity::State::new(pod, cluster),
            spread: topology_spread::State::new(pod, cluster.nodes),
        }
    }

    /// The first filter's refusal, in Kubernetes' order of filters.
    pub fn check(&self, node: &NodeInfo) -> Option<Rejection> {
        plugins::FILTERS.iter().find_map(|filter| filter(self, node))
    }
}

/// A filter: `None` when the pod may run on the node.
pub type Filter = fn(&Context<'_>, &NodeInfo) -> Option<Rejection>;

/// A score: higher is better once normalised to 0..=100.
pub struct Score {
    pub weight: i64,
    /// Whether it can tell nodes apart for this pod at all.
    pub applies: fn(&Context<'_>) -> bool,
    pub score: fn(&Context<'_>, &NodeInfo) -> i64,
    pub normalize: Normalize,
}

#[derive(Clone, Copy)]
pub enum Normalize {
    /// The scores are 0..=100 already.
    Ready,
    /// The highest becomes 100, others in proportion.
    Highest,
    /// The highest becomes 0 and 0 becomes 100.
    Reversed,
    /// The lowest becomes 0, the highest 100; all equal become 0.
    Range,
}

pub const MAX_SCORE: i64 = 100;

impl Normalize {
    fn apply(self, scores: &mut [i64]) {
        let highest = scores.iter().copied().max().unwrap_or_default();
        let lowest = scores.iter().copied().min().unwrap_or_default();
        match self {
            Self::Ready => {}
            Self::Highest if highest == 0 => {}
            Self::Highest => scores.iter_mut().for_each(|score| *score = *score * MAX_SCORE / highest),
            Self::Reversed if highest == 0 => scores.fill(MAX_SCORE),
            Self::Reversed => scores.iter_mut().for_each(|score| *score = MAX_SCORE - *score * MAX_SCORE / highest),
            Self::Range if highest == lowest => scores.fill(0),
            Self::Range => {
                scores.iter_mut().for_each(|score| *score = (*score - lowest) * MAX_SCORE / (highest - lowest));
            }
        }
    }
}

/// Why a pod has no node.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    pub nodes: usize,
    /// By index in the cluster's nodes.
    pub rejections: Vec<(usize, Rejection)>,
}

impl Diagnosis {
    /// Everything that may let the pod fit. A pod that no node was there for waits for nodes.
    pub fn wakes_on(&self) -> Wake {
        self.rejections.iter().fold(Wake::NODE_ADDED, |wake, (_, rejection)| wake | rejection.reason.wakes_on())
    }

    /// `1 Insufficient cpu, 2 node(s) had untolerated taint(s)`: in the order of the texts,
    /// numbers included, as upstream sorts them.
    pub fn histogram(&self, pod: &PodInfo) -> String {
        let mut counts: HashMap<Reason, usize> = HashMap::new();
        for (_, rejection) in &self.rejections {
            *counts.entry(rejection.reason).or_default() += 1;
        }
        let mut by_text: BTreeMap<String, usize> = BTreeMap::new();
        for (reason, count) in counts {
            for text in reason.texts(pod) {
                *by_text.entry(text).or_default() += count;
            }
        }
        join_histogram(by_text)
    }

    /// What the user is told: the reasons of the nodes, then what `preemption` found.
    pub fn message(&self, pod: &PodInfo, preemption: &str) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let total = self.nodes;
        let reasons = self.histogram(pod);
        // Dynamic resources have nothing to give back for a pod without claims, and say so first.
        format!("0/{total} nodes are available: {reasons}. no new claims to deallocate, preemption: {preemption}")
    }
}

pub(super) fn join_histogram(counts: BTreeMap<String, usize>) -> String {
    let mut texts: Vec<String> = counts.into_iter().map(|(text, count)| format!("{count} {text}")).collect();
    texts.sort();
    texts.join(", ")
}

/// Where a pod goes.
#[derive(Clone, Debug)]
pub enum Decision {
    /// The index of a node.
    Node(usize),
    Nowhere(Diagnosis),
}

/// Fewer candidates than that are never cut short: upstream's `minFeasibleNodesToFind`.
const MIN_FEASIBLE: usize = 100;
/// The share of large clusters that is looked at, in percent, falls from 50 by one per 125
/// nodes to no less than this.
const MIN_PERCENTAGE: usize = 5;

/// How many nodes a pod fits before the search ends.
fn feasible_wanted(nodes: usize) -> usize {
    if nodes < MIN_FEASIBLE {
        return nodes;
    }
    let percentage = 50usize.saturating_sub(nodes / 125).max(MIN_PERCENTAGE);
    (nodes * percentage / 100).max(MIN_FEASIBLE)
}

/// Decides, keeping its buffers and its place in the round between pods.
#[derive(Debug, Default)]
pub struct Decider {
    /// Where the next search begins, so that all nodes get their turn.
    next: usize,
    feasible: Vec<usize>,
    totals: Vec<i64>,
    scores: Vec<i64>,
}

impl Decider {
    pub fn decide(&mut self, context: &Context<'_>) -> Decision {
        let nodes = context.cluster.nodes;
        self.feasible.clear();
        let mut diagnosis = Diagnosis { nodes: nodes.len(), rejections: Vec::new() };
        if nodes.is_empty() {
            return Decision::Nowhere(diagnosis);
        }
        let wanted = feasible_wanted(nodes.len());
        let start = self.next % nodes.len();
        let mut looked_at = 0;
        for index in (start..nodes.len()).chain(0..start) {
            looked_at += 1;
            match context.check(&nodes[index]) {
                Some(rejection) => diagnosis.rejections.push((index, rejection)),
                None => {
                    self.feasible.push(index);
                    if self.feasible.len() == wanted {
                        break;
                    }
                }
            }
        }
        // A full round would begin at the same node again, which then wins every tie.
        self.next = start + if looked_at == nodes.len() { 1 } else { looked_at };
        match self.feasible.as_slice() {
            [] => Decision::Nowhere(diagnosis),
            [only] => Decision::Node(*only),
            _ => Decision::Node(self.best(context)),
        }
    }

    /// The feasible node of the highest weighted score, the first of equals.
    fn best(&mut self, context: &Context<'_>) -> usize {
        let nodes = context.cluster.nodes;
        self.totals.clear();
        self.totals.resize(self.feasible.len(), 0);
        for plugin in plugins::SCORES.iter().filter(|plugin| (plugin.applies)(context)) {
            self.scores.clear();
            self.scores.extend(self.feasible.iter().map(|index| (plugin.score)(context, &nodes[*index])));
            plugin.normalize.apply(&mut self.scores);
            for (total, score) in self.totals.iter_mut().zip(&self.scores) {
                *total += score * plugin.weight;
            }
        }
        let mut best = 0;
        for (position, total) in self.totals.iter().enumerate() {
            if *total > self.totals[best] {
                best = position;
            }
        }
        self.feasible[best]
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.reason)
    }
}
