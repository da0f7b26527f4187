//! What one client does in one operation of each workload.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op};
use tonic::Status;
use tower::ServiceExt;

use super::keys::{Keys, Random};
use super::lease;
use super::recorder::Recorder;
use super::target::Target;
use super::watch;
use crate::endpoints::Service;

/// A workload; its clients share it.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Put {
        keys: Keys,
        value: Bytes,
    },
    /// One key of the key space at a time; `request` is everything but the key.
    Range {
        keys: Keys,
        value_size: usize,
        request: RangeRequest,
    },
    /// What was asked for, as it is.
    RangeOf(RangeRequest),
    Txn {
        keys: Keys,
        value: Bytes,
        puts: u64,
    },
    /// Transactions that read with `read`, so large a part of all, beside some that write.
    Mixed {
        keys: Keys,
        value: Bytes,
        read: RangeRequest,
        read_part: f64,
    },
    /// Answers of any size, which are counted and not kept.
    List {
        keys: Keys,
        value_size: usize,
        request: RangeRequest,
    },
    Lease {
        leases: usize,
    },
    Watch(watch::Work),
}

/// The kinds of operations of a mixed load, as the recorder numbers them.
const READ: usize = 0;
const WRITE: usize = 1;

impl Work {
    pub(crate) fn recorder(&self) -> Recorder {
        match self {
            Self::Put { .. } => Recorder::new(&["put"], &[]),
            Self::Range { .. } | Self::RangeOf(_) => Recorder::new(&["range"], &[]),
            Self::Txn { .. } => Recorder::new(&["txn"], &[]),
            Self::Mixed { .. } => Recorder::new(&["read", "write"], &[]),
            Self::List { .. } => Recorder::new(&["list"], &[]),
            Self::Lease { .. } => Recorder::new(&["keepalive"], &[]),
            Self::Watch(_) => Recorder::new(&["event"], &["put"]),
        }
    }

    /// Writes what the workload reads.
    ///
    /// # Errors
    /// When the store refuses.
    pub(crate) async fn prepare(&self, target: &Target) -> Result<()> {
        match self {
            Self::Range { keys, value_size, .. } | Self::List { keys, value_size, .. } => {
                target.fill(keys, *value_size).await
            }
            Self::Mixed { keys, value, .. } => target.fill(keys, value.len()).await,
            _ => Ok(()),
        }
    }
}

/// One client of a workload.
pub(crate) struct Client {
    work: Arc<Work>,
    kv: KvClient<Service>,
    service: Service,
    random: Random,
    lease: Option<lease::Client>,
}

impl Client {
    /// # Errors
    /// When what the client needs before its first operation is refused.
    pub(crate) async fn new(work: &Arc<Work>, target: &Target, number: usize, of: usize) -> Result<Self> {
        let lease = match &**work {
            Work::Lease { leases } => Some(
                lease::Client::new(target, number, share(*leases, number, of)).await.context("no lease is granted")?,
            ),
            _ => None,
        };
        Ok(Self {
            work: Arc::clone(work),
            kv: target.kv(number),
            service: target.service(number),
            random: Random::new(number as u64 + 1),
            lease,
        })
    }

    /// Does the operation of that number in the load, and tells of which kind it was.
    pub(crate) async fn operate(&mut self, number: u64) -> Result<usize, Status> {
        match &*self.work {
            Work::Put { keys, value } => {
                let request = put(keys.of_turn(number, &mut self.random), value);
                self.kv.put(request).await.map(|_| 0)
            }
            Work::Range { keys, request, .. } => {
                let request = RangeRequest { key: keys.of_turn(number, &mut self.random), ..request.clone() };
                self.kv.range(request).await.map(|_| 0)
            }
            Work::RangeOf(request) => self.kv.range(request.clone()).await.map(|_| 0),
            Work::Txn { keys, value, puts } => {
                // One transaction writes no key twice.
                let first = number * puts;
                let keys = (first..first + puts).map(|number| keys.key(number % keys.number));
                let success = keys.map(|key| operation(request_op::Request::RequestPut(put(key, value)))).collect();
                self.kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.map(|_| 0)
            }
            Work::Mixed { keys, value, read, read_part } => {
                let reads = self.random.chance(*read_part);
                let request = match reads {
                    true => request_op::Request::RequestRange(read.clone()),
                    false => request_op::Request::RequestPut(put(keys.of_turn(number, &mut self.random), value)),
                };
                let request = TxnRequest { success: vec![operation(request)], ..TxnRequest::default() };
                self.kv.txn(request).await.map(|_| if reads { READ } else { WRITE })
            }
            Work::List { request, .. } => list(self.service.clone(), request).await.map(|_| 0),
            Work::Lease { .. } => match &mut self.lease {
                Some(lease) => lease.keep_alive().await.map(|()| 0),
                None => Err(Status::internal("a client without leases")),
            },
            Work::Watch(_) => Err(Status::internal("watches have a load of their own")),
        }
    }

    /// Takes back what the client needed.
    pub(crate) async fn end(self) {
        if let Some(lease) = self.lease {
            lease.end().await;
        }
    }
}

pub(crate) fn put(key: Bytes, value: &Bytes) -> PutRequest {
    PutRequest { key, value: value.clone(), ..PutRequest::default() }
}

fn operation(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// How many of `all` things client `number` of `clients` has; each has one at least.
fn share(all: usize, number: usize, clients: usize) -> usize {
    (all / clients + usize::from(number < all % clients)).max(1)
}

/// Reads a list and forgets it at once, so that the client needs no memory for it.
async fn list(service: Service, request: &RangeRequest) -> Result<usize, Status> {
    const UNCOMPRESSED: u8 = 0;
    let mut message = BytesMut::with_capacity(request.encoded_len() + 5);
    message.put_u8(UNCOMPRESSED);
    message.put_u32(u32::try_from(request.encoded_len()).map_err(|_| Status::internal("a request of gigabytes"))?);
    request.encode(&mut message).map_err(|error| Status::internal(error.to_string()))?;
    let body = tonic::body::Body::new(Full::new(message.freeze()).map_err(|never| match never {}));
    let request = http::Request::post("/etcdserverpb.KV/Range")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(body)
        .map_err(|error| Status::internal(error.to_string()))?;
    let broken = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
    let response = service.oneshot(request).await.map_err(|error| broken(&error))?;
    // A call that is refused at once has no body.
    let mut status = Status::from_header_map(response.headers());
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if let Some(trailers) = frame.trailers_ref() {
            status = Status::from_header_map(trailers);
        }
    }
    match status {
        Some(status) if status.code() == tonic::Code::Ok => Ok(bytes),
        Some(status) => Err(status),
        None => Err(Status::unavailable("the answer ends without a status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_shared_by_all_clients() {
        assert_eq!((0..4).map(|client| share(10, client, 4)).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(share(1, 3, 4), 1);
    }
}
