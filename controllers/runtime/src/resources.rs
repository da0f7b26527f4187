//! The resources that Quorate's own parts work with, so that no two spell them differently.

use quorate_proto::gvk::GroupVersionResource;

macro_rules! resources {
    ($($name:ident = $group:literal $version:literal $resource:literal;)*) => {
        $(
            #[doc = concat!("`", $resource, "` of `", $group, "/", $version, "`; no group is core.")]
            pub fn $name() -> GroupVersionResource {
                GroupVersionResource::new($group, $version, $resource)
            }
        )*
    };
}

resources! {
    config_maps = "" "v1" "configmaps";
    endpoints = "" "v1" "endpoints";
    events = "" "v1" "events";
    namespaces = "" "v1" "namespaces";
    nodes = "" "v1" "nodes";
    persistent_volume_claims = "" "v1" "persistentvolumeclaims";
    persistent_volumes = "" "v1" "persistentvolumes";
    pods = "" "v1" "pods";
    secrets = "" "v1" "secrets";
    service_accounts = "" "v1" "serviceaccounts";
    services = "" "v1" "services";
    controller_revisions = "apps" "v1" "controllerrevisions";
    daemon_sets = "apps" "v1" "daemonsets";
    deployments = "apps" "v1" "deployments";
    replica_sets = "apps" "v1" "replicasets";
    stateful_sets = "apps" "v1" "statefulsets";
    jobs = "batch" "v1" "jobs";
    leases = "coordination.k8s.io" "v1" "leases";
    endpoint_slices = "discovery.k8s.io" "v1" "endpointslices";
    priority_classes = "scheduling.k8s.io" "v1" "priorityclasses";
}
