//! Watches, leases and limits as clients of the port meet them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::lease_client::LeaseClient;
use quorate_proto::etcd::request_op::Request as Operation;
use quorate_proto::etcd::watch_client::WatchClient;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::common::{Cluster, put};

/// etcd's limit of a request.
const MAX_REQUEST_BYTES: usize = 1536 << 10;

/// Nothing waits longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// So that a notice of progress can be waited for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(300);

fn one_member() -> Cluster {
    let cluster = Cluster::start_with(1, |config| {
        config.listen_client = Some(([127, 0, 0, 1], 0).into());
        config.watch_progress_interval = PROGRESS_INTERVAL;
    });
    cluster.wait_for_leader();
    cluster
}

/// Runs a client of a cluster of one.
fn with_client(work: impl AsyncFnOnce(Channel)) {
    let cluster = one_member();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = cluster.client_address(0);
    runtime.block_on(async { tokio::time::timeout(3 * PATIENCE, work(connect(address).await)).await.unwrap() });
}

async fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A stream of watches.
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(channel: &Channel) -> Stream {
        let (requests, receiver) = mpsc::channel(64);
        let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Stream { requests, responses }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request)).await;
    }

    async fn next(&mut self) -> WatchResponse {
        let response = tokio::time::timeout(PATIENCE, self.responses.next()).await;
        response.expect("a response in time").expect("the stream goes on").unwrap()
    }
}

fn watch(key: &str, range_end: &str) -> WatchCreateRequest {
    let (key, range_end) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(range_end.as_bytes()));
    WatchCreateRequest { key, range_end, ..Default::default() }
}

fn put_request(key: &str, value: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value: value.into(), ..Default::default() }
}

async fn put_one(channel: &Channel, key: &str, value: impl Into<Bytes>) -> i64 {
    let response = KvClient::new(channel.clone()).put(put_request(key, value)).await.unwrap().into_inner();
    response.header.unwrap().revision
}

fn puts(requests: impl IntoIterator<Item = PutRequest>) -> TxnRequest {
    let success = requests.into_iter().map(|put| RequestOp { request: Some(Operation::RequestPut(put)) }).collect();
    TxnRequest { success, ..Default::default() }
}

#[test]
fn ten_thousand_watches_on_one_stream() {
    with_client(async |channel| {
        let mut stream = Stream::open(&channel).await;
        let requests = stream.requests.clone();
        let began = Instant::now();
        // A tenth are ranges that hold the key before their own too.
        let creator = tokio::spawn(async move {
            for number in 0..10_000 {
                let key = format!("k{number:05}");
                let create = match number % 10 {
                    0 if number > 0 => watch(&format!("k{:05}", number - 1), &format!("{key}\0")),
                    _ => watch(&key, ""),
                };
                let request_union = Some(RequestUnion::CreateRequest(create));
                requests.send(WatchRequest { request_union }).await.unwrap();
            }
        });
        for number in 0..10_000 {
            let response = stream.next().await;
            assert!(response.created && response.watch_id == number, "{response:?}");
        }
        creator.await.unwrap();
        eprintln!("10,000 watches created in {:?}", began.elapsed());

        let began = Instant::now();
        for number in (9..200).step_by(10) {
            put_one(&channel, &format!("k{number:05}"), "v").await;
            let seen = BTreeSet::from([stream.next().await.watch_id, stream.next().await.watch_id]);
            assert_eq!(seen, BTreeSet::from([number, number + 1]));
        }
        eprintln!("20 puts and the 2 events of each in {:?}", began.elapsed());

        // One revision for everybody.
        let request = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: false };
        let revision = KvClient::new(channel.clone()).delete_range(request).await.unwrap().into_inner();
        let revision = revision.header.unwrap().revision;
        let mut seen = BTreeSet::new();
        while seen.len() < 40 {
            let response = stream.next().await;
            assert_eq!(response.header.unwrap().revision, revision);
            assert!(seen.insert(response.watch_id), "{} twice", response.watch_id);
        }
        stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        let progress = stream.next().await;
        assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, revision));

        let requests = stream.requests.clone();
        let canceler = tokio::spawn(async move {
            for watch_id in 0..10_000 {
                let request_union = Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
                requests.send(WatchRequest { request_union }).await.unwrap();
            }
        });
        for id in 0..10_000 {
            let response = stream.next().await;
            assert!(response.canceled && response.watch_id == id, "{response:?}");
        }
        canceler.await.unwrap();
        put_one(&channel, "k00001", "v").await;
        stream.create(watch("other", "")).await;
        assert!(stream.next().await.created, "a canceled watch hears nothing");
    });
}

