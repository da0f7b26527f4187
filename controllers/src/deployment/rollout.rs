//! How many replicas each ReplicaSet of a Deployment should have next.
//!
//! Always: a step never leaves more than `replicas + max_surge` pods wanted, and never
//! takes away a pod that `replicas - max_unavailable` still needs.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What the Deployment asks for, with percentages resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Goal {
    pub(super) replicas: i32,
    pub(super) max_surge: i32,
    pub(super) max_unavailable: i32,
}

/// One ReplicaSet as a rollout sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) name: String,
    pub(super) created: Timestamp,
    /// What its spec asks for.
    pub(super) replicas: i32,
    pub(super) available: i32,
    /// What the Deployment asked for, surge included, when it was last resized.
    pub(super) max_replicas: Option<i32>,
}

/// A ReplicaSet's name and what its spec should ask for.
pub(super) type Resize = (String, i32);

impl Goal {
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate")) {
            return Self { replicas, max_surge: 0, max_unavailable: 0 };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter);
        let max_surge = scaled(surge, replicas, true);
        let max_unavailable = match scaled(unavailable, replicas, false) {
            // Both zero would never move: a percentage rounded down is the one to give way.
            0 if max_surge == 0 => 1,
            max_unavailable => max_unavailable.min(replicas),
        };
        Self { replicas, max_surge, max_unavailable }
    }

    fn max_total(self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }

    pub(super) fn min_available(self) -> i32 {
        self.replicas - self.max_unavailable
    }

    /// The annotation by which a later, proportional resize knows what was before.
    pub(super) fn max_replicas(self) -> i32 {
        self.max_total()
    }
}

fn scaled(amount: &IntOrString, of: i32, round_up: bool) -> i32 {
    match amount {
        IntOrString::Int(amount) => (*amount).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or(0);
            let hundredths = percent.max(0).saturating_mul(i64::from(of));
            let scaled = if round_up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 };
            i32::try_from(scaled).unwrap_or(i32::MAX)
        }
    }
}

/// The next step of a rolling update: first the new set grows as far as the surge allows,
/// then the old ones shrink as far as availability allows.
pub(super) fn rolling_step(goal: Goal, new: &Size, old: &[Size]) -> Vec<Resize> {
    let total = new.replicas + sum(old, |size| size.replicas);
    let grown = new_size(goal, new.replicas, total);
    if grown != new.replicas {
        return vec![(new.name.clone(), grown)];
    }
    shrink_old(goal, new, old, total)
}

/// What a new set of `current` replicas should have, when all sets together have `total`.
pub(super) fn new_size(goal: Goal, current: i32, total: i32) -> i32 {
    if current >= goal.replicas {
        return goal.replicas;
    }
    let room = (goal.max_total() - total).max(0);
    current + room.min(goal.replicas - current)
}

fn shrink_old(goal: Goal, new: &Size, old: &[Size], total: i32) -> Vec<Resize> {
    if old.iter().all(|size| size.replicas == 0) {
        return Vec::new();
    }
    let new_unavailable = new.replicas - new.available;
    let may_shrink = total - goal.min_available() - new_unavailable;
    if may_shrink <= 0 {
        return Vec::new();
    }
    let mut after: Vec<Size> = old.iter().filter(|size| size.replicas > 0).cloned().collect();
    after.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));

    // Pods that serve nobody go first: they cost no availability.
    let mut taken = 0;
    for size in &mut after {
        let unhealthy = (size.replicas - size.available).max(0);
        let less = unhealthy.min(may_shrink - taken);
        size.replicas -= less;
        taken += less;
    }

    let available = new.available + sum(&after, |size| size.available);
    let mut spare = (available - goal.min_available()).max(0);
    for size in &mut after {
        let less = size.replicas.min(spare);
        size.replicas -= less;
        spare -= less;
    }
    changed(old, after)
}

