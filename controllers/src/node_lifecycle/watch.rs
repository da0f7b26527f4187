//! Which nodes still give signs of life, by this process's own monotonic clock.
//!
//! Always: a node is silent only after its whole grace period has passed within the
//! present reign. What happened before it, this master may not have seen.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// For a node without a Lease: upstream's node monitor grace period.
pub(super) const DEFAULT_GRACE: Duration = Duration::from_secs(50);
/// Less would call a node dead that only waits for a busy disk.
const MIN_GRACE: Duration = Duration::from_secs(4);
/// Fewer nodes than that tell nothing about what they have in common.
const MIN_NODES_FOR_BRAKE: usize = 3;

#[derive(Debug)]
pub(super) struct Watch {
    reign_began: Instant,
    nodes: HashMap<String, Sign>,
    is_braking: bool,
}

/// The last sign of life of one node.
#[derive(Debug)]
struct Sign {
    /// What the node wrote: another text is a newer sign.
    lease: String,
    status: String,
    at: Instant,
    grace: Duration,
    /// Not only its Lease is there.
    is_node: bool,
}

/// Whether what many nodes have in common, and not they, is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Brake {
    pub(super) is_on: bool,
    /// It was the other way at the last look.
    pub(super) changed: bool,
    pub(super) silent: usize,
    pub(super) nodes: usize,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self { reign_began: now, nodes: HashMap::new(), is_braking: false }
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.reign_began = now;
        self.is_braking = false;
    }

    fn sign(&mut self, node: &str, now: Instant) -> &mut Sign {
        self.nodes.entry(node.to_owned()).or_insert_with(|| Sign {
            lease: String::new(),
            status: String::new(),
            at: now,
            grace: DEFAULT_GRACE,
            is_node: false,
        })
    }

    /// A Lease was seen. Its duration is how long silence is no cause for worry.
    /// Returns whether the node is to be looked at: it had been silent until now, or the
    /// time at which it would be has another length.
    pub(super) fn lease_seen(&mut self, node: &str, renewed: &str, seconds: Option<u64>, now: Instant) -> bool {
        let mut look = self.is_silent(node, now);
        let sign = self.sign(node, now);
        if let Some(seconds) = seconds {
            let grace = Duration::from_secs(seconds).clamp(MIN_GRACE, DEFAULT_GRACE);
            look |= std::mem::replace(&mut sign.grace, grace) != grace;
        }
        if sign.lease != renewed {
            renewed.clone_into(&mut sign.lease);
            sign.at = now;
        }
        look
    }

    /// A node was seen, whose status it wrote at `heartbeat`. Nodes start to be watched here.
    pub(super) fn status_seen(&mut self, node: &str, heartbeat: &str, now: Instant) {
        let sign = self.sign(node, now);
        sign.is_node = true;
        if sign.status != heartbeat {
            heartbeat.clone_into(&mut sign.status);
            sign.at = now;
        }
    }

    pub(super) fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// How long until the node counts as silent; `None` when it does.
    pub(super) fn silent_in(&self, node: &str, now: Instant) -> Option<Duration> {
        let sign = self.nodes.get(node)?;
        let left = (sign.at.max(self.reign_began) + sign.grace).checked_duration_since(now)?;
        (!left.is_zero()).then_some(left)
    }

    /// Of a node that is not watched nobody knows: it is not called silent.
    pub(super) fn is_silent(&self, node: &str, now: Instant) -> bool {
        self.nodes.contains_key(node) && self.silent_in(node, now).is_none()
    }

    /// Looks whether more than a third of the nodes went silent together, and remembers it.
    pub(super) fn brake(&mut self, now: Instant) -> Brake {
        let (silent, nodes) = self.missed(now);
        let is_on = is_too_many(silent, nodes);
        let changed = is_on != self.is_braking;
        self.is_braking = is_on;
        Brake { is_on, changed, silent, nodes }
    }

    /// Like [`Watch::brake`], for those who do not report its changes.
    pub(super) fn brake_is_on(&self, now: Instant) -> bool {
        let (silent, nodes) = self.missed(now);
        is_too_many(silent, nodes)
    }

    /// How many nodes of how many give no sign. Half a grace period of silence counts
    /// here: the first of them must not be evicted before the last is missed.
    fn missed(&self, now: Instant) -> (usize, usize) {
        let is_missed = |sign: &&Sign| now.duration_since(sign.at.max(self.reign_began)) >= sign.grace / 2;
        let nodes = || self.nodes.values().filter(|sign| sign.is_node);
        (nodes().filter(is_missed).count(), nodes().count())
    }
}

fn is_too_many(silent: usize, nodes: usize) -> bool {
    nodes >= MIN_NODES_FOR_BRAKE && silent * 3 > nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn silence_is_measured_from_the_last_sign() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert!(!watch.is_silent("a", start + seconds(1000)), "not watched yet");
        assert!(watch.lease_seen("a", "1", Some(10), start), "it is shorter than was assumed");
        assert_eq!(watch.silent_in("a", start + seconds(4)), Some(seconds(6)));
        assert!(!watch.lease_seen("a", "1", Some(10), start + seconds(8)));
        assert!(watch.is_silent("a", start + seconds(10)), "the same lease is no new sign");
        watch.status_seen("a", "x", start + seconds(10));
        assert!(!watch.is_silent("a", start + seconds(19)));
        assert!(watch.lease_seen("a", "2", Some(10), start + seconds(30)), "it had been silent");
        assert!(!watch.lease_seen("a", "3", Some(10), start + seconds(31)));
    }

    #[test]
    fn a_grace_period_has_bounds() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        watch.lease_seen("short", "1", Some(1), start);
        watch.lease_seen("long", "1", Some(3600), start);
        watch.status_seen("none", "1", start);
        assert_eq!(watch.silent_in("short", start), Some(MIN_GRACE));
        assert_eq!(watch.silent_in("long", start), Some(DEFAULT_GRACE));
        assert_eq!(watch.silent_in("none", start), Some(DEFAULT_GRACE));
    }

    #[test]
    fn a_new_reign_observes_for_itself() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        watch.lease_seen("a", "1", Some(10), start);
        watch.begin(start + seconds(100));
        assert!(!watch.is_silent("a", start + seconds(109)));
        assert!(watch.is_silent("a", start + seconds(110)));
    }

    #[track_caller]
    fn brakes(nodes: usize, silent: usize, expected: bool) {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        for index in 0..nodes {
            watch.status_seen(&index.to_string(), "1", start);
            watch.lease_seen(&index.to_string(), "1", Some(40), start);
        }
        watch.lease_seen("without a node", "1", Some(40), start);
        for index in silent..nodes {
            watch.lease_seen(&index.to_string(), "2", Some(40), start + seconds(30));
        }
        let brake = watch.brake(start + seconds(31));
        assert_eq!((brake.is_on, brake.changed, brake.silent), (expected, expected, silent), "{silent} of {nodes}");
        assert!(!watch.brake(start + seconds(31)).changed);
    }

    #[test]
    fn many_at_once_hold_evictions_back() {
        brakes(1, 1, false);
        brakes(2, 2, false);
        brakes(3, 1, false);
        brakes(3, 2, true);
        brakes(9, 3, false);
        brakes(9, 4, true);
    }
}
