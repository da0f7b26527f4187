//! The volumes of a pod, as folders on the node.

pub mod atomic;
mod content;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use quorate_proto::quantity::Quantity;
use quorate_runtime::client::Client;

use crate::pod::env::Sources;
use crate::pod::spec;
use crate::process;
use content::{Content, Tokens};

/// Why a volume is not there (yet).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {problem}")]
pub struct MountError {
    pub volume: String,
    pub problem: String,
}

/// In which mount namespace volumes are mounted: where the runtime sees them.
#[derive(Clone, Debug)]
pub enum Namespace {
    Own,
    /// That of this process.
    Of(i32),
}

/// Sets volumes up and takes them down.
pub struct Volumes {
    client: Arc<dyn Client>,
    namespace: Namespace,
    tokens: Tokens,
}

/// Where the volumes of a pod are.
fn folder_of(pod_dir: &Path, kind: &str, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(format!("kubernetes.io~{kind}")).join(name)
}

impl Volumes {
    pub fn new(client: Arc<dyn Client>, namespace: Namespace) -> Self {
        Self { client, namespace, tokens: Tokens::default() }
    }

    /// Makes every volume of the pod ready or up to date; returns where each is.
    ///
    /// # Errors
    /// The first volume that is not ready, with upstream's text.
    pub async fn set_up(&self, pod_dir: &Path, sources: &Sources<'_>) -> Result<BTreeMap<String, PathBuf>, MountError> {
        let mut ready = BTreeMap::new();
        let pod = sources.pod;
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let set_up = self.set_up_one(pod_dir, volume, sources).await;
            let path = set_up.map_err(|problem| MountError { volume: volume.name.clone(), problem })?;
            ready.insert(volume.name.clone(), path);
        }
        Ok(ready)
    }

    async fn set_up_one(
        &self,
        pod_dir: &Path,
        volume: &core::Volume,
        sources: &Sources<'_>,
    ) -> Result<PathBuf, String> {
        let group = sources.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let group = group.and_then(|group| u32::try_from(group).ok());
        if let Some(source) = &volume.empty_dir {
            let folder = folder_of(pod_dir, "empty-dir", &volume.name);
            return self.empty_dir(&folder, source, group).await.map(|()| folder);
        }
        if let Some(source) = &volume.host_path {
            return host_path(Path::new(&source.path), source.type_.as_deref().unwrap_or_default());
        }
        let content = Content { client: &*self.client, sources, tokens: &self.tokens };
        let (kind, payload) = if let Some(source) = &volume.config_map {
            ("configmap", content.config_map(source).await?)
        } else if let Some(source) = &volume.secret {
            ("secret", content.secret(source).await?)
        } else if let Some(source) = &volume.projected {
            ("projected", content.projected(source).await?)
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode;
            ("downward-api", content.downward(source.items.iter().flatten(), mode)?)
        } else {
            return Err("this kind of volume is not supported by the node agent yet".to_owned());
        };
        let folder = folder_of(pod_dir, kind, &volume.name);
        atomic::write(&folder, &payload, group).map_err(|error| error.to_string())?;
        Ok(folder)
    }

    async fn empty_dir(
        &self,
        folder: &Path,
        source: &core::EmptyDirVolumeSource,
        group: Option<u32>,
    ) -> Result<(), String> {
        use std::os::unix::fs::PermissionsExt;
        let failed = |error: std::io::Error| error.to_string();
        let memory = match source.medium.as_deref().unwrap_or_default() {
            "" => false,
            "Memory" => true,
            other => return Err(format!("the medium {other:?} of an emptyDir is not supported")),
        };
        // A folder in memory goes with its mount, and what it was mounted on stays.
        let is_made = if memory { self.is_mounted(folder) } else { folder.exists() };
        if is_made {
            return Ok(());
        }
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        if memory {
            let limit = source.size_limit.as_ref().and_then(|limit| limit.0.parse::<Quantity>().ok());
            let mut options = format!("mode={mode:o}");
            if let Some(limit) = limit.filter(|limit| !limit.is_zero()) {
                options.push_str(&format!(",size={}", limit.value()));
            }
            if let Some(group) = group {
                options.push_str(&format!(",gid={group}"));
            }
            let path = folder.to_string_lossy();
            let mounted = self.in_namespace("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &path]).await;
            if let Err(error) = mounted {
                // The folder must not look like a finished volume.
                let _ = std::fs::remove_dir(folder);
                return Err(error.to_string());
            }
            return Ok(());
        }
        std::os::unix::fs::chown(folder, None, group).map_err(failed)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).map_err(failed)
    }

    async fn in_namespace(&self, program: &str, arguments: &[&str]) -> Result<String, process::CommandError> {
        match self.namespace {
            Namespace::Own => process::run(program, arguments, "").await,
            Namespace::Of(pid) => {
                let namespace = format!("--mount=/proc/{pid}/ns/mnt");
                let all: Vec<&str> =
                    [&*namespace, "--", program].into_iter().chain(arguments.iter().copied()).collect();
                process::run("nsenter", &all, "").await
            }
        }
    }

    /// Unmounts and removes everything of a pod whose containers are gone; `pod` is its
    /// last known state.
    ///
    /// # Errors
    /// When something is still in use; then it may be called again.
    pub async fn tear_down(&self, pod_dir: &Path, pod: Option<&core::Pod>) -> Result<(), String> {
        if let Some(pod) = pod {
            self.tokens.forget(spec::uid(pod));
        }
        let in_memory = std::fs::read_dir(folder_of(pod_dir, "empty-dir", "")).into_iter().flatten().flatten();
        for entry in in_memory {
            let path = entry.path();
            // Most are plain folders: then there is nothing to unmount.
            if self.is_mounted(&path) {
                let unmounted = self.in_namespace("umount", &[&path.to_string_lossy()]).await;
                unmounted.map_err(|error| error.to_string())?;
            }
        }
        match std::fs::remove_dir_all(pod_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    fn is_mounted(&self, path: &Path) -> bool {
        let file = match self.namespace {
            Namespace::Own => "/proc/self/mountinfo".to_owned(),
            Namespace::Of(pid) => format!("/proc/{pid}/mountinfo"),
        };
        let mountinfo = std::fs::read_to_string(file).unwrap_or_default();
        mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).any(|mount| Path::new(mount) == path)
    }
}

