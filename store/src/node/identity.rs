//! Whose data a directory holds.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::error::StartError;

/// The format of the file this module writes.
const FORMAT: u32 = 1;

const FILE: &str = "member.json";

/// Says who a data directory belongs to; written once, when the directory is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: u32,
    pub(crate) name: String,
    token: String,
    pub(crate) member_id: u64,
    pub(crate) cluster_id: u64,
    /// What the cluster was restored from; see [`config::lineal`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) lineage: String,
}

/// Keeps other processes out of the directory as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Makes the data directory if needed and takes it for this process.
///
/// # Errors
/// When it cannot be made, or another process holds it.
pub(crate) fn lock(directory: &Path) -> Result<Lock, StartError> {
    let failed = |source| StartError::Directory { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    let path = directory.join("LOCK");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::Locked { path }),
        Err(fs::TryLockError::Error(source)) => Err(StartError::Directory { path, source }),
    }
}

/// Reads who the directory belongs to, or writes it if the directory is new.
///
/// # Errors
/// When the directory belongs to another member, or does not say to whom.
pub(super) fn load_or_create(config: &Config) -> Result<Identity, StartError> {
    let path = config.data_dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => check(config, path, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if config.data_dir.join("wal").exists() {
                return Err(StartError::Identity { path, reason: "it is missing beside a log".to_owned() });
            }
            let identity = found(config, String::new());
            write(&path, &identity).map_err(|source| StartError::Directory { path, source })?;
            Ok(identity)
        }
        Err(source) => Err(StartError::Directory { path, source }),
    }
}

/// Whose a directory will be that is being restored.
pub(crate) fn restored(config: &Config, lineage: String) -> Identity {
    found(config, lineage)
}

/// Writes whose `directory` is, in which there is no identity yet.
pub(crate) fn write_to(directory: &Path, identity: &Identity) -> io::Result<()> {
    write(&directory.join(FILE), identity)
}

fn found(config: &Config, lineage: String) -> Identity {
    let token = config::lineal(&config.cluster_token, &lineage);
    let names: Vec<&str> = match config.initial_cluster.as_slice() {
        [] => vec![&config.name],
        members => members.iter().map(|(name, _)| name.as_str()).collect(),
    };
    Identity {
        format: FORMAT,
        name: config.name.clone(),
        token: config.cluster_token.clone(),
        member_id: config::member_id(&token, &config.name),
        cluster_id: config::cluster_id(&token, names),
        lineage,
    }
}

fn check(config: &Config, path: PathBuf, bytes: &[u8]) -> Result<Identity, StartError> {
    let identity: Identity = match serde_json::from_slice(bytes) {
        Ok(identity) => identity,
        Err(error) => return Err(StartError::Identity { path, reason: error.to_string() }),
    };
    if identity.format != FORMAT {
        let reason = format!("its format is {}, and this program knows {FORMAT}", identity.format);
        return Err(StartError::Identity { path, reason });
    }
    if identity.name != config.name || identity.token != config.cluster_token {
        let describe = |name: &str, token: &str| format!("member {name:?} of cluster {token:?}");
        return Err(StartError::OtherMember {
            path,
            found: describe(&identity.name, &identity.token),
            wanted: describe(&config.name, &config.cluster_token),
        });
    }
    Ok(identity)
}

/// All of it or nothing, also over a power loss.
fn write(path: &Path, identity: &Identity) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(identity)?;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_with_its_member() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new("a", directory.path());
        let made = load_or_create(&config).unwrap();
        assert_eq!(load_or_create(&config).unwrap(), made);
        for other in [Config { name: "b".into(), ..config.clone() }, Config { cluster_token: "x".into(), ..config }] {
            let error = load_or_create(&other).unwrap_err().to_string();
            assert!(error.contains("member.json"), "{error}");
        }
    }

    #[test]
    fn a_lost_or_damaged_identity_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new("a", directory.path());
        fs::write(directory.path().join("member.json"), "{").unwrap();
        assert!(matches!(load_or_create(&config), Err(StartError::Identity { .. })));
        fs::remove_file(directory.path().join("member.json")).unwrap();
        fs::create_dir(directory.path().join("wal")).unwrap();
        assert!(matches!(load_or_create(&config), Err(StartError::Identity { .. })));
    }

    #[test]
    fn one_process_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(StartError::Locked { .. })));
        drop(held);
        lock(directory.path()).unwrap();
    }

    #[test]
    fn any_bytes_for_an_identity_are_read_or_refused() {
        let config = Config::new("a", "/nowhere");
        let valid = serde_json::to_vec_pretty(&found(&config, "lineage".to_owned())).unwrap();
        crate::fuzz::fuzz("member.json", vec![valid], |input| {
            let _ = check(&config, PathBuf::from("member.json"), input);
        });
    }
}