/// A resize of the Deployment in the middle of a rollout, or while it is paused: every
/// set that has pods gets its share, and the rollout goes on from there.
pub(super) fn scale(goal: Goal, new: Option<&Size>, old: &[Size], is_rolling: bool) -> Vec<Resize> {
    let all: Vec<Size> = old.iter().chain(new).cloned().collect();
    let active: Vec<&Size> = all.iter().filter(|size| size.replicas > 0).collect();
    // One set with pods, or none at all: nothing to share.
    let only = match active.as_slice() {
        [] => new.or_else(|| old.iter().max_by_key(|size| size.created)),
        [only] => Some(*only),
        _ => None,
    };
    if let Some(only) = only {
        return vec![(only.name.clone(), goal.replicas)];
    }
    if active.is_empty() {
        return Vec::new();
    }
    // The rollout is done but for its remains.
    if let Some(new) = new.filter(|new| new.replicas == goal.replicas && new.available == goal.replicas) {
        let remains = active.iter().filter(|size| size.name != new.name);
        return remains.map(|size| (size.name.clone(), 0)).collect();
    }
    if !is_rolling {
        return Vec::new();
    }
    let allowed = if goal.replicas > 0 { goal.max_total() } else { 0 };
    let to_add = allowed - active.iter().map(|size| size.replicas).sum::<i32>();
    let mut after: Vec<Size> = active.iter().map(|size| (*size).clone()).collect();
    // The largest first; among equals, growth favours the newer and shrinking the older.
    after.sort_by(|a, b| {
        let by_age = if to_add > 0 { b.created.cmp(&a.created) } else { a.created.cmp(&b.created) };
        b.replicas.cmp(&a.replicas).then(by_age)
    });
    let mut added = 0;
    for size in &mut after {
        let share = share(goal, size, to_add, added);
        size.replicas += share;
        added += share;
    }
    // What rounding left over.
    if let Some(first) = after.first_mut() {
        first.replicas = (first.replicas + to_add - added).max(0);
    }
    after.into_iter().map(|size| (size.name, size.replicas)).collect()
}

