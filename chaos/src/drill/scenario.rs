//! What can be drilled, and what each drill does.

use std::net::SocketAddr;
use std::time::Duration;

use crate::fault::link::Way;

/// One drill.
#[derive(Debug, PartialEq, Eq)]
pub struct Scenario {
    pub name: &'static str,
    /// What happens, in a sentence.
    pub about: &'static str,
    pub victim: Victim,
    pub fault: Fault,
    /// How long the fault is watched before it is undone.
    pub observe: Duration,
    /// Lines of the budget that it measures.
    pub budget: &'static [&'static str],
    /// How many terms more there may be than before.
    pub most_terms: u64,
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Leader,
    Follower,
    /// The leader, and as many followers as the others can do without.
    Minority,
    /// One master after the other.
    EveryMaster,
    /// One node.
    Node,
    /// More than a third of all nodes, at once.
    ManyNodes,
}

/// What is done to the victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// To the process of one victim after the other.
    Signal(Signal),
    /// To the links between all victims and the other masters; clients reach every master.
    Link(Link),
    /// To the agents of all victims at once: they stop, and containers go on.
    Silence,
    /// To the disk or the clock of one victim.
    Disk(Disk),
    /// Several of the others, one after another.
    Combo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL: a crash.
    Kill,
    /// SIGSTOP: it hangs, and its connections stay open.
    Stop,
    /// SIGTERM: a planned stop.
    Terminate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing goes either way.
    Cut,
    /// What victims send is lost; what is sent to them arrives.
    Mute,
    /// Cut and whole in turns, each for that long.
    Flap(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Nothing is written or synced, and nothing fails either.
    Stall,
    /// Nothing can be written.
    Full,
    /// What is synced fails.
    SyncError,
    /// With the power goes everything that was not synced.
    PowerLoss,
    /// As that, but any sector of it may have come to the disk.
    Torn,
    /// One bit of the log changes while the victim is down.
    BitFlip,
    /// The wall clock is a day ahead.
    Clock,
}

impl Link {
    /// What is lost while it is not whole; victims and others by where they listen for peers.
    pub fn ways(self, victims: &[SocketAddr], others: &[SocketAddr]) -> Vec<Way> {
        let mut ways = Vec::new();
        for victim in victims {
            for other in others {
                ways.push(Way { from: *victim, to: *other });
                match self {
                    Self::Cut | Self::Flap(_) => ways.push(Way { from: *other, to: *victim }),
                    Self::Mute => {}
                }
            }
        }
        ways
    }
}

impl Fault {
    /// What is done to a victim, as in "SIGKILL to m1".
    pub fn name(self) -> &'static str {
        match self {
            Self::Signal(Signal::Kill) => "SIGKILL",
            Self::Signal(Signal::Stop) | Self::Silence => "SIGSTOP",
            Self::Signal(Signal::Terminate) => "SIGTERM",
            Self::Link(Link::Cut) => "link cut",
            Self::Link(Link::Mute) => "one-way link cut",
            Self::Link(Link::Flap(_)) => "flapping link",
            Self::Disk(Disk::Stall) => "stalled disk",
            Self::Disk(Disk::Full) => "full disk",
            Self::Disk(Disk::SyncError) => "failing fsync",
            Self::Disk(Disk::PowerLoss) => "loss of power",
            Self::Disk(Disk::Torn) => "loss of power within writes",
            Self::Disk(Disk::BitFlip) => "flipped bit",
            Self::Disk(Disk::Clock) => "jump of the clock",
            Self::Combo => "faults drawn from a seed",
        }
    }

    /// What undoes it, and who does that.
    pub fn undone_by(self) -> &'static str {
        match self {
            Self::Signal(Signal::Kill | Signal::Terminate) | Self::Disk(Disk::PowerLoss | Disk::Torn) => {
                "`quorate up` starts the process again, whether the drill lives or not"
            }
            Self::Signal(Signal::Stop) | Self::Silence => {
                "SIGCONT; a watchdog process, armed before the fault, sends it should the drill not"
            }
            Self::Link(_) => {
                "the drill's nftables table is removed; a watchdog process, armed before the fault, does it should the \
                 drill not"
            }
            Self::Disk(Disk::Stall | Disk::Full | Disk::SyncError | Disk::Clock) => {
                "the disk and the clock are made whole; a watchdog process, armed before the fault, does it should the \
                 drill not"
            }
            Self::Disk(Disk::BitFlip) => {
                "the bit is restored, as from a copy of the disk; a watchdog process does it should the drill not"
            }
            Self::Combo => "each fault as in its own drill, before the next",
        }
    }
}

