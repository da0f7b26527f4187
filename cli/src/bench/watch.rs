//! Watchers that wait for writes. Each value begins with the time at which its write was
//! due, so that an event tells its own latency.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use futures::channel::mpsc;
use quorate_proto::etcd::watch_client::WatchClient;
use quorate_proto::etcd::{PutResponse, WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};
use tonic::{Status, Streaming};

use super::keys::Keys;
use super::pace::Pace;
use super::recorder::Recorder;
use super::target::Target;
use super::wire::Method;
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
    streams: Vec<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)>,
}

impl Watches {
    /// Creates every watch.
    ///
    /// # Errors
    /// When the store refuses.
    pub(crate) async fn open(work: &Work, target: &Target) -> Result<Self> {
        let opened = (0..work.streams).map(async |stream| {
            let watchers = work.watchers_per_stream;
            let (mut requests, receiver) = mpsc::channel(watchers);
            let first = (stream * watchers) as u64;
            for watcher in first..first + watchers as u64 {
                requests.try_send(work.create(watcher)).context("the stream takes no request")?;
            }
            let mut client = WatchClient::new(target.service(stream)).max_decoding_message_size(usize::MAX);
            let mut answers = client.watch(receiver).await?.into_inner();
            for _ in 0..watchers {
                let answer = answers.message().await?.context("the stream ended")?;
                ensure!(answer.created && !answer.canceled, "a watch is refused: {}", answer.cancel_reason);
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
async fn listen(
    mut answers: Streaming<WatchResponse>,
    begin: Instant,
    recorder: Arc<Recorder>,
    delivered: Arc<AtomicU64>,
) -> Status {
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) if answer.canceled => return Status::cancelled(answer.cancel_reason),
            Ok(Some(answer)) => answer,
            Ok(None) => return Status::unavailable("the server closed the stream"),
            Err(status) => return status,
        };
        let now = begin.elapsed();
        for event in &answer.events {
            if let Some(written) = event.kv.as_ref().and_then(|pair| written(&pair.value)) {
                recorder.succeeded(EVENT, now.saturating_sub(written));
            }
        }
        delivered.fetch_add(answer.events.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
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
}
