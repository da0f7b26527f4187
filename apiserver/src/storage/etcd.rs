//! Storage over gRPC: any etcd v3 endpoint, ours or a real etcd.
//!
//! A real etcd should be 3.4.25, 3.5.8 or newer: older ones may report progress on a
//! watch before they have made it, and a read right after may then miss a write.

use std::time::Duration;

use futures::future::BoxFuture;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::watch_client::WatchClient;
use quorate_proto::etcd::{CompactionRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_request};
use quorate_proto::fence::Fence;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::messages;
use super::{Got, ListPage, ListRequest, Result, Storage, StorageError, Transaction, WatchMessage, WatchStream};

/// A call that takes longer counts as failed; longer than any election.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A page of large objects exceeds gRPC's usual 4 MiB.
const MAX_MESSAGE_BYTES: usize = 512 << 20;

/// Requests on a watch that may wait to be sent: the creation, and questions for progress.
const WATCH_REQUESTS: usize = 8;

/// An etcd v3 endpoint.
#[derive(Clone, Debug)]
pub struct EtcdStorage {
    kv: KvClient<Channel>,
    watch: WatchClient<Channel>,
}

impl EtcdStorage {
    /// Storage behind `channel`, which says where and under which identity.
    pub fn new(channel: Channel) -> Self {
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            watch: WatchClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }
}

async fn in_time<T>(call: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(messages::error(&status)),
        Err(_) => Err(StorageError::Unavailable("etcdserver: request timed out".to_owned())),
    }
}

impl Storage for EtcdStorage {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Got>> {
        let mut kv = self.kv.clone();
        Box::pin(async move { messages::got(in_time(kv.range(messages::get(key))).await?) })
    }

    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<ListPage>> {
        let mut kv = self.kv.clone();
        Box::pin(async move { messages::page(in_time(kv.range(messages::list(&request))).await?) })
    }

    /// # Errors
    /// `NotSupported` for fenced writes: etcd has no reigns.
    fn transact(&self, transaction: Transaction, fence: Option<Fence>) -> BoxFuture<'_, Result<u64>> {
        let mut kv = self.kv.clone();
        Box::pin(async move {
            if fence.is_some() {
                return Err(StorageError::NotSupported("fenced writes"));
            }
            messages::committed(in_time(kv.txn(messages::txn(transaction))).await?)
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: u64, previous: bool) -> BoxFuture<'a, Result<Box<dyn WatchStream>>> {
        let mut client = self.watch.clone();
        Box::pin(async move {
            let (requests, receiver) = mpsc::channel(WATCH_REQUESTS);
            let create = watch_request::RequestUnion::CreateRequest(messages::watch(prefix, from, previous));
            // The channel is empty: there is room.
            let _ = requests.try_send(WatchRequest { request_union: Some(create) });
            let responses = in_time(client.watch(ReceiverStream::new(receiver))).await?;
            Ok(Box::new(EtcdWatch { requests, responses }) as Box<dyn WatchStream>)
        })
    }

    fn read_index(&self) -> BoxFuture<'_, Result<u64>> {
        let mut kv = self.kv.clone();
        Box::pin(async move { Ok(messages::page(in_time(kv.range(messages::read_index())).await?)?.revision) })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        let mut kv = self.kv.clone();
        let request = CompactionRequest { revision: messages::to_wire(revision), physical: false };
        Box::pin(async move { in_time(kv.compact(request)).await.map(drop) })
    }
}

struct EtcdWatch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl WatchStream for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<WatchMessage>> {
        Box::pin(async move {
            loop {
                let response = match self.responses.message().await {
                    Ok(Some(response)) => response,
                    Ok(None) => return Err(StorageError::Unavailable("the watch was closed".to_owned())),
                    Err(status) => return Err(messages::error(&status)),
                };
                if let Some(message) = messages::watched(response)? {
                    return Ok(message);
                }
            }
        })
    }

    fn request_progress(&mut self) -> BoxFuture<'_, Result<()>> {
        let request = watch_request::RequestUnion::ProgressRequest(WatchProgressRequest {});
        // A full channel holds the same question already.
        let _ = self.requests.try_send(WatchRequest { request_union: Some(request) });
        Box::pin(std::future::ready(Ok(())))
    }
}
