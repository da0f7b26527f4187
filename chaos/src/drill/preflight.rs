//! Whether a cluster can bear a drill: decided from what was seen of it.

use std::net::SocketAddr;

use anyhow::Result;

use super::sample::Role;
use super::scenario::{Fault, Scenario};
use crate::fault::link::Table;

/// A member that lacks more entries than this is not caught up.
const MOST_LAG: u64 = 200;

/// What was seen of a master.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) term: u64,
    pub(crate) lag: u64,
    /// Why its process cannot be found, if so.
    pub(crate) process: Result<(), String>,
}

/// Every reason why the cluster should not be drilled now.
pub(crate) fn reasons(masters: &[Seen], supervised: bool, alarms: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    if !supervised {
        reasons.push("`quorate up` does not run, which starts masters again: start it".to_owned());
    }
    let living = masters.iter().filter(|master| master.role != Role::Silent).count();
    let quorum = masters.len() / 2 + 1;
    if masters.len() < 3 {
        reasons.push(format!("{} master(s) can lose none: drill a cluster of 3 or 5", masters.len()));
    } else if living <= quorum {
        reasons.push(format!("{living} of {} masters answer: losing one more would stop writes", masters.len()));
    }
    for master in masters {
        if master.role == Role::Silent {
            reasons.push(format!("{} does not answer: look at its log", master.name));
        } else if master.lag > MOST_LAG {
            reasons.push(format!("{} is {} entries behind: wait until it has caught up", master.name, master.lag));
        }
        if let Err(why) = &master.process {
            reasons.push(why.clone());
        }
    }
    let leaders: Vec<&Seen> = masters.iter().filter(|master| master.role == Role::Leader).collect();
    match leaders.as_slice() {
        [leader] if masters.iter().all(|master| master.role == Role::Silent || master.term == leader.term) => {}
        [_] => reasons.push("masters are of different terms: wait for the election to end".to_owned()),
        [] => reasons.push("nobody leads: see `quorate status`".to_owned()),
        _ => reasons.push("more than one master says that it leads: see `quorate status`".to_owned()),
    }
    if alarms > 0 {
        reasons.push(format!("{alarms} alarm(s) are raised: see `quorate status`"));
    }
    reasons
}

/// Every reason why `scenario` cannot be done with these masters on this machine, however well
/// they are. `peers` are where masters listen for each other, `disks` is whether their disks
/// can be failed, `left` is what was seen of the tables of earlier drills.
pub(crate) fn obstacles(
    scenario: &Scenario,
    peers: &[SocketAddr],
    disks: bool,
    left: impl FnOnce() -> Result<Vec<Table>>,
) -> Vec<String> {
    let mut reasons = Vec::new();
    let least = scenario.least_masters();
    if peers.len() < least {
        reasons.push(format!("it needs {least} masters, and there are {}", peers.len()));
    }
    match scenario.fault {
        Fault::Signal(_) | Fault::Silence | Fault::Combo => {}
        Fault::Disk(_) if disks => {}
        Fault::Disk(_) => reasons.push(
            "masters run on plain disks: drill a cluster that was started by `quorate up --faults`, or by the drill"
                .to_owned(),
        ),
        Fault::Link(_) if peers.iter().any(|peer| !peer.ip().is_loopback()) => {
            reasons.push("masters are not on the loopback: only links of one machine are cut".to_owned());
        }
        Fault::Link(_) => match left() {
            Ok(left) => reasons.extend(left.iter().map(|table| {
                format!("a drill that ended left a table that loses packets: nft delete table inet {table}")
            })),
            Err(error) => reasons.push(format!("{error:#}")),
        },
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::super::scenario;
    use super::*;

    fn master(name: &str, role: Role, term: u64, lag: u64) -> Seen {
        Seen { name: name.into(), role, term, lag, process: Ok(()) }
    }

    #[test]
    fn a_healthy_cluster_can_be_drilled_and_others_not() {
        let three = |last: Seen| vec![master("m1", Role::Leader, 2, 0), master("m2", Role::Follower, 2, 3), last];
        let check = |masters: &[Seen], supervised: bool, alarms: usize, expected: &[&str]| {
            let reasons = reasons(masters, supervised, alarms);
            assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
            for (reason, expected) in reasons.iter().zip(expected) {
                assert!(reason.contains(expected), "{reason}");
            }
        };
        let well = three(master("m3", Role::Follower, 2, 0));
        check(&well, true, 0, &[]);
        check(&well, false, 1, &["quorate up", "alarm"]);
        check(&three(master("m3", Role::Silent, 0, 0)), true, 0, &["losing one more", "m3 does not answer"]);
        check(&three(master("m3", Role::Follower, 2, 1000)), true, 0, &["1000 entries behind"]);
        check(&three(master("m3", Role::Follower, 1, 0)), true, 0, &["different terms"]);
        check(&three(master("m3", Role::Leader, 2, 0)), true, 0, &["more than one"]);
        check(&well[1..], true, 0, &["can lose none", "nobody leads"]);
        check(&well[..1], true, 0, &["can lose none"]);
        let lost = Seen { process: Err("process 7 is not m3".into()), ..master("m3", Role::Follower, 2, 0) };
        check(&three(lost), true, 0, &["process 7"]);
    }

    #[test]
    fn links_are_cut_on_the_loopback_alone_and_by_whoever_may() {
        let check = |name: &str, masters: u8, net: u8, left: Result<Vec<Table>, &str>, expected: &[&str]| {
            let peers: Vec<SocketAddr> =
                (1..=masters).map(|host| SocketAddr::from(([net, 0, 10, host], 2380))).collect();
            let seen = || left.map_err(|why| anyhow::anyhow!(why.to_owned()));
            let reasons = obstacles(scenario::find(name).unwrap(), &peers, false, seen);
            assert_eq!(reasons.len(), expected.len(), "{name}: {reasons:?}");
            for (reason, expected) in reasons.iter().zip(expected) {
                assert!(reason.contains(expected), "{reason}");
            }
        };
        let refused = || Err("run the drill as root");
        check("leader-kill", 3, 127, refused(), &[]);
        check("partition-leader", 3, 127, Ok(Vec::new()), &[]);
        check("partition-leader", 3, 127, refused(), &["as root"]);
        check("partition-leader", 3, 10, Ok(Vec::new()), &["loopback"]);
        check("partition-half", 3, 127, Ok(Vec::new()), &["5 masters"]);
        check("partition-half", 5, 127, Ok(Vec::new()), &[]);
        let left = Ok(vec!["quorate_drill_7".parse().unwrap()]);
        check("flapping-link", 3, 127, left, &["nft delete table inet quorate_drill_7"]);
        check("disk-stall", 3, 127, Ok(Vec::new()), &["quorate up --faults"]);
        let peers = [SocketAddr::from(([127, 0, 10, 1], 2380)); 3];
        let reasons = obstacles(scenario::find("disk-stall").unwrap(), &peers, true, || Ok(Vec::new()));
        assert_eq!(reasons, Vec::<String>::new());
    }
}
