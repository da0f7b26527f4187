//! The groups below which pods are limited and counted.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// A group whose processes were just killed is busy for a moment.
const REMOVE_ATTEMPTS: u32 = 40;
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// Who arranges the groups: the runtime by paths, or systemd by slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Below this path, for instance `/quorate/node-1`.
    Cgroupfs(String),
    Systemd,
}

/// The group of a pod, in the notation of the driver.
pub fn parent(driver: &Driver, qos_class: &str, pod_uid: &str) -> String {
    let tier = match qos_class {
        "Burstable" => "burstable",
        "BestEffort" => "besteffort",
        _ => "",
    };
    match (driver, tier) {
        (Driver::Cgroupfs(prefix), "") => format!("{prefix}/kubepods/pod{pod_uid}"),
        (Driver::Cgroupfs(prefix), tier) => format!("{prefix}/kubepods/{tier}/pod{pod_uid}"),
        // A dash in a slice's name is a level of the tree.
        (Driver::Systemd, "") => format!("kubepods-pod{}.slice", pod_uid.replace('-', "_")),
        (Driver::Systemd, tier) => format!("kubepods-{tier}-pod{}.slice", pod_uid.replace('-', "_")),
    }
}

/// Controllers of every hierarchy that is mounted.
pub fn controllers() -> Vec<String> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for hierarchy in hierarchies(&mountinfo) {
        match hierarchy.options {
            Some(options) => found.extend(options.split(',').map(str::to_owned)),
            None => {
                let enabled = std::fs::read_to_string(hierarchy.path.join("cgroup.controllers")).unwrap_or_default();
                found.extend(enabled.split_whitespace().map(str::to_owned));
            }
        }
    }
    found
}

/// Removes the group `path` and everything below it from every hierarchy.
///
/// Its processes must have been killed. What cannot be removed is logged and stays.
pub async fn remove(path: &str) {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for hierarchy in hierarchies(&mountinfo) {
        let folder = hierarchy.path.join(path.trim_start_matches('/'));
        let mut attempts = 0;
        while let Err(error) = remove_tree(&folder) {
            attempts += 1;
            if attempts == REMOVE_ATTEMPTS {
                tracing::warn!(folder = %folder.display(), %error, "a cgroup stays behind");
                break;
            }
            tokio::time::sleep(REMOVE_PAUSE).await;
        }
        // A parent that is ours too, and that others of this machine may still use.
        if let Some(parent) = path.trim_start_matches('/').strip_prefix("quorate/").filter(|rest| !rest.contains('/')) {
            debug_assert!(!parent.is_empty());
            let _ = std::fs::remove_dir(hierarchy.path.join("quorate"));
        }
    }
}

struct Hierarchy<'a> {
    path: PathBuf,
    /// `None` for version 2.
    options: Option<&'a str>,
}

/// Reads the mounts of type cgroup and cgroup2. Source: proc(5), mountinfo.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy<'_>> {
    let read = |line| -> Option<Hierarchy<'_>> {
        let (mount, filesystem): (&str, &str) = str::split_once(line, " - ")?;
        let path = mount.split(' ').nth(4)?.into();
        match filesystem.split(' ').next()? {
            "cgroup" => Some(Hierarchy { path, options: filesystem.rsplit(' ').next() }),
            "cgroup2" => Some(Hierarchy { path, options: None }),
            _ => None,
        }
    };
    mountinfo.lines().filter_map(read).collect()
}

/// Depth first; the files in a cgroup go with it.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(driver: &Driver, qos: &str, expected: &str) {
        assert_eq!(parent(driver, qos, "a-b"), expected);
    }

    #[test]
    fn a_pod_has_its_group_by_class() {
        let paths = Driver::Cgroupfs("/quorate/n1".to_owned());
        check(&paths, "Guaranteed", "/quorate/n1/kubepods/poda-b");
        check(&paths, "Burstable", "/quorate/n1/kubepods/burstable/poda-b");
        check(&Driver::Systemd, "Guaranteed", "kubepods-poda_b.slice");
        check(&Driver::Systemd, "BestEffort", "kubepods-besteffort-poda_b.slice");
    }

    #[test]
    fn mounts_of_both_versions_are_found() {
        let mountinfo = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
            garbage\n";
        let found = hierarchies(mountinfo);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].options, Some("rw,cpu,cpuacct"));
        assert_eq!((found[1].path.as_path(), found[1].options), (Path::new("/sys/fs/cgroup/unified"), None));
    }
}
