//! Faults of one member's disk and wall clock, through `shim.c`, which is loaded before
//! the member's libraries: a disk that stalls, is slow, full or failing, and one that loses
//! what was not synced when the power goes.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.so"));

/// What disks write whole.
const SECTOR: u64 = 512;

/// Writes the shim into `folder`, for every process whose disk is kept below it.
///
/// # Errors
/// When the folder cannot be made or written.
pub fn install(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Processes that still run keep the old file.
    let (library, fresh) = (library(folder), folder.join("shim.new"));
    fs::write(&fresh, SHIM)
        .and_then(|()| fs::rename(&fresh, &library))
        .with_context(|| format!("cannot write {}", library.display()))
}

fn library(folder: &Path) -> PathBuf {
    folder.join("shim.so")
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

/// The disk and the clock of one process: everything below one folder.
#[derive(Clone, Debug)]
pub struct Disk {
    library: PathBuf,
    faults: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// `root` is absolute and may not exist yet; the shim and its files are kept below
    /// `folder`, on the same file system, those of this disk under `name`.
    pub fn at(folder: &Path, name: &str, root: &Path) -> Self {
        Self { library: library(folder), faults: folder.join(name), root: root.to_owned() }
    }

    /// Makes it whole, and its state of now one that no loss of power changes. No process may
    /// be on it.
    ///
    /// # Errors
    /// When the shim's files cannot be made.
    pub fn prepare(&self) -> Result<()> {
        ensure!(self.root.is_absolute(), "{} is not absolute", self.root.display());
        self.settle()?;
        fs::write(self.control(), [0; 64]).context("cannot make the shim's control")
    }

    /// What a process on this disk is started with.
    pub fn environment(&self) -> [(&'static str, &Path); 3] {
        [("LD_PRELOAD", &self.library), ("QUORATE_FAULTS", &self.faults), ("QUORATE_FAULTS_ROOT", &self.root)]
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// See [`behave`].
    pub fn control(&self) -> PathBuf {
        self.faults.join("control")
    }

    /// Takes effect at once.
    ///
    /// # Errors
    /// As [`behave`].
    pub fn behave(&self, behaviour: Behaviour) -> Result<()> {
        behave(&self.control(), behaviour)
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
        self.settle()?;
        Ok(changed)
    }

    /// What is there now has been there for ever.
    fn settle(&self) -> Result<()> {
        match fs::remove_dir_all(self.undo()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(self.undo()),
        }
        .with_context(|| format!("cannot make {} anew", self.undo().display()))
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

/// Lets the disk that is controlled by a file behave so from now on.
///
/// # Errors
/// When the file is not there.
pub fn behave(control: &Path, behaviour: Behaviour) -> Result<()> {
    let mut bytes = Vec::new();
    for flag in [behaviour.stalled, behaviour.sync_fails, behaviour.full] {
        bytes.extend(u32::from(flag).to_ne_bytes());
    }
    bytes.extend(u32::try_from(behaviour.slow.as_micros())?.to_ne_bytes());
    bytes.extend(behaviour.clock_ahead_millis.to_ne_bytes());
    let file = OpenOptions::new().write(true).open(control);
    file.and_then(|file| file.write_all_at(&bytes, 0)).with_context(|| cannot(control))
}

fn cannot(file: &Path) -> String {
    format!("cannot write {}", file.display())
}

/// A bit of a log that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bit {
    pub file: PathBuf,
    /// Where the byte is whose lowest bit it is, and what that was.
    pub at: u64,
    pub was: u8,
}

impl Bit {
    /// Inverts one in the older part of the log of a store that does not run, whose data is in
    /// `data`; `random` chooses which.
    ///
    /// # Errors
    /// When there is no log.
    pub fn flip_in_log(data: &Path, random: u64) -> Result<Self> {
        let folder = data.join("wal");
        // The end may be cut as torn, and what was acknowledged with it: no disk does that.
        let mut best: Option<(PathBuf, u64)> = None;
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            let content = fs::read(&path)?;
            let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64);
            if best.as_ref().is_none_or(|(_, most)| *most < used) {
                best = Some((path, used));
            }
        }
        let (file, used) = best.context("there is no log yet")?;
        let at = used / 8 + random % (used / 2).max(1);
        let mut byte = [0];
        File::open(&file).and_then(|open| open.read_exact_at(&mut byte, at)).with_context(|| cannot(&file))?;
        let bit = Self { file, at, was: byte[0] };
        bit.write(bit.was ^ 1)?;
        Ok(bit)
    }

    /// Makes it what it was, however often that is done.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn restore(&self) -> Result<()> {
        self.write(self.was)
    }

    fn write(&self, byte: u8) -> Result<()> {
        let file = File::options().write(true).open(&self.file);
        file.and_then(|file| file.write_all_at(&[byte], self.at)).with_context(|| cannot(&self.file))
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
    use std::process::{Command, Stdio};

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
        install(&folder.0).expect("a folder that can be written");
        let disk = Disk::at(&folder.0, "faults", &folder.0.join("root"));
        disk.prepare().expect("a folder that can be written");
        disk
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
    fn what_moves_and_removals_take_away_is_kept_until_they_are_synced() {
        let folder = folder();
        let disk = disk(&folder);
        let kept = || {
            let names = fs::read_dir(disk.undo()).expect("a folder").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().starts_with("saved-")).count()
        };
        assert!(run(&disk, "printf 1 > $D/a; printf 2 > $D/b; sync $D"));
        assert!(run(&disk, "mv $D/a $D/b"));
        assert_eq!(kept(), 1);
        // A process that syncs what it has removed keeps nothing of it.
        let command = r#"exec perl -MIO::Handle -e 'unlink "$ENV{D}/b"; open my $f, "<", $ENV{D}; $f->sync or die'"#;
        assert!(run(&disk, command));
        assert_eq!(kept(), 1);
    }

    #[test]
    fn a_bit_of_a_log_is_inverted_and_back() {
        let folder = folder();
        let wal = folder.0.join("wal");
        fs::create_dir_all(&wal).expect("a folder");
        assert!(Bit::flip_in_log(&folder.0, 0).is_err(), "there is no log yet");
        let content = [[7; 100], [0; 100]].concat();
        for (name, length) in [("1", 200), ("2", 50)] {
            fs::write(wal.join(name), &content[..length]).expect("a file");
        }
        for random in [0, 77, u64::MAX] {
            let bit = Bit::flip_in_log(&folder.0, random).expect("a log");
            let now = fs::read(wal.join("1")).expect("a file");
            let other: Vec<usize> = (0..200).filter(|at| now[*at] != content[*at]).collect();
            assert_eq!((bit.file.ends_with("1"), other), (true, vec![bit.at as usize]));
            assert!(bit.at < 75, "the end is left alone");
            for _ in 0..2 {
                bit.restore().expect("a file");
            }
            assert_eq!(fs::read(wal.join("1")).expect("a file"), content);
        }
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
