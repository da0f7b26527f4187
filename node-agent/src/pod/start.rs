//! The start of one container: image, variables, configuration, creation, first instruction.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use quorate_proto::cri as wire;
use quorate_runtime::client::ListOptions;
use quorate_runtime::events::{EventType, Reference};
use quorate_runtime::resources;
use serde_json::Value;

use super::backoff::Backoff;
use super::config;
use super::data;
use super::env::{self, Data, Sources, Variables};
use super::plan::Failure;
use super::spec;
use super::worker::Shared;
use crate::cri::{describe, image};
use crate::probe::action::Target;
use crate::volume;

/// How long a failure is reported as such before the wait for the next try is.
const SETTLE: Duration = Duration::from_secs(2);
/// Until a configuration that was wrong is looked at again.
const CONFIG_RETRY: Duration = Duration::from_secs(5);
/// A postStart hook that never ends holds its pod up, as upstream's; but not for ever.
const HOOK_TIMEOUT: Duration = Duration::from_secs(600);

/// One container to start.
pub struct Start<'a> {
    pub shared: &'a Shared,
    pub pod: &'a core::Pod,
    pub container: &'a core::Container,
    /// The container, for events.
    pub about: Reference,
    pub attempt: u32,
    pub sandbox_id: &'a str,
    pub sandbox_config: wire::PodSandboxConfig,
    pub addresses: &'a [String],
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub pod_dir: &'a Path,
    pub pull_backoff: &'a mut Option<Backoff>,
}

fn plain(reason: &str, message: String, now: Timestamp) -> Failure {
    Failure {
        reason: reason.to_owned(),
        waiting: (reason.to_owned(), message.clone()),
        message,
        settle_at: now,
        retry_at: now.checked_add(CONFIG_RETRY).unwrap_or(now),
    }
}

/// Where a container leaves its last words.
pub fn termination_file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(container).join(attempt.to_string())
}