/// Few of a stream read history at a time: those that wait must have their turn, also when
/// others that waited are gone.
#[test]
fn watches_that_wait_to_read_history_are_not_forgotten() {
    with_client(async |channel| {
        const WATCHES: i64 = 60;
        let value = vec![7; 16 << 10];
        for number in 0..100 {
            put_one(&channel, &format!("k{number:03}"), value.clone()).await;
        }
        let mut stream = Stream::open(&channel).await;
        for _ in 0..WATCHES {
            stream.create(WatchCreateRequest { start_revision: 2, ..watch("k", "l") }).await;
        }
        // Every second one goes while most of them wait.
        for watch_id in (0..WATCHES).step_by(2) {
            stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
        }
        let mut seen = BTreeMap::from_iter((1..WATCHES).step_by(2).map(|id| (id, 0)));
        while seen.values().any(|count| *count < 100) {
            let response = stream.next().await;
            if let Some(count) = seen.get_mut(&response.watch_id) {
                *count += response.events.len();
            }
        }
        assert!(seen.values().all(|count| *count == 100), "{seen:?}");
    });
}

#[test]
fn a_client_that_stops_sending_still_reads() {
    with_client(async |channel| {
        let Stream { requests, mut responses } = Stream::open(&channel).await;
        let request_union = Some(RequestUnion::CreateRequest(watch("a", "")));
        requests.send(WatchRequest { request_union }).await.unwrap();
        drop(requests);
        assert!(responses.next().await.unwrap().unwrap().created);
        for number in 0..3 {
            put_one(&channel, "a", number.to_string()).await;
            let response = tokio::time::timeout(PATIENCE, responses.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(response.events.len(), 1);
        }
    });
}

/// A frame of HTTP/2.
fn http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn a_client_that_is_gone_without_a_word_is_let_go() {
    const END_HEADERS: u8 = 4;
    let cluster = one_member();
    let mut socket = TcpStream::connect(cluster.client_address(0)).unwrap();
    socket.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/etcdserverpb.Watch/Watch"),
        (":authority", "store"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // A literal that is not indexed.
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend(text.as_bytes());
        }
    }
    let request_union = Some(RequestUnion::CreateRequest(watch("a", "")));
    let message = prost::Message::encode_to_vec(&WatchRequest { request_union });
    let mut data = vec![0];
    data.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    data.extend(message);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(http2_frame(4, 0, 0, &[]));
    bytes.extend(http2_frame(1, END_HEADERS, 1, &headers));
    bytes.extend(http2_frame(0, 0, 1, &data));
    socket.write_all(&bytes).unwrap();
    // It answers nothing any more, no ping either: the server must close.
    let mut answer = Vec::new();
    let ended = socket.read_to_end(&mut answer);
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert!(answer.len() > 100, "the watch was created: {answer:?}");
}

#[test]
fn what_no_watch_can_be_is_refused_in_etcds_words() {
    with_client(async |channel| {
        let revision = put_one(&channel, "a", "v").await;
        let mut stream = Stream::open(&channel).await;
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        let duplicate = "mvcc: duplicate watch ID provided on the WatchStream";
        let empty = "mvcc: watcher range is empty";
        let cases = [
            (WatchCreateRequest { start_revision: -1, ..watch("a", "") }, -1, compacted),
            (watch("b", "a"), -1, empty),
            (watch("b", "b"), -1, empty),
            (watch("", "\0"), 0, ""),
            (WatchCreateRequest { watch_id: 7, ..watch("a", "b") }, 7, ""),
            (WatchCreateRequest { watch_id: 7, ..watch("a", "b") }, -1, duplicate),
            (WatchCreateRequest { watch_id: -7, filters: vec![5], ..watch("", "") }, -7, ""),
            (watch("a", "\0"), 1, ""),
        ];
        for (request, id, reason) in cases {
            stream.create(request.clone()).await;
            let response = stream.next().await;
            let got = (response.created, response.watch_id, response.canceled, response.cancel_reason.as_str());
            assert_eq!(got, (true, id, !reason.is_empty(), reason), "{request:?}");
            assert_eq!(response.header.unwrap().revision, revision, "{request:?}");
        }
        // An id that was given up is free again; one that nobody has is ignored.
        for id in [99, 7] {
            stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })).await;
        }
        let canceled = stream.next().await;
        assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (7, true, false));
        stream.create(WatchCreateRequest { watch_id: 7, ..watch("z", "") }).await;
        let created = stream.next().await;
        assert_eq!((created.watch_id, created.canceled, created.created), (7, false, true));

        let request = CompactionRequest { revision, physical: false };
        KvClient::new(channel.clone()).compact(request).await.unwrap();
        stream.create(WatchCreateRequest { start_revision: 1, ..watch("a", "") }).await;
        let created = stream.next().await;
        assert!(created.created && !created.canceled);
        let canceled = stream.next().await;
        assert_eq!((canceled.canceled, canceled.compact_revision), (true, revision));
        assert_eq!((canceled.header.unwrap().revision, canceled.cancel_reason.as_str()), (0, ""));
    });
}

