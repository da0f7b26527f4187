//! What clients send, through the router that the port serves.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use quorate_proto::etcd::request_op::Request as Operation;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::*;
use tower::ServiceExt;

use super::{encoded, fuzz};
use crate::node::Store;
use crate::raft::simulated::seeded;
use crate::{Config, rpc};

/// How long an answer that does not end is read.
const LISTEN: Duration = Duration::from_millis(5);

/// No request takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A gRPC message in its frame.
fn frame(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// Sends one body; reads the beginning of the answer.
async fn ask(router: &Router, path: &str, body: Bytes) {
    let request = http::Request::post(format!("http://store{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::from(body))
        .expect("a request");
    let answer = tokio::time::timeout(PATIENCE, router.clone().oneshot(request)).await;
    let answer = answer.unwrap_or_else(|_| panic!("{path} did not answer")).expect("an answer");
    let mut data = answer.into_body().into_data_stream();
    let _ = tokio::time::timeout(LISTEN, async { while data.next().await.is_some() {} }).await;
}

fn requests() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let (key, range_end) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
    let range = RangeRequest { key: key.clone(), range_end: range_end.clone(), limit: 3, ..Default::default() };
    let put = PutRequest { key: key.clone(), value: "v".into(), prev_kv: true, ..Default::default() };
    let delete = DeleteRangeRequest { key: key.clone(), range_end: range_end.clone(), prev_kv: true };
    let operation = |operation| RequestOp { request: Some(operation) };
    let txn = TxnRequest {
        compare: vec![Compare { key: key.clone(), ..Default::default() }],
        success: vec![operation(Operation::RequestRange(range.clone()))],
        failure: vec![
            operation(Operation::RequestPut(put.clone())),
            operation(Operation::RequestTxn(TxnRequest::default())),
        ],
    };
    let create = WatchCreateRequest { key, range_end, start_revision: 1, filters: vec![1], ..Default::default() };
    let watch = |union| encoded(&WatchRequest { request_union: Some(union) });
    let watches = vec![
        watch(RequestUnion::CreateRequest(create)),
        watch(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })),
        watch(RequestUnion::ProgressRequest(WatchProgressRequest {})),
    ];
    let lease = |id| encoded(&LeaseKeepAliveRequest { id });
    vec![
        ("/etcdserverpb.KV/Range", vec![encoded(&range)]),
        ("/etcdserverpb.KV/RangeStream", vec![encoded(&range)]),
        ("/etcdserverpb.KV/Put", vec![encoded(&put)]),
        ("/etcdserverpb.KV/DeleteRange", vec![encoded(&delete)]),
        ("/etcdserverpb.KV/Txn", vec![encoded(&txn)]),
        ("/etcdserverpb.KV/Compact", vec![encoded(&CompactionRequest { revision: 2, physical: false })]),
        ("/etcdserverpb.Watch/Watch", watches),
        ("/etcdserverpb.Lease/LeaseGrant", vec![encoded(&LeaseGrantRequest { ttl: 100, id: 5 })]),
        ("/etcdserverpb.Lease/LeaseRevoke", vec![lease(5)]),
        ("/etcdserverpb.Lease/LeaseKeepAlive", vec![lease(5)]),
        ("/etcdserverpb.Lease/LeaseTimeToLive", vec![encoded(&LeaseTimeToLiveRequest { id: 5, keys: true })]),
        ("/etcdserverpb.Lease/LeaseLeases", vec![Vec::new()]),
        ("/etcdserverpb.Cluster/MemberList", vec![encoded(&MemberListRequest { linearizable: true })]),
        ("/etcdserverpb.Maintenance/Status", vec![Vec::new()]),
        ("/etcdserverpb.Maintenance/HashKV", vec![encoded(&HashKvRequest { revision: 3 })]),
        ("/etcdserverpb.Auth/AuthStatus", vec![Vec::new()]),
        (
            "/etcdserverpb.Auth/Authenticate",
            vec![encoded(&AuthenticateRequest { name: "a".into(), password: "b".into() })],
        ),
        ("/etcdserverpb.Nothing/Known", vec![vec![1]]),
    ]
}

#[test]
fn requests_of_clients() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (store, router) = runtime.block_on(seeded(1, async {
        let store = Store::start(Config::new("a", directory.path())).await.expect("it starts");
        store.leadership().wait_for(Option::is_some).await.expect("it leads");
        let router = rpc::router(&store, rpc::Observe::new());
        (store, router)
    }));
    let put = PutRequest { key: "a".into(), value: "v".into(), ..Default::default() };
    runtime.block_on(store.put(put)).expect("it writes");
    for (path, corpus) in requests() {
        fuzz(path, corpus, |input| {
            runtime.block_on(async {
                ask(&router, path, frame(input)).await;
                // Frames that are none, too.
                if let [first, ..] = input
                    && first % 8 == 0
                {
                    ask(&router, path, Bytes::copy_from_slice(input)).await;
                }
            });
        });
    }
    let range = RangeRequest { key: "zzz".into(), ..Default::default() };
    runtime.block_on(store.range(range)).expect("it still serves");
    runtime.block_on(store.shutdown());
}
