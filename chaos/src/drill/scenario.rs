//! What can be drilled, and what each drill does.

use std::time::Duration;

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
    /// One master after the other.
    EveryMaster,
}

/// What is done to the victim's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL: a crash.
    Kill,
    /// SIGSTOP: it hangs, and its connections stay open.
    Stop,
    /// SIGTERM: a planned stop.
    Terminate,
}

impl Fault {
    /// The signal's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP",
            Self::Terminate => "SIGTERM",
        }
    }

    /// What undoes it, and who does that.
    pub fn undone_by(self) -> &'static str {
        match self {
            Self::Kill | Self::Terminate => "`quorate up` starts the process again, whether the drill lives or not",
            Self::Stop => "SIGCONT; a watchdog process, armed before the fault, sends it should the drill not",
        }
    }
}

const OBSERVE: Duration = Duration::from_secs(3);

/// In the order of `drill all`.
pub static ALL: [Scenario; 5] = [
    Scenario {
        name: "leader-kill",
        about: "The leading master's process is killed.",
        victim: Victim::Leader,
        fault: Fault::Kill,
        observe: OBSERVE,
        budget: &["F1", "F3", "F5", "F6", "F8"],
        most_terms: 1,
    },
    Scenario {
        name: "leader-hang",
        about: "The leading master's process stops without a word, as if its machine hung, and goes on later.",
        victim: Victim::Leader,
        fault: Fault::Stop,
        observe: OBSERVE,
        budget: &["F2"],
        most_terms: 1,
    },
    Scenario {
        name: "leader-handoff",
        about: "The leading master is told to end, as for an upgrade.",
        victim: Victim::Leader,
        fault: Fault::Terminate,
        observe: OBSERVE,
        budget: &["F4", "F4 failed", "F7 pods", "F7 controllers"],
        most_terms: 1,
    },
    Scenario {
        name: "follower-kill",
        about: "A following master's process is killed; clients of the others should not notice.",
        victim: Victim::Follower,
        fault: Fault::Kill,
        observe: OBSERVE,
        budget: &[],
        most_terms: 0,
    },
    Scenario {
        name: "rolling-restart",
        about: "Every master is told to end and starts again, one after the other, while clients go on.",
        victim: Victim::EveryMaster,
        fault: Fault::Terminate,
        observe: Duration::from_millis(500),
        budget: &["F18 failed", "F18 terms"],
        most_terms: 3,
    },
];

/// What the specification names and this version cannot do, with why.
pub static UNSUPPORTED: [(&str, &str); 9] = [
    ("node-loss", "pods on nodes are not probed yet: only masters are drilled"),
    ("mass-node-loss", "needs more nodes than `quorate up` starts"),
    ("partition-leader", "masters of `quorate up` share one network namespace and one source address"),
    ("partition-half", "as partition-leader"),
    ("flapping-link", "as partition-leader"),
    ("latency", "as partition-leader"),
    ("disk-stall", "needs a disk under each master that can be stalled"),
    ("disk-full", "needs a disk of its own under each master"),
    ("clock-jump", "masters of `quorate up` share the machine's clock"),
];

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
        assert!(find("partition-leader").unwrap_err().contains("not supported"));
        assert!(find("nonsense").unwrap_err().contains("leader-kill"));
    }
}
