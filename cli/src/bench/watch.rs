//! Watchers that wait for writes. Each value begins with the time at which its write was
//! due, so that an event tells its own latency.
//!
//! Servers and listeners share a machine, and each write is heard ten thousand times: of an
//! answer, a listener reads no more than it measures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use h2::SendStream;
use prost::Message;
use quorate_proto::etcd::{PutResponse, WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tonic::Status;

use super::keys::Keys;
use super::pace::Pace;
use super::recorder::Recorder;
use super::target::Target;
use super::wire::{Answers, Method};
use super::work::put;

/// The bytes of a value that say when it was written.
pub(crate) const STAMP_BYTES: usize = 8;

/// As the recorder numbers them.
const EVENT: usize = 0;
const PUT: usize = 1;

/// Events that do not come within that after the last one are lost.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two looks at whether everything was delivered.
const DELIVERY_LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) keys: Keys,
    pub(crate) value_size: usize,
    pub(crate) streams: usize,
    pub(crate) watchers_per_stream: usize,
}

impl Work {
    /// How many watchers wait for the key of that number: watcher N waits for key N, modulo
    /// the number of keys.
    fn watchers_of(&self, key: u64) -> u64 {
        let watchers = (self.streams * self.watchers_per_stream) as u64;
        watchers / self.keys.number + u64::from(key < watchers % self.keys.number)
    }

    fn create(&self, watcher: u64) -> WatchRequest {
        let key = self.keys.key(watcher % self.keys.number);
        let request = WatchCreateRequest { key, ..WatchCreateRequest::default() };
        WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(request)) }
    }

    fn value(&self, begin: Instant, began: Instant) -> Bytes {
        let nanos = u64::try_from(began.saturating_duration_since(begin).as_nanos()).unwrap_or(u64::MAX);
        let mut value = vec![b'v'; self.value_size];
        value[..STAMP_BYTES].copy_from_slice(&nanos.to_be_bytes());
        value.into()
    }
}

fn written(value: &[u8]) -> Option<Duration> {
    Some(Duration::from_nanos(u64::from_be_bytes(*value.first_chunk()?)))
}

/// The watches of a load, which listen from the moment this exists.
pub(crate) struct Watches {
    /// With what keeps them open.
    streams: Vec<(SendStream<Bytes>, Answers)>,
}

impl Watches {
    /// Creates every watch.
    ///
    /// # Errors
    /// When the store refuses.
    pub(crate) async fn open(work: &Work, target: &Target) -> Result<Self> {
        let opened = (0..work.streams).map(async |stream| {
            let watchers = work.watchers_per_stream;
            let first = (stream * watchers) as u64;
            let creations = (first..first + watchers as u64).map(|watcher| work.create(watcher));
            let (requests, mut answers) = target.wire(stream).await?.stream(Method::Watch, creations).await?;
            let mut created = 0;
            while created < watchers {
                let each = |answer: &[u8]| {
                    created += usize::from(look(answer, |_| {})?);
                    Ok(())
                };
                answers.read(each).await?;
            }
            Ok((requests, answers))
        });
        let streams: Result<_> = futures::future::try_join_all(opened).await;
        Ok(Self { streams: streams.context("not every watch can be created")? })
    }

    /// Writes until `pace` ends, and waits until every watcher has heard of every write.
    ///
    /// # Errors
    /// When a watch ends or events are lost: their latency would be missing.
    pub(crate) async fn load(
        self,
        work: &Work,
        target: &Target,
        recorder: &Arc<Recorder>,
        pace: &Arc<Pace>,
        clients: usize,
    ) -> Result<()> {
        let begin = Instant::now();
        let delivered = Arc::new(AtomicU64::new(0));
        // Listeners end with this function, however it ends.
        let mut listeners = JoinSet::new();
        let mut requests = Vec::with_capacity(self.streams.len());
        for (sender, answers) in self.streams {
            requests.push(sender);
            listeners.spawn(listen(answers, begin, Arc::clone(recorder), Arc::clone(&delivered)));
        }
        let expected = AtomicU64::new(0);
        let wires = (0..clients).map(|client| target.wire(client));
        let wires = futures::future::try_join_all(wires).await?;
        let writers = wires.into_iter().map(async |mut wire| {
            while let Some(turn) = pace.turn().await {
                let key = turn.number % work.keys.number;
                let request = put(work.keys.key(key), &work.value(begin, turn.began));
                match wire.call::<PutResponse>(Method::Put, &request).await {
                    Ok(_) => {
                        recorder.succeeded(PUT, turn.began.elapsed());
                        expected.fetch_add(work.watchers_of(key), Ordering::Relaxed);
                    }
                    Err(status) => recorder.failed(&status),
                }
            }
        });
        let written = async {
            futures::future::join_all(writers).await;
            let (mut last, mut since) = (0, Instant::now());
            loop {
                let so_far = delivered.load(Ordering::Relaxed);
                let missing = expected.load(Ordering::Relaxed).saturating_sub(so_far);
                if missing == 0 {
                    return Ok(());
                }
                if so_far > last {
                    (last, since) = (so_far, Instant::now());
                }
                ensure!(since.elapsed() < DELIVERY_PATIENCE, "{missing} events were not delivered");
                time::sleep(DELIVERY_LOOK).await;
            }
        };
        tokio::select! {
            done = written => done,
            Some(ended) = listeners.join_next() => Err(match ended {
                Ok(status) => anyhow!("a watch ended: {}", status.message()),
                Err(error) => anyhow!("a watch ended: {error}"),
            }),
        }
    }
}

