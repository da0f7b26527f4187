use serde_json::json;

use super::samples::{Extent, kinds, sample};
use super::wire::Writer;
use super::*;

/// What is written reads back the same.
#[track_caller]
fn check(object: Value) {
    let bytes = Message::of_value(&object).expect("the kind has a schema").body();
    assert_eq!(decode_protobuf(&bytes).unwrap(), object);
}

#[test]
fn every_kind_survives_the_way_there_and_back() {
    for (group, version, kind) in kinds() {
        for extent in [Extent::Minimal, Extent::Maximal] {
            check(sample(group, version, kind, extent));
        }
    }
}

#[test]
fn objects_survive_the_way_there_and_back() {
    check(json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "labels": {"a": "1", "b": ""}, "creationTimestamp": "2024-01-02T03:04:05Z",
                     "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "u", "controller": false}],
                     "managedFields": [{"manager": "m", "fieldsV1": {"f:metadata": {}}}]},
        "spec": {
            "containers": [{
                "name": "c", "args": ["", "x"], "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}],
                "resources": {"limits": {"cpu": "500m"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}},
            }],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "m", "defaultMode": 0}}],
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsUser": 0, "supplementalGroups": [1, -2, 4_294_967_296_i64]},
            "ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "c", "resources": {}}],
        },
        "status": {},
    }));
    check(
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {}, "data": {"a": "aGVsbG8=", "b": ""}, "type": "Opaque"}),
    );
    check(json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {},
                 "spec": {"renewTime": "2024-01-02T03:04:05.123456Z", "leaseTransitions": 0}}));
    check(
        json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {"token": "t"},
                 "status": {"user": {"extra": {"x": ["1", "2"], "y": []}}}}),
    );
    check(
        json!({"kind": "ControllerRevision", "apiVersion": "apps/v1", "metadata": {}, "data": {"spec": {"a": null}}, "revision": 3}),
    );
    check(
        json!({"kind": "ValidatingWebhookConfiguration", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {},
                 "webhooks": [{"name": "w", "admissionReviewVersions": ["v1"], "clientConfig": {"url": "u"}, "sideEffects": "None",
                               "rules": [{"operations": ["*"], "apiGroups": [""], "resources": ["pods"]}]}]}),
    );
    check(json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {},
                 "spec": {"group": "g", "scope": "Cluster", "names": {"kind": "K", "plural": "ks"},
                          "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                              "type": "object", "maximum": 1.5, "enum": ["a", 1],
                              "properties": {"a": {"items": {"type": "string"}}, "b": {"additionalProperties": false},
                                             "c": {"additionalProperties": {"type": "integer"}, "default": {"x": 1}}}}}}]},
                 "status": {"acceptedNames": {}}}));
}

/// Bodies that kubectl 1.32.4 sent for `create namespace demo` and its like.
#[test]
fn zeros_that_go_writes_are_dropped() {
    #[track_caller]
    fn check(body: &[u8], expected: Value) {
        assert_eq!(decode_protobuf(body).unwrap(), expected);
    }
    check(
        include_bytes!("testdata/kubectl-1.32-namespaces.pb"),
        json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "demo"}, "spec": {}, "status": {}}),
    );
    check(
        include_bytes!("testdata/kubectl-1.32-deployments.pb"),
        json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web", "labels": {"app": "web"}},
               "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                        "template": {"metadata": {"labels": {"app": "web"}},
                                     "spec": {"containers": [{"name": "busybox", "image": "busybox", "resources": {}, "ports": [{"containerPort": 80}]}]}}},
               "status": {"replicas": 0}}),
    );
    check(
        include_bytes!("testdata/kubectl-1.32-services.pb"),
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "svc", "labels": {"app": "svc"}},
               "spec": {"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}], "selector": {"app": "svc"}, "type": "ClusterIP"},
               "status": {"loadBalancer": {}}}),
    );
    check(
        include_bytes!("testdata/kubectl-1.32-token.pb"),
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {}, "status": {"token": ""}}),
    );
    check(
        include_bytes!("testdata/kubectl-1.32-clusterrolebindings.pb"),
        json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "crb"},
               "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "y"}],
               "roleRef": {"kind": "ClusterRole", "apiGroup": "rbac.authorization.k8s.io", "name": "x"}}),
    );
}

#[test]
fn malformed_bodies_are_refused() {
    let whole = Message::of_value(&json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "creationTimestamp": "2024-01-02T03:04:05Z"},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}}))
    .unwrap()
    .body();
    for end in 0..whole.len() {
        // No prefix panics; those that end between fields are shorter objects.
        let _ = decode_protobuf(&whole[..end]);
    }
    for index in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[index] ^= 1 << bit;
            let _ = decode_protobuf(&damaged);
        }
    }
    assert_eq!(decode_protobuf(b"{}").unwrap_err().code, 400);
    assert_eq!(decode_protobuf(b"k8s\0\x0a").unwrap_err().code, 400);
    let mut kind = Writer::default();
    kind.bytes(1, b"example.com/v1");
    kind.bytes(2, b"Widget");
    let mut envelope = Writer::default();
    envelope.message(1, kind);
    let status = decode_protobuf(&[MAGIC, &envelope.into_bytes()].concat()).unwrap_err();
    assert!(status.message.contains("no kind \"Widget\""), "{status}");
}

#[test]
fn nesting_is_bounded() {
    let mut schema = Writer::default();
    for _ in 0..100_000 {
        // JSONSchemaProps.not holds a JSONSchemaProps.
        let tag = crate::schema::type_named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .and_then(|own| own.field("not"))
            .unwrap()
            .tags[0];
        let mut outer = Writer::default();
        outer.message(tag, schema);
        schema = outer;
        if schema.size() > 4096 {
            break;
        }
    }
    let own =
        crate::schema::type_named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
    assert_eq!(decode::message(own, &schema.into_bytes()).unwrap_err(), Malformed::Depth);
}
