//! What the runtime is told: a pod's specification as sandbox and container configurations.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use quorate_proto::cri as wire;
use quorate_proto::quantity::Quantity;

use super::env::{self, Variables};
use super::seen::HASH_ANNOTATION;
use super::spec;
use crate::cgroup;
use crate::cri::labels;
use crate::network::Resolver;

/// The most a host name may have. Source: hostname(7).
const MAX_HOSTNAME: usize = 63;
const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";
/// The period in which a CPU limit is measured; upstream's default.
const CPU_PERIOD_MICROS: i64 = 100_000;
/// Shares of a container that asked for nothing. Source: upstream's cm package.
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// Paths of /proc and /sys that containers do not see; those of Docker and containerd.
const MASKED_PATHS: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 6] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/asound"];

/// What is the same for every pod of the node.
#[derive(Clone, Debug)]
pub struct Node {
    pub cgroups: Option<cgroup::Driver>,
    pub cluster_domain: String,
    pub cluster_dns: Vec<String>,
    /// The node's own resolver.
    pub resolver: Resolver,
    pub memory_bytes: i64,
}

/// The sandbox of a pod; logs of its containers go below `log_directory`.
pub fn sandbox(pod: &core::Pod, node: &Node, attempt: u32, log_directory: &Path) -> wire::PodSandboxConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let context = spec.security_context.clone().unwrap_or_default();
    let privileged = spec::all(pod).any(|(container, _)| is_privileged(container));
    let host_network = spec::host_network(pod);
    let security = wire::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: context.run_as_user.map(int64),
        run_as_group: context.run_as_user.and(context.run_as_group).map(int64),
        supplemental_groups: groups(&context),
        privileged,
        seccomp: Some(seccomp(context.seccomp_profile.as_ref())),
        ..Default::default()
    };
    let sysctls = context.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect();
    wire::PodSandboxConfig {
        metadata: Some(wire::PodSandboxMetadata {
            name: spec::name(pod).to_owned(),
            uid: spec::uid(pod).to_owned(),
            namespace: spec::namespace(pod).to_owned(),
            attempt,
        }),
        // A sandbox without a UTS namespace of its own must not set a name.
        hostname: if host_network { String::new() } else { hostname(pod) },
        log_directory: log_directory.to_string_lossy().into_owned(),
        dns_config: Some(dns(pod, node)),
        port_mappings: Vec::new(),
        labels: pod_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(wire::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent(pod, node),
            security_context: Some(security),
            sysctls,
        }),
    }
}

pub fn cgroup_parent(pod: &core::Pod, node: &Node) -> String {
    node.cgroups.as_ref().map(|driver| cgroup::parent(driver, spec::qos_class(pod), spec::uid(pod))).unwrap_or_default()
}

fn pod_labels(pod: &core::Pod) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    all.insert(labels::POD_NAME.to_owned(), spec::name(pod).to_owned());
    all.insert(labels::POD_NAMESPACE.to_owned(), spec::namespace(pod).to_owned());
    all.insert(labels::POD_UID.to_owned(), spec::uid(pod).to_owned());
    all
}