/// Records events until the stream ends, which it should not.
async fn listen(mut answers: Answers, begin: Instant, recorder: Arc<Recorder>, delivered: Arc<AtomicU64>) -> Status {
    loop {
        let (mut now, mut events) = (None, 0);
        let each = |answer: &[u8]| {
            let now = *now.get_or_insert_with(|| begin.elapsed());
            look(answer, |value| {
                events += 1;
                if let Some(written) = written(value) {
                    recorder.succeeded(EVENT, now.saturating_sub(written));
                }
            })?;
            Ok(())
        };
        if let Err(status) = answers.read(each).await {
            return status;
        }
        delivered.fetch_add(events, Ordering::Relaxed);
    }
}

/// Calls `event` with the value of each event of a `WatchResponse`; returns whether it says
/// that a watch was created.
///
/// # Errors
/// When a watch was cancelled, or it is no such response.
fn look(answer: &[u8], event: impl FnMut(&[u8])) -> Result<bool, Status> {
    match scan(answer, event) {
        Some((created, false)) => Ok(created),
        Some((_, true)) => {
            let answer = WatchResponse::decode(answer).unwrap_or_default();
            Err(Status::cancelled(format!("a watch is refused: {}", answer.cancel_reason)))
        }
        None => Err(Status::internal("the answer is no watch response")),
    }
}

/// The same; whether a watch was created, and whether one was cancelled.
fn scan(mut answer: &[u8], mut event: impl FnMut(&[u8])) -> Option<(bool, bool)> {
    let (mut created, mut canceled) = (false, false);
    while !answer.is_empty() {
        match field(&mut answer)? {
            (3, Field::Number(number)) => created = number != 0,
            (4, Field::Number(number)) => canceled = number != 0,
            (11, Field::Bytes(bytes)) => event(value_of(bytes)?),
            _ => {}
        }
    }
    Some((created, canceled))
}

/// The value of the pair in an event: field 5 of field 2.
fn value_of(mut event: &[u8]) -> Option<&[u8]> {
    let mut value: &[u8] = &[];
    while !event.is_empty() {
        let (2, Field::Bytes(mut pair)) = field(&mut event)? else { continue };
        while !pair.is_empty() {
            if let (5, Field::Bytes(found)) = field(&mut pair)? {
                value = found;
            }
        }
    }
    Some(value)
}

/// A field of an encoded message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Takes the first field, with its number.
fn field<'a>(message: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let mut varint = || prost::encoding::decode_varint(message).ok();
    let tag = varint()?;
    let first = varint()?;
    match tag & 7 {
        0 => Some((tag >> 3, Field::Number(first))),
        2 => {
            let (bytes, rest) = message.split_at_checked(usize::try_from(first).ok()?)?;
            *message = rest;
            Some((tag >> 3, Field::Bytes(bytes)))
        }
        // etcd's messages have no others.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcd::ResponseHeader;
    use quorate_proto::mvccpb::{Event, KeyValue};

    use super::*;

    #[test]
    fn every_watcher_has_a_key_and_every_value_its_time() {
        let work = Work { keys: Keys::new(8, 3, true).unwrap(), value_size: 20, streams: 2, watchers_per_stream: 4 };
        assert_eq!((0..3).map(|key| work.watchers_of(key)).collect::<Vec<_>>(), [3, 3, 2]);
        let begin = Instant::now();
        let value = work.value(begin, begin + Duration::from_millis(5));
        assert_eq!((value.len(), written(&value)), (20, Some(Duration::from_millis(5))));
        assert_eq!(written(b"short"), None);
    }

    #[test]
    fn an_answer_is_scanned_for_what_is_measured() {
        let pair = |value: &'static str| KeyValue {
            key: "k".into(),
            value: value.into(),
            version: 3,
            lease: -1,
            ..KeyValue::default()
        };
        let event = |value| Event { kv: Some(pair(value)), prev_kv: Some(pair("old")), ..Event::default() };
        let deleted = Event { r#type: 1, kv: Some(KeyValue { key: "k".into(), ..KeyValue::default() }), prev_kv: None };
        let events = vec![event("first"), deleted, event("last")];
        let header = Some(ResponseHeader { revision: 1 << 40, ..ResponseHeader::default() });
        let answer = WatchResponse { header, watch_id: -1, events, ..WatchResponse::default() };
        let mut values = Vec::new();
        assert!(!look(&answer.encode_to_vec(), |value| values.push(value.to_vec())).unwrap());
        assert_eq!(values, [&b"first"[..], b"", b"last"]);
        let created = WatchResponse { created: true, ..answer.clone() };
        assert!(look(&created.encode_to_vec(), |_| {}).unwrap());
        let refused = WatchResponse { canceled: true, cancel_reason: "no".to_owned(), ..created };
        assert!(look(&refused.encode_to_vec(), |_| {}).unwrap_err().message().ends_with("no"));
        for bytes in [&[0x5a, 0x7f][..], &[0x5d, 1, 2, 3, 4], &[0x5a, 1, 0x12]] {
            assert!(look(bytes, |_| {}).is_err(), "{bytes:?}");
        }
    }
}
