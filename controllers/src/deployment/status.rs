//! What a Deployment reports: counts, and how its rollout is going.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout::Goal;
use crate::time::later;

/// What became of the conditions before the counts are known, and the new ReplicaSet.
pub(super) struct Progress<'a> {
    pub(super) conditions: Vec<DeploymentCondition>,
    pub(super) new: Option<&'a ReplicaSet>,
}

/// The counts of all sets, and the conditions that follow from them alone.
pub(super) fn counts(
    view: &Deployment,
    progress: Progress<'_>,
    all: &[&ReplicaSet],
    at: Timestamp,
) -> DeploymentStatus {
    let goal = Goal::of(view);
    let sum = |amount: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|set| amount(set)).sum::<i32>();
    let of_status = |amount: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>| {
        sum(&|set| set.status.as_ref().and_then(amount).unwrap_or(0))
    };
    let available = of_status(|status| status.available_replicas);
    let wanted = sum(&|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1));
    let updated = progress.new.and_then(|new| new.status.as_ref()).map_or(0, |status| status.replicas);
    let mut conditions = progress.conditions;
    if available >= goal.min_available() {
        let message = "Deployment has minimum availability.";
        set(&mut conditions, "Available", "True", "MinimumReplicasAvailable", message, at);
    } else {
        let message = "Deployment does not have minimum availability.";
        set(&mut conditions, "Available", "False", "MinimumReplicasUnavailable", message, at);
    }
    DeploymentStatus {
        observed_generation: view.metadata.generation,
        replicas: nonzero(of_status(|status| Some(status.replicas))),
        updated_replicas: nonzero(updated),
        ready_replicas: nonzero(of_status(|status| status.ready_replicas)),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero((wanted - available).max(0)),
        terminating_replicas: Some(of_status(|status| status.terminating_replicas)),
        collision_count: view.status.as_ref().and_then(|status| status.collision_count),
        conditions: Some(conditions),
    }
}

/// Adds what the rollout's progress says: complete, moving, or stuck for too long.
pub(super) fn judge(
    view: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    failures: &[&ReplicaSet],
    at: Timestamp,
) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let name = view.metadata.name.as_deref().unwrap_or_default();
    let subject = match new.and_then(|new| new.metadata.name.as_deref()) {
        Some(set) => format!("ReplicaSet {set:?}"),
        None => format!("Deployment {name:?}"),
    };
    let standing = find(&conditions, "Progressing").cloned();
    let was_complete = standing.as_ref().is_some_and(|condition| is(condition, "NewReplicaSetAvailable"))
        && status.replicas == status.updated_replicas;
    match deadline(view) {
        None => conditions.retain(|condition| condition.type_ != "Progressing"),
        Some(_) if was_complete => {}
        Some(deadline) => {
            if is_complete(view, status) {
                let message = format!("{subject} has successfully progressed.");
                set(&mut conditions, "Progressing", "True", "NewReplicaSetAvailable", &message, at);
            } else if has_moved(view.status.as_ref(), status) {
                // Each move starts the deadline anew, so the time of the update must change.
                conditions.retain(|condition| condition.type_ != "Progressing");
                let message = format!("{subject} is progressing.");
                set(&mut conditions, "Progressing", "True", "ReplicaSetUpdated", &message, at);
                let since = standing.filter(|old| old.status == "True").and_then(|old| old.last_transition_time);
                if let (Some(since), Some(condition)) = (since, conditions.last_mut()) {
                    condition.last_transition_time = Some(since);
                }
            } else if is_late(standing.as_ref(), deadline, at) {
                let message = format!("{subject} has timed out progressing.");
                set(&mut conditions, "Progressing", "False", "ProgressDeadlineExceeded", &message, at);
            }
        }
    }
    conditions.retain(|condition| condition.type_ != "ReplicaFailure");
    let failure = failures.iter().flat_map(|failing| {
        failing.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == "ReplicaFailure")
    });
    if let Some(failure) = failure.into_iter().next() {
        conditions.push(DeploymentCondition {
            type_: failure.type_.clone(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        });
    }
    status.conditions = Some(conditions);
}

