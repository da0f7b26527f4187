//! `Maintenance/Snapshot`: the pages of a file of etcd's backend, then their SHA-256.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use futures::Stream;
use quorate_proto::etcd::SnapshotResponse;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::node::Store;
use crate::snapshot::Export;

/// The pages in one message.
const BLOB_BYTES: u64 = 64 << 10;

/// Messages that wait for a slow client.
const QUEUE: usize = 4;

/// Writes the snapshot, then sends it as fast as the client takes it.
pub(super) async fn stream(
    store: &Store,
) -> Result<impl Stream<Item = Result<SnapshotResponse, Status>> + Send + use<>, Status> {
    let Export { file, size_bytes, checksum, revision, .. } = store.export().await?;
    let header = store.header(revision);
    let (sender, receiver) = mpsc::channel(QUEUE);
    // Ends when the client does: then nobody receives.
    tokio::task::spawn_blocking(move || {
        let message = |remaining_bytes: u64, blob: Bytes| SnapshotResponse {
            header: Some(header),
            remaining_bytes,
            blob,
            version: String::new(),
        };
        let sent = send(file, size_bytes, |remaining, blob| sender.blocking_send(Ok(message(remaining, blob))).is_ok());
        let last = match sent {
            Ok(true) => Ok(message(0, Bytes::copy_from_slice(&checksum))),
            Ok(false) => return,
            Err(error) => Err(Status::internal(format!("quorate: reading a snapshot: {error}"))),
        };
        drop(sender.blocking_send(last));
    });
    Ok(ReceiverStream::new(receiver))
}

/// Calls `send` with each piece and what is left after it; returns whether it took all.
fn send(mut file: File, size_bytes: u64, mut send: impl FnMut(u64, Bytes) -> bool) -> io::Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    let mut left = size_bytes;
    while left > 0 {
        let mut blob = vec![0; left.min(BLOB_BYTES) as usize];
        file.read_exact(&mut blob)?;
        left -= blob.len() as u64;
        if !send(left, blob.into()) {
            return Ok(false);
        }
    }
    Ok(true)
}
