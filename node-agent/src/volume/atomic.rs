//! Files that change all at once: readers see the old ones or the new ones.
//!
//! A volume's folder holds links `name -> ..data/name`, and `..data` is a link to the
//! folder of the current version; replacing that one link replaces everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
const OWNER_ONLY: u32 = 0o700;
const FOLDER_MODE: u32 = 0o755;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

/// Files by their path inside of the volume.
pub type Payload = BTreeMap<String, File>;

/// Makes the volume in `folder` hold exactly `payload`. Returns whether anything changed.
///
/// # Errors
/// When a path would leave the volume, or the disk refuses.
pub fn write(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    if is_current(folder, payload) {
        return Ok(false);
    }
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(
        folder,
        std::fs::Permissions::from_mode(if group.is_some() { 0o775 } else { FOLDER_MODE }),
    )?;
    let version = format!("..{}", Timestamp::now().as_nanosecond());
    let fresh = folder.join(&version);
    std::fs::create_dir(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(FOLDER_MODE))?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&target, &file.bytes)?;
        let mode = if group.is_some() { file.mode | 0o040 } else { file.mode };
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::chown(&target, None, group)?;
    }
    let old = std::fs::read_link(folder.join(DATA)).ok();
    let new_link = folder.join(DATA_NEW);
    let _ = std::fs::remove_file(&new_link);
    symlink(&version, &new_link)?;
    std::fs::rename(&new_link, folder.join(DATA))?;
    let names: BTreeSet<&str> = payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &names {
        let link = folder.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old.filter(|old| old.as_os_str() != version.as_str())
        && old.components().count() == 1
    {
        let _ = std::fs::remove_dir_all(folder.join(old));
    }
    Ok(true)
}

/// Creates a folder that only the agent may enter.
pub fn create_private(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(OWNER_ONLY))
}

fn check_path(path: &str) -> io::Result<()> {
    let relative = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !relative || path.starts_with("..") || path.len() > 4096 {
        let problem = format!("invalid path {path:?}: must be relative and stay inside the volume");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    Ok(())
}

fn is_current(folder: &Path, payload: &Payload) -> bool {
    let data = folder.join(DATA);
    let mut found = BTreeSet::new();
    if collect(&data, &data, &mut found).is_err() {
        return false;
    }
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            let target = data.join(path);
            found.contains(path) && std::fs::read(target).is_ok_and(|bytes| bytes == file.bytes)
        })
}

fn collect(base: &Path, folder: &PathBuf, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(base, &path, found)?;
        } else if let Ok(inside) = path.strip_prefix(base) {
            found.insert(inside.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o644 }))
            .collect()
    }

    #[test]
    fn a_new_version_replaces_the_old_one_whole() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1"), ("sub/b", "1")]), None).unwrap());
        assert!(!write(&volume, &payload(&[("a", "1"), ("sub/b", "1")]), None).unwrap(), "nothing changed");
        assert_eq!(std::fs::read_to_string(volume.join("sub/b")).unwrap(), "1");
        assert!(write(&volume, &payload(&[("a", "2"), ("c", "2")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "2");
        assert!(std::fs::symlink_metadata(volume.join("sub")).is_err(), "what is gone is gone");
        let versions =
            std::fs::read_dir(&volume).unwrap().flatten().filter(|e| e.file_type().unwrap().is_dir()).count();
        assert_eq!(versions, 1, "old versions do not pile up");
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "..data", "./a/.."] {
            assert!(write(folder.path(), &payload(&[(path, "")]), None).is_err(), "{path:?}");
        }
    }
}