#[test]
fn progress_is_told_to_those_who_asked_and_never_below_a_future_start() {
    with_client(async |channel| {
        let revision = put_one(&channel, "other", "v").await;
        let mut stream = Stream::open(&channel).await;
        let notified = WatchCreateRequest { progress_notify: true, ..watch("a", "") };
        stream.create(notified.clone()).await;
        stream.create(watch("a", "")).await;
        stream.create(WatchCreateRequest { start_revision: revision + 2, ..notified }).await;
        for id in 0..3 {
            assert_eq!(stream.next().await.watch_id, id);
        }
        let told = |response: WatchResponse| {
            assert!(response.events.is_empty() && !response.created && !response.canceled);
            (response.watch_id, response.header.unwrap().revision)
        };
        assert_eq!(told(stream.next().await), (0, revision));
        // Asked for, the whole stream has to be in step: it is not before the future start.
        stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        assert_eq!(told(stream.next().await), (0, revision));
        put_one(&channel, "other", "v").await;
        let revision = put_one(&channel, "other", "v").await;
        let mut seen = BTreeSet::new();
        while seen.len() < 3 {
            let (id, at) = told(stream.next().await);
            if at == revision {
                seen.insert(id);
            } else {
                assert_eq!((id, at), (0, revision - 1));
            }
        }
        assert_eq!(seen, BTreeSet::from([-1, 0, 2]));
    });
}

#[test]
fn a_large_revision_comes_in_pieces_to_those_who_asked() {
    with_client(async |channel| {
        let mut stream = Stream::open(&channel).await;
        let request = WatchCreateRequest { prev_kv: true, ..watch("a", "b") };
        stream.create(WatchCreateRequest { watch_id: 1, fragment: true, ..request.clone() }).await;
        stream.create(WatchCreateRequest { watch_id: 2, ..request }).await;
        assert!(stream.next().await.created && stream.next().await.created);
        let mut client = KvClient::new(channel.clone());
        let mut responses: BTreeMap<i64, Vec<WatchResponse>> = BTreeMap::new();
        for letter in [b'x', b'y'] {
            let values = (0..30).map(|number| put_request(&format!("a{number:02}"), vec![letter; 50_000]));
            client.txn(puts(values)).await.unwrap();
        }
        let events = |responses: Option<&Vec<WatchResponse>>| {
            responses.map_or(0, |responses| responses.iter().map(|response| response.events.len()).sum::<usize>())
        };
        while events(responses.get(&1)) < 60 || events(responses.get(&2)) < 60 {
            let response = stream.next().await;
            responses.entry(response.watch_id).or_default().push(response);
        }
        // 1.5 MB are one piece; 3 MB, with what was before, are two.
        let flags: Vec<_> = responses[&1].iter().map(|response| response.fragment).collect();
        assert_eq!(flags, [false, true, false]);
        assert!(responses[&1].iter().all(|response| prost::Message::encoded_len(response) < 2 << 20));
        let flags: Vec<_> = responses[&2].iter().map(|response| response.fragment).collect();
        assert_eq!(flags, [false, false]);
        let revision = |response: &WatchResponse| response.header.as_ref().unwrap().revision;
        assert_eq!(revision(&responses[&1][1]), revision(&responses[&1][2]));
    });
}

