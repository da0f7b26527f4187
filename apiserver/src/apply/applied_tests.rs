use super::super::scope::testing::scope;
use super::super::update::{created, updated};
use super::*;

/// An object that is written by several managers, a minute apart.
struct World {
    object: Option<Value>,
    group: &'static str,
    resource: &'static str,
    minute: u8,
}

impl World {
    fn maps() -> Self {
        Self { object: None, group: "", resource: "configmaps", minute: 0 }
    }

    fn deployments() -> Self {
        Self { object: None, group: "apps", resource: "deployments", minute: 0 }
    }

    fn try_apply(&mut self, manager: &str, config: &Value, force: bool) -> Result<(), Status> {
        self.minute += 1;
        let scope = scope(self.group, self.resource, manager, self.minute);
        self.object = Some(applied(&scope, self.object.as_ref(), config, force)?);
        Ok(())
    }

    #[track_caller]
    fn apply(&mut self, manager: &str, config: &Value) {
        self.try_apply(manager, config, false).unwrap();
    }

    #[track_caller]
    fn conflicts(&mut self, manager: &str, config: &Value, expected: &[&str]) {
        let before = self.object.clone();
        let status = self.try_apply(manager, config, false).unwrap_err();
        let causes = status.details.unwrap().causes;
        let texts: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        assert_eq!(texts, expected);
        assert_eq!(self.object, before);
    }

    /// Creates or replaces the object.
    fn put(&mut self, manager: &str, mut new: Value) {
        self.minute += 1;
        let scope = scope(self.group, self.resource, manager, self.minute);
        let managed = match &self.object {
            None => created(&scope, &new),
            Some(old) => updated(&scope, old, &new, None),
        };
        if let Some(managed) = managed {
            new["metadata"]["managedFields"] = managed;
        }
        self.object = Some(new);
    }

    fn object(&self) -> Value {
        without_owners(self.object.as_ref().unwrap())
    }

    /// `manager operation minute` and the fields of every entry.
    #[track_caller]
    fn owners(&self, expected: &[(&str, Value)]) {
        let managed = &self.object.as_ref().unwrap()["metadata"]["managedFields"];
        let found: Vec<(String, Value)> = managed
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| {
                let text = |name: &str| entry[name].as_str().unwrap_or_default();
                let minute = text("time").get(14..16).unwrap_or("-").parse::<u8>().map_or(-1, i16::from);
                (format!("{} {} {minute}", text("manager"), text("operation")), entry["fieldsV1"].clone())
            })
            .collect();
        let expected: Vec<(String, Value)> =
            expected.iter().map(|(who, fields)| ((*who).to_owned(), fields.clone())).collect();
        assert_eq!(found, expected);
    }
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

#[test]
fn applying_creates_and_repeating_it_changes_nothing() {
    let mut world = World::maps();
    let config = map(json!({"a": "1"}));
    world.apply("x", &config);
    assert_eq!(world.object(), config);
    world.owners(&[("x Apply 1", json!({"f:data": {"f:a": {}}}))]);
    let before = world.object.clone();
    world.apply("x", &config);
    assert_eq!(world.object, before, "the time stays, too");
}

#[test]
fn what_is_left_out_goes_unless_others_own_it() {
    let mut world = World::maps();
    world.apply("x", &map(json!({"a": "1", "b": "1", "c": "1"})));
    world.apply("y", &map(json!({"b": "1"})));
    world.put("z", map(json!({"a": "1", "b": "1", "c": "1", "d": "1"})));
    world.apply("x", &map(json!({"a": "1"})));
    assert_eq!(world.object(), map(json!({"a": "1", "b": "1", "d": "1"})));
    world.owners(&[
        ("y Apply 2", json!({"f:data": {"f:b": {}}})),
        ("x Apply 4", json!({"f:data": {"f:a": {}}})),
        ("z Update 3", json!({"f:data": {"f:d": {}}})),
    ]);
    world.apply("y", &map(Value::Null));
    assert_eq!(world.object(), map(json!({"a": "1", "d": "1"})), "its last owner lets it go");
}

