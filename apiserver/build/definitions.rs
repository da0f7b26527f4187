//! Asks `k8s-openapi` for the JSON schemas of every type that this server's resources reach.

use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// Schemas by upstream's names (`io.k8s.api.core.v1.Pod`), references between them
/// being `#/definitions/<name>`.
pub(crate) fn generate() -> Map<String, Value> {
    let mut generator = SchemaSettings::draft07().into_generator();
    macro_rules! roots {
        ($($module:path: $($kind:ident)+;)+) => {
            $({ use $module as group; $(generator.subschema_for::<group::$kind>();)+ })+
        };
    }
    roots! {
        api::core::v1: Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node
            PersistentVolumeClaim PersistentVolume Pod PodTemplate ReplicationController ResourceQuota
            Secret ServiceAccount Service;
        api::admissionregistration::v1: MutatingWebhookConfiguration ValidatingAdmissionPolicy
            ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration;
        apiextensions::v1: CustomResourceDefinition;
        apiregistration::v1: APIService;
        api::apps::v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet;
        api::authentication::v1: SelfSubjectReview TokenReview TokenRequest;
        api::authorization::v1: LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview
            SubjectAccessReview;
        api::autoscaling::v1: HorizontalPodAutoscaler Scale;
        api::autoscaling::v2: HorizontalPodAutoscaler;
        api::batch::v1: CronJob Job;
        api::certificates::v1: CertificateSigningRequest;
        api::coordination::v1: Lease;
        api::discovery::v1: EndpointSlice;
        api::events::v1: Event;
        api::flowcontrol::v1: FlowSchema PriorityLevelConfiguration;
        api::networking::v1: IngressClass Ingress IPAddress NetworkPolicy ServiceCIDR;
        api::node::v1: RuntimeClass;
        api::policy::v1: Eviction PodDisruptionBudget;
        api::rbac::v1: ClusterRoleBinding ClusterRole RoleBinding Role;
        api::resource::v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice;
        api::scheduling::v1: PriorityClass;
        api::storage::v1: CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment
            VolumeAttributesClass;
        meta::v1: DeleteOptions ListMeta Patch Status;
    }
    generator.take_definitions(true)
}