/// Every replica is updated and available, and no old one is left.
pub(super) fn is_complete(view: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = Goal::of(view).replicas;
    status.updated_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.observed_generation >= view.metadata.generation
}

fn has_moved(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let default = DeploymentStatus::default();
    let old = old.unwrap_or(&default);
    let remains = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || remains(new) < remains(old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

fn is_late(standing: Option<&DeploymentCondition>, deadline: Duration, at: Timestamp) -> bool {
    match standing {
        None => false,
        Some(condition) if is(condition, "NewReplicaSetAvailable") || is_paused(condition) => false,
        Some(condition) if is(condition, "ProgressDeadlineExceeded") => true,
        Some(condition) => waited(condition, at).is_some_and(|waited| waited > deadline),
    }
}

/// When to look whether the rollout is late, if it is under way.
pub(super) fn deadline_in(view: &Deployment, status: &DeploymentStatus, at: Timestamp) -> Option<Duration> {
    let deadline = deadline(view)?;
    let condition = find(status.conditions.as_deref()?, "Progressing")?;
    let is_over = ["NewReplicaSetAvailable", "ProgressDeadlineExceeded"].iter().any(|reason| is(condition, reason));
    if is_over || is_complete(view, status) || is_paused(condition) {
        return None;
    }
    Some(later(deadline.saturating_sub(waited(condition, at)?)))
}

fn waited(condition: &DeploymentCondition, at: Timestamp) -> Option<Duration> {
    let since = condition.last_update_time.as_ref()?.0;
    Some(Duration::try_from(at.duration_since(since)).unwrap_or_default())
}

/// `None` when the Deployment may take as long as it likes.
pub(super) fn deadline(view: &Deployment) -> Option<Duration> {
    let seconds = view.spec.as_ref()?.progress_deadline_seconds?;
    if seconds == i32::MAX { None } else { Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))) }
}

/// Pausing stops the clock of the deadline, and resuming starts it anew.
pub(super) fn note_pause(view: &Deployment, conditions: &mut Vec<DeploymentCondition>, at: Timestamp) {
    if deadline(view).is_none() {
        return;
    }
    let is_asked = view.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    let standing = find(conditions, "Progressing");
    if standing.is_some_and(|condition| is(condition, "ProgressDeadlineExceeded")) {
        return;
    }
    let is_noted = standing.is_some_and(is_paused);
    if is_asked && !is_noted {
        set(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", at);
    } else if !is_asked && is_noted {
        set(conditions, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", at);
    }
}

pub(super) fn find<'a>(conditions: &'a [DeploymentCondition], condition_type: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_ == condition_type)
}

fn is(condition: &DeploymentCondition, reason: &str) -> bool {
    condition.reason.as_deref() == Some(reason)
}

fn is_paused(condition: &DeploymentCondition) -> bool {
    is(condition, "DeploymentPaused")
}

/// Sets a condition, unless it stands with that status and reason already.
pub(super) fn set(
    conditions: &mut Vec<DeploymentCondition>,
    condition_type: &str,
    status: &str,
    reason: &str,
    message: &str,
    at: Timestamp,
) {
    let standing = find(conditions, condition_type).cloned();
    if standing.as_ref().is_some_and(|old| old.status == status && is(old, reason)) {
        return;
    }
    let since = standing.filter(|old| old.status == status).and_then(|old| old.last_transition_time);
    conditions.retain(|condition| condition.type_ != condition_type);
    conditions.push(DeploymentCondition {
        type_: condition_type.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(since.unwrap_or(Time(at))),
        last_update_time: Some(Time(at)),
    });
}