impl Scenario {
    /// With fewer masters it would be another drill, or none.
    pub fn least_masters(&self) -> usize {
        match self.victim {
            // Of three, the largest minority with the leader is the leader.
            Victim::Minority => 5,
            Victim::Leader | Victim::Follower | Victim::EveryMaster | Victim::Node | Victim::ManyNodes => 3,
        }
    }

    /// As [`Scenario::least_masters`], of nodes.
    pub fn least_nodes(&self) -> usize {
        match self.victim {
            // One that is lost, and one for its pods.
            Victim::Node => 2,
            // Of fewer, no part is many.
            Victim::ManyNodes => 3,
            Victim::Leader | Victim::Follower | Victim::Minority | Victim::EveryMaster => 0,
        }
    }
}

const OBSERVE: Duration = Duration::from_secs(3);

/// About as long as members wait before they elect: each time it is open what they do.
const FLAP: Duration = Duration::from_millis(300);

/// In the order of `drill all`.
pub static ALL: [Scenario; 20] = [
    Scenario {
        name: "leader-kill",
        about: "The leading master's process is killed.",
        victim: Victim::Leader,
        fault: Fault::Signal(Signal::Kill),
        observe: OBSERVE,
        budget: &["F1", "F3", "F5", "F6", "F8"],
        most_terms: 1,
    },
    Scenario {
        name: "leader-hang",
        about: "The leading master's process stops without a word, as if its machine hung, and goes on later.",
        victim: Victim::Leader,
        fault: Fault::Signal(Signal::Stop),
        observe: OBSERVE,
        budget: &["F2"],
        most_terms: 1,
    },
    Scenario {
        name: "leader-handoff",
        about: "The leading master is told to end, as for an upgrade.",
        victim: Victim::Leader,
        fault: Fault::Signal(Signal::Terminate),
        observe: OBSERVE,
        budget: &["F4", "F4 failed", "F7 pods", "F7 controllers"],
        most_terms: 1,
    },
    Scenario {
        name: "follower-kill",
        about: "A following master's process is killed; clients of the others should not notice.",
        victim: Victim::Follower,
        fault: Fault::Signal(Signal::Kill),
        observe: OBSERVE,
        budget: &[],
        most_terms: 0,
    },
    Scenario {
        name: "rolling-restart",
        about: "Every master is told to end and starts again, one after the other, while clients go on.",
        victim: Victim::EveryMaster,
        fault: Fault::Signal(Signal::Terminate),
        observe: Duration::from_millis(500),
        budget: &["F18 failed", "F18 terms"],
        most_terms: 3,
    },
    Scenario {
        name: "partition-leader",
        about: "The leading master and the others do not reach each other for a while; clients reach all.",
        victim: Victim::Leader,
        fault: Fault::Link(Link::Cut),
        observe: OBSERVE,
        budget: &["F2"],
        most_terms: 1,
    },
    Scenario {
        name: "partition-one-way",
        about: "What the leading master sends to the others is lost for a while; what they send to it arrives.",
        victim: Victim::Leader,
        fault: Fault::Link(Link::Mute),
        observe: OBSERVE,
        budget: &["F2"],
        most_terms: 1,
    },
    Scenario {
        name: "partition-half",
        about: "The leading master and a following one are together, and do not reach the other three for a while.",
        victim: Victim::Minority,
        fault: Fault::Link(Link::Cut),
        observe: OBSERVE,
        budget: &["F2"],
        most_terms: 1,
    },
    Scenario {
        name: "flapping-link",
        about: "The leading master's link to the others goes and comes back, every 300 ms, for six seconds.",
        victim: Victim::Leader,
        fault: Fault::Link(Link::Flap(FLAP)),
        observe: Duration::from_secs(6),
        budget: &["F2 flap"],
        // The leader may lose its office once, and one vote may split. From then on the link
        // is a follower's, whom pre-vote keeps from unseating anybody.
        most_terms: 2,
    },
    Scenario {
        name: "disk-stall",
        about: "The leading master's disk takes nothing for a while: writes and syncs to it wait.",
        victim: Victim::Leader,
        fault: Fault::Disk(Disk::Stall),
        observe: OBSERVE,
        budget: &["F14"],
        most_terms: 1,
    },
    Scenario {
        name: "disk-full",
        about: "The leading master's disk is full for a while: every write to it fails.",
        victim: Victim::Leader,
        fault: Fault::Disk(Disk::Full),
        observe: OBSERVE,
        budget: &["F14 full"],
        most_terms: 1,
    },
    Scenario {
        name: "fsync-error",
        about: "A sync of the leading master's log fails: what was written may be lost, so the process must end.",
        victim: Victim::Leader,
        fault: Fault::Disk(Disk::SyncError),
        observe: OBSERVE,
        budget: &["F14 fsync"],
        most_terms: 1,
    },
    Scenario {
        name: "lost-unsynced",
        about: "The leading master loses power, and with it everything on its disk that was not synced.",
        victim: Victim::Leader,
        fault: Fault::Disk(Disk::PowerLoss),
        observe: OBSERVE,
        budget: &[],
        most_terms: 1,
    },
    Scenario {
        name: "torn-tail",
        about: "The leading master loses power within writes: of each sector the old or the new is on its disk.",
        victim: Victim::Leader,
        fault: Fault::Disk(Disk::Torn),
        observe: OBSERVE,
        budget: &[],
        most_terms: 1,
    },
    Scenario {
        name: "bit-flip",
        about: "A bit of a following master's log changes while it is down: it must not serve what it cannot trust.",
        victim: Victim::Follower,
        fault: Fault::Disk(Disk::BitFlip),
        observe: OBSERVE,
        budget: &[],
        most_terms: 0,
    },
    Scenario {
        name: "clock-jump",
        about: "The leading master's wall clock jumps a day ahead, and back later; nobody should notice.",
        victim: Victim::Leader,
        fault: Fault::Disk(Disk::Clock),
        observe: OBSERVE,
        budget: &[],
        most_terms: 0,
    },
    Scenario {
        name: "watch-herd",
        about: "The leading master's process is killed, and the 300 watches that clients had there move all at once.",
        victim: Victim::Leader,
        fault: Fault::Signal(Signal::Kill),
        observe: OBSERVE,
        budget: &["F8 herd"],
        most_terms: 1,
    },
    Scenario {
        name: "node-loss",
        about: "A node's agent stops without a word, as if its machine were cut off; its containers go on.",
        victim: Victim::Node,
        fault: Fault::Silence,
        // Until its pods are replaced; no longer than that.
        observe: Duration::from_secs(20),
        budget: &["F9", "F10"],
        most_terms: 0,
    },
    Scenario {
        name: "mass-node-loss",
        about: "More than a third of the nodes fall silent at once: rather the network than they.",
        victim: Victim::ManyNodes,
        fault: Fault::Silence,
        observe: Duration::from_secs(12),
        budget: &["F12 alarm", "F12 evicted"],
        most_terms: 0,
    },
    Scenario {
        name: "combo",
        about: "Four of the other drills' faults, drawn from a seed, one soon after another.",
        victim: Victim::Leader,
        fault: Fault::Combo,
        observe: OBSERVE,
        budget: &[],
        // Those of what is drawn.
        most_terms: 0,
    },
];

