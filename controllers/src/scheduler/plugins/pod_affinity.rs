//! Affinity and anti-affinity between pods, over any label of their nodes.

use std::collections::HashMap;

use crate::scheduler::framework::{Cluster, Context, Normalize, Reason, Rejection, Score};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::pod::{PodInfo, PodTerm};

/// How many pods match, by topology key and then by value.
type Counts = HashMap<String, HashMap<String, i64>>;

/// What the pods that run already mean for one pod.
#[derive(Debug, Default)]
pub struct State {
    /// Pods that match all of the pod's affinity terms.
    affinity: Counts,
    /// Pods that match one of its anti-affinity terms.
    anti_affinity: Counts,
    /// Running pods whose own anti-affinity refuses the pod.
    refusals: Counts,
    /// Sums of the weights of the pod's preferences.
    preferences: Counts,
    /// Whether the pod meets its own affinity terms: the first of its kind must start somewhere.
    matches_itself: bool,
}

impl State {
    pub fn new(pod: &PodInfo, cluster: Cluster<'_>) -> Self {
        let mut state = Self::default();
        let namespaces = cluster.namespaces;
        let looks_at_all = !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred_pods.is_empty());
        for node in cluster.nodes {
            if !looks_at_all && node.anti_affine_pods == 0 {
                continue;
            }
            for other in node.pods() {
                for term in other.anti_affinity.iter().filter(|term| term.matches(pod, namespaces)) {
                    count(&mut state.refusals, term, node, 1);
                }
                if !pod.affinity.is_empty() && pod.affinity.iter().all(|term| term.matches(other, namespaces)) {
                    for term in &pod.affinity {
                        count(&mut state.affinity, term, node, 1);
                    }
                }
                for term in pod.anti_affinity.iter().filter(|term| term.matches(other, namespaces)) {
                    count(&mut state.anti_affinity, term, node, 1);
                }
                for (weight, term) in pod.preferred_pods.iter().filter(|(_, term)| term.matches(other, namespaces)) {
                    count(&mut state.preferences, term, node, *weight);
                }
            }
        }
        state.matches_itself = pod.affinity.iter().all(|term| term.matches(pod, namespaces));
        state
    }
}

fn count(counts: &mut Counts, term: &PodTerm, node: &NodeInfo, weight: i64) {
    let Some(value) = node.facts.labels.get(&term.topology_key) else { return };
    let values = match counts.get_mut(&term.topology_key) {
        Some(values) => values,
        None => counts.entry(term.topology_key.clone()).or_default(),
    };
    match values.get_mut(value) {
        Some(count) => *count += weight,
        None => {
            values.insert(value.clone(), weight);
        }
    }
}

fn at(counts: &Counts, key: &str, node: &NodeInfo) -> i64 {
    let value = || node.facts.labels.get(key);
    counts.get(key).and_then(|values| values.get(value()?)).copied().unwrap_or_default()
}

pub fn filter(context: &Context<'_>, node: &NodeInfo) -> Option<Rejection> {
    let (pod, state) = (context.pod, &context.affinity);
    if !pod.affinity.is_empty() {
        let has_labels = pod.affinity.iter().all(|term| node.facts.labels.contains_key(&term.topology_key));
        let has_company = pod.affinity.iter().all(|term| at(&state.affinity, &term.topology_key, node) > 0);
        let is_first = state.affinity.is_empty() && state.matches_itself;
        if !has_labels || !(has_company || is_first) {
            return Rejection::unresolvable(Reason::PodAffinity);
        }
    }
    if pod.anti_affinity.iter().any(|term| at(&state.anti_affinity, &term.topology_key, node) > 0) {
        return Rejection::resolvable(Reason::PodAntiAffinity);
    }
    if state.refusals.keys().any(|key| at(&state.refusals, key, node) > 0) {
        return Rejection::resolvable(Reason::ExistingAntiAffinity);
    }
    None
}

pub const SCORE: Score = Score {
    weight: 2,
    applies: |context| !context.affinity.preferences.is_empty(),
    score,
    normalize: Normalize::Range,
};

fn score(context: &Context<'_>, node: &NodeInfo) -> i64 {
    let preferences = &context.affinity.preferences;
    preferences.keys().map(|key| at(preferences, key, node)).sum()
}
