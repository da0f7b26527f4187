//! A containerd that belongs to the agent: its own folder, its own mount and process
//! namespaces. Killing its first process ends every shim, container and mount, as a
//! power loss would.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cri::Cri;
use crate::process::{self, CommandError, Guarded};

/// Start to first answer takes 0.15 s on a quiet machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// After the death of an agent its namespaces need a moment to go.
const STALE_TIMEOUT: Duration = Duration::from_secs(10);

/// First process of the namespaces: hides folders that containerd shares with others on
/// the machine, then keeps containerd running. Containers outlive a crash of containerd.
const INIT: &str = r#"
mount --make-rshared / &&
mount -t proc proc /proc &&
mount -t tmpfs -o mode=755 tmpfs /run/containerd &&
mount -t tmpfs -o mode=700 tmpfs /var/lib/cni || exit 1
while :; do
    containerd --config "$1"
    sleep 1
done
"#;

/// Folders that containerd and CNI write outside of their configured ones.
const SHARED_FOLDERS: [&str; 2] = ["/run/containerd", "/var/lib/cni"];

/// Where what is, below an agent's data directory.
#[derive(Clone, Debug)]
pub struct Layout {
    base: PathBuf,
}

impl Layout {
    pub fn new(data_dir: &Path) -> Self {
        Self { base: data_dir.join("containerd") }
    }

    pub fn socket(&self) -> PathBuf {
        self.base.join("containerd.sock")
    }

    fn config(&self) -> PathBuf {
        self.base.join("config.toml")
    }

    fn log(&self) -> PathBuf {
        self.base.join("containerd.log")
    }

    fn state(&self) -> PathBuf {
        self.base.join("state")
    }

    /// Where the CNI configuration belongs.
    pub fn cni_config_dir(&self) -> PathBuf {
        self.base.join("cni/net.d")
    }

    /// Which pod has which address.
    pub fn cni_data_dir(&self) -> PathBuf {
        self.base.join("cni/host-local")
    }
}

/// Why the managed runtime does not run.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    #[error("cannot prepare {}", .path.display())]
    Prepare { path: PathBuf, source: std::io::Error },
    #[error("another containerd answers on {}; is an agent with the same data directory running?", .socket.display())]
    Occupied { socket: PathBuf },
    #[error("mounts of an earlier run are left below {}; unmount them", .path.display())]
    Mounted { path: PathBuf },
    #[error("cannot start containerd")]
    Start(#[source] CommandError),
    #[error("containerd does not answer; its log is {}", .log.display())]
    Silent { log: PathBuf },
    #[error("cannot import the image {}", .path.display())]
    Import { path: PathBuf, source: CommandError },
}

/// What containerd is told.
pub struct Settings<'a> {
    pub layout: &'a Layout,
    pub pause_image: &'a str,
    pub cni_plugin_dir: &'a Path,
}

/// A running containerd.
pub struct Managed {
    layout: Layout,
    snapshotter: &'static str,
    child: Guarded,
}

impl Managed {
    /// Clears what an earlier run left, starts containerd and waits for its first answer.
    ///
    /// # Errors
    /// When its folders cannot be made, are in use, or it does not answer in time.
    pub async fn start(settings: &Settings<'_>) -> Result<Self, ContainerdError> {
        let layout = settings.layout.clone();
        wait_until_free(&layout).await?;
        clear(&layout)?;
        for folder in [&layout.base, &layout.cni_config_dir(), &layout.cni_data_dir()] {
            create_folder(folder)?;
        }
        for folder in SHARED_FOLDERS {
            create_folder(Path::new(folder))?;
        }
        let snapshotter = snapshotter(&layout.base);
        let config = config_text(settings, snapshotter, !has_sys_resource());
        write(&layout.config(), &config)?;
        write(&layout.log(), "")?;
        let arguments: Vec<OsString> =
            ["--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "slave", "sh", "-c", INIT, "sh"]
                .map(OsString::from)
                .into_iter()
                .chain([layout.config().into_os_string()])
                .collect();
        let child = Guarded::spawn("unshare", arguments, &layout.log()).await.map_err(ContainerdError::Start)?;
        let mut managed = Self { layout, snapshotter, child };
        if !managed.answers_within(START_TIMEOUT).await {
            managed.child.kill().await;
            return Err(ContainerdError::Silent { log: managed.layout.log() });
        }
        Ok(managed)
    }

    async fn answers_within(&self, timeout: Duration) -> bool {
        let cri = Cri::new(&self.layout.socket());
        let answered = async {
            while !self.child.has_ended() {
                if self.layout.socket().exists() && cri.version().await.is_ok() {
                    return true;
                }
                tokio::time::sleep(POLL).await;
            }
            false
        };
        tokio::time::timeout(timeout, answered).await.unwrap_or(false)
    }

    /// Imports every `*.tar` of `folder`; returns how many.
    ///
    /// # Errors
    /// When the folder cannot be read or an archive is refused.
    pub async fn import_images(&self, folder: &Path) -> Result<usize, ContainerdError> {
        let unreadable = |source| ContainerdError::Prepare { path: folder.to_owned(), source };
        let mut archives = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "tar") {
                archives.push(path);
            }
        }
        archives.sort();
        for path in &archives {
            let socket = self.layout.socket();
            let arguments = [
                "--address",
                &socket.to_string_lossy(),
                "--namespace",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                self.snapshotter,
                &path.to_string_lossy(),
            ];
            let imported = process::run("ctr", &arguments, "").await;
            imported.map_err(|source| ContainerdError::Import { path: path.clone(), source })?;
        }
        Ok(archives.len())
    }

    /// A process inside the mount namespace, seen from outside.
    pub fn namespace_pid(&self) -> Option<i32> {
        let unshare = self.child.pid();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Kills containerd and everything that runs in it.
    pub async fn stop(mut self) {
        self.child.kill().await;
        // The namespaces end a moment after their first process.
        let _ = wait_until_free(&self.layout).await;
    }
}