/// What the specification names and this version cannot do, with why.
pub static UNSUPPORTED: [(&str, &str); 1] =
    [("latency", "delaying packets needs netem, which not every kernel has; links are cut by nftables, which cannot")];

/// # Errors
/// Why there is no such drill, and which there are.
pub fn find(name: &str) -> Result<&'static Scenario, String> {
    if let Some(scenario) = ALL.iter().find(|scenario| scenario.name == name) {
        return Ok(scenario);
    }
    if let Some((_, why)) = UNSUPPORTED.iter().find(|(unsupported, _)| *unsupported == name) {
        return Err(format!("{name} is not supported: {why}"));
    }
    let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
    Err(format!("there is no drill {name:?}; there are {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::budget;
    use super::*;

    #[test]
    fn every_scenario_is_found_and_measures_lines_of_the_budget() {
        for scenario in &ALL {
            assert_eq!(find(scenario.name), Ok(scenario));
            for id in scenario.budget {
                assert!(budget::line(id).is_some(), "{} measures {id}", scenario.name);
            }
        }
        assert!(find("latency").unwrap_err().contains("not supported"));
        assert!(find("nonsense").unwrap_err().contains("leader-kill"));
    }

    #[test]
    fn a_link_is_lost_to_all_others_and_between_victims_it_stays() {
        let at = |host: u8| SocketAddr::from(([127, 0, 10, host], 2380));
        let check = |link: Link, expected: &[(u8, u8)]| {
            let ways = link.ways(&[at(1), at(4)], &[at(2), at(3)]);
            let expected: Vec<Way> = expected.iter().map(|(from, to)| Way { from: at(*from), to: at(*to) }).collect();
            assert_eq!(ways, expected, "{link:?}");
        };
        let both = [(1, 2), (2, 1), (1, 3), (3, 1), (4, 2), (2, 4), (4, 3), (3, 4)];
        check(Link::Cut, &both);
        check(Link::Flap(FLAP), &both);
        check(Link::Mute, &[(1, 2), (1, 3), (4, 2), (4, 3)]);
    }
}
