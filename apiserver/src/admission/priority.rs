//! Names of priority classes become numbers when a pod is created.

use std::sync::Arc;

use futures::future::BoxFuture;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use quorate_runtime::client::Client;
use quorate_runtime::informer::{Informers, Lister};
use quorate_runtime::resources;
use serde_json::{Value, json};

use super::{Admission, Attributes, Operation};

/// The plugin `Priority`.
pub(super) struct Priority {
    client: Arc<dyn Client>,
    classes: Lister,
}

/// What a class gives to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    name: String,
    value: i64,
    preemption_policy: String,
}

impl Priority {
    pub(super) fn new(client: &Arc<dyn Client>, informers: &Informers) -> Self {
        Self { client: Arc::clone(client), classes: informers.informer(&resources::priority_classes()).lister() }
    }

    async fn resolve(&self, name: &str) -> Result<Option<Class>, Status> {
        if name.is_empty() {
            let defaults = self.classes.list();
            let defaults = defaults.iter().filter(|class| class.value()["globalDefault"] == true).map(class);
            // Upstream takes the lowest when somebody made two.
            return Ok(defaults.min_by_key(|class| class.value));
        }
        if let Some(found) = self.classes.get(name) {
            return Ok(Some(class(&found)));
        }
        match self.client.get(&resources::priority_classes(), None, name).await {
            Ok(found) => Ok(Some(class(&found))),
            Err(status) if status.is_not_found() => Ok(None),
            Err(status) => Err(status),
        }
    }
}

fn class(object: &Arc<Object>) -> Class {
    let value = object.value();
    Class {
        name: object.meta().name.clone(),
        value: value["value"].as_i64().unwrap_or(0),
        preemption_policy: value["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned(),
    }
}

impl Admission for Priority {
    fn mutate<'a>(
        &'a self,
        attributes: Attributes<'a>,
        object: &'a mut Value,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let is_pod =
                attributes.group.is_empty() && attributes.resource == "pods" && attributes.subresource.is_empty();
            if !is_pod || attributes.operation != Operation::Create {
                return Ok(());
            }
            let name = object["spec"]["priorityClassName"].as_str().unwrap_or("").to_owned();
            let class = self.resolve(&name).await?;
            apply(&mut object["spec"], &name, class).map_err(|why| Status::forbidden("", "pods", attributes.name, &why))
        })
    }
}

fn apply(spec: &mut Value, name: &str, class: Option<Class>) -> Result<(), String> {
    if class.is_none() && !name.is_empty() {
        return Err(format!("no PriorityClass with name {name} was found"));
    }
    let class =
        class.unwrap_or(Class { name: String::new(), value: 0, preemption_policy: "PreemptLowerPriority".to_owned() });
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != class.value) {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
            class.value
        ));
    }
    let policy = spec["preemptionPolicy"].as_str();
    if policy.is_some_and(|given| given != class.preemption_policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
            policy.unwrap_or(""),
            class.preemption_policy
        ));
    }
    if !class.name.is_empty() {
        spec["priorityClassName"] = json!(class.name);
    }
    spec["priority"] = json!(class.value);
    spec["preemptionPolicy"] = json!(class.preemption_policy);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn high() -> Class {
        Class { name: "high".to_owned(), value: 1000, preemption_policy: "Never".to_owned() }
    }

    #[test]
    fn names_become_numbers() {
        let mut spec = json!({"priorityClassName": "high"});
        apply(&mut spec, "high", Some(high())).unwrap();
        assert_eq!(spec, json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"}));
        let mut spec = json!({});
        apply(&mut spec, "", None).unwrap();
        assert_eq!(spec, json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let mut spec = json!({});
        apply(&mut spec, "", Some(high())).unwrap();
        assert_eq!(spec["priorityClassName"], "high");
    }

    #[test]
    fn unknown_names_and_own_numbers_are_refused() {
        assert_eq!(apply(&mut json!({}), "x", None).unwrap_err(), "no PriorityClass with name x was found");
        assert!(
            apply(&mut json!({"priority": 5}), "high", Some(high()))
                .unwrap_err()
                .starts_with("the integer value of priority (5)")
        );
        assert!(apply(&mut json!({"preemptionPolicy": "PreemptLowerPriority"}), "high", Some(high())).is_err());
    }
}
