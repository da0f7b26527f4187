//! Whether a cluster can bear a drill: decided from what was seen of it.

use super::sample::Role;

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

#[cfg(test)]
mod tests {
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
}