impl Start<'_> {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.shared.recorder.record(self.about.clone(), kind, reason, message);
    }

    /// Starts the container and returns its id.
    ///
    /// # Errors
    /// Why the container waits; the events are recorded already.
    pub async fn run(mut self) -> Result<String, Failure> {
        let image = self.image().await?;
        let now = Timestamp::now();
        let config = match self.configure(&image).await {
            Ok(config) => config,
            Err(message) => {
                self.event(EventType::Warning, "Failed", format!("Error: {message}"));
                return Err(plain("CreateContainerConfigError", message, now));
            }
        };
        let created = self.shared.cri.create_container(self.sandbox_id, config, self.sandbox_config.clone()).await;
        let id = created.map_err(|status| {
            let message = status.message().to_owned();
            self.event(EventType::Warning, "Failed", format!("Error: {message}"));
            plain("CreateContainerError", message, now)
        })?;
        self.event(EventType::Normal, "Created", format!("Created container: {}", self.container.name));
        if let Err(status) = self.shared.cri.start_container(&id).await {
            // The runtime keeps it as exited; the restart policy takes it from there.
            self.event(EventType::Warning, "Failed", format!("Error: {}", status.message()));
            return Ok(id);
        }
        self.event(EventType::Normal, "Started", format!("Started container {}", self.container.name));
        self.post_start(&id).await?;
        Ok(id)
    }

    async fn post_start(&self, id: &str) -> Result<(), Failure> {
        let hook = self.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        let Some(hook) = hook else { return Ok(()) };
        let target = Target {
            cri: &self.shared.cri,
            container_id: id,
            address: self.addresses.first().map_or("", String::as_str),
            ports: self.container.ports.as_deref().unwrap_or_default(),
            timeout: HOOK_TIMEOUT,
        };
        if let Err(why) = target.hook(hook).await {
            self.event(EventType::Warning, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
            let _ = self.shared.cri.stop_container(id, spec::grace(self.pod)).await;
            return Err(plain("PostStartHookError", why, Timestamp::now()));
        }
        Ok(())
    }

    /// Finds or pulls the image.
    async fn image(&mut self) -> Result<wire::Image, Failure> {
        let asked = self.container.image.clone().unwrap_or_default();
        let now = Timestamp::now();
        let Some(reference) = image::normalize(&asked) else {
            let message = format!(
                "Failed to apply default image tag {asked:?}: couldn't parse image name {asked:?}: invalid reference format"
            );
            self.event(EventType::Warning, "InspectFailed", message.clone());
            self.event(EventType::Warning, "Failed", "Error: InvalidImageName");
            return Err(plain("InvalidImageName", message, now));
        };
        let inspect = self.shared.cri.image(&reference).await;
        let present = inspect.map_err(|status| {
            let message = format!("Failed to inspect image {asked:?}: {}", describe(&status));
            self.event(EventType::Warning, "InspectFailed", message.clone());
            plain("ImageInspectError", message, now)
        })?;
        let policy = self.container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        match (image::pull(policy, present.is_some()), present) {
            (image::Pull::Present, Some(image)) => {
                self.event(
                    EventType::Normal,
                    "Pulled",
                    format!("Container image {asked:?} already present on machine"),
                );
                Ok(image)
            }
            (image::Pull::Never, _) => {
                let message = format!("Container image {asked:?} is not present with pull policy of Never");
                self.event(EventType::Warning, "ErrImageNeverPull", message.clone());
                self.event(EventType::Warning, "Failed", "Error: ErrImageNeverPull");
                Err(plain("ErrImageNeverPull", message, now))
            }
            _ => self.pull(&asked, &reference).await,
        }
    }

    async fn pull(&mut self, asked: &str, reference: &str) -> Result<wire::Image, Failure> {
        self.event(EventType::Normal, "Pulling", format!("Pulling image {asked:?}"));
        let begun = Instant::now();
        let auth = self.credentials(reference).await;
        let pulled = self.shared.cri.pull(reference, auth, self.sandbox_config.clone()).await;
        let found = match pulled {
            Ok(_) => self.shared.cri.image(reference).await,
            Err(status) => Err(status),
        };
        match found {
            Ok(Some(image)) => {
                let took = format!("{:.3}s", begun.elapsed().as_secs_f64());
                let text = format!(
                    "Successfully pulled image {asked:?} in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size
                );
                self.event(EventType::Normal, "Pulled", text);
                *self.pull_backoff = None;
                Ok(image)
            }
            Ok(None) => Err(self.pull_failed(asked, "the image vanished after it was pulled".to_owned())),
            Err(status) => Err(self.pull_failed(asked, describe(&status))),
        }
    }

    fn pull_failed(&mut self, asked: &str, why: String) -> Failure {
        self.event(EventType::Warning, "Failed", format!("Failed to pull image {asked:?}: {why}"));
        self.event(EventType::Warning, "Failed", "Error: ErrImagePull");
        let now = Timestamp::now();
        let backoff = Backoff::next(*self.pull_backoff, now);
        *self.pull_backoff = Some(backoff);
        Failure {
            reason: "ErrImagePull".to_owned(),
            waiting: ("ImagePullBackOff".to_owned(), format!("Back-off pulling image {asked:?}: ErrImagePull: {why}")),
            message: why,
            settle_at: now.checked_add(SETTLE).unwrap_or(now),
            retry_at: now.checked_add(backoff.delay).unwrap_or(now),
        }
    }

    /// The pod's credentials for the image's registry. Source: imagePullSecrets,
    /// `kubernetes.io/dockerconfigjson`.
    async fn credentials(&self, reference: &str) -> Option<wire::AuthConfig> {
        let registry = reference.split('/').next()?;
        for secret in self.pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            let found = data::secret(&*self.shared.client, spec::namespace(self.pod), &secret.name).await;
            let Ok(Some(data)) = found else { continue };
            let Some(config) =
                data.get(".dockerconfigjson").and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok())
            else {
                continue;
            };
            if let Some(auth) = auth_for(&config, registry) {
                return Some(auth);
            }
        }
        None
    }

    async fn configure(&self, image: &wire::Image) -> Result<wire::ContainerConfig, String> {
        config::check_non_root(self.pod, self.container, image)?;
        let namespace = spec::namespace(self.pod);
        let (map_names, secret_names) = env::references(self.container);
        let mut config_maps: BTreeMap<String, Data> = BTreeMap::new();
        for name in map_names {
            config_maps.insert(name.clone(), data::config_map(&*self.shared.client, namespace, &name).await?);
        }
        let mut secrets: BTreeMap<String, Data> = BTreeMap::new();
        for name in secret_names {
            secrets.insert(name.clone(), data::secret(&*self.shared.client, namespace, &name).await?);
        }
        let sources = Sources {
            pod: self.pod,
            config_maps: &config_maps,
            secrets: &secrets,
            services: self.services().await?,
            pod_addresses: self.addresses,
            node_address: &self.shared.node_address,
            allocatable: self.shared.allocatable,
        };
        let variables = env::variables(self.container, &sources)?;
        let sub_paths = self.sub_paths(&variables)?;
        let hosts_file = self.pod_dir.join("etc-hosts");
        let own_hosts = !spec::host_network(self.pod);
        let termination_file = termination_file(self.pod_dir, &self.container.name, self.attempt);
        let prepared = prepare_files(&termination_file, own_hosts.then_some((&*hosts_file, self)));
        prepared.map_err(|error| format!("cannot prepare the files of the container: {error}"))?;
        let input = config::Container {
            pod: self.pod,
            container: self.container,
            attempt: self.attempt,
            image_ref: &image.id,
            variables: &variables,
            volumes: self.volumes,
            sub_paths: &sub_paths,
            hosts_file: own_hosts.then_some(&*hosts_file),
            termination_file: &termination_file,
        };
        config::container(&input, &self.shared.node)
    }

    fn sub_paths(&self, variables: &Variables) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut found = BTreeMap::new();
        for mount in self.container.volume_mounts.iter().flatten() {
            let lookup = |name: &str| variables.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
            let expanded =
                mount.sub_path_expr.as_deref().filter(|path| !path.is_empty()).map(|path| env::expand(path, lookup));
            let wanted = expanded.or_else(|| mount.sub_path.clone()).filter(|path| !path.is_empty());
            if let (Some(wanted), Some(volume)) = (wanted, self.volumes.get(&mount.name)) {
                found.insert(mount.mount_path.clone(), volume::sub_path(volume, &wanted)?);
            }
        }
        Ok(found)
    }

    /// Variables of the API's service, and of those in the pod's namespace.
    async fn services(&self) -> Result<Variables, String> {
        let links = self.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        let client = &self.shared.client;
        let mut services: Vec<core::Service> = Vec::new();
        let mut add = |object: &quorate_proto::object::Object| {
            if let Ok(service) = object.typed::<core::Service>() {
                services.push((*service).clone());
            }
        };
        match client.get(&resources::services(), Some("default"), "kubernetes").await {
            Ok(object) => add(&object),
            Err(status) if status.is_not_found() => {}
            Err(status) => {
                return Err(format!(
                    "services have not yet been read at least once, cannot construct envvars: {status}"
                ));
            }
        }
        let namespace = spec::namespace(self.pod);
        if links {
            let listed = client.list(&resources::services(), Some(namespace), ListOptions::default()).await;
            let listed = listed.map_err(|status| {
                format!("services have not yet been read at least once, cannot construct envvars: {status}")
            })?;
            listed
                .items
                .iter()
                .filter(|o| !(namespace == "default" && o.meta().name == "kubernetes"))
                .for_each(|o| add(o));
        }
        Ok(env::of_services(services.iter()))
    }
}