/// etcd's client loses what comes between the pieces of a response.
#[test]
fn pieces_of_a_response_follow_each_other() {
    const REVISIONS: i64 = 60;
    const NEW: usize = 10;
    with_client(async |channel| {
        for number in 0..REVISIONS {
            put_one(&channel, if number % 2 == 0 { "a" } else { "b" }, vec![b'v'; 300_000]).await;
        }
        let mut stream = Stream::open(&channel).await;
        let history = WatchCreateRequest { start_revision: 2, ..watch("a", "c") };
        for (watch_id, fragment) in [(1, true), (2, true), (3, false)] {
            stream.create(WatchCreateRequest { watch_id, fragment, ..history.clone() }).await;
        }
        stream.create(WatchCreateRequest { watch_id: 4, ..watch("live", "") }).await;
        let writes = async {
            for number in 0..NEW {
                put_one(&channel, "live", number.to_string()).await;
            }
        };
        let mut seen: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        let mut pieces: BTreeMap<i64, usize> = BTreeMap::new();
        let reads = async {
            let mut open = None;
            let count = |seen: &BTreeMap<i64, Vec<i64>>, id| seen.get(&id).map_or(0, Vec::len);
            while (1..4).any(|id| count(&seen, id) < REVISIONS as usize) || count(&seen, 4) < NEW {
                let response = stream.next().await;
                let id = response.watch_id;
                assert!(open.is_none_or(|open| open == id && !response.created), "{id} amid the pieces of {open:?}");
                assert!(prost::Message::encoded_len(&response) < 2 << 20);
                open = response.fragment.then_some(id);
                *pieces.entry(id).or_default() += usize::from(response.fragment);
                seen.entry(id)
                    .or_default()
                    .extend(response.events.iter().map(|event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision)));
            }
            assert_eq!(open, None);
        };
        futures::join!(writes, reads);
        for id in 1..4 {
            assert_eq!(seen[&id], (2..2 + REVISIONS).collect::<Vec<_>>(), "{id}");
            assert_eq!(pieces[&id] > 0, id < 3, "{id}");
        }
        assert!(seen[&4].is_sorted() && seen[&4].len() == NEW);

        // One that is cancelled amid its pieces comes to an end before that is said.
        stream.create(WatchCreateRequest { watch_id: 5, fragment: true, ..history }).await;
        let mut open = false;
        loop {
            let response = stream.next().await;
            assert_eq!(response.watch_id, 5);
            if response.fragment && !open {
                stream.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 5 })).await;
            }
            if response.canceled {
                break;
            }
            open = response.fragment;
        }
        assert!(!open, "the last piece is missing");
        put_one(&channel, "live", "after").await;
        assert_eq!(stream.next().await.watch_id, 4);
    });
}

#[test]
fn a_client_that_does_not_read_delays_nobody_and_loses_nothing() {
    with_client(async |channel| {
        let mut slow = Stream::open(&channel).await;
        slow.create(watch("a", "")).await;
        assert!(slow.next().await.created);
        let other = channel.clone();
        let mut fast = Stream::open(&other).await;
        fast.create(watch("a", "")).await;
        assert!(fast.next().await.created);
        // More than every buffer on the way, and than what the store keeps in memory.
        for number in 0..100u8 {
            let revision = put_one(&channel, "a", vec![number; 300_000]).await;
            let response = fast.next().await;
            assert_eq!(response.events[0].kv.as_ref().unwrap().mod_revision, revision);
        }
        let mut seen = Vec::new();
        while seen.len() < 100 {
            seen.extend(slow.next().await.events.into_iter().filter_map(|event| event.kv).map(|kv| kv.value[0]));
        }
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    });
}

