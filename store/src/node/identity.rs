//! Whose data a directory holds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::error::StartError;
use crate::peer::{Moved, Verdict};

/// The format of the file this module writes.
const FORMAT: u32 = 1;

const FILE: &str = "member.json";

/// Says who a data directory belongs to.
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
    /// Drawn when the directory was made: a member's id is worth nothing without it.
    #[serde(default)]
    pub(super) directory: u64,
    /// The id of the log beside it; 0 before there was one. A member without the log that it
    /// wrote has forgotten votes and what it acknowledged.
    #[serde(default)]
    pub(super) log: u64,
    /// Of a cluster that existed before: it has nothing to found.
    #[serde(default)]
    pub(super) joined: Joined,
    /// The cluster's generation when this member joined.
    #[serde(default)]
    pub(super) generation: u64,
    /// Why the directory is of no use any more.
    #[serde(default)]
    pub(super) ended: Option<String>,
    /// The members' addresses as the configuration said at the last start.
    #[serde(default)]
    pub(super) configured: BTreeMap<String, String>,
    /// Members that the configuration has moved since, until the membership knows.
    #[serde(default)]
    pub(super) moved: BTreeMap<u64, Moved>,
}

/// How a member came into its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Joined {
    /// It is one of the founders.
    #[default]
    Founder,
    /// It has found itself among the members, but is not tied to this directory yet.
    Asking,
    /// It is tied to this directory.
    Tied,
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

