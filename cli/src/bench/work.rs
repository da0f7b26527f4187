//! What one client does in one operation of each workload.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use quorate_proto::etcd::{
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, request_op,
};
use tonic::Status;

use super::keys::{Keys, Random};
use super::lease;
use super::recorder::Recorder;
use super::target::Target;
use super::watch;
use super::wire::{Method, Wire};

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
    wire: Wire,
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
            wire: target.wire(number).await?,
            random: Random::new(number as u64 + 1),
            lease,
        })
    }

    /// Does the operation of that number in the load, and tells of which kind it was.
    pub(crate) async fn operate(&mut self, number: u64) -> Result<usize, Status> {
        match &*self.work {
            Work::Put { keys, value } => {
                let request = put(keys.of_turn(number, &mut self.random), value);
                self.wire.call(Method::Put, &request).await.map(|_: PutResponse| 0)
            }
            Work::Range { keys, request, .. } => {
                let request = RangeRequest { key: keys.of_turn(number, &mut self.random), ..request.clone() };
                self.wire.call(Method::Range, &request).await.map(|_: RangeResponse| 0)
            }
            Work::RangeOf(request) => self.wire.call(Method::Range, request).await.map(|_: RangeResponse| 0),
            Work::Txn { keys, value, puts } => {
                // One transaction writes no key twice.
                let first = number * puts;
                let keys = (first..first + puts).map(|number| keys.key(number % keys.number));
                let success = keys.map(|key| operation(request_op::Request::RequestPut(put(key, value)))).collect();
                let request = TxnRequest { success, ..TxnRequest::default() };
                self.wire.call(Method::Txn, &request).await.map(|_: TxnResponse| 0)
            }
            Work::Mixed { keys, value, read, read_part } => {
                let reads = self.random.chance(*read_part);
                let request = match reads {
                    true => request_op::Request::RequestRange(read.clone()),
                    false => request_op::Request::RequestPut(put(keys.of_turn(number, &mut self.random), value)),
                };
                let request = TxnRequest { success: vec![operation(request)], ..TxnRequest::default() };
                self.wire.call(Method::Txn, &request).await.map(|_: TxnResponse| if reads { READ } else { WRITE })
            }
            Work::List { request, .. } => self.wire.count(Method::Range, request).await.map(|_| 0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_shared_by_all_clients() {
        assert_eq!((0..4).map(|client| share(10, client, 4)).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(share(1, 3, 4), 1);
    }
}
