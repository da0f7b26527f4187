//! What is written here, read by the messages of `k8s-pb`: they were generated from
//! upstream's definitions, and share no code with the table's walk.

use std::sync::Arc;

use bytes::Bytes;
use k8s_pb::api::apps::v1::Deployment;
use k8s_pb::api::core::v1::{Pod, PodList, Secret, Service};
use k8s_pb::apimachinery::pkg::apis::meta::v1::{PartialObjectMetadata, PartialObjectMetadataList, Status, WatchEvent};
use k8s_pb::apimachinery::pkg::runtime::Unknown;
use prost::Message as _;
use quorate_proto::object::Object;
use quorate_proto::status::ListMeta;
use serde_json::{Value, json};

use super::samples::{Extent, kinds, sample};
use super::*;

/// The kind and the message in an envelope.
#[track_caller]
fn open(body: &[u8]) -> (String, String, Vec<u8>) {
    let unknown = Unknown::decode(body.strip_prefix(MAGIC).expect("the body begins as all do")).expect("an envelope");
    assert_eq!((unknown.content_encoding.as_deref(), unknown.content_type.as_deref()), (Some(""), Some("")));
    let meta = unknown.type_meta.expect("the kind is named");
    (meta.api_version.unwrap_or_default(), meta.kind.unwrap_or_default(), unknown.raw.expect("there is a message"))
}

#[track_caller]
fn read<M: prost::Message + Default>(object: &Value) -> M {
    let body = Message::of_value(object).expect("the kind has a schema").body();
    let (api_version, kind, raw) = open(&body);
    assert_eq!((json!(api_version), json!(kind)), (object["apiVersion"].clone(), object["kind"].clone()));
    M::decode(raw.as_slice()).expect("the message is whole")
}

fn stored(value: &Value, revision: u64) -> Arc<Object> {
    Arc::new(Object::from_value(value, revision).expect("the sample is an object"))
}

fn pod() -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web", "labels": {"b": "2", "a": "1"}, "creationTimestamp": "2024-01-02T03:04:05Z"},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                                 "livenessProbe": {"httpGet": {"path": "/", "port": "web"}}}],
                 "volumes": [{"name": "v", "hostPath": {"path": "/data"}}, {"name": "nothing"}],
                 "terminationGracePeriodSeconds": 0},
        "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]}})
}

#[test]
fn a_pod_says_the_same() {
    let read: Pod = read(&pod());
    let metadata = read.metadata.unwrap();
    assert_eq!(metadata.name.as_deref(), Some("web"));
    assert_eq!(metadata.labels["b"], "2");
    assert_eq!(metadata.creation_timestamp.unwrap().seconds, Some(1_704_164_645));
    let spec = read.spec.unwrap();
    assert_eq!(spec.termination_grace_period_seconds, Some(0), "a zero that says something");
    assert_eq!(spec.active_deadline_seconds, None);
    let container = &spec.containers[0];
    assert_eq!((container.image.as_deref(), container.ports[0].container_port), (Some("i"), Some(80)));
    assert!(container.resources.is_some(), "held by value: there, and empty");
    assert!(container.security_context.is_none(), "a pointer");
    let probe = container.liveness_probe.as_ref().unwrap().handler.as_ref().unwrap();
    let port = probe.http_get.as_ref().unwrap().port.as_ref().unwrap();
    assert_eq!((port.r#type, port.str_val.as_deref()), (Some(1), Some("web")));
    let source = |index: usize| spec.volumes[index].volume_source.as_ref().unwrap();
    assert_eq!(source(0).host_path.as_ref().unwrap().path.as_deref(), Some("/data"));
    assert!(source(1).host_path.is_none());
    let status = read.status.unwrap();
    assert_eq!(status.pod_ips.len() + status.conditions.len(), 2);
    assert!(status.conditions[0].last_transition_time.is_some(), "an empty time");
}

#[test]
fn a_deployment_a_service_and_a_secret_say_the_same() {
    let deployment: Deployment =
        read(&json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
                 "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                 "template": {"metadata": {}, "spec": {"containers": []}}}}));
    let spec = deployment.spec.unwrap();
    assert_eq!(spec.replicas, Some(0));
    assert!(deployment.status.is_some());
    let rolling = spec.strategy.unwrap().rolling_update.unwrap();
    assert_eq!(rolling.max_surge.unwrap().str_val.as_deref(), Some("25%"));
    assert_eq!(rolling.max_unavailable.unwrap().int_val, Some(1));

    let service: Service = read(&json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "targetPort": 8080}]}}));
    let spec = service.spec.unwrap();
    assert_eq!((spec.cluster_ip.as_deref(), spec.cluster_ips.len()), (Some("10.0.0.1"), 1));
    assert_eq!(spec.ports[0].target_port.as_ref().unwrap().int_val, Some(8080));
    assert!(service.status.unwrap().load_balancer.is_some());

    let secret: Secret = read(&json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"},
        "data": {"b": "", "a": "aGVsbG8="}, "immutable": false}));
    assert_eq!(secret.data["a"], b"hello");
    assert_eq!(secret.data["b"], b"");
    assert_eq!(secret.immutable, Some(false));
}

