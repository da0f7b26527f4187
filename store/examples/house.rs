//! Measures what the store promises of large data, on this machine:
//!
//! ```text
//! house compact DIRECTORY REVISIONS          latency of writes while history is compacted
//! house load DIRECTORY KEYS LIMIT_MIB        small keys, and the memory that they take
//! house open DIRECTORY LIMIT_MIB             how long opening takes, and the memory after reads
//! house fill ENDPOINT KEYS                   the same keys into a running member, for its memory
//! ```
//!
//! The directory is made, and left for the next measurement.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{CompactionRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use quorate_store::{Config, Store};
use tokio::task::JoinSet;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Clients that load data.
const LOADERS: usize = 128;
/// Clients whose latency is measured.
const WRITERS: usize = 4;
/// The keys that revisions are spread over.
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 128;
/// How long the base is measured.
const BASE: Duration = Duration::from_secs(15);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &arguments[..] {
        ["compact", directory, revisions] => runtime.block_on(compact(Path::new(directory), revisions.parse()?)),
        ["load", directory, keys, limit] => runtime.block_on(load(Path::new(directory), keys.parse()?, limit.parse()?)),
        ["open", directory, limit] => runtime.block_on(open(Path::new(directory), limit.parse()?)),
        ["fill", endpoint, keys] => runtime.block_on(fill((*endpoint).to_owned(), keys.parse()?)),
        _ => Err("usage: house compact DIRECTORY REVISIONS | load DIRECTORY KEYS MIB | open DIRECTORY MIB | \
                  fill ENDPOINT KEYS"
            .into()),
    }
}

async fn start(directory: &Path, limit_mib: u64) -> Result<Store, Failure> {
    let mut config = Config::new("house", directory);
    config.memory_limit_bytes = limit_mib << 20;
    let store = Store::start(config).await?;
    store.leadership().wait_for(Option::is_some).await?;
    Ok(store)
}

fn key(number: usize) -> Bytes {
    format!("/registry/things/{:08}", number).into()
}

fn put(number: usize) -> PutRequest {
    let value = Bytes::from(vec![b'a' + (number % 26) as u8; VALUE_BYTES]);
    PutRequest { key: key(number), value, ..Default::default() }
}

