//! The files of the log: made, filled with zeros, reused.
//!
//! A segment gets its final name only when its header and its zeros are durable, so
//! that appending overwrites blocks that exist: then `fdatasync` need not touch the
//! file system's journal (ext4). Making and retiring happen on a thread of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::WalError;
use super::record::SegmentHeader;
use crate::fs::{Disk, File};
use crate::thread;

const SUFFIX: &str = ".wal";
/// A segment being made; left over after a crash, it is overwritten.
const UNFINISHED: &str = "unfinished";

/// The directory of one log.
#[derive(Clone)]
pub(super) struct Directory {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) segment_size: u64,
}

impl Directory {
    pub(super) fn segment_path(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:016x}{SUFFIX}"))
    }

    /// The numbers of the segments there are, ascending.
    pub(super) fn segments(&self) -> Result<Vec<u64>, WalError> {
        let names = self.disk.list(&self.path).map_err(failed("list", &self.path))?;
        let number = |name: &String| u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok();
        Ok(names.iter().filter_map(number).collect())
    }

    /// Makes segment `number`, from the file of a retired one when given.
    pub(super) fn make(&self, log_id: u64, number: u64, retired: Option<u64>) -> Result<Arc<dyn File>, WalError> {
        let unfinished = self.path.join(UNFINISHED);
        let reused = match retired {
            Some(retired) => self.reuse(retired, &unfinished)?,
            None => None,
        };
        let file = match reused {
            Some(file) => file,
            None => {
                let made = self.disk.create_zeroed(&unfinished, self.segment_size);
                made.map_err(failed("fill", &unfinished))?
            }
        };
        let header = SegmentHeader { log_id, number }.encode();
        file.write_all_at(&header, 0).map_err(failed("write", &unfinished))?;
        file.sync_data().map_err(failed("sync", &unfinished))?;
        let path = self.segment_path(number);
        self.disk.rename(&unfinished, &path).map_err(failed("rename to", &path))?;
        self.sync()?;
        Ok(file)
    }

    fn reuse(&self, retired: u64, unfinished: &Path) -> Result<Option<Arc<dyn File>>, WalError> {
        let path = self.segment_path(retired);
        let file = self.disk.open(&path).map_err(failed("open", &path))?;
        if file.size().map_err(failed("measure", &path))? != self.segment_size {
            self.remove(retired)?;
            return Ok(None);
        }
        self.disk.rename(&path, unfinished).map_err(failed("rename", &path))?;
        // Before its header changes: the old name must never show the new header.
        self.sync()?;
        Ok(Some(file))
    }

    /// Removes a segment for good; the order of removals survives a crash.
    pub(super) fn remove(&self, number: u64) -> Result<(), WalError> {
        let path = self.segment_path(number);
        self.disk.remove(&path).map_err(failed("remove", &path))?;
        self.sync()
    }

    pub(super) fn sync(&self) -> Result<(), WalError> {
        self.disk.sync_dir(&self.path).map_err(failed("sync", &self.path))
    }
}

/// Turns a system error into one that names the file.
pub(super) fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> WalError + 'a {
    move |source| WalError::File { action, path: path.to_owned(), source }
}

enum Job {
    Make(u64),
    Retire(u64),
    #[cfg(test)]
    Answer(Sender<()>),
}

/// A segment ready for use.
pub(super) type Made = Result<(u64, Arc<dyn File>), WalError>;

/// Makes the next segment ahead of need and takes back retired ones.
pub(super) struct Preparer {
    jobs: Sender<Job>,
    made: Receiver<Made>,
}

impl Preparer {
    /// Starts the thread; it ends when the preparer is dropped.
    pub(super) fn start(directory: Directory, log_id: u64) -> std::io::Result<(Preparer, JoinHandle<()>)> {
        let (jobs, todo) = channel();
        let (results, made) = channel();
        let thread = thread::spawn("wal-segments", move || prepare(&directory, log_id, &todo, &results))?;
        Ok((Preparer { jobs, made }, thread))
    }

    pub(super) fn request(&self, number: u64) {
        // A closed channel shows in `take`.
        let _ = self.jobs.send(Job::Make(number));
    }

    pub(super) fn retire(&self, number: u64) {
        let _ = self.jobs.send(Job::Retire(number));
    }

    /// Waits until everything asked for so far is done.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        let (answer, answered) = channel();
        // A thread that has ended does nothing any more.
        let _ = self.jobs.send(Job::Answer(answer));
        let _ = answered.recv();
    }

    /// Waits for the segment that was requested.
    pub(super) fn take(&self) -> Made {
        self.made.recv().unwrap_or(Err(WalError::Closed))
    }
}

fn prepare(directory: &Directory, log_id: u64, todo: &Receiver<Job>, results: &Sender<Made>) {
    let mut retired: Option<u64> = None;
    // After a failure no file goes any more: a name in the middle that is missing would
    // make the log refuse.
    let mut failing = false;
    while let Ok(job) = todo.recv() {
        match job {
            Job::Make(number) => {
                let made = directory.make(log_id, number, retired.take());
                failing |= made.is_err();
                if results.send(made.map(|file| (number, file))).is_err() {
                    return;
                }
            }
            #[cfg(test)]
            Job::Answer(answer) => drop(answer.send(())),
            Job::Retire(_) if failing => {}
            Job::Retire(number) => {
                // The oldest name goes first: removals leave no gap in the middle.
                if let Some(older) = retired.replace(number)
                    && let Err(error) = directory.remove(older)
                {
                    failing = true;
                    retired = None;
                    tracing::error!(error = &error as &dyn std::error::Error, "purged segments stay");
                }
            }
        }
    }
}
