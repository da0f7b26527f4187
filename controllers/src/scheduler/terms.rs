//! Node selectors, taints and tolerations: which labels and taints a pod accepts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;

pub type Labels = BTreeMap<String, String>;

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl Effect {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            "NoExecute" => Some(Self::NoExecute),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: Effect,
}

impl Taint {
    /// `None` for an effect that this version does not know, which then has none.
    pub fn from_api(taint: &api::Taint) -> Option<Self> {
        let effect = Effect::parse(&taint.effect)?;
        Some(Self { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Empty for every key.
    pub key: String,
    /// `None` for every value.
    pub value: Option<String>,
    /// `None` for every effect.
    pub effect: Option<Effect>,
    /// How long a NoExecute taint is tolerated; `None` is forever.
    pub seconds: Option<i64>,
}

impl Toleration {
    /// `None` for an operator or effect that this version does not know: it tolerates nothing.
    pub fn from_api(toleration: &api::Toleration) -> Option<Self> {
        let value = match toleration.operator.as_deref() {
            Some("Exists") => None,
            None | Some("" | "Equal") => Some(toleration.value.clone().unwrap_or_default()),
            Some(_) => return None,
        };
        let effect = match toleration.effect.as_deref() {
            None | Some("") => None,
            Some(effect) => Some(Effect::parse(effect)?),
        };
        Some(Self {
            key: toleration.key.clone().unwrap_or_default(),
            value,
            effect,
            seconds: toleration.toleration_seconds,
        })
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

/// One term of a node selector. Requirements are all to hold; a term without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelectorTerm {
    labels: Vec<Requirement>,
    /// On `metadata.name`, the only field that selectors know.
    names: Vec<Requirement>,
    /// Something in the term cannot be understood: it matches nothing.
    broken: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

impl Requirement {
    fn from_api(requirement: &api::NodeSelectorRequirement) -> Option<Self> {
        let values = requirement.values.clone().unwrap_or_default();
        let bound = || match values.as_slice() {
            [bound] => bound.parse().ok(),
            _ => None,
        };
        let test = match requirement.operator.as_str() {
            "In" => Test::In(values),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            "Gt" => Test::GreaterThan(bound()?),
            "Lt" => Test::LessThan(bound()?),
            _ => return None,
        };
        Some(Self { key: requirement.key.clone(), test })
    }

    fn accepts(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
            Test::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
            Test::LessThan(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl NodeSelectorTerm {
    pub fn from_api(term: &api::NodeSelectorTerm) -> Self {
        let mut parsed = Self::default();
        for requirement in term.match_expressions.iter().flatten() {
            match Requirement::from_api(requirement) {
                Some(requirement) => parsed.labels.push(requirement),
                None => parsed.broken = true,
            }
        }
        for requirement in term.match_fields.iter().flatten() {
            match Requirement::from_api(requirement) {
                Some(requirement) if requirement.key == "metadata.name" => parsed.names.push(requirement),
                _ => parsed.broken = true,
            }
        }
        parsed
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let empty = self.labels.is_empty() && self.names.is_empty();
        !(self.broken || empty)
            && self
                .labels
                .iter()
                .all(|requirement| requirement.accepts(labels.get(&requirement.key).map(String::as_str)))
            && self.names.iter().all(|requirement| requirement.accepts(Some(name)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn tolerated(toleration: Value, taint: Value, expected: bool) {
        let parsed = Toleration::from_api(&serde_json::from_value(toleration.clone()).unwrap());
        let taint = Taint::from_api(&serde_json::from_value(taint).unwrap()).unwrap();
        assert_eq!(parsed.is_some_and(|parsed| parsed.tolerates(&taint)), expected, "{toleration} {taint:?}");
    }

    #[test]
    fn tolerations_match_key_value_and_effect() {
        let taint = json!({"key": "k", "value": "v", "effect": "NoSchedule"});
        tolerated(json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), taint.clone(), true);
        tolerated(json!({"key": "k", "value": "v"}), taint.clone(), true);
        tolerated(json!({"key": "k", "value": "w"}), taint.clone(), false);
        tolerated(json!({"key": "k"}), taint.clone(), false);
        tolerated(json!({"key": "k", "operator": "Exists"}), taint.clone(), true);
        tolerated(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), taint.clone(), false);
        tolerated(json!({"operator": "Exists"}), taint.clone(), true);
        tolerated(json!({"key": "other", "operator": "Exists"}), taint.clone(), false);
        tolerated(json!({"key": "k", "operator": "Gt", "value": "3"}), taint.clone(), false);
        tolerated(json!({"key": "k", "operator": "Exists", "effect": "Whatever"}), taint, false);
    }

    #[track_caller]
    fn selects(term: Value, expected: bool) {
        let labels: Labels =
            [("zone", "a"), ("size", "7")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let parsed = NodeSelectorTerm::from_api(&serde_json::from_value(term.clone()).unwrap());
        assert_eq!(parsed.matches("n1", &labels), expected, "{term}");
    }

    #[test]
    fn terms_are_conjunctions_and_empty_ones_match_nothing() {
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        selects(json!({}), false);
        selects(expression("zone", "In", &["a", "b"]), true);
        selects(expression("zone", "NotIn", &["a"]), false);
        selects(expression("rack", "NotIn", &["a"]), true);
        selects(expression("zone", "Exists", &[]), true);
        selects(expression("zone", "DoesNotExist", &[]), false);
        selects(expression("size", "Gt", &["6"]), true);
        selects(expression("size", "Gt", &["7"]), false);
        selects(expression("size", "Lt", &["10"]), true);
        selects(expression("zone", "Lt", &["10"]), false);
        selects(expression("size", "Gt", &["x"]), false);
        selects(expression("size", "Like", &["x"]), false);
        selects(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true);
        selects(json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}), false);
        selects(json!({"matchFields": [{"key": "spec.x", "operator": "Exists"}]}), false);
        selects(
            json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}, {"key": "rack", "operator": "Exists"}]}),
            false,
        );
    }
}
