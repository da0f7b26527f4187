//! The alarms of the cluster, and what they forbid.

use std::collections::BTreeMap;

use quorate_proto::etcd::{AlarmMember, AlarmResponse, AlarmType, ResponseHeader};

use super::pending::Pending;
use crate::command::{AlarmChange, ApplyError, Operation};
use crate::quota;

/// The alarms that are raised, by member and type; true is one that clears itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Alarms(BTreeMap<(u64, i32), bool>);

impl Alarms {
    pub(super) fn insert(&mut self, member: u64, alarm: i32, automatic: bool) {
        self.0.insert((member, alarm), automatic);
    }

    pub(super) fn remove(&mut self, member: u64, alarm: i32) {
        self.0.remove(&(member, alarm));
    }

    /// Whether an alarm is raised, and if so whether it clears itself.
    pub(crate) fn get(&self, member: u64, alarm: AlarmType) -> Option<bool> {
        self.0.get(&(member, alarm.into())).copied()
    }

    /// Those of one type, or all of them.
    pub(crate) fn list(&self, alarm: i32) -> Vec<AlarmMember> {
        let any = alarm == i32::from(AlarmType::None);
        let wanted = self.0.keys().filter(|(_, kind)| any || *kind == alarm);
        wanted.map(|(member_id, alarm)| AlarmMember { member_id: *member_id, alarm: *alarm }).collect()
    }

    /// The members with an alarm that clears itself.
    pub(crate) fn automatic(&self) -> Vec<AlarmMember> {
        let wanted = self.0.iter().filter(|(_, automatic)| **automatic);
        wanted.map(|((member_id, alarm), _)| AlarmMember { member_id: *member_id, alarm: *alarm }).collect()
    }

    /// Why an operation must not be applied. One member found to be corrupt by comparison
    /// is put aside and stops nobody; an alarm that says so by hand stops the cluster.
    pub(crate) fn refusal(&self, operation: &Operation) -> Option<ApplyError> {
        if self.0.is_empty() {
            return None;
        }
        let (no_space, corrupt) = (i32::from(AlarmType::Nospace), i32::from(AlarmType::Corrupt));
        let stopped = self.0.iter().any(|((_, alarm), automatic)| *alarm == corrupt && !automatic);
        let touches_keys = matches!(
            operation,
            Operation::Put(_)
                | Operation::DeleteRange(_)
                | Operation::Txn(_)
                | Operation::Compact(_)
                | Operation::LeaseGrant { .. }
                | Operation::LeaseRevoke { .. }
        );
        if stopped && touches_keys {
            return Some(ApplyError::Corrupt);
        }
        let full = self.0.keys().any(|(_, alarm)| *alarm == no_space);
        (full && quota::cost(operation) > 0).then_some(ApplyError::NoSpace)
    }
}

/// Raises or clears an alarm. The answer names it, if it is one and was there to clear.
pub(super) fn change(pending: &mut Pending<'_>, change: AlarmChange) -> AlarmResponse {
    let AlarmChange { raise, member, alarm, automatic } = change;
    let known = pending.alarm(member, alarm);
    let mut response = AlarmResponse {
        header: Some(ResponseHeader { revision: pending.revision(), ..Default::default() }),
        alarms: Vec::new(),
    };
    let exists = AlarmType::try_from(alarm).is_ok_and(|alarm| alarm != AlarmType::None);
    if !exists || (!raise && known.is_none()) {
        return response;
    }
    // Whoever watches over itself does not take back what a person has raised.
    let theirs = known == Some(false) && automatic;
    match (raise, theirs) {
        (true, false) => pending.put_alarm(member, alarm, automatic),
        (false, false) => pending.remove_alarm(member, alarm),
        (_, true) => {}
    }
    response.alarms.push(AlarmMember { member_id: member, alarm });
    response
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcd::{PutRequest, TxnRequest};

    use super::*;

    #[test]
    fn alarms_forbid_what_etcd_forbids() {
        let put = Operation::Put(PutRequest { key: "k".into(), ..Default::default() });
        let delete = Operation::DeleteRange(Default::default());
        let empty = Operation::Txn(TxnRequest::default());
        let grant = Operation::LeaseGrant { id: 1, ttl: 1 };
        let revoke = Operation::LeaseRevoke { id: 1 };
        let compact = Operation::Compact(Default::default());
        let all = [&put, &delete, &empty, &grant, &revoke, &compact, &Operation::Noop];
        let check = |alarms: &[(AlarmType, bool)], expected: [Option<ApplyError>; 7]| {
            let mut known = Alarms::default();
            alarms.iter().for_each(|(alarm, automatic)| known.insert(5, (*alarm).into(), *automatic));
            assert_eq!(all.map(|operation| known.refusal(operation)), expected, "{alarms:?}");
        };
        let (full, bad) = (Some(ApplyError::NoSpace), Some(ApplyError::Corrupt));
        let stopped = [bad.clone(), bad.clone(), bad.clone(), bad.clone(), bad.clone(), bad, None];
        let capped = [full.clone(), None, None, full, None, None, None];
        check(&[], [const { None }; 7]);
        check(&[(AlarmType::Nospace, true)], capped.clone());
        check(&[(AlarmType::Nospace, false)], capped);
        check(&[(AlarmType::Corrupt, true)], [const { None }; 7]);
        check(&[(AlarmType::Corrupt, false)], stopped.clone());
        check(&[(AlarmType::Corrupt, false), (AlarmType::Nospace, true)], stopped);
    }
}