/// The pod's host name: asked for, or the pod's name, cut to what a kernel takes.
pub fn hostname(pod: &core::Pod) -> String {
    let asked = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name = asked.unwrap_or_else(|| spec::name(pod));
    let cut = name.get(..MAX_HOSTNAME).unwrap_or(name);
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Source: services-networking/dns-pod-service, DNS policies.
fn dns(pod: &core::Pod, node: &Node) -> wire::DnsConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !spec::host_network(pod),
        _ => false,
    } && !node.cluster_dns.is_empty();
    let mut config = if policy == "None" {
        wire::DnsConfig::default()
    } else if cluster {
        let domain = &node.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", spec::namespace(pod)), format!("svc.{domain}"), domain.clone()];
        searches.extend(node.resolver.searches.iter().cloned());
        wire::DnsConfig { servers: node.cluster_dns.clone(), searches, options: vec!["ndots:5".to_owned()] }
    } else {
        let Resolver { servers, searches, options } = node.resolver.clone();
        wire::DnsConfig { servers, searches, options }
    };
    if let Some(own) = spec.dns_config {
        let add = |into: &mut Vec<String>, from: Option<Vec<String>>| {
            for value in from.into_iter().flatten() {
                if !into.contains(&value) {
                    into.push(value);
                }
            }
        };
        add(&mut config.servers, own.nameservers);
        add(&mut config.searches, own.searches);
        for option in own.options.into_iter().flatten() {
            let name = option.name.unwrap_or_default();
            config.options.retain(|existing| existing.split(':').next() != Some(&name));
            config.options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    config
}

fn namespaces(pod: &core::Pod) -> wire::NamespaceOption {
    use wire::NamespaceMode::{Container, Node, Pod};
    let spec = pod.spec.clone().unwrap_or_default();
    let pid = if spec.host_pid == Some(true) {
        Node
    } else if spec.share_process_namespace == Some(true) {
        Pod
    } else {
        Container
    };
    let shared = |host: Option<bool>| if host == Some(true) { Node } else { Pod };
    wire::NamespaceOption {
        network: shared(spec.host_network).into(),
        pid: pid.into(),
        ipc: shared(spec.host_ipc).into(),
        target_id: String::new(),
    }
}

fn int64(value: i64) -> wire::Int64Value {
    wire::Int64Value { value }
}

fn groups(context: &core::PodSecurityContext) -> Vec<i64> {
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied()).collect()
}

fn is_privileged(container: &core::Container) -> bool {
    container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
}

fn seccomp(profile: Option<&core::SeccompProfile>) -> wire::SecurityProfile {
    use wire::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let (kind, file) = match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => (RuntimeDefault, None),
        Some("Localhost") => (Localhost, profile.and_then(|profile| profile.localhost_profile.clone())),
        _ => (Unconfined, None),
    };
    wire::SecurityProfile { profile_type: kind.into(), localhost_ref: file.unwrap_or_default() }
}

/// What a container needs besides its specification.
pub struct Container<'a> {
    pub pod: &'a core::Pod,
    pub container: &'a core::Container,
    pub attempt: u32,
    /// The reference by which the runtime knows the image.
    pub image_ref: &'a str,
    pub variables: &'a Variables,
    /// Host paths of the pod's volumes, by name.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Sub-paths that were resolved inside of their volumes, by mount path.
    pub sub_paths: &'a BTreeMap<String, PathBuf>,
    /// The pod's `/etc/hosts`, when it has one of its own.
    pub hosts_file: Option<&'a Path>,
    /// Where the container may leave its last words.
    pub termination_file: &'a Path,
}

/// The configuration of a container.
///
/// # Errors
/// Upstream's text for CreateContainerConfigError.
pub fn container(input: &Container<'_>, node: &Node) -> Result<wire::ContainerConfig, String> {
    let Container { pod, container, .. } = *input;
    let lookup = |name: &str| input.variables.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
    let expanded = |texts: &Option<Vec<String>>| texts.iter().flatten().map(|text| env::expand(text, lookup)).collect();
    let mut all_labels = pod_labels(pod);
    all_labels.retain(|key, _| key.starts_with("io.kubernetes."));
    all_labels.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    let annotations = [
        (HASH_ANNOTATION, spec::hash(container)),
        ("io.kubernetes.container.restartCount", input.attempt.to_string()),
        ("io.kubernetes.pod.terminationGracePeriod", spec::grace(pod).as_secs().to_string()),
    ];
    Ok(wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: container.name.clone(), attempt: input.attempt }),
        image: Some(wire::ImageSpec { image: input.image_ref.to_owned(), ..Default::default() }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: input
            .variables
            .iter()
            .map(|(key, value)| wire::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: mounts(input)?,
        labels: all_labels,
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into_iter().collect(),
        log_path: log_path(&container.name, input.attempt),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(resources(pod, container, node)),
            security_context: Some(security(pod, container)),
        }),
    })
}

/// Below the pod's log directory.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

