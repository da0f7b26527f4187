//! A client that keeps leases alive, one request on a stream after the other, as etcd's
//! clients do.

use anyhow::{Context, Result};
use futures::channel::mpsc;
use quorate_proto::etcd::lease_client::LeaseClient;
use quorate_proto::etcd::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest};
use tonic::{Status, Streaming};

use super::target::Target;
use crate::endpoints::Service;

/// Longer than any load takes between two requests for one lease; what a benchmark that was
/// killed leaves behind goes by itself.
const TTL_SECONDS: i64 = 600;

/// One request is under way at a time.
const REQUESTS_UNDER_WAY: usize = 1;

pub(crate) struct Client {
    client: LeaseClient<Service>,
    leases: Vec<i64>,
    next: usize,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Client {
    /// Grants itself so many leases.
    ///
    /// # Errors
    /// When the store refuses.
    pub(crate) async fn new(target: &Target, number: usize, leases: usize) -> Result<Self> {
        let mut client = LeaseClient::new(target.service(number));
        let mut ids = Vec::with_capacity(leases);
        for _ in 0..leases {
            let request = LeaseGrantRequest { ttl: TTL_SECONDS, ..LeaseGrantRequest::default() };
            ids.push(client.lease_grant(request).await?.into_inner().id);
        }
        let (mut requests, receiver) = mpsc::channel(REQUESTS_UNDER_WAY);
        // A server may keep its first answer back until it has a request.
        let first = LeaseKeepAliveRequest { id: *ids.first().context("a client without leases")? };
        requests.try_send(first).context("the stream takes no request")?;
        let mut answers = client.lease_keep_alive(receiver).await?.into_inner();
        answers.message().await?.context("the stream ended")?;
        Ok(Self { client, leases: ids, next: 0, requests, answers })
    }

    pub(crate) async fn keep_alive(&mut self) -> Result<(), Status> {
        let id = self.leases[self.next];
        self.next = (self.next + 1) % self.leases.len();
        self.requests
            .try_send(LeaseKeepAliveRequest { id })
            .map_err(|error| Status::unavailable(format!("the stream takes no request: {error}")))?;
        match self.answers.message().await? {
            Some(answer) if answer.id == id && answer.ttl > 0 => Ok(()),
            Some(_) => Err(Status::not_found("the lease is gone")),
            None => Err(Status::unavailable("the stream ended")),
        }
    }

    /// Revokes the leases; those that are not run out by themselves.
    pub(crate) async fn end(mut self) {
        for id in self.leases {
            if self.client.lease_revoke(LeaseRevokeRequest { id }).await.is_err() {
                return;
            }
        }
    }
}
