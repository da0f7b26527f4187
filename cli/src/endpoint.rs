//! The local endpoint: one address that always leads to a living master.
//!
//! Bytes are passed on as they are, TLS included. Whether a master lives is learnt
//! in two ways: its process ended (told by the supervisor, at once), or its
//! `/readyz` stopped answering (asked several times a second).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long one master may take to accept before the next one is dialled.
const DIAL_TIMEOUT: Duration = Duration::from_millis(200);

/// How long a new connection waits for any master at all: longer than an election
/// and a restart, shorter than a client's patience.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a connection that found no master looks again.
const RETRY: Duration = Duration::from_millis(20);

/// How often the readiness of each master is asked for, and how long it may take.
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
const PROBE_TIMEOUT: Duration = Duration::from_millis(600);

/// A master that was silent that often in a row is lost: once may be a slow disk.
const MOST_SILENCES: u32 = 2;

/// The masters behind the endpoint, as seen just now.
#[derive(Clone)]
pub(crate) struct Backends {
    inner: Arc<Inner>,
}

struct Inner {
    backends: Mutex<Vec<Backend>>,
    next: AtomicUsize,
}

struct Backend {
    address: SocketAddr,
    ready: bool,
    /// Cancelled to close every connection that leads to this master.
    life: CancellationToken,
}

impl Backends {
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let backends = addresses
            .into_iter()
            .map(|address| Backend { address, ready: false, life: CancellationToken::new() })
            .collect();
        Self { inner: Arc::new(Inner { backends: Mutex::new(backends), next: AtomicUsize::new(0) }) }
    }

    /// Notes whether new connections may lead to `address`. Those that are there stay: a
    /// master that is slow, leaving, or without a leader for a moment still answers.
    pub(crate) fn set_ready(&self, address: SocketAddr, ready: bool) {
        self.with(address, |backend| {
            if backend.ready != ready {
                backend.ready = ready;
                match ready {
                    true => tracing::info!(master = %address, "the endpoint leads to a master"),
                    false => tracing::warn!(master = %address, "the endpoint avoids a master"),
                }
            }
        });
    }

    /// Closes what leads to `address`, so that clients dial again instead of waiting for an
    /// answer that will not come.
    pub(crate) fn lose(&self, address: SocketAddr) {
        self.set_ready(address, false);
        self.with(address, |backend| std::mem::take(&mut backend.life).cancel());
    }

    fn with(&self, address: SocketAddr, change: impl FnOnce(&mut Backend)) {
        let mut backends = self.inner.backends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = backends.iter_mut().find(|backend| backend.address == address) {
            change(backend);
        }
    }

    /// How many masters serve now.
    pub(crate) fn ready(&self) -> usize {
        let backends = self.inner.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.iter().filter(|backend| backend.ready).count()
    }

    /// The ready masters, each call beginning with another one.
    fn candidates(&self) -> Vec<(SocketAddr, CancellationToken)> {
        let backends = self.inner.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ready: Vec<_> = backends
            .iter()
            .filter(|backend| backend.ready)
            .map(|backend| (backend.address, backend.life.clone()))
            .collect();
        if !ready.is_empty() {
            let start = self.inner.next.fetch_add(1, Ordering::Relaxed) % ready.len();
            ready.rotate_left(start);
        }
        ready
    }
}

/// Serves `listener` until `cancel`; then closes every connection.
pub(crate) async fn serve(listener: TcpListener, backends: Backends, cancel: CancellationToken) {
    let tracker = TaskTracker::new();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(error) => {
                    // Out of descriptors, most likely: others end, then this goes on.
                    tracing::warn!(%error, "the endpoint could not accept a connection");
                    time::sleep(RETRY).await;
                    continue;
                }
            },
            () = cancel.cancelled() => break,
        };
        let (backends, cancel) = (backends.clone(), cancel.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = relay(client, &backends) => {}
                () = cancel.cancelled() => {}
            }
        });
    }
    tracker.close();
    tracker.wait().await;
}

async fn relay(mut client: TcpStream, backends: &Backends) {
    let Ok(Some((mut master, life))) = time::timeout(PATIENCE, dial(backends)).await else {
        tracing::warn!("the endpoint found no master for a connection");
        return;
    };
    let _ = client.set_nodelay(true);
    tokio::select! {
        // Either side closing or failing ends the connection; there is nobody to tell.
        _ = tokio::io::copy_bidirectional(&mut client, &mut master) => {}
        () = life.cancelled() => {}
    }
}