fn prepare_files(termination_file: &Path, hosts: Option<(&Path, &Start<'_>)>) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(folder) = termination_file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(termination_file, "")?;
    // The container may run as anybody.
    std::fs::set_permissions(termination_file, std::fs::Permissions::from_mode(0o666))?;
    if let Some((path, start)) = hosts {
        std::fs::write(path, config::hosts(start.pod, start.addresses, &start.shared.node.cluster_domain))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Reads `auths` of a Docker configuration.
fn auth_for(config: &Value, registry: &str) -> Option<wire::AuthConfig> {
    let auths = config["auths"].as_object()?;
    let entry = auths.iter().find(|(server, _)| {
        let server = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = server.split('/').next().unwrap_or(server);
        host == registry || (registry == "docker.io" && host == "index.docker.io")
    });
    let entry = entry?.1;
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    Some(wire::AuthConfig {
        username: text("username"),
        password: text("password"),
        auth: text("auth"),
        identity_token: text("identitytoken"),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_are_found_by_registry() {
        let config = json!({"auths": {"https://r.test:5000/v2": {"auth": "abc"}, "https://index.docker.io/v1/": {"username": "u"}}});
        assert_eq!(auth_for(&config, "r.test:5000").unwrap().auth, "abc");
        assert_eq!(auth_for(&config, "docker.io").unwrap().username, "u");
        assert_eq!(auth_for(&config, "other"), None);
        assert_eq!(auth_for(&json!(3), "other"), None);
    }
}
