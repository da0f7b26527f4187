//! Masters' stores as etcd's clients reach them.

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::maintenance_client::MaintenanceClient;
use quorate_proto::etcd::{
    AlarmRequest, DeleteRangeRequest, HashKvRequest, PutRequest, PutResponse, RangeRequest, RangeResponse,
    StatusRequest, StatusResponse, alarm_request::AlarmAction,
};
use quorate_proto::mvccpb::KeyValue;
use quorate_transport::channel::channel;
use quorate_transport::tls;
use tokio::time;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::sample::Outcome;
use super::target::Target;

/// One master's store.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) name: String,
    kv: KvClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

/// Every key that begins with `prefix`: where the range ends.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // Prefixes of drills end with a slash.
        *last += 1;
    }
    end
}

impl Store {
    /// One for each master, without a connection yet.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub(crate) fn of(target: &Target) -> Result<Vec<Self>> {
        let tls = tls::client_config(&target.store_tls, &["h2"]).context("cannot use the store's certificates")?;
        let connect = |name: &String, address: std::net::SocketAddr| {
            let channel = channel(&address.to_string(), std::sync::Arc::clone(&tls), &address.ip().to_string())?;
            Ok(Self {
                name: name.clone(),
                kv: KvClient::new(channel.clone()),
                maintenance: MaintenanceClient::new(channel),
            })
        };
        target.masters.iter().map(|master| connect(&master.name, master.client)).collect()
    }

    pub(crate) async fn put(&self, key: &str, value: &str, patience: Duration) -> Result<PutResponse, Status> {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
        within(patience, self.kv.clone().put(request)).await
    }

    pub(crate) async fn get(&self, key: &str, patience: Duration) -> Result<RangeResponse, Status> {
        within(patience, self.kv.clone().range(RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }))
            .await
    }

    pub(crate) async fn list(&self, prefix: &str, patience: Duration) -> Result<Vec<KeyValue>, Status> {
        let request =
            RangeRequest { key: prefix.to_owned().into(), range_end: end_of(prefix).into(), ..RangeRequest::default() };
        Ok(within(patience, self.kv.clone().range(request)).await?.kvs)
    }

    pub(crate) async fn delete_all(&self, prefix: &str, patience: Duration) -> Result<(), Status> {
        let request = DeleteRangeRequest {
            key: prefix.to_owned().into(),
            range_end: end_of(prefix).into(),
            ..DeleteRangeRequest::default()
        };
        within(patience, self.kv.clone().delete_range(request)).await.map(drop)
    }

    pub(crate) async fn status(&self, patience: Duration) -> Result<StatusResponse, Status> {
        within(patience, self.maintenance.clone().status(StatusRequest {})).await
    }

    /// The hash of all that the member holds, and the revision that it is of.
    pub(crate) async fn hash(&self, revision: i64, patience: Duration) -> Result<u32, Status> {
        Ok(within(patience, self.maintenance.clone().hash_kv(HashKvRequest { revision })).await?.hash)
    }

    /// How many alarms are raised in the cluster.
    pub(crate) async fn alarms(&self, patience: Duration) -> Result<usize, Status> {
        let request = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
        Ok(within(patience, self.maintenance.clone().alarm(request)).await?.alarms.len())
    }
}

async fn within<T>(patience: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match time::timeout(patience, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} ms", patience.as_millis()))),
    }
}

/// Whether the server may have seen a request that failed.
pub(crate) fn outcome(status: &Status) -> Outcome {
    if was_refused(status) { Outcome::Unreachable } else { Outcome::Failed }
}

/// Whether somewhere below `error` it says that no server acted on the request: nobody
/// accepted the connection, it was not sent any more, or the server closed the connection in
/// an orderly way and named it as one that it did not take (RFC 9113, section 6.8). Clients
/// of Go repeat such requests without a word.
pub(crate) fn was_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let unconnected = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        let unsent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let untaken = error
            .downcast_ref::<h2::Error>()
            .is_some_and(|error| error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR));
        if unconnected || unsent || untaken {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_accepts_was_never_sent() {
        let address = quorate_transport::loopback::free_address();
        let channel = quorate_transport::channel::plain_channel(&address.to_string()).unwrap();
        let status = KvClient::new(channel).put(PutRequest::default()).await.unwrap_err();
        assert_eq!(outcome(&status), Outcome::Unreachable, "{status:?}");
        assert_eq!(outcome(&Status::unavailable("etcdserver: no leader")), Outcome::Failed);
        assert_eq!(end_of("/a/"), b"/a0");
    }
}