#[test]
fn a_status_says_why() {
    let status = quorate_proto::status::Status::not_found("apps", "deployments", "web");
    let read: Status = read(&json!(status));
    assert_eq!((read.code, read.reason.as_deref()), (Some(404), Some("NotFound")));
    assert_eq!(read.message.as_deref(), Some(status.message.as_str()));
    let details = read.details.unwrap();
    assert_eq!((details.name.as_deref(), details.kind.as_deref()), (Some("web"), Some("deployments")));
}

#[test]
fn a_list_has_its_metadata_and_its_items() {
    let items: Vec<Bytes> = [7, 9].map(|revision| message_of(&stored(&pod(), revision)).unwrap().clone()).to_vec();
    let meta =
        ListMeta { resource_version: "9".to_owned(), continue_token: "on".to_owned(), remaining_item_count: Some(300) };
    let (api_version, kind, raw) = open(&encode_list("v1", "PodList", &meta, &items));
    assert_eq!((api_version.as_str(), kind.as_str()), ("v1", "PodList"));
    let list = PodList::decode(raw.as_slice()).unwrap();
    let meta = list.metadata.unwrap();
    assert_eq!((meta.resource_version.as_deref(), meta.r#continue.as_deref()), (Some("9"), Some("on")));
    assert_eq!((meta.self_link.as_deref(), meta.remaining_item_count), (Some(""), Some(300)));
    let versions: Vec<_> = list.items.iter().map(|pod| pod.metadata.clone().unwrap().resource_version).collect();
    assert_eq!(versions, [Some("7".to_owned()), Some("9".to_owned())]);

    let partial: Vec<Bytes> = items.iter().map(partial_message).collect();
    let body = encode_list("meta.k8s.io/v1", "PartialObjectMetadataList", &ListMeta::default(), &partial);
    let list = PartialObjectMetadataList::decode(open(&body).2.as_slice()).unwrap();
    assert_eq!(list.items[1].metadata.as_ref().unwrap().name.as_deref(), Some("web"));
    assert_eq!(list.metadata.unwrap().remaining_item_count, None);
}

#[test]
fn events_come_in_frames() {
    let object = stored(&pod(), 12);
    let message = Message::of(&object).unwrap();
    let mut out = b"before".to_vec();
    message.write_event(&mut out, "ADDED");
    message.partial("meta.k8s.io/v1").write_event(&mut out, "DELETED");

    let mut rest = out.strip_prefix(b"before").unwrap();
    let mut next = || {
        let (length, tail) = rest.split_first_chunk::<4>().unwrap();
        let (frame, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
        rest = tail;
        WatchEvent::decode(frame).unwrap()
    };
    let (added, deleted) = (next(), next());
    assert!(rest.is_empty());
    assert_eq!((added.r#type.as_deref(), deleted.r#type.as_deref()), (Some("ADDED"), Some("DELETED")));
    let (_, kind, raw) = open(&added.object.unwrap().raw.unwrap());
    assert_eq!(kind, "Pod");
    let version = Pod::decode(raw.as_slice()).unwrap().metadata.unwrap().resource_version;
    assert_eq!(version.as_deref(), Some("12"));
    let (api_version, kind, raw) = open(&deleted.object.unwrap().raw.unwrap());
    assert_eq!((api_version.as_str(), kind.as_str()), ("meta.k8s.io/v1", "PartialObjectMetadata"));
    let metadata = PartialObjectMetadata::decode(raw.as_slice()).unwrap().metadata.unwrap();
    assert_eq!(metadata.name.as_deref(), Some("web"));
}

/// What `M` writes of what it has read: fields that it does not know get lost.
fn again<M: prost::Message + Default>(message: &[u8]) -> Vec<u8> {
    M::decode(message).expect("the message is whole").encode_to_vec()
}

/// Field numbers, wire types and the order of fields are upstream's: both write the same.
#[test]
fn no_byte_is_foreign() {
    let mut checked = 0;
    macro_rules! check {
        ($($group:literal $version:literal $module:path: $($kind:ident)+;)+) => {
            $({
                use $module as module;
                $(for extent in [Extent::Minimal, Extent::Maximal] {
                    let name = stringify!($kind);
                    let object = sample($group, $version, name, extent);
                    let own = type_for_kind($group, $version, name).unwrap();
                    let bytes = encode::message(own, object.as_object().unwrap()).into_bytes();
                    assert!(again::<module::$kind>(&bytes) == bytes, "{name} {extent:?}");
                    checked += 1;
                })+
            })+
        };
    }
    check! {
        "" "v1" k8s_pb::api::core::v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
            PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount;
        "admissionregistration.k8s.io" "v1" k8s_pb::api::admissionregistration::v1: MutatingWebhookConfiguration
            ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
        "apiextensions.k8s.io" "v1" k8s_pb::apiextensions_apiserver::pkg::apis::apiextensions::v1:
            CustomResourceDefinition;
        "apiregistration.k8s.io" "v1" k8s_pb::kube_aggregator::pkg::apis::apiregistration::v1: APIService;
        "apps" "v1" k8s_pb::api::apps::v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        "authentication.k8s.io" "v1" k8s_pb::api::authentication::v1: SelfSubjectReview TokenRequest TokenReview;
        "authorization.k8s.io" "v1" k8s_pb::api::authorization::v1: LocalSubjectAccessReview
            SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview;
        "autoscaling" "v1" k8s_pb::api::autoscaling::v1: HorizontalPodAutoscaler Scale;
        "autoscaling" "v2" k8s_pb::api::autoscaling::v2: HorizontalPodAutoscaler;
        "batch" "v1" k8s_pb::api::batch::v1: CronJob Job;
        "certificates.k8s.io" "v1" k8s_pb::api::certificates::v1: CertificateSigningRequest;
        "coordination.k8s.io" "v1" k8s_pb::api::coordination::v1: Lease;
        "discovery.k8s.io" "v1" k8s_pb::api::discovery::v1: EndpointSlice;
        "events.k8s.io" "v1" k8s_pb::api::events::v1: Event;
        "flowcontrol.apiserver.k8s.io" "v1" k8s_pb::api::flowcontrol::v1: FlowSchema PriorityLevelConfiguration;
        "networking.k8s.io" "v1" k8s_pb::api::networking::v1: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR;
        "node.k8s.io" "v1" k8s_pb::api::node::v1: RuntimeClass;
        "policy" "v1" k8s_pb::api::policy::v1: Eviction PodDisruptionBudget;
        "rbac.authorization.k8s.io" "v1" k8s_pb::api::rbac::v1: ClusterRole ClusterRoleBinding Role RoleBinding;
        "resource.k8s.io" "v1" k8s_pb::api::resource::v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        "scheduling.k8s.io" "v1" k8s_pb::api::scheduling::v1: PriorityClass;
        "storage.k8s.io" "v1" k8s_pb::api::storage::v1: CSIDriver CSINode CSIStorageCapacity StorageClass
            VolumeAttachment VolumeAttributesClass;
        "" "v1" k8s_pb::apimachinery::pkg::apis::meta::v1: DeleteOptions Status;
    }
    assert_eq!(checked, 2 * kinds().len(), "every kind in both extents");
}
