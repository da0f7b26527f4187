//! Amounts of what a node offers and a pod asks for, in the scheduler's units.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use quorate_proto::quantity::Quantity;

/// CPU in thousandths, memory and storage in bytes, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// How many pods; 0 in what a pod asks for, which is always one.
    pub pods: i64,
    /// Extended resources, huge pages and whatever else a device plugin reports.
    pub extended: BTreeMap<String, i64>,
}

/// A resource list as the API's types carry it.
pub type ResourceList = BTreeMap<String, WireQuantity>;

/// What one pod may ask for as far as sums are concerned: more fits no node, and the sums
/// over 4,096 such pods are still exact, so that a pod that goes takes away what it brought.
const MAX_AMOUNT: i64 = i64::MAX >> 12;

pub fn bounded(amount: i64) -> i64 {
    amount.clamp(0, MAX_AMOUNT)
}

impl Resources {
    /// Reads a resource list. An amount that does not parse counts as nothing: the API
    /// server has checked it, so that it can only come from a version we do not know.
    pub fn from_list(list: &ResourceList) -> Self {
        let mut resources = Self::default();
        for (name, amount) in list {
            let Ok(amount) = amount.0.parse::<Quantity>() else { continue };
            resources.set(name, amount);
        }
        resources
    }

    fn set(&mut self, name: &str, amount: Quantity) {
        match name {
            "cpu" => self.milli_cpu = amount.milli_value(),
            "memory" => self.memory = amount.value(),
            "ephemeral-storage" => self.ephemeral_storage = amount.value(),
            "pods" => self.pods = amount.value(),
            _ => {
                self.extended.insert(name.to_owned(), amount.value());
            }
        }
    }

    /// Puts the amounts of `list` in the place of its own, resource by resource.
    pub fn override_with(&mut self, list: &ResourceList) {
        for (name, amount) in list {
            if let Ok(amount) = amount.0.parse::<Quantity>() {
                self.set(name, amount);
            }
        }
    }

    /// Bounds every amount by `MAX_AMOUNT`.
    pub fn bounded(mut self) -> Self {
        let extended = self.extended.values_mut();
        for amount in [&mut self.milli_cpu, &mut self.memory, &mut self.ephemeral_storage].into_iter().chain(extended) {
            *amount = bounded(*amount);
        }
        self
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    /// Raises every amount to at least that of `other`.
    pub fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.extended {
            match self.extended.get_mut(name) {
                Some(own) => *own = with(*own, *amount),
                None => {
                    self.extended.insert(name.clone(), with(0, *amount));
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) fn list(pairs: &[(&str, &str)]) -> ResourceList {
    pairs.iter().map(|(name, amount)| ((*name).to_owned(), WireQuantity((*amount).to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_the_schedulers_units() {
        let resources = Resources::from_list(&list(&[
            ("cpu", "1500m"),
            ("memory", "1Gi"),
            ("ephemeral-storage", "10M"),
            ("pods", "110"),
            ("example.com/gpu", "2"),
            ("hugepages-2Mi", "4Mi"),
            ("broken", "many"),
        ]));
        assert_eq!((resources.milli_cpu, resources.memory, resources.ephemeral_storage), (1500, 1 << 30, 10_000_000));
        assert_eq!((resources.pods, resources.extended["example.com/gpu"]), (110, 2));
        assert_eq!(resources.extended["hugepages-2Mi"], 4 << 20);
        assert!(!resources.extended.contains_key("broken"));
    }

    #[test]
    fn what_is_added_can_be_taken_away() {
        let mut sum = Resources::from_list(&list(&[("cpu", "1"), ("a/b", "1")]));
        let more = Resources::from_list(&list(&[("cpu", "250m"), ("memory", "5"), ("c/d", "3")]));
        sum.add(&more);
        assert_eq!((sum.milli_cpu, sum.memory, sum.extended["c/d"]), (1250, 5, 3));
        sum.raise_to(&Resources::from_list(&list(&[("cpu", "2"), ("a/b", "0")])));
        assert_eq!((sum.milli_cpu, sum.extended["a/b"]), (2000, 1));
        sum.subtract(&more);
        assert_eq!((sum.milli_cpu, sum.memory, sum.extended["c/d"]), (1750, 0, 0));
    }
}
