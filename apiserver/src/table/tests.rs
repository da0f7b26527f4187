use serde_json::json;

use super::*;
use crate::schema::{resource, resources};

const NOW: &str = "2024-06-01T00:00:00Z";

fn options() -> RenderOptions {
    RenderOptions {
        include: IncludeObject::Metadata,
        headers: true,
        now: NOW.parse().unwrap(),
        api_version: "meta.k8s.io/v1",
    }
}

fn table(group: &str, version: &str, name: &str, mut object: Value, options: &RenderOptions) -> Value {
    let def = resource(group, version, name).unwrap();
    object["kind"] = json!(def.kind);
    object["apiVersion"] = json!(def.api_version());
    let object = Arc::new(Object::from_value(&object, 7).unwrap());
    render(def, &[object], options)
}

/// Checks the cells by the columns' names.
#[track_caller]
fn check(group: &str, name: &str, object: Value, expected: &[(&str, Value)]) {
    let table = table(group, "v1", name, object, &options());
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|own| own["name"].as_str().unwrap()).collect();
    for (column, cell) in expected {
        let index =
            columns.iter().position(|own| own == column).unwrap_or_else(|| panic!("no column {column} in {columns:?}"));
        assert_eq!(&table["rows"][0]["cells"][index], cell, "{column}");
    }
}

#[track_caller]
fn check_pod(status: Value, expected: [&str; 3]) {
    let object = json!({"metadata": {"name": "p", "creationTimestamp": "2024-05-31T23:55:00Z"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}],
                 "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
        "status": status});
    let [ready, status, restarts] = expected;
    check(
        "",
        "pods",
        object,
        &[("Ready", json!(ready)), ("Status", json!(status)), ("Restarts", json!(restarts)), ("Age", json!("5m"))],
    );
}

#[test]
fn pods_say_what_they_are_doing() {
    let running = json!({"running": {"startedAt": NOW}});
    check_pod(json!({"phase": "Pending"}), ["0/3", "Pending", "0"]);
    check_pod(
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
        ["0/3", "SchedulingGated", "0"],
    );
    check_pod(
        json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": running}]}),
        ["0/3", "Init:0/2", "0"],
    );
    check_pod(
        json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
               "lastState": {"terminated": {"finishedAt": "2024-05-31T23:59:00Z"}}}]}),
        ["0/3", "Init:CrashLoopBackOff", "2 (60s ago)"],
    );
    check_pod(
        json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
        ["0/3", "Init:ExitCode:3", "0"],
    );
    check_pod(
        json!({"phase": "Running",
               "initContainerStatuses": [{"name": "i", "restartCount": 9, "state": {"terminated": {"exitCode": 0}}},
                                         {"name": "s", "started": true, "ready": true, "state": running}],
               "containerStatuses": [
                   {"name": "a", "ready": true, "state": running},
                   {"name": "b", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"finishedAt": "2024-05-31T23:50:00Z"}}}]}),
        ["2/3", "CrashLoopBackOff", "4 (10m ago)"],
    );
    check_pod(
        json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
        ["0/3", "Completed", "0"],
    );
    check_pod(
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
               "containerStatuses": [{"name": "a", "state": {"terminated": {"reason": "Completed"}}}, {"name": "b", "ready": true, "state": running}]}),
        ["1/3", "Running", "0"],
    );
}

#[test]
fn a_deleted_pod_is_terminating_unless_its_node_is_lost() {
    let pod = |status: Value| json!({"metadata": {"name": "p", "deletionTimestamp": NOW}, "spec": {"containers": [{"name": "a"}]}, "status": status});
    check("", "pods", pod(json!({"phase": "Running"})), &[("Status", json!("Terminating"))]);
    check("", "pods", pod(json!({"phase": "Failed", "reason": "Evicted"})), &[("Status", json!("Evicted"))]);
    check("", "pods", pod(json!({"phase": "Running", "reason": "NodeLost"})), &[("Status", json!("Unknown"))]);
    let table = table("", "v1", "pods", pod(json!({"phase": "Succeeded"})), &options());
    assert_eq!(table["rows"][0]["conditions"][0]["reason"], "Succeeded");
}

