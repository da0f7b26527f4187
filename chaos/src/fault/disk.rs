//! Faults of one member's disk and wall clock, through `shim.c`, which is loaded before
//! the member's libraries: a disk that stalls, is slow, full or failing, and one that loses
//! what was not synced when the power goes.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SHIM: &str = include_str!("shim.c");

/// What disks write whole.
const SECTOR: u64 = 512;

/// Compiles the shim into `folder`; every member of a run shares it.
///
/// # Errors
/// When there is no C compiler.
pub fn build_shim(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("shim.so");
    let mut compiler = Command::new("cc")
        .args(["-x", "c", "-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .args(["-", "-ldl", "-lpthread"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("faults of the disk need a C compiler; install gcc and libc6-dev")?;
    compiler.stdin.take().context("the compiler reads")?.write_all(SHIM.as_bytes())?;
    let output = compiler.wait_with_output()?;
    ensure!(output.status.success(), "the shim does not compile: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

/// What a loss of power takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Everything that was not synced.
    Unsynced,
    /// Of each sector that was not synced, the old or the new state; of names, all after some
    /// point.
    Torn { seed: u64 },
}

/// How the disk and the clock behave from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Nothing is written or synced until that ends.
    pub stalled: bool,
    pub sync_fails: bool,
    pub full: bool,
    /// What each sync takes longer.
    pub slow: Duration,
    pub clock_ahead_millis: i64,
}

/// The disk of one member: everything below one folder.
#[derive(Debug)]
pub struct Disk {
    library: PathBuf,
    faults: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// `root` is absolute and may not exist yet; the shim's own files are kept in `faults`,
    /// on the same file system.
    pub fn new(library: &Path, root: &Path, faults: &Path) -> Result<Self> {
        ensure!(root.is_absolute(), "{} is not absolute", root.display());
        let disk = Self { library: library.to_owned(), faults: faults.to_owned(), root: root.to_owned() };
        fs::create_dir_all(disk.undo()).context("cannot make the shim's folder")?;
        fs::write(disk.faults.join("control"), [0; 64]).context("cannot make the shim's control")?;
        Ok(disk)
    }

    /// What a process on this disk is started with.
    pub fn environment(&self) -> [(&'static str, &Path); 3] {
        [("LD_PRELOAD", &self.library), ("QUORATE_FAULTS", &self.faults), ("QUORATE_FAULTS_ROOT", &self.root)]
    }

    /// Takes effect at once.
    pub fn behave(&self, behaviour: Behaviour) -> Result<()> {
        let mut control = Vec::new();
        for flag in [behaviour.stalled, behaviour.sync_fails, behaviour.full] {
            control.extend(u32::from(flag).to_ne_bytes());
        }
        control.extend(u32::try_from(behaviour.slow.as_micros())?.to_ne_bytes());
        control.extend(behaviour.clock_ahead_millis.to_ne_bytes());
        let file = OpenOptions::new().write(true).open(self.faults.join("control"))?;
        file.write_all_at(&control, 0).context("cannot write the shim's control")
    }

    /// Takes from the disk of a process that has ended what a loss of power would take;
    /// returns how many files and names that changed.
    pub fn lose(&self, loss: Loss) -> Result<usize> {
        let mut random = match loss {
            Loss::Unsynced => None,
            Loss::Torn { seed } => Some(StdRng::seed_from_u64(seed)),
        };
        let mut changed = self.lose_names(random.as_mut())?;
        let mut files = HashMap::new();
        walk(&self.root, &mut files)?;
        for entry in fs::read_dir(self.undo())? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let Some((dev, ino)) =
                name.split_once('-').and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)))
            else {
                continue;
            };
            let mut notes = Vec::new();
            File::open(entry.path())?.read_to_end(&mut notes)?;
            if let Some(path) = files.get(&(dev, ino)).filter(|_| !notes.is_empty()) {
                lose_writes(path, &notes, random.as_mut())?;
                changed += 1;
            }
        }
        // What is there now has been there for ever.
        fs::remove_dir_all(self.undo())?;
        fs::create_dir_all(self.undo())?;
        Ok(changed)
    }

    fn undo(&self) -> PathBuf {
        self.faults.join("undo")
    }

    fn lose_names(&self, random: Option<&mut StdRng>) -> Result<usize> {
        let text = fs::read_to_string(self.undo().join("names")).unwrap_or_default();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
        let mut synced: BTreeSet<&Path> = BTreeSet::new();
        let mut lost = Vec::new();
        for line in lines.iter().rev() {
            let &[kind, path, to, saved] = line.as_slice() else { continue };
            let path = Path::new(path);
            if kind == "S" {
                synced.insert(path);
                continue;
            }
            let named = if kind == "R" { Path::new(to) } else { path };
            if !named.parent().is_some_and(|parent| synced.contains(parent)) {
                lost.push((kind, path, Path::new(to), saved));
            }
        }
        // Journals keep names in order: some of the newest are lost.
        if let Some(random) = random {
            lost.truncate(random.random_range(0..=lost.len()));
        }
        for (kind, path, to, saved) in &lost {
            let saved = Some(self.undo().join(saved)).filter(|_| !saved.is_empty());
            // A name may be gone by what was lost before it.
            let _ = match *kind {
                "C" => fs::remove_file(path),
                "R" => fs::rename(to, path).and_then(|()| saved.map_or(Ok(()), |saved| fs::rename(saved, to))),
                _ => saved.map_or(Ok(()), |saved| fs::rename(saved, path)),
            };
        }
        Ok(lost.len())
    }
}