/// Waits for a containerd of a killed agent to be gone.
async fn wait_until_free(layout: &Layout) -> Result<(), ContainerdError> {
    let socket = layout.socket();
    let free = async {
        while tokio::net::UnixStream::connect(&socket).await.is_ok() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(STALE_TIMEOUT, free).await.map_err(|_| ContainerdError::Occupied { socket: socket.clone() })
}

/// Forgets running tasks and leased addresses: their processes ended with their namespace.
/// Images, and the record of which containers ran, stay.
fn clear(layout: &Layout) -> Result<(), ContainerdError> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted =
        |path: &Path| mountinfo.lines().filter_map(|l| l.split(' ').nth(4)).any(|m| Path::new(m).starts_with(path));
    for path in [layout.state(), layout.cni_data_dir(), layout.cni_config_dir()] {
        if mounted(&path) {
            return Err(ContainerdError::Mounted { path });
        }
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(ContainerdError::Prepare { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn create_folder(path: &Path) -> Result<(), ContainerdError> {
    std::fs::create_dir_all(path).map_err(|source| ContainerdError::Prepare { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), ContainerdError> {
    std::fs::write(path, text).map_err(|source| ContainerdError::Prepare { path: path.to_owned(), source })
}

/// overlayfs does not nest; on top of one, layers are copied.
fn snapshotter(folder: &Path) -> &'static str {
    let on_overlay = nix::sys::statfs::statfs(folder)
        .is_ok_and(|statfs| statfs.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC);
    if on_overlay { "native" } else { "overlayfs" }
}

/// Without CAP_SYS_RESOURCE no process may be shielded from the OOM killer.
fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|caps| caps & CAP_SYS_RESOURCE != 0)
}

/// The configuration of containerd 1.6 and 1.7, version 2 of its format.
fn config_text(settings: &Settings<'_>, snapshotter: &str, restrict_oom_score: bool) -> String {
    let layout = settings.layout;
    let quoted = |path: PathBuf| toml_string(&path.to_string_lossy());
    format!(
        r#"# Written by the node agent at every start.
version = 2
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[debug]
  level = "warn"
[grpc]
  address = {socket}
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {pause}
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = {restrict_oom_score}
  disable_apparmor = {no_apparmor}
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = {runc}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {plugins}
    conf_dir = {conf_dir}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {certs}
"#,
        root = quoted(layout.base.join("root")),
        state = quoted(layout.state()),
        socket = quoted(layout.socket()),
        opt = quoted(layout.base.join("opt")),
        pause = toml_string(settings.pause_image),
        no_apparmor = !Path::new("/sys/kernel/security/apparmor").exists(),
        runc = quoted(layout.state().join("runc")),
        plugins = quoted(settings.cni_plugin_dir.to_owned()),
        conf_dir = quoted(layout.cni_config_dir()),
        certs = quoted(layout.base.join("certs.d")),
    )
}

/// A basic string of TOML.
fn toml_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted() {
        assert_eq!(toml_string("/a b/\"c\"\\\n"), r#""/a b/\"c\"\\\u000A""#);
    }

    #[test]
    fn the_configuration_stays_in_the_data_directory() {
        let layout = Layout::new(Path::new("/data"));
        let settings = Settings { layout: &layout, pause_image: "p:1", cni_plugin_dir: Path::new("/usr/lib/cni") };
        let text = config_text(&settings, "overlayfs", true);
        for line in text.lines().filter(|line| line.contains("= \"/")) {
            assert!(line.contains("\"/data/containerd/") || line.contains("/usr/lib/cni"), "{line}");
        }
        assert!(text.contains("restrict_oom_score_adj = true"));
    }
}
