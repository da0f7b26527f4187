//! Puts in a closed loop, as etcd's own benchmark makes them: what `quorate bench` says of a
//! server can be held against a client that is not ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::Client;

const KEY: &str = "b0000000";
const PERCENTILES: [usize; 3] = [50, 95, 99];

/// `CONNECTIONS CLIENTS TOTAL VALUE_BYTES`, all of them above zero.
pub(crate) async fn run(endpoint: &str, arguments: &[String]) -> Result<()> {
    let numbers = arguments.iter().map(|text| text.parse().with_context(|| format!("{text:?} is not a number")));
    let numbers = numbers.collect::<Result<Vec<u64>>>()?;
    let [connections, clients, total, value_bytes] = numbers[..] else {
        anyhow::bail!("usage: put CONNECTIONS CLIENTS TOTAL VALUE_BYTES")
    };
    ensure!(connections > 0 && total > 0, "there is nothing to do");
    let mut connected = Vec::new();
    for _ in 0..connections {
        connected.push(Client::connect([endpoint], None).await?);
    }
    let value = vec![b'v'; usize::try_from(value_bytes)?];
    let begun = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let tasks: Vec<_> = connected
        .iter()
        .cycle()
        .take(usize::try_from(clients)?)
        .map(|client| {
            let (mut client, begun, value) = (client.clone(), Arc::clone(&begun), value.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                while begun.fetch_add(1, Ordering::Relaxed) < total {
                    let asked = Instant::now();
                    client.put(KEY, value.clone(), None).await?;
                    took.push(asked.elapsed());
                }
                Ok::<_, etcd_client::Error>(took)
            })
        })
        .collect();
    let mut took: Vec<Duration> = Vec::new();
    for task in tasks {
        took.extend(task.await??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    took.sort_unstable();
    println!("  Requests/sec:\t{:.4}", took.len() as f64 / seconds);
    for percent in PERCENTILES {
        let place = (took.len() * percent / 100).min(took.len() - 1);
        println!("  {percent}% in {:.4} secs.", took[place].as_secs_f64());
    }
    Ok(())
}