#[test]
fn a_whole_map_goes_with_its_only_owner() {
    let mut world = World::maps();
    let mut labelled = map(json!({"a": "1"}));
    labelled["metadata"]["labels"] = json!({"l": "1"});
    world.apply("x", &labelled);
    world.apply("x", &map(json!({"a": "1"})));
    assert_eq!(world.object(), map(json!({"a": "1"})));
}

#[test]
fn equal_values_are_shared_and_others_conflict() {
    let mut world = World::maps();
    world.put("creator", map(json!({"a": "1", "b": "1"})));
    world.apply("x", &map(json!({"a": "1"})));
    world.owners(&[
        ("x Apply 2", json!({"f:data": {"f:a": {}}})),
        ("creator Update 1", json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}})),
    ]);
    world.conflicts("x", &map(json!({"a": "2"})), &[".data.a: conflict with \"creator\" using v1"]);
    world.conflicts(
        "y",
        &map(json!({"a": "2", "b": "2"})),
        &[
            ".data.a: conflict with \"creator\" using v1",
            ".data.b: conflict with \"creator\" using v1",
            ".data.a: conflict with \"x\"",
        ],
    );
    world.try_apply("y", &map(json!({"a": "2"})), true).unwrap();
    assert_eq!(world.object(), map(json!({"a": "2", "b": "1"})));
    world.owners(&[
        ("y Apply 5", json!({"f:data": {"f:a": {}}})),
        ("creator Update 1", json!({"f:data": {".": {}, "f:b": {}}})),
    ]);
}

#[test]
fn an_update_takes_over_and_apply_gets_it_back_by_force() {
    let mut world = World::maps();
    let config = map(json!({"a": "1"}));
    world.apply("x", &config);
    world.put("edit", map(json!({"a": "2"})));
    world.owners(&[("edit Update 2", json!({"f:data": {"f:a": {}}}))]);
    world.conflicts("x", &config, &[".data.a: conflict with \"edit\" using v1"]);
    world.try_apply("x", &config, true).unwrap();
    world.owners(&[("x Apply 4", json!({"f:data": {"f:a": {}}}))]);
}

#[test]
fn lists_are_merged_by_their_keys() {
    let container =
        |ports: Value| deployment(json!({"template": {"spec": {"containers": [{"name": "c", "ports": ports}]}}}));
    let mut world = World::deployments();
    world.apply("x", &container(json!([{"containerPort": 80}])));
    world.apply("y", &container(json!([{"containerPort": 80, "protocol": "UDP"}])));
    let ports = |world: &World| world.object()["spec"]["template"]["spec"]["containers"][0]["ports"].clone();
    assert_eq!(ports(&world), json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}]));
    world.apply(
        "z",
        &container(
            json!([{"containerPort": 80, "protocol": "UDP", "name": "dns"}, {"containerPort": 80, "hostPort": 1}]),
        ),
    );
    assert_eq!(
        ports(&world),
        json!([{"containerPort": 80, "protocol": "UDP", "name": "dns"}, {"containerPort": 80, "hostPort": 1}])
    );
}

#[test]
fn a_default_comes_back_to_what_is_no_longer_applied() {
    let mut world = World::deployments();
    let replicas = |count: u8| deployment(json!({"replicas": count, "paused": true}));
    world.apply("x", &replicas(3));
    world.conflicts("scaler", &deployment(json!({"replicas": 5})), &[".spec.replicas: conflict with \"x\""]);
    world.try_apply("scaler", &deployment(json!({"replicas": 5})), true).unwrap();
    world.apply("x", &deployment(json!({"paused": true})));
    assert_eq!(world.object()["spec"], json!({"replicas": 5, "paused": true}));
    world.apply("scaler", &deployment(json!({})));
    assert_eq!(world.object()["spec"], json!({"paused": true}));
}