#[test]
fn requests_at_the_limits_are_served_and_beyond_them_refused() {
    with_client(async |channel| {
        let mut client = KvClient::new(channel.clone());
        let sized = |size: usize| {
            let request = put_request("k", vec![b'v'; size - 16]);
            let rest = size - prost::Message::encoded_len(&request);
            put_request("k", vec![b'v'; request.value.len() + rest])
        };
        assert_eq!(prost::Message::encoded_len(&sized(MAX_REQUEST_BYTES)), MAX_REQUEST_BYTES);
        client.put(sized(MAX_REQUEST_BYTES)).await.unwrap();
        let check = |result: Result<_, Status>, code, text: &str| {
            let status = result.map(|_: ()| ()).unwrap_err();
            assert_eq!((status.code(), status.message()), (code, text));
        };
        let too_large = "etcdserver: request is too large";
        let outcome = client.put(sized(MAX_REQUEST_BYTES + 1)).await.map(drop);
        check(outcome, Code::InvalidArgument, too_large);
        let txn = puts((0..4).map(|number| put_request(&number.to_string(), vec![b'v'; 400_000])));
        check(client.txn(txn).await.map(drop), Code::InvalidArgument, too_large);
        // What is wrong with it otherwise is said first.
        let nameless = PutRequest { key: Bytes::new(), ..sized(MAX_REQUEST_BYTES + 100) };
        check(client.put(nameless).await.map(drop), Code::InvalidArgument, "etcdserver: key is not provided");
        let outcome = client.put(sized((2 << 20) + 1)).await.map(drop);
        check(outcome, Code::ResourceExhausted, "grpc: received message larger than max (2097153 vs. 2097152)");
        let many = |count: usize| puts((0..count).map(|number| put_request(&number.to_string(), "v")));
        client.txn(many(128)).await.unwrap();
        let too_many = "etcdserver: too many operations in txn request";
        check(client.txn(many(129)).await.map(drop), Code::InvalidArgument, too_many);
        let compare = vec![Compare { key: "k".into(), ..Default::default() }; 129];
        let txn = TxnRequest { compare, ..Default::default() };
        check(client.txn(txn).await.map(drop), Code::InvalidArgument, too_many);
    });
}

#[test]
fn a_streamed_range_grows_its_pieces_and_equals_the_range() {
    with_client(async |channel| {
        let mut client = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        for first in (0..1000).step_by(100) {
            let batch = (first..first + 100).map(|number| put_request(&format!("k{number:04}"), "v"));
            client.txn(puts(batch)).await.unwrap();
        }
        for number in 0..10 {
            client.put(put_request(&format!("l{number}"), vec![b'v'; 1 << 20])).await.unwrap();
        }
        let everything = RangeRequest { key: "k".into(), range_end: "m".into(), ..Default::default() };
        let all = client.range(everything.clone()).await.unwrap().into_inner();
        let mut pieces = Vec::new();
        let mut stream = client.range_stream(everything.clone()).await.unwrap().into_inner();
        let mut joined = RangeResponse::default();
        while let Some(response) = stream.message().await.unwrap() {
            let piece = response.range_response.unwrap();
            pieces.push(piece.kvs.len());
            assert_eq!(joined.header, None, "the header is on the last message");
            (joined.header, joined.count, joined.more) = (piece.header, piece.count, piece.more);
            joined.kvs.extend(piece.kvs);
        }
        assert_eq!(joined, all);
        assert_eq!(pieces[..6], [10, 20, 40, 80, 160, 320]);
        // At 1.5 MiB a piece ends, with the value that is over.
        assert!(pieces[6..].iter().skip(1).all(|keys| *keys <= 2), "{pieces:?}");

        let limited = RangeRequest { limit: 25, keys_only: true, ..everything.clone() };
        let wanted = client.range(limited.clone()).await.unwrap().into_inner();
        let mut stream = client.range_stream(limited).await.unwrap().into_inner();
        let mut last = RangeResponse::default();
        let mut kvs = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            last = response.range_response.unwrap();
            kvs.append(&mut last.kvs);
        }
        last.kvs = kvs;
        assert_eq!(last, wanted);
        assert_eq!((last.count, last.more), (1010, true));

        let counted = RangeRequest { count_only: true, ..everything.clone() };
        let mut stream = client.range_stream(counted).await.unwrap().into_inner();
        let only = stream.message().await.unwrap().unwrap().range_response.unwrap();
        assert_eq!((only.count, only.kvs.len(), stream.message().await.unwrap().is_none()), (1010, 0, true));
        let future = RangeRequest { revision: 99_999, ..everything };
        let mut stream = client.range_stream(future).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap_err().code(), Code::OutOfRange);
    });
}