/// Checks, and for some types makes, a path of the node. Source: concepts/storage/volumes, hostPath.
fn host_path(path: &Path, kind: &str) -> Result<PathBuf, String> {
    use std::os::unix::fs::FileTypeExt;
    let found = std::fs::metadata(path).ok();
    let create = |made: std::io::Result<()>| made.map_err(|error| format!("cannot create {}: {error}", path.display()));
    let wrong = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    match (kind, &found) {
        ("DirectoryOrCreate", None) => create(std::fs::create_dir_all(path))?,
        ("FileOrCreate", None) => create(std::fs::File::create_new(path).map(drop))?,
        ("Directory" | "DirectoryOrCreate", found) if !found.as_ref().is_some_and(std::fs::Metadata::is_dir) => {
            return wrong("a directory");
        }
        ("File" | "FileOrCreate", found) if !found.as_ref().is_some_and(std::fs::Metadata::is_file) => {
            return wrong("a file");
        }
        ("Socket", found) if !found.as_ref().is_some_and(|meta| meta.file_type().is_socket()) => {
            return wrong("a socket file");
        }
        ("CharDevice", found) if !found.as_ref().is_some_and(|meta| meta.file_type().is_char_device()) => {
            return wrong("a character device");
        }
        ("BlockDevice", found) if !found.as_ref().is_some_and(|meta| meta.file_type().is_block_device()) => {
            return wrong("a block device");
        }
        _ => {}
    }
    Ok(path.to_owned())
}

/// A path inside of a volume, for `subPath`; made as a folder when it is missing.
///
/// # Errors
/// When the path is no relative one, or a link in it leads out of the volume.
pub fn sub_path(volume: &Path, sub_path: &str) -> Result<PathBuf, String> {
    use std::path::Component;
    let relative = Path::new(sub_path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subPath {sub_path:?} must be a relative path and must not contain '..'"));
    }
    let failed = |error: std::io::Error| format!("failed to prepare subPath {sub_path:?}: {error}");
    let base = volume.canonicalize().map_err(failed)?;
    // Every folder is resolved before the next is made: nothing is made through a link that leads out.
    let mut current = base.clone();
    for part in relative.components() {
        let next = current.join(part);
        if std::fs::symlink_metadata(&next).is_err() {
            std::fs::create_dir(&next).map_err(failed)?;
        }
        current = next.canonicalize().map_err(failed)?;
        if !current.starts_with(&base) {
            return Err(format!("subPath {sub_path:?} leads out of its volume"));
        }
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_inside() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        assert!(sub_path(&volume, "a/b").unwrap().is_dir());
        for bad in ["../x", "/etc", "out", "out/passwd", "a/../../x"] {
            assert!(sub_path(&volume, bad).is_err(), "{bad}");
        }
        assert!(!Path::new("/etc/passwd/x").exists());
    }

    #[test]
    fn host_paths_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert!(host_path(&missing, "").is_ok());
        assert_eq!(
            host_path(&missing, "Directory").unwrap_err(),
            format!("hostPath type check failed: {} is not a directory", missing.display())
        );
        assert!(host_path(&missing, "DirectoryOrCreate").is_ok());
        assert!(missing.is_dir());
        assert!(host_path(&missing, "File").is_err());
        assert!(host_path(Path::new("/dev/null"), "CharDevice").is_ok());
    }
}