#[test]
fn sets_and_atomic_lists() {
    let with = |finalizers: Value| {
        let mut config = map(json!({}));
        config["metadata"]["finalizers"] = finalizers;
        config
    };
    let mut world = World::maps();
    world.apply("x", &with(json!(["a/x", "b/x"])));
    world.apply("y", &with(json!(["c/x"])));
    assert_eq!(world.object()["metadata"]["finalizers"], json!(["a/x", "b/x", "c/x"]));
    world.apply("x", &with(json!(["b/x"])));
    assert_eq!(world.object()["metadata"]["finalizers"], json!(["b/x", "c/x"]));

    let arguments =
        |list: Value| deployment(json!({"template": {"spec": {"containers": [{"name": "c", "args": list}]}}}));
    let mut world = World::deployments();
    world.apply("x", &arguments(json!(["a"])));
    world.conflicts(
        "y",
        &arguments(json!(["a", "b"])),
        &[".spec.template.spec.containers[name=\"c\"].args: conflict with \"x\""],
    );
}

#[test]
fn amounts_are_one_however_they_are_written() {
    let cpu = |amount: &str| {
        let resources = json!({"limits": {"cpu": amount}});
        deployment(json!({"template": {"spec": {"containers": [{"name": "c", "resources": resources}]}}}))
    };
    let mut world = World::deployments();
    world.apply("x", &cpu("0.5"));
    world.apply("y", &cpu("500m"));
    world.apply("x", &cpu("0.5"));
    let container = world.object()["spec"]["template"]["spec"]["containers"][0].clone();
    assert_eq!(container["resources"]["limits"]["cpu"], "500m");
}

#[test]
fn what_nobody_recorded_belongs_to_whoever_was_before() {
    let mut world = World::maps();
    world.object = Some(map(json!({"a": "1", "b": "1"})));
    world.apply("x", &map(json!({"a": "1"})));
    world.owners(&[
        ("x Apply 1", json!({"f:data": {"f:a": {}}})),
        ("before-first-apply Update 1", json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}})),
    ]);
}

#[test]
fn kubectl_takes_over_what_it_applied_by_itself() {
    let annotated = |config: &Value, last: &Value| {
        let mut object = config.clone();
        object["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()});
        object
    };
    let first = map(json!({"a": "1", "b": "1"}));
    let mut world = World::maps();
    world.put("kubectl-client-side-apply", annotated(&first, &first));
    world.conflicts(
        "other",
        &map(json!({"a": "2", "b": "1"})),
        &[".data.a: conflict with \"kubectl-client-side-apply\" using v1"],
    );
    let second = map(json!({"a": "2", "b": "1"}));
    world.apply("kubectl", &second);
    assert_eq!(world.object()["data"], second["data"]);
    let annotation = &world.object()["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert_eq!(annotation, &json!(format!("{second}\n")), "the annotation follows");

    // What somebody changed since is no longer kubectl's.
    world.put("edit", annotated(&map(json!({"a": "2", "b": "3"})), &second));
    world.conflicts("kubectl", &map(json!({"a": "2", "b": "4"})), &[".data.b: conflict with \"edit\" using v1"]);
}

#[test]
fn a_status_is_not_applied_with_the_object() {
    let mut config = deployment(json!({"paused": true}));
    config["status"] = json!({"replicas": 3});
    let mut world = World::deployments();
    world.apply("x", &config);
    world.owners(&[("x Apply 1", json!({"f:spec": {"f:paused": {}}}))]);
}

#[test]
fn what_does_not_fit_the_schema_is_refused() {
    let refused = |config: Value| World::deployments().try_apply("x", &config, false).unwrap_err();
    let unknown = refused(deployment(json!({"replicaz": 3})));
    assert_eq!(
        (unknown.code, unknown.message.as_str()),
        (
            500,
            "failed to create typed patch object (/web; apps/v1, Kind=Deployment): .spec.replicaz: field not declared in schema"
        )
    );
    assert_eq!(refused(deployment(json!({"replicas": "x"}))).code, 400);
}