fn mounts(input: &Container<'_>) -> Result<Vec<wire::Mount>, String> {
    let mut mounts = Vec::new();
    let mut has_hosts = false;
    for mount in input.container.volume_mounts.iter().flatten() {
        let volume = input
            .volumes
            .get(&mount.name)
            .ok_or_else(|| format!("volume {:?} of the container is not mounted", mount.name))?;
        let host_path = input.sub_paths.get(&mount.mount_path).unwrap_or(volume);
        has_hosts |= mount.mount_path == "/etc/hosts";
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => wire::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => wire::MountPropagation::PropagationBidirectional,
            _ => wire::MountPropagation::PropagationPrivate,
        };
        mounts.push(wire::Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true),
            selinux_relabel: false,
            propagation: propagation.into(),
        });
    }
    let plain = |container_path: &str, host_path: &Path| wire::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    };
    if let Some(hosts) = input.hosts_file.filter(|_| !has_hosts) {
        mounts.push(plain("/etc/hosts", hosts));
    }
    let last_words = input.container.termination_message_path.as_deref().unwrap_or(DEFAULT_TERMINATION_LOG);
    mounts.push(plain(last_words, input.termination_file));
    Ok(mounts)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn amount(
    amounts: &Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    name: &str,
) -> Option<Quantity> {
    let quantity = amounts.as_ref()?.get(name)?.0.parse::<Quantity>().ok()?;
    (!quantity.is_zero()).then_some(quantity)
}

fn resources(pod: &core::Pod, container: &core::Container, node: &Node) -> wire::LinuxContainerResources {
    let asked = container.resources.clone().unwrap_or_default();
    let cpu_limit = amount(&asked.limits, "cpu").map(Quantity::milli_value);
    let cpu_request = amount(&asked.requests, "cpu").map(Quantity::milli_value).or(cpu_limit).unwrap_or(0);
    let memory_request = amount(&asked.requests, "memory").map(Quantity::value).unwrap_or(0);
    wire::LinuxContainerResources {
        cpu_period: cpu_limit.map_or(0, |_| CPU_PERIOD_MICROS),
        // Below 1 ms the kernel refuses a quota.
        cpu_quota: cpu_limit.map_or(0, |millis| (millis.saturating_mul(CPU_PERIOD_MICROS) / 1000).max(1000)),
        cpu_shares: (cpu_request.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES),
        memory_limit_in_bytes: amount(&asked.limits, "memory").map_or(0, Quantity::value),
        oom_score_adj: oom_score(spec::qos_class(pod), memory_request, node.memory_bytes),
    }
}

/// Who dies first when memory runs out. Source: concepts/scheduling-eviction/node-pressure-eviction.
fn oom_score(qos_class: &str, memory_request: i64, memory_capacity: i64) -> i64 {
    match qos_class {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let share = i128::from(memory_request) * 1000 / i128::from(memory_capacity.max(1));
            i64::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

fn security(pod: &core::Pod, container: &core::Container) -> wire::LinuxContainerSecurityContext {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths =
        |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() };
    let capabilities = own.capabilities.map(|asked| wire::Capability {
        add_capabilities: asked.add.unwrap_or_default(),
        drop_capabilities: asked.drop.unwrap_or_default(),
    });
    let user = own.run_as_user.or(of_pod.run_as_user);
    wire::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.map(int64),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(int64),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()))),
        ..Default::default()
    }
}

/// Whether `runAsNonRoot` allows the container to run its image.
///
/// # Errors
/// Upstream's text for CreateContainerConfigError.
pub fn check_non_root(pod: &core::Pod, container: &core::Container, image: &wire::Image) -> Result<(), String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let about = format!("(pod: \"{}\", container: {})", spec::full_name(pod), container.name);
    match (own.run_as_user.or(of_pod.run_as_user), image.uid.as_ref(), image.username.as_str()) {
        (Some(0), ..) => Err(format!("container's runAsUser breaks non-root policy {about}")),
        (Some(_), ..) => Ok(()),
        (None, Some(uid), _) if uid.value == 0 => {
            Err(format!("container has runAsNonRoot and image will run as root {about}"))
        }
        (None, Some(_), _) => Ok(()),
        (None, None, "") => Err(format!("container has runAsNonRoot and image will run as root {about}")),
        (None, None, user) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {about}"
        )),
    }
}

