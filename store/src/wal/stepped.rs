//! The log without its writer's thread, for simulations: nothing goes to the disk before
//! somebody says so.

use std::sync::{Arc, Mutex};

use super::writer::{self, Batch, Writer};
use super::{Config, Handle, Recovered, Wal, WalError};
use crate::fs::Disk;

/// The writer; without it nothing of the log becomes durable.
pub(crate) struct Steps {
    writer: Writer,
    /// Told of before they are written: the planted bug.
    owed: Option<Batch>,
}

impl Wal {
    /// As [`Wal::open`]; what waits is written by [`Steps`].
    pub(crate) fn open_stepped(config: Config, disk: Arc<dyn Disk>) -> Result<(Wal, Recovered, Steps), WalError> {
        // Its thread ends with the writer, which holds its jobs.
        let (writer, recovered, _preparing) = writer::open(config, disk)?;
        writer.settle();
        let wal = Wal(Arc::new(Handle { shared: Arc::clone(&writer.shared), threads: Mutex::default() }));
        Ok((wal, recovered, Steps { writer, owed: None }))
    }
}

impl Steps {
    pub(crate) fn is_due(&self) -> bool {
        self.writer.is_due()
    }

    /// Writes a batch, makes it durable, and tells who waits.
    pub(crate) fn step(&mut self) {
        if let Some((operations, dones)) = self.writer.take() {
            self.writer.finish(&operations, dones);
            self.writer.settle();
        }
    }

    /// Hands a batch to the disk that is not made durable: the power goes.
    pub(crate) fn tear(&mut self) {
        if let Some((operations, dones)) = self.owed.take().or_else(|| self.writer.take()) {
            self.writer.write_unsynced(&operations);
            dones.into_iter().for_each(|done| done(Ok(())));
        }
    }

    /// Tells who waits for a batch, and makes the one before durable: a log that lies.
    pub(crate) fn step_early(&mut self) {
        if let Some((operations, _)) = self.owed.take() {
            self.writer.finish(&operations, Vec::new());
            self.writer.settle();
        }
        if let Some((operations, dones)) = self.writer.take() {
            dones.into_iter().for_each(|done| done(Ok(())));
            self.owed = Some((operations, Vec::new()));
        }
    }
}