async fn compact(directory: &Path, revisions: usize) -> Result<(), Failure> {
    let store = start(directory, 256).await?;
    let began = Instant::now();
    let mut loaders = JoinSet::new();
    for loader in 0..LOADERS {
        let store = store.clone();
        loaders.spawn(async move {
            for number in (loader..revisions).step_by(LOADERS) {
                store.put(put(number % KEYS)).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(loaded) = loaders.join_next().await {
        loaded??;
    }
    println!("{revisions} revisions of {KEYS} keys written in {:?}", began.elapsed());
    let revision = store.revision();
    let before = store.status().size_bytes;
    let base = measure(&store, tokio::time::sleep(BASE)).await?;
    let began = Instant::now();
    store.compact(CompactionRequest { revision, physical: false }).await?;
    println!("compaction to {revision} answered in {:?}", began.elapsed());
    let compacting = store.clone();
    let gone = async move {
        // One more revision, whose removal is waited for, comes after all of them.
        let revision = compacting.revision();
        compacting.compact(CompactionRequest { revision, physical: true }).await.map(|_| ())
    };
    let busy = measure(&store, gone).await?;
    println!("history was gone after {:?}", began.elapsed());
    let deadline = Instant::now() + Duration::from_secs(120);
    let after = measure(&store, async {
        while store.status().size_bytes > before / 4 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await?;
    println!("files: {} MiB before, {} MiB after {:?}", before >> 20, store.status().size_bytes >> 20, began.elapsed());
    for (name, mut times) in [("base", base), ("while removed", busy), ("while rewritten", after)] {
        times.sort();
        let at = |part: usize| times.get(times.len() * part / 1000).copied().unwrap_or_default();
        println!("{name}: {} writes, p50 {:?}, p99 {:?}, p99.9 {:?}", times.len(), at(500), at(990), at(999));
    }
    store.shutdown().await;
    Ok(())
}

/// The latencies of a few writers until `end` has happened.
async fn measure<T: Send + 'static>(store: &Store, end: impl Future<Output = T>) -> Result<Vec<Duration>, Failure> {
    let mut writers = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for writer in 0..WRITERS {
        let (store, stopped) = (store.clone(), stopped.clone());
        writers.spawn(async move {
            let mut times = Vec::new();
            while !*stopped.borrow() {
                let began = Instant::now();
                store.put(put((writer * 7919 + times.len()) % KEYS)).await?;
                times.push(began.elapsed());
            }
            Ok::<_, Failure>(times)
        });
    }
    end.await;
    stop.send_replace(true);
    let mut all = Vec::new();
    while let Some(times) = writers.join_next().await {
        all.extend(times??);
    }
    Ok(all)
}

async fn load(directory: &Path, keys: usize, limit_mib: u64) -> Result<(), Failure> {
    let store = start(directory, limit_mib).await?;
    let began = Instant::now();
    let writer = store.clone();
    in_parallel(keys, move |puts| {
        let store = writer.clone();
        async move {
            store.txn(puts, None).await?;
            Ok(())
        }
    })
    .await?;
    println!("{keys} keys in {:?}; {}", began.elapsed(), memory()?);
    store.shutdown().await;
    println!("after closing: {}", memory()?);
    Ok(())
}

/// Writes small keys, a hundred in one transaction.
async fn in_parallel<F>(keys: usize, write: impl Fn(TxnRequest) -> F + Clone + Send + 'static) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send,
{
    const AT_ONCE: usize = 100;
    const WRITERS: usize = 16;
    let mut loaders = JoinSet::new();
    for loader in 0..WRITERS {
        let write = write.clone();
        loaders.spawn(async move {
            for first in (loader * AT_ONCE..keys).step_by(WRITERS * AT_ONCE) {
                let puts = (first..keys.min(first + AT_ONCE)).map(|number| RequestOp {
                    request: Some(Request::RequestPut(PutRequest {
                        key: key(number),
                        value: Bytes::from_static(b"small"),
                        ..Default::default()
                    })),
                });
                write(TxnRequest { success: puts.collect(), ..Default::default() }).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(loaded) = loaders.join_next().await {
        loaded??;
    }
    Ok(())
}

async fn fill(endpoint: String, keys: usize) -> Result<(), Failure> {
    let began = Instant::now();
    let client = KvClient::connect(endpoint).await?;
    in_parallel(keys, move |puts| {
        let mut client = client.clone();
        async move {
            client.txn(puts).await?;
            Ok(())
        }
    })
    .await?;
    println!("{keys} keys in {:?}", began.elapsed());
    Ok(())
}

async fn open(directory: &Path, limit_mib: u64) -> Result<(), Failure> {
    let began = Instant::now();
    let store = start(directory, limit_mib).await?;
    let first = store.range(RangeRequest { key: key(7), ..Default::default() }).await?;
    println!("open, leading, and read after {:?} ({} found); {}", began.elapsed(), first.count, memory()?);
    let began = Instant::now();
    let everything = RangeRequest { key: b"\0"[..].into(), range_end: b"\0"[..].into(), ..Default::default() };
    let count = store.range(RangeRequest { count_only: true, ..everything.clone() }).await?.count;
    println!("{count} keys counted in {:?}; {}", began.elapsed(), memory()?);
    let began = Instant::now();
    let step = 7919;
    for number in 0..100_000 {
        let wanted = key(number * step % usize::try_from(count.max(1))?);
        store.range(RangeRequest { key: wanted, serializable: true, ..Default::default() }).await?;
    }
    println!("100000 keys read in {:?}; {}", began.elapsed(), memory()?);
    let began = Instant::now();
    let hash = tokio::task::spawn_blocking({
        let store = store.clone();
        move || store.hash_kv(0)
    });
    let hash = hash.await??;
    println!("hash {:08x} in {:?}; {}", hash.hash, began.elapsed(), memory()?);
    println!("{} MiB in files", store.status().size_bytes >> 20);
    store.shutdown().await;
    Ok(())
}

/// What the kernel says of this process.
fn memory() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", "))
}