/// Zero counts are left out, as upstream does.
fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const START: &str = "2026-01-01T00:00:00Z";

    fn at(seconds: i64) -> Timestamp {
        START.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
    }

    fn deployment(replicas: i32, paused: bool, status: &DeploymentStatus) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": replicas, "progressDeadlineSeconds": 60, "paused": paused,
                     "selector": {}, "template": {}},
            "status": status,
        }))
        .unwrap()
    }

    fn replica_set(name: &str, replicas: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available},
        }))
        .unwrap()
    }

    /// One reconcile's status, written on top of the last.
    fn next(
        replicas: i32,
        paused: bool,
        last: &DeploymentStatus,
        new: &ReplicaSet,
        old: &ReplicaSet,
        seconds: i64,
    ) -> DeploymentStatus {
        let view = deployment(replicas, paused, last);
        let mut conditions = last.conditions.clone().unwrap_or_default();
        note_pause(&view, &mut conditions, at(seconds));
        let mut status = counts(&view, Progress { conditions, new: Some(new) }, &[new, old], at(seconds));
        judge(&view, &mut status, Some(new), &[new], at(seconds));
        status
    }

    fn progressing(status: &DeploymentStatus) -> (&str, &str) {
        let condition = find(status.conditions.as_deref().unwrap(), "Progressing").unwrap();
        (condition.status.as_str(), condition.reason.as_deref().unwrap())
    }

    #[test]
    fn a_rollout_moves_completes_and_stays_complete() {
        let (old, none) = (replica_set("web-a", 2, 2), replica_set("web-a", 0, 0));
        let first = next(2, false, &DeploymentStatus::default(), &replica_set("web-b", 1, 0), &old, 0);
        assert_eq!(progressing(&first), ("True", "ReplicaSetUpdated"));
        assert_eq!((first.replicas, first.updated_replicas, first.unavailable_replicas), (Some(3), Some(1), Some(1)));
        let done = next(2, false, &first, &replica_set("web-b", 2, 2), &none, 30);
        assert_eq!(progressing(&done), ("True", "NewReplicaSetAvailable"));
        let condition = find(done.conditions.as_deref().unwrap(), "Progressing").unwrap();
        assert_eq!(condition.message.as_deref(), Some("ReplicaSet \"web-b\" has successfully progressed."));
        assert_eq!(condition.last_transition_time, Some(Time(at(0))));
        // A pod that is lost later is not a rollout.
        let later = next(2, false, &done, &replica_set("web-b", 2, 1), &none, 900);
        assert_eq!(progressing(&later), ("True", "NewReplicaSetAvailable"));
        assert_eq!(deadline_in(&deployment(2, false, &later), &later, at(900)), None);
    }

    #[test]
    fn a_rollout_that_stands_still_is_late_unless_paused() {
        let (old, stuck) = (replica_set("web-a", 2, 2), replica_set("web-b", 1, 0));
        let first = next(2, false, &DeploymentStatus::default(), &stuck, &old, 0);
        let waiting = next(2, false, &first, &stuck, &old, 40);
        assert_eq!(progressing(&waiting), ("True", "ReplicaSetUpdated"));
        assert_eq!(deadline_in(&deployment(2, false, &waiting), &waiting, at(40)), Some(Duration::from_secs(21)));
        let late = next(2, false, &waiting, &stuck, &old, 61);
        assert_eq!(progressing(&late), ("False", "ProgressDeadlineExceeded"));

        let paused = next(2, true, &waiting, &stuck, &old, 50);
        assert_eq!(progressing(&paused), ("Unknown", "DeploymentPaused"));
        assert_eq!(progressing(&next(2, true, &paused, &stuck, &old, 500)), ("Unknown", "DeploymentPaused"));
        let resumed = next(2, false, &paused, &stuck, &old, 510);
        assert_eq!(progressing(&resumed), ("Unknown", "DeploymentResumed"));
        assert_eq!(progressing(&next(2, false, &resumed, &stuck, &old, 560)), ("Unknown", "DeploymentResumed"));
        assert_eq!(progressing(&next(2, false, &resumed, &stuck, &old, 571)), ("False", "ProgressDeadlineExceeded"));
    }

    #[test]
    fn availability_has_a_condition_of_its_own() {
        let none = replica_set("web-a", 0, 0);
        for (available, expected) in [(4, "True"), (3, "True"), (2, "False")] {
            let status = next(4, false, &DeploymentStatus::default(), &replica_set("web-b", 4, available), &none, 0);
            assert_eq!(find(status.conditions.as_deref().unwrap(), "Available").unwrap().status, expected);
        }
    }
}