#[test]
fn workloads_and_nodes_show_what_kubectl_shows() {
    check(
        "apps",
        "deployments",
        json!({"metadata": {"name": "d"},
               "spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["x", "y"]}]},
                        "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}},
               "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
        &[
            ("Ready", json!("2/3")),
            ("Up-to-date", json!(3)),
            ("Available", json!(1)),
            ("Age", json!("<unknown>")),
            ("Containers", json!("c,d")),
            ("Images", json!("i,j")),
            ("Selector", json!("a=1,b=2,c in (x,y)")),
        ],
    );
    check(
        "",
        "nodes",
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
               "spec": {"unschedulable": true},
               "status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                          "nodeInfo": {"kubeletVersion": "v1.35.0"}}}),
        &[
            ("Status", json!("NotReady,SchedulingDisabled")),
            ("Roles", json!("control-plane,worker")),
            ("Version", json!("v1.35.0")),
            ("Internal-IP", json!("10.0.0.1")),
            ("External-IP", json!("<none>")),
            ("OS-Image", json!("<unknown>")),
        ],
    );
    check(
        "batch",
        "jobs",
        json!({"metadata": {"name": "j"}, "spec": {"completions": 3},
               "status": {"succeeded": 1, "startTime": "2024-05-31T23:00:00Z", "completionTime": "2024-05-31T23:01:30Z"}}),
        &[("Status", json!("Running")), ("Completions", json!("1/3")), ("Duration", json!("90s"))],
    );
}

#[test]
fn services_show_where_they_are_reached() {
    let service = |spec: Value, status: Value| json!({"metadata": {"name": "s"}, "spec": spec, "status": status});
    check(
        "",
        "services",
        service(
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
            json!({}),
        ),
        &[
            ("Cluster-IP", json!("10.96.0.1")),
            ("External-IP", json!("<none>")),
            ("Port(s)", json!("80:30080/TCP,53/UDP")),
            ("Selector", json!("<none>")),
        ],
    );
    check("", "services", service(json!({"type": "LoadBalancer"}), json!({})), &[("External-IP", json!("<pending>"))]);
    check(
        "",
        "services",
        service(
            json!({"type": "LoadBalancer", "externalIPs": ["2.2.2.2"]}),
            json!({"loadBalancer": {"ingress": [{"hostname": "lb"}]}}),
        ),
        &[("External-IP", json!("lb,2.2.2.2"))],
    );
    let addresses: Vec<Value> = (1..6).map(|last| json!({"ip": format!("10.0.0.{last}")})).collect();
    check(
        "",
        "endpoints",
        json!({"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
        &[("Endpoints", json!("10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."))],
    );
}

#[test]
fn events_of_both_groups_read_the_same() {
    let expected =
        [("Last Seen", json!("30s")), ("Object", json!("pod/p")), ("Message", json!("hello")), ("Count", json!(2))];
    check(
        "",
        "events",
        json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "message": "hello\n", "count": 2,
               "firstTimestamp": "2024-05-31T23:00:00Z", "lastTimestamp": "2024-05-31T23:59:30Z"}),
        &expected,
    );
    check(
        "events.k8s.io",
        "events",
        json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"}, "note": "hello",
               "eventTime": "2024-05-31T23:00:00.000000Z", "series": {"count": 2, "lastObservedTime": "2024-05-31T23:59:30.000000Z"}}),
        &expected,
    );
}

#[test]
fn rows_carry_what_was_asked_for() {
    let object = json!({"metadata": {"name": "x"}, "data": {"a": "b"}});
    let mut asked = options();
    let row = |asked: &RenderOptions| table("", "v1", "configmaps", object.clone(), asked)["rows"][0]["object"].clone();
    assert_eq!(row(&asked)["kind"], "PartialObjectMetadata");
    assert_eq!(row(&asked)["metadata"]["resourceVersion"], "7");
    assert_eq!(row(&asked).get("data"), None);
    asked.include = IncludeObject::Object;
    assert_eq!(row(&asked)["data"], json!({"a": "b"}));
    asked.include = IncludeObject::None;
    assert_eq!(row(&asked), Value::Null);
    asked.headers = false;
    assert_eq!(table("", "v1", "configmaps", object.clone(), &asked)["columnDefinitions"], json!([]));
}

#[test]
fn every_kind_renders_even_when_nothing_is_set() {
    for def in resources() {
        let table = table(def.group, def.version, def.resource, json!({"metadata": {"name": "x"}}), &options());
        let columns = table["columnDefinitions"].as_array().unwrap();
        assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns.len(), "{}", def.resource);
        assert!(columns.iter().any(|column| column["format"] == "name"), "{}", def.resource);
        for column in columns {
            assert_ne!(column["description"], "", "{} of {}", column["name"], def.resource);
        }
    }
}