/// Every file below a folder, by device and inode.
fn walk(folder: &Path, files: &mut HashMap<(u64, u64), PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", folder.display())),
    };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            walk(&entry.path(), files)?;
        } else if metadata.is_file() {
            files.insert((metadata.dev(), metadata.ino()), entry.path());
        }
    }
    Ok(())
}

/// What one write covered: the file's size before it, where it began, and what stood there.
struct Note<'a> {
    size: u64,
    offset: u64,
    before: &'a [u8],
}

/// The notes of a file, oldest first. The process may have ended within the last.
fn notes(mut bytes: &[u8]) -> Vec<Note<'_>> {
    let mut notes = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(24) {
        let number = |at: usize| head[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
        let Some((before, rest)) = rest.split_at_checked(usize::try_from(number(16)).unwrap_or(usize::MAX)) else {
            break;
        };
        notes.push(Note { size: number(0), offset: number(8), before });
        bytes = rest;
    }
    notes
}

fn lose_writes(path: &Path, bytes: &[u8], random: Option<&mut StdRng>) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let notes = notes(bytes);
    let Some(synced) = notes.first().map(|note| note.size) else { return Ok(()) };
    let now = file.metadata()?.len();
    // Only what stands in touched sectors can come in two states.
    let mut touched: BTreeSet<u64> = (synced / SECTOR..now.div_ceil(SECTOR)).collect();
    for note in &notes {
        touched.extend(note.offset / SECTOR..(note.offset + note.before.len() as u64).div_ceil(SECTOR));
    }
    let mut kept = Vec::new();
    if let Some(random) = random {
        for sector in touched.into_iter().filter(|_| random.random_bool(0.5)) {
            let mut content = vec![0; SECTOR as usize];
            let count = file.read_at(&mut content, sector * SECTOR)?;
            content.truncate(count);
            kept.push((sector * SECTOR, content));
        }
    }
    for note in notes.iter().rev() {
        file.set_len(note.size)?;
        file.write_all_at(note.before, note.offset)?;
    }
    for (offset, content) in kept {
        file.write_all_at(&content, offset)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of the test's own, removed with it.
    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn folder() -> Folder {
        let number = rand::rng().random_range(0..u64::MAX);
        let path = std::env::temp_dir().join(format!("quorate-disk-{number:x}"));
        fs::create_dir_all(path.join("root")).expect("a folder");
        Folder(path)
    }

    fn disk(folder: &Folder) -> Disk {
        let library = build_shim(&folder.0).expect("a C compiler");
        Disk::new(&library, &folder.0.join("root"), &folder.0.join("faults")).expect("a disk")
    }

    /// Runs a shell command on the disk, in its root; returns whether it succeeded.
    fn run(disk: &Disk, command: &str) -> bool {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(&disk.root).envs(disk.environment()).stderr(Stdio::null());
        shell.env("D", &disk.root).status().expect("a shell").success()
    }

    fn read(disk: &Disk, name: &str) -> Option<String> {
        fs::read_to_string(disk.root.join(name)).ok()
    }

    #[test]
    fn what_was_not_synced_is_lost_and_no_more() {
        let folder = folder();
        let disk = disk(&folder);
        let write = "dd of=$D/a status=none conv=notrunc";
        assert!(run(&disk, &format!("printf 111111 | {write},fsync && sync $D")));
        assert!(run(&disk, &format!("printf 222 | {write} oflag=seek_bytes seek=4")));
        assert!(run(&disk, "printf x > $D/b; mv $D/a $D/c"));
        assert_eq!(read(&disk, "c").as_deref(), Some("1111222"));
        disk.lose(Loss::Unsynced).expect("power is lost");
        assert_eq!((read(&disk, "a").as_deref(), read(&disk, "b"), read(&disk, "c")), (Some("111111"), None, None));

        assert!(run(&disk, &format!("printf 333 | {write},fsync; rm $D/a")));
        disk.lose(Loss::Unsynced).expect("power is lost");
        assert_eq!(read(&disk, "a").as_deref(), Some("333111"), "the removal was not synced");
        assert!(run(&disk, "rm $D/a; sync $D"));
        disk.lose(Loss::Unsynced).expect("power is lost");
        assert_eq!(read(&disk, "a"), None, "the removal was synced");
    }

    #[test]
    fn sectors_are_torn_apart() {
        let folder = folder();
        let disk = disk(&folder);
        let write = |byte: char, sync: &str| {
            let command = format!("head -c 8192 /dev/zero | tr '\\0' {byte} | dd of=$D/a bs=4096 status=none {sync}");
            assert!(run(&disk, &command));
        };
        write('1', "conv=notrunc,fsync");
        assert!(run(&disk, "sync $D"));
        write('2', "conv=notrunc");
        disk.lose(Loss::Torn { seed: 1 }).expect("power is lost");
        let content = read(&disk, "a").expect("it is there");
        let whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
        assert!(content.as_bytes().chunks(SECTOR as usize).all(whole));
        assert!(content.contains('1') && content.contains('2'));
    }

    #[test]
    fn the_disk_and_the_clock_do_as_they_are_told() {
        let folder = folder();
        let disk = disk(&folder);
        let write = "printf 1 | dd of=$D/a conv=fsync status=none";
        disk.behave(Behaviour { full: true, ..Behaviour::default() }).expect("a control");
        assert!(!run(&disk, write));
        disk.behave(Behaviour { sync_fails: true, ..Behaviour::default() }).expect("a control");
        assert!(!run(&disk, write));
        disk.behave(Behaviour { stalled: true, ..Behaviour::default() }).expect("a control");
        assert!(!run(&disk, &format!("timeout 0.3 sh -c '{write}'")));
        disk.behave(Behaviour { clock_ahead_millis: 400 * 86_400_000, ..Behaviour::default() }).expect("a control");
        assert!(run(&disk, "test $(date +%s) -gt $(($(stat -c %Y /proc/self) + 86400 * 300))"));
        disk.behave(Behaviour::default()).expect("a control");
        assert!(run(&disk, write));
    }
}