fn share(goal: Goal, size: &Size, to_add: i32, added: i32) -> i32 {
    if to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if goal.replicas == 0 {
        -size.replicas
    } else {
        let before = i64::from(size.max_replicas.filter(|max| *max > 0).unwrap_or(goal.max_total()).max(1));
        let scaled = i64::from(size.replicas) * i64::from(goal.max_total());
        // Rounded half up, as upstream's integer rounding does for what is not negative.
        let wanted = i32::try_from((2 * scaled + before) / (2 * before)).unwrap_or(i32::MAX);
        wanted - size.replicas
    };
    let allowed = to_add - added;
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

fn changed(before: &[Size], after: Vec<Size>) -> Vec<Resize> {
    let was = |name: &str| before.iter().find(|size| size.name == name).map(|size| size.replicas);
    after
        .into_iter()
        .filter(|size| was(&size.name) != Some(size.replicas))
        .map(|size| (size.name, size.replicas))
        .collect()
}

fn sum(sizes: &[Size], amount: impl Fn(&Size) -> i32) -> i32 {
    sizes.iter().map(amount).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Sets named by letters, in the order of their creation: (replicas, available).
    fn sizes(sets: &[(i32, i32)], max_replicas: Option<i32>) -> Vec<Size> {
        let one = |(index, (replicas, available)): (usize, &(i32, i32))| Size {
            name: char::from(b'a' + index as u8).to_string(),
            created: Timestamp::from_second(index as i64).unwrap(),
            replicas: *replicas,
            available: *available,
            max_replicas,
        };
        sets.iter().enumerate().map(one).collect()
    }

    fn goal(replicas: i32, max_surge: i32, max_unavailable: i32) -> Goal {
        Goal { replicas, max_surge, max_unavailable }
    }

    fn named(resizes: &[Resize]) -> Vec<(&str, i32)> {
        resizes.iter().map(|(name, to)| (name.as_str(), *to)).collect()
    }

    /// The last set is the new one.
    #[track_caller]
    fn check_step(goal: Goal, sets: &[(i32, i32)], expected: &[(&str, i32)]) {
        let sizes = sizes(sets, None);
        let (new, old) = sizes.split_last().unwrap();
        assert_eq!(named(&rolling_step(goal, new, old)), expected);
    }

    #[test]
    fn a_rolling_update_steps_within_its_limits() {
        // Growth first, up to the surge.
        check_step(goal(4, 1, 1), &[(4, 4), (0, 0)], &[("b", 1)]);
        // With the surge used up, the old set gives what availability can spare.
        check_step(goal(4, 1, 1), &[(4, 4), (1, 0)], &[("a", 3)]);
        check_step(goal(4, 1, 1), &[(3, 3), (1, 0)], &[("b", 2)]);
        check_step(goal(4, 1, 1), &[(3, 3), (2, 0)], &[]);
        check_step(goal(4, 1, 1), &[(3, 3), (2, 1)], &[("a", 2)]);
        // Unhealthy pods of old sets go first and do not cost availability.
        check_step(goal(4, 1, 1), &[(2, 0), (2, 2), (1, 1)], &[("a", 0)]);
        check_step(goal(10, 0, 2), &[(8, 8), (2, 0)], &[]);
        check_step(goal(10, 0, 2), &[(8, 8), (2, 2)], &[("a", 6)]);
        // Too large a new set shrinks whatever else.
        check_step(goal(2, 1, 0), &[(0, 0), (3, 3)], &[("b", 2)]);
        check_step(goal(3, 1, 1), &[(0, 0), (3, 3)], &[]);
    }

    #[test]
    fn a_rollout_always_ends_and_never_breaks_its_promise() {
        for replicas in 1..=12 {
            for (max_surge, max_unavailable) in [(0, 1), (1, 0), (1, 1), (3, 2), (12, 12)] {
                let goal = goal(replicas, max_surge, max_unavailable.min(replicas));
                let mut sets = sizes(&[(replicas, replicas), (0, 0)], None);
                let mut steps = 0;
                while sets[1].available != replicas || sets[0].replicas != 0 {
                    steps += 1;
                    assert!(steps < 100, "{goal:?} stands still at {sets:?}");
                    let (new, old) = sets.split_last().unwrap();
                    let resizes = rolling_step(goal, new, old);
                    if resizes.is_empty() {
                        // Pods come up one at a time, which is the hardest case.
                        sets[1].available += 1;
                    }
                    for (name, to) in resizes {
                        let set = sets.iter_mut().find(|set| set.name == name).unwrap();
                        set.replicas = to;
                        set.available = set.available.min(to);
                    }
                    let total: i32 = sets.iter().map(|set| set.replicas).sum();
                    let available: i32 = sets.iter().map(|set| set.available).sum();
                    assert!(total <= goal.max_total(), "{goal:?} {sets:?}");
                    assert!(available >= goal.min_available(), "{goal:?} {sets:?}");
                }
            }
        }
    }

    #[track_caller]
    fn check_scale(goal: Goal, sets: &[(i32, i32)], max_before: i32, expected: &[(&str, i32)]) {
        let sizes = sizes(sets, Some(max_before));
        let (new, old) = sizes.split_last().unwrap();
        let mut resizes = scale(goal, Some(new), old, true);
        resizes.sort();
        assert_eq!(named(&resizes), expected);
    }

    #[test]
    fn a_resize_is_shared_in_proportion() {
        check_scale(goal(7, 1, 1), &[(0, 0), (5, 5)], 6, &[("b", 7)]);
        check_scale(goal(0, 1, 1), &[(0, 0), (0, 0)], 6, &[("b", 0)]);
        check_scale(goal(20, 0, 0), &[(5, 5), (5, 5)], 10, &[("a", 10), ("b", 10)]);
        check_scale(goal(5, 0, 0), &[(8, 8), (2, 2)], 10, &[("a", 4), ("b", 1)]);
        check_scale(goal(0, 1, 0), &[(5, 5), (5, 5)], 11, &[("a", 0), ("b", 0)]);
        check_scale(goal(4, 0, 0), &[(1, 1), (4, 4)], 4, &[("a", 0)]);
        let total: i32 = {
            let sizes = sizes(&[(7, 7), (3, 1), (4, 0)], Some(14));
            scale(goal(25, 6, 2), Some(&sizes[2]), &sizes[..2], true).iter().map(|(_, to)| to).sum()
        };
        assert_eq!(total, 31);
    }

    #[track_caller]
    fn check_goal(spec: Value, expected: Goal) {
        let mut spec = spec;
        spec["selector"] = json!({});
        spec["template"] = json!({});
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        assert_eq!(Goal::of(&deployment), expected);
    }

    #[test]
    fn percentages_round_towards_progress() {
        let rolling = |surge: Value, unavailable: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        check_goal(json!({"replicas": 3}), goal(3, 1, 0));
        check_goal(json!({"replicas": 10, "strategy": rolling(json!("25%"), json!("25%"))}), goal(10, 3, 2));
        check_goal(json!({"replicas": 2, "strategy": rolling(json!(0), json!("10%"))}), goal(2, 0, 1));
        check_goal(json!({"replicas": 2, "strategy": rolling(json!(0), json!(5))}), goal(2, 0, 2));
        check_goal(json!({"replicas": 2, "strategy": {"type": "Recreate"}}), goal(2, 0, 0));
    }
}
