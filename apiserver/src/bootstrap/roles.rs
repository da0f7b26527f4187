//! The table of roles and bindings, read from `roles.txt`.

use serde_json::{Value, json};

const TABLE: &str = include_str!("roles.txt");
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// What the text says, as objects.
#[derive(Debug, Default)]
pub(super) struct Table {
    roles: Vec<Value>,
    bindings: Vec<Value>,
}

impl Table {
    /// The table of this release.
    ///
    /// # Panics
    /// Never: a test reads the same text.
    pub(super) fn standard() -> Self {
        Self::parse(TABLE).unwrap_or_else(|line| panic!("the table of roles is broken at {line:?}"))
    }

    pub(super) fn roles(&self) -> impl Iterator<Item = Value> {
        let resolved: Vec<Value> = self.roles.iter().map(|role| self.with_aggregated(role)).collect();
        resolved.into_iter()
    }

    pub(super) fn bindings(&self) -> impl Iterator<Item = Value> {
        self.bindings.clone().into_iter()
    }

    /// Gives an aggregating role the rules of those it takes over, so that readers see
    /// them; the authorizer adds those of roles labelled later.
    fn with_aggregated(&self, role: &Value) -> Value {
        let mut role = role.clone();
        let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array().cloned().unwrap_or_default();
        for label in
            selectors.iter().filter_map(|selector| selector["matchLabels"].as_object()).flat_map(|labels| labels.keys())
        {
            let chosen = self.roles.iter().filter(|other| other["metadata"]["labels"].get(label).is_some());
            let rules: Vec<Value> = chosen.filter_map(|other| other["rules"].as_array()).flatten().cloned().collect();
            role["rules"] = Value::Array(rules);
        }
        role
    }

    /// # Errors
    /// The line that cannot be read.
    fn parse(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let read = match (line.starts_with("  "), words.as_slice()) {
                (true, _) => table.rule(line),
                (false, ["role", name, labels @ ..]) => {
                    let mut role = object("ClusterRole", name);
                    for label in labels {
                        role["metadata"]["labels"][format!("{AGGREGATE}{label}")] = json!("true");
                    }
                    role["rules"] = json!([]);
                    table.roles.push(role);
                    Some(())
                }
                (false, ["aggregate", name, label]) => {
                    let mut role = object("ClusterRole", name);
                    role["aggregationRule"] =
                        json!({"clusterRoleSelectors": [{"matchLabels": {format!("{AGGREGATE}{label}"): "true"}}]});
                    table.roles.push(role);
                    Some(())
                }
                (false, ["bind", name, subjects @ ..]) => table.binding(name, subjects),
                _ => None,
            };
            read.ok_or_else(|| line.to_owned())?;
        }
        Ok(table)
    }

    fn rule(&mut self, line: &str) -> Option<()> {
        let columns: Vec<Vec<&str>> = line.split('|').map(|column| column.split_whitespace().collect()).collect();
        let mut verbs: Vec<&str> = columns[0]
            .iter()
            .flat_map(|verb| match *verb {
                "ro" => vec!["get", "list", "watch"],
                "rw" => vec!["create", "delete", "deletecollection", "patch", "update"],
                other => vec![other],
            })
            .collect();
        verbs.sort_unstable();
        let rule = match &columns[1..] {
            [paths] if paths.first()?.starts_with('/') => {
                json!({"verbs": verbs, "nonResourceURLs": if paths == &["/*"] { vec!["*"] } else { paths.clone() }})
            }
            [groups, resources, rest @ ..] => {
                let groups: Vec<&str> = groups.iter().map(|group| if *group == "core" { "" } else { group }).collect();
                let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources});
                match rest {
                    [] => {}
                    [names] => rule["resourceNames"] = json!(names),
                    _ => return None,
                }
                rule
            }
            _ => return None,
        };
        self.roles.last_mut()?["rules"].as_array_mut()?.push(rule);
        Some(())
    }

    fn binding(&mut self, name: &str, subjects: &[&str]) -> Option<()> {
        let mut binding = object("ClusterRoleBinding", name);
        let subjects: Option<Vec<Value>> = subjects
            .iter()
            .map(|subject| match subject.splitn(3, '/').collect::<Vec<_>>()[..] {
                ["ServiceAccount", namespace, name] => {
                    Some(json!({"kind": "ServiceAccount", "namespace": namespace, "name": name}))
                }
                [kind @ ("User" | "Group"), name] => {
                    Some(json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name}))
                }
                _ => None,
            })
            .collect();
        binding["subjects"] = json!(subjects?);
        binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
        self.bindings.push(binding);
        Some(())
    }
}

fn object(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "labels": {BOOTSTRAPPING: "rbac-defaults"}, "annotations": {AUTOUPDATE: "true"}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(objects: &'a [Value], name: &str) -> &'a Value {
        objects.iter().find(|object| object["metadata"]["name"] == name).unwrap_or_else(|| panic!("{name} is missing"))
    }

    #[test]
    fn the_table_reads() {
        let table = Table::standard();
        let (roles, bindings): (Vec<_>, Vec<_>) = (table.roles().collect(), table.bindings().collect());
        let admin = find(&roles, "cluster-admin");
        assert_eq!(admin["rules"][0], json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        assert_eq!(admin["rules"][1], json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        assert_eq!(find(&bindings, "cluster-admin")["subjects"][0]["name"], "system:masters");
        assert_eq!(find(&bindings, "system:kube-dns")["subjects"][0]["namespace"], "kube-system");
        let scheduler = find(&roles, "system:kube-scheduler")["rules"].as_array().unwrap();
        assert!(scheduler.iter().any(|rule| rule["resourceNames"] == json!(["kube-scheduler"])));
        for binding in &bindings {
            find(&roles, binding["roleRef"]["name"].as_str().unwrap());
        }
    }

    #[test]
    fn view_edit_and_admin_grow() {
        let table = Table::standard();
        let roles: Vec<_> = table.roles().collect();
        let count = |name: &str| find(&roles, name)["rules"].as_array().unwrap().len();
        assert!(0 < count("view") && count("view") < count("edit") && count("edit") < count("admin"));
    }

    #[test]
    fn a_broken_line_is_named() {
        for text in ["  get | core | pods", "role", "role a\n  get", "bind a Robot/x", "x"] {
            assert!(Table::parse(text).is_err(), "{text}");
        }
    }
}
