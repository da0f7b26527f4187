//! The model against a real etcd: what the engine is compared with must itself be right.

use std::process::Stdio;
use std::time::Duration;

use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::lease_client::LeaseClient;
use quorate_proto::etcd::{LeaseGrantRequest, LeaseRevokeRequest};
use quorate_transport::loopback::free_address;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tonic::Status;
use tonic::transport::Channel;

use super::model::Model;
use super::tests::{Generator, without_headers};
use crate::command::{ApplyError, CommandResult, Operation};

struct Etcd {
    // Killed when dropped.
    _process: tokio::process::Child,
    _directory: tempfile::TempDir,
    channel: Channel,
}

impl Etcd {
    async fn start() -> Etcd {
        let directory = tempfile::tempdir().expect("a directory");
        let (client, peer) = (format!("http://{}", free_address()), format!("http://{}", free_address()));
        let process = tokio::process::Command::new("etcd")
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--data-dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("etcd is on the PATH");
        let endpoint = Channel::from_shared(client).expect("an address");
        for _ in 0..200 {
            if let Ok(channel) = endpoint.connect().await {
                return Etcd { _process: process, _directory: directory, channel };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not listen");
    }

    /// What etcd answers; errors by their text.
    async fn apply(&self, operation: &Operation) -> Result<CommandResult, Status> {
        let mut kv = KvClient::new(self.channel.clone());
        let mut leases = LeaseClient::new(self.channel.clone());
        let revision = |header: Option<quorate_proto::etcd::ResponseHeader>| header.map_or(0, |h| h.revision);
        Ok(match operation.clone() {
            Operation::Put(request) => CommandResult::Put(kv.put(request).await?.into_inner()),
            Operation::DeleteRange(request) => CommandResult::DeleteRange(kv.delete_range(request).await?.into_inner()),
            Operation::Txn(request) => CommandResult::Txn(kv.txn(request).await?.into_inner()),
            Operation::Compact(request) => {
                let response = kv.compact(request).await?.into_inner();
                CommandResult::Compact { revision: revision(response.header) }
            }
            Operation::LeaseGrant { id, ttl } => {
                let response = leases.lease_grant(LeaseGrantRequest { id, ttl }).await?.into_inner();
                CommandResult::LeaseGrant { id: response.id, ttl: response.ttl, revision: revision(response.header) }
            }
            Operation::LeaseRevoke { id } => {
                let response = leases.lease_revoke(LeaseRevokeRequest { id }).await?.into_inner();
                CommandResult::LeaseRevoke { revision: revision(response.header) }
            }
            other => panic!("etcd has no {other:?}"),
        })
    }
}

#[tokio::test]
async fn etcd_does_what_the_model_does() {
    for seed in 1..=5 {
        let etcd = Etcd::start().await;
        let mut generator = Generator(StdRng::seed_from_u64(seed));
        let mut model = Model::new();
        for step in 1..=1500 {
            let operation = generator.operation(&model);
            // Where we refuse more than etcd: see `Writes::of`.
            if operation == Operation::Noop || super::check(&operation, usize::MAX) == Err(ApplyError::DuplicateKey) {
                continue;
            }
            let context = format!("seed {seed}, step {step}: {operation:#?}");
            let expected = without_headers(model.apply(&operation));
            match (etcd.apply(&operation).await, expected) {
                (Ok(result), expected) => assert_eq!(without_headers(result), expected, "{context}"),
                (Err(status), CommandResult::Error(error)) => {
                    assert_eq!(status.message(), error.to_string(), "{context}");
                }
                (Err(status), expected) => panic!("{context}: {status:?} instead of {expected:?}"),
            }
            let request = generator.range(&model);
            let expected = model.range(&request, model.revision, model.revision);
            match (KvClient::new(etcd.channel.clone()).range(request.clone()).await, expected) {
                (Ok(response), Ok(mut expected)) => {
                    let mut response = response.into_inner();
                    let header = response.header.take().map(|header| header.revision);
                    assert_eq!(header, Some(model.revision), "{context}: {request:?}");
                    expected.header = None;
                    assert_eq!(response, expected, "{context}: {request:?}");
                }
                (Err(status), Err(error)) => assert_eq!(status.message(), error.to_string(), "{context}"),
                (got, expected) => panic!("{context}: {request:?}: {got:?} instead of {expected:?}"),
            }
        }
    }
}