#[test]
fn leases_keep_etcds_bounds_and_words() {
    with_client(async |channel| {
        let mut client = LeaseClient::new(channel.clone());
        let grant = |id, ttl| LeaseGrantRequest { id, ttl };
        for (asked, granted) in [(0, 2), (-5, 2), (1, 2), (3, 3), (9_000_000_000, 9_000_000_000)] {
            let response = client.lease_grant(grant(0, asked)).await.unwrap().into_inner();
            assert_eq!(response.ttl, granted);
            assert!(response.id > 0);
        }
        assert_eq!(client.lease_grant(grant(-4, 10)).await.unwrap().into_inner().id, -4);
        let check = |status: Status, code, text: &str| {
            assert_eq!((status.code(), status.message()), (code, text));
        };
        let too_large = client.lease_grant(grant(0, 9_000_000_001)).await.unwrap_err();
        check(too_large, Code::OutOfRange, "etcdserver: too large lease TTL");
        let twice = client.lease_grant(grant(-4, 10)).await.unwrap_err();
        check(twice, Code::FailedPrecondition, "etcdserver: lease already exists");
        for id in [0, 99] {
            let missing = client.lease_revoke(LeaseRevokeRequest { id }).await.unwrap_err();
            check(missing, Code::NotFound, "etcdserver: requested lease not found");
        }
        let unknown = client.lease_time_to_live(LeaseTimeToLiveRequest { id: 99, keys: true }).await;
        let unknown = unknown.unwrap().into_inner();
        assert_eq!((unknown.id, unknown.ttl, unknown.granted_ttl), (99, -1, 0));

        // The answer for an unknown lease leaves the stream open.
        let (requests, receiver) = mpsc::channel(8);
        let mut answers = client.lease_keep_alive(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        for (id, ttl) in [(99, 0), (-4, 10), (99, 0)] {
            requests.send(LeaseKeepAliveRequest { id }).await.unwrap();
            let answer = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
            assert_eq!((answer.id, answer.ttl), (id, ttl));
        }

        // Keys of a lease go together and in order.
        let mut stream = Stream::open(&channel).await;
        stream.create(watch("l", "m")).await;
        assert!(stream.next().await.created);
        for key in ["l3", "l1", "l2"] {
            let request = PutRequest { lease: -4, ..put_request(key, "v") };
            KvClient::new(channel.clone()).put(request).await.unwrap();
            stream.next().await;
        }
        let request = LeaseTimeToLiveRequest { id: -4, keys: true };
        let keys = client.lease_time_to_live(request).await.unwrap().into_inner().keys;
        assert_eq!(keys, ["l1", "l2", "l3"]);
        let revoked = client.lease_revoke(LeaseRevokeRequest { id: -4 }).await.unwrap().into_inner();
        let deleted = stream.next().await;
        let keys: Vec<_> = deleted.events.iter().filter_map(|event| Some(event.kv.as_ref()?.key.clone())).collect();
        assert_eq!(keys, ["l1", "l2", "l3"]);
        assert_eq!(deleted.header.unwrap().revision, revoked.header.unwrap().revision);
        let leases = client.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
        // The short ones may have ended by themselves.
        assert!(!leases.is_empty() && leases.iter().all(|lease| lease.id != -4));
    });
}

#[test]
fn a_change_of_leader_neither_extends_a_lease_nor_shortens_one_that_was_renewed() {
    let cluster = Cluster::start(3);
    let leader = cluster.wait_for_leader();
    let follower = (leader + 1) % 3;
    let left = |member| {
        cluster.on(member, async |store| {
            let request = LeaseTimeToLiveRequest { id: 5, keys: false };
            store.lease_time_to_live(request).await.unwrap().ttl
        })
    };
    let change = |member| {
        cluster.on(member, async |store| {
            let before = store.status().term;
            store.transfer_leadership().await.unwrap();
            before
        });
        cluster.wait_for_leader()
    };
    let granted = Instant::now();
    cluster.on(follower, async |store| {
        store.lease_grant(LeaseGrantRequest { ttl: 60, id: 5 }).await.unwrap();
        put(&store, "a", "v").await;
    });
    // What is left is noted every six seconds.
    std::thread::sleep(Duration::from_millis(7500));
    let leader = change(leader);
    let passed = i64::try_from(granted.elapsed().as_secs()).unwrap();
    let after = left(follower);
    assert!(after <= 55 && after >= 59 - passed, "{after} s left after {passed} s");

    // Renewed at a member that does not lead: the note must not outlive that.
    let renewed = cluster.on((leader + 1) % 3, async |store| store.lease_keep_alive(5).await.unwrap().ttl);
    assert_eq!(renewed, 60);
    let leader = change(leader);
    let after = left((leader + 1) % 3);
    assert!(after >= 57, "{after} s left after a renewal to 60 s");
}