/// Reads who the directory belongs to; none if it is new.
///
/// # Errors
/// When the directory belongs to another member, does not say to whom, or has no use.
pub(super) fn load(config: &Config) -> Result<Option<Identity>, StartError> {
    let path = config.data_dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => check(config, path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if config.data_dir.join("wal").exists() {
                return Err(StartError::Identity { path, reason: "it is missing beside a log".to_owned() });
            }
            Ok(None)
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

/// Who a founder is: its id and its cluster's follow from names, token and lineage.
pub(super) fn found(config: &Config, lineage: String) -> Identity {
    let token = config::lineal(&config.cluster_token, &lineage);
    let names: Vec<&str> = match config.initial_cluster.as_slice() {
        [] => vec![&config.name],
        members => members.iter().map(|(name, _)| name.as_str()).collect(),
    };
    let ids = (config::member_id(&token, &config.name), config::cluster_id(&token, names));
    Identity { joined: Joined::Founder, lineage, ..join(config, ids, 0) }
}

/// Who somebody is that was told its ids (of member and cluster) by the cluster.
pub(super) fn join(config: &Config, (member_id, cluster_id): (u64, u64), generation: u64) -> Identity {
    Identity {
        format: FORMAT,
        name: config.name.clone(),
        token: config.cluster_token.clone(),
        member_id,
        cluster_id,
        lineage: String::new(),
        directory: draw(),
        log: 0,
        joined: Joined::Asking,
        generation,
        ended: None,
        configured: config.initial_cluster.iter().cloned().collect(),
        moved: BTreeMap::new(),
    }
}

/// A number that no other directory has; 0 means none.
fn draw() -> u64 {
    rand::random::<u64>().max(1)
}

impl Identity {
    /// Ties the directory to the log that was opened in it.
    ///
    /// # Errors
    /// When it had another one.
    pub(super) fn keep_log(&mut self, config: &Config, log_id: u64) -> Result<(), StartError> {
        match self.log {
            0 => self.log = log_id,
            known if known == log_id => return Ok(()),
            _ => {
                let reason =
                    format!("the log beside it is not the one that was there. {}", Verdict::OtherDirectory.advice());
                return Err(StartError::Identity { path: config.data_dir.join(FILE), reason });
            }
        }
        self.store(&config.data_dir)
    }

    /// Writes all of it or nothing, also over a power loss.
    pub(super) fn store(&self, directory: &Path) -> Result<(), StartError> {
        let path = directory.join(FILE);
        write(&path, self).map_err(|source| StartError::Directory { path, source })
    }
}

/// Takes over what the configuration says of addresses, if that has changed since the last
/// start: `known` are the members by id, each with name and address as the membership has
/// them. A configuration that has not changed may be older than the membership.
pub(super) fn relocate(identity: &mut Identity, config: &Config, known: &BTreeMap<u64, (String, String)>) {
    identity.moved.retain(|id, moved| known.get(id).is_some_and(|(_, address)| *address == moved.from));
    for (name, wanted) in &config.initial_cluster {
        if identity.configured.get(name) == Some(wanted) {
            continue;
        }
        if let Some((id, (_, address))) = known.iter().find(|(_, (known, _))| known == name) {
            identity.moved.remove(id);
            if address != wanted {
                identity.moved.insert(*id, Moved { from: address.clone(), to: wanted.clone() });
            }
        }
    }
    identity.configured = config.initial_cluster.iter().cloned().collect();
}

fn check(config: &Config, path: PathBuf, bytes: &[u8]) -> Result<Identity, StartError> {
    let mut identity: Identity = match serde_json::from_slice(bytes) {
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
    if let Some(reason) = identity.ended {
        return Err(StartError::Ended { path, reason });
    }
    if identity.directory == 0 {
        identity.directory = draw();
    }
    Ok(identity)
}

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

    fn founded(config: &Config) -> Identity {
        let identity = found(config, String::new());
        identity.store(&config.data_dir).unwrap();
        identity
    }

    #[test]
    fn a_directory_stays_with_its_member() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new("a", directory.path());
        assert_eq!(load(&config).unwrap(), None);
        let made = founded(&config);
        assert_eq!(load(&config).unwrap(), Some(made));
        for other in [Config { name: "b".into(), ..config.clone() }, Config { cluster_token: "x".into(), ..config }] {
            let error = load(&other).unwrap_err().to_string();
            assert!(error.contains("member.json"), "{error}");
        }
    }

    #[test]
    fn a_lost_or_damaged_identity_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new("a", directory.path());
        fs::write(directory.path().join("member.json"), "{").unwrap();
        assert!(matches!(load(&config), Err(StartError::Identity { .. })));
        fs::remove_file(directory.path().join("member.json")).unwrap();
        fs::create_dir(directory.path().join("wal")).unwrap();
        assert!(matches!(load(&config), Err(StartError::Identity { .. })));
    }

    #[test]
    fn two_directories_of_one_name_are_told_apart_and_an_ended_one_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new("a", directory.path());
        let mut identity = founded(&config);
        assert_ne!(identity.directory, found(&config, String::new()).directory);
        identity.ended = Some("it was removed".into());
        identity.store(directory.path()).unwrap();
        let error = load(&config).unwrap_err().to_string();
        assert!(error.contains("it was removed"), "{error}");
    }

    #[test]
    fn only_a_changed_configuration_moves_members() {
        let mut config = Config::new("a", "/nowhere");
        let addresses = |a: &str, b: &str| vec![("a".to_owned(), a.to_owned()), ("b".to_owned(), b.to_owned())];
        config.initial_cluster = addresses("a:1", "b:1");
        let mut identity = found(&config, String::new());
        let membership =
            |b: &str| BTreeMap::from([(1, ("a".to_owned(), "a:1".to_owned())), (2, ("b".to_owned(), b.to_owned()))]);
        // The membership has moved b; the configuration still says what it always said.
        relocate(&mut identity, &config, &membership("b:2"));
        assert!(identity.moved.is_empty());
        config.initial_cluster = addresses("a:1", "b:3");
        let moved = BTreeMap::from([(2, Moved { from: "b:2".into(), to: "b:3".into() })]);
        relocate(&mut identity, &config, &membership("b:2"));
        assert_eq!(identity.moved, moved);
        relocate(&mut identity, &config, &membership("b:2"));
        assert_eq!(identity.moved, moved, "also at the next start");
        relocate(&mut identity, &config, &membership("b:4"));
        assert!(identity.moved.is_empty(), "the membership knows better again");
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