/// The `/etc/hosts` of a pod with a network of its own. Source: add-entries-to-pod-etc-hosts-with-host-aliases.
pub fn hosts(pod: &core::Pod, addresses: &[String], cluster_domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let host = hostname(pod);
    let subdomain = pod.spec.as_ref().and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    for address in addresses {
        match subdomain {
            Some(subdomain) => {
                let namespace = spec::namespace(pod);
                text.push_str(&format!("{address}\t{host}.{subdomain}.{namespace}.svc.{cluster_domain}\t{host}\n"));
            }
            None => text.push_str(&format!("{address}\t{host}\n")),
        }
    }
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    for (index, alias) in aliases.enumerate() {
        if index == 0 {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> core::Pod {
        let mut spec = spec;
        spec.as_object_mut().unwrap().entry("containers").or_insert(json!([{"name": "c", "image": "i"}]));
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "ns", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    fn node() -> Node {
        Node {
            cgroups: Some(cgroup::Driver::Cgroupfs("/quorate/n".to_owned())),
            cluster_domain: "cluster.local".to_owned(),
            cluster_dns: vec!["10.96.0.10".to_owned()],
            resolver: Resolver {
                servers: vec!["1.1.1.1".to_owned()],
                searches: vec!["lan".to_owned()],
                options: vec![],
            },
            memory_bytes: 1 << 30,
        }
    }

    #[test]
    fn names_are_cut_for_the_kernel() {
        let long = format!("{}-tail", "a".repeat(62));
        assert_eq!(hostname(&pod(json!({"hostname": long}))), "a".repeat(62));
        assert_eq!(hostname(&pod(json!({}))), "web-1");
    }

    #[track_caller]
    fn check_dns(spec: Value, servers: &[&str], searches: &[&str], options: &[&str]) {
        let config = dns(&pod(spec), &node());
        assert_eq!(
            (config.servers, config.searches, config.options),
            (owned(servers), owned(searches), owned(options))
        );
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_dns_policy_chooses_the_resolver() {
        check_dns(
            json!({}),
            &["10.96.0.10"],
            &["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"],
            &["ndots:5"],
        );
        check_dns(json!({"dnsPolicy": "Default"}), &["1.1.1.1"], &["lan"], &[]);
        check_dns(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), &["1.1.1.1"], &["lan"], &[]);
        check_dns(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            &["9.9.9.9"],
            &[],
            &["ndots:2", "edns0"],
        );
    }

    #[track_caller]
    fn check_resources(resources: Value, quota: i64, shares: i64, memory: i64, oom: i64) {
        let pod = pod(json!({"containers": [{"name": "c", "resources": resources}]}));
        let container = spec::regular(&pod).next().unwrap().clone();
        let found = super::resources(&pod, &container, &node());
        assert_eq!(
            (found.cpu_quota, found.cpu_shares, found.memory_limit_in_bytes, found.oom_score_adj),
            (quota, shares, memory, oom)
        );
    }

    #[test]
    fn amounts_become_limits() {
        check_resources(json!({}), 0, 2, 0, 1000);
        check_resources(json!({"limits": {"cpu": "200m", "memory": "64Mi"}}), 20_000, 204, 64 << 20, -997);
        check_resources(json!({"requests": {"cpu": "1", "memory": "512Mi"}}), 0, 1024, 0, 500);
        check_resources(json!({"limits": {"cpu": "1m"}}), 1000, 2, 0, 999);
    }

    #[test]
    fn a_pod_on_the_nodes_network_has_no_name_of_its_own() {
        let config = sandbox(&pod(json!({"hostNetwork": true})), &node(), 0, Path::new("/logs"));
        assert_eq!(config.hostname, "");
        let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(options.network(), wire::NamespaceMode::Node);
    }

    #[test]
    fn a_non_root_pod_refuses_a_root_image() {
        let pod = pod(json!({"securityContext": {"runAsNonRoot": true}}));
        let container = spec::regular(&pod).next().unwrap();
        let root = wire::Image { uid: Some(int64(0)), ..Default::default() };
        let other = wire::Image { uid: Some(int64(7)), ..Default::default() };
        assert!(check_non_root(&pod, container, &root).unwrap_err().contains("image will run as root"));
        assert_eq!(check_non_root(&pod, container, &other), Ok(()));
    }
}
