//! `Maintenance/Snapshot`: the pages of a file of etcd's backend, then their SHA-256.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use quorate_proto::etcd::SnapshotResponse;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::node::Store;
use crate::snapshot::Export;

/// The pages in one message.
const BLOB_BYTES: usize = 64 << 10;

/// Messages that wait for a slow client.
const QUEUE: usize = 4;

/// The pieces that are read at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// A client that takes nothing for so long is given up: its snapshot holds disk space, and
/// the place of another one.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Writes the snapshot, then sends it as fast as the client takes it.
pub(super) async fn stream(
    store: &Store,
) -> Result<impl Stream<Item = Result<SnapshotResponse, Status>> + Send + use<>, Status> {
    let (Export { file, size_bytes, checksum, revision }, permit) = store.export().await?;
    let header = store.header(revision);
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let _permit = permit;
        let send = async |remaining_bytes: u64, blob: Bytes| {
            let message = SnapshotResponse { header: Some(header), remaining_bytes, blob, version: String::new() };
            sender.send_timeout(Ok(message), STALL_TIMEOUT).await.is_ok()
        };
        let mut left = size_bytes;
        let mut file = Some(file);
        while left > 0 {
            let Some(source) = file.take() else { return };
            let (source, mut piece) = match read(source, size_bytes - left, left.min(PIECE_BYTES)).await {
                Ok(read) => read,
                Err(error) => {
                    // A client that is gone hears nothing.
                    let status = Status::internal(format!("quorate: reading a snapshot: {error}"));
                    let _ = sender.send_timeout(Err(status), STALL_TIMEOUT).await;
                    return;
                }
            };
            file = Some(source);
            while !piece.is_empty() {
                let blob = piece.split_to(piece.len().min(BLOB_BYTES));
                left -= blob.len() as u64;
                if !send(left, blob).await {
                    return;
                }
            }
        }
        send(0, Bytes::copy_from_slice(&checksum)).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// Reads `count` bytes from `offset`, on a thread that may block.
async fn read(file: File, offset: u64, count: u64) -> io::Result<(File, Bytes)> {
    tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; count as usize];
        file.read_exact_at(&mut piece, offset)?;
        Ok((file, piece.into()))
    })
    .await?
}