async fn dial(backends: &Backends) -> Option<(TcpStream, CancellationToken)> {
    loop {
        for (address, life) in backends.candidates() {
            if let Ok(Ok(stream)) = time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
                let _ = stream.set_nodelay(true);
                return Some((stream, life));
            }
        }
        time::sleep(RETRY).await;
    }
}

/// Asks one master for its readiness, several times a second, until `cancel`.
pub(crate) async fn probe(address: SocketAddr, probe: Probe, backends: Backends, cancel: CancellationToken) {
    let mut silences = 0;
    let mut interval = time::interval(PROBE_INTERVAL);
    interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = cancel.cancelled() => return,
        }
        match time::timeout(PROBE_TIMEOUT, probe.ask(address)).await {
            Ok(Answer::Ready) => {
                silences = 0;
                backends.set_ready(address, true);
            }
            Ok(Answer::NotReady) => {
                silences = 0;
                backends.set_ready(address, false);
            }
            Ok(Answer::Gone) => backends.lose(address),
            Err(_) => {
                silences += 1;
                match silences < MOST_SILENCES {
                    true => backends.set_ready(address, false),
                    false => backends.lose(address),
                }
            }
        }
    }
}

/// How a master answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ready,
    /// It lives, and should get no more connections.
    NotReady,
    /// Nothing accepts there, or what does breaks off.
    Gone,
}

/// Asks `/readyz` over TLS, on a connection of its own each time: a listener that
/// no longer accepts is as dead as one that no longer answers.
#[derive(Clone)]
pub(crate) struct Probe {
    connector: tokio_rustls::TlsConnector,
}

impl Probe {
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>) -> Self {
        Self { connector: tls.into() }
    }

    /// What the API server at `address` says of itself.
    pub(crate) async fn ask(&self, address: SocketAddr) -> Answer {
        match self.is_ready(address).await {
            Ok(true) => Answer::Ready,
            Ok(false) => Answer::NotReady,
            Err(_) => Answer::Gone,
        }
    }

    async fn is_ready(&self, address: SocketAddr) -> Result<bool> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const LONGEST_ANSWER: u64 = 16 << 10;
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        let mut stream = self.connector.connect(address.ip().into(), stream).await.context("no TLS")?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.context("cannot ask")?;
        let mut answer = Vec::new();
        stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await.context("no answer")?;
        Ok(answer.starts_with(b"HTTP/1.1 200"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn greeter(word: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    stream.write_all(word.as_bytes()).await.unwrap();
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                });
            }
        });
        address
    }

    async fn greeting(endpoint: SocketAddr) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(endpoint).await.unwrap();
        let mut word = [0; 1];
        stream.read_exact(&mut word).await.unwrap();
        (String::from_utf8_lossy(&word).into_owned(), stream)
    }

    #[tokio::test]
    async fn connections_follow_ready_masters() {
        let (one, two) = (greeter("1").await, greeter("2").await);
        let backends = Backends::new([one, two]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let served = tokio::spawn(serve(listener, backends.clone(), cancel.clone()));

        backends.set_ready(one, true);
        let (word, mut held) = greeting(endpoint).await;
        assert_eq!(word, "1");
        backends.set_ready(two, true);
        backends.set_ready(one, false);
        assert_eq!(greeting(endpoint).await.0, "2", "new connections avoid it");
        let early = time::timeout(RETRY, held.read_u8()).await;
        assert!(early.is_err(), "what is there stays");
        backends.lose(one);
        let mut end = Vec::new();
        assert_eq!(held.read_to_end(&mut end).await.unwrap_or(0), 0, "the lost master's connection is closed");
        for _ in 0..3 {
            assert_eq!(greeting(endpoint).await.0, "2");
        }

        // A connection that comes while nobody serves is answered by the next who does.
        backends.set_ready(two, false);
        let waiting = tokio::spawn(async move { greeting(endpoint).await.0 });
        time::sleep(RETRY * 2).await;
        backends.set_ready(one, true);
        assert_eq!(waiting.await.unwrap(), "1");
        cancel.cancel();
        served.await.unwrap();
    }
}
