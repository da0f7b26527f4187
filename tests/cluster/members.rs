//! Members that are replaced and that move, as processes and with clients that write.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use quorate_tests::{binary, eventually, report};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::store_member::{Member, START, etcdctl_prints, free_addresses, leader, start_all, write_confs};

/// What a member holds when it is replaced; 1 GiB when `QUORATE_LONG_TESTS` is set.
const DATA_MIB: usize = 48;
const LONG_DATA_MIB: usize = 1024;

const VALUE_BYTES: usize = 8 << 10;
const VALUES_PER_TXN: usize = 64;

/// How long the replacement may take, of any size.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

async fn connect(endpoint: &str) -> Result<KvClient<Channel>> {
    Ok(KvClient::connect(endpoint.to_owned()).await?)
}

/// Fills the store with values that do not compress.
async fn fill(endpoint: &str, mebibytes: usize) -> Result<()> {
    let client = connect(endpoint).await?;
    let txns = (mebibytes << 20) / (VALUE_BYTES * VALUES_PER_TXN);
    let put = |number: usize| {
        let value: Vec<u8> = (0..VALUE_BYTES / 16).flat_map(|_| rand::random::<u128>().to_le_bytes()).collect();
        let put = PutRequest { key: format!("data/{number:08}").into(), value: value.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    futures::stream::iter(0..txns)
        .map(|txn| {
            let mut client = client.clone();
            let puts = (0..VALUES_PER_TXN).map(|number| put(txn * VALUES_PER_TXN + number)).collect();
            async move { client.txn(TxnRequest { success: puts, ..Default::default() }).await.map(|_| ()) }
        })
        .buffer_unordered(8)
        .try_collect()
        .await
        .context("the data was not written")
}

/// Clients that write one after the other, each through one member.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<(usize, Duration)>>>,
}

impl Writers {
    fn start(runtime: &Runtime, endpoints: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let write = |(writer, endpoint): (usize, &String)| {
            let (stop, endpoint) = (Arc::clone(&stop), endpoint.clone());
            runtime.spawn(async move {
                let mut client = connect(&endpoint).await?;
                let (mut count, mut longest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("written/{writer}/{count:08}").into();
                    let put = PutRequest { key, value: Bytes::from_static(&[7; 256]), ..Default::default() };
                    let asked = Instant::now();
                    client.put(put).await.with_context(|| format!("write {count} through {endpoint}"))?;
                    longest = longest.max(asked.elapsed());
                    count += 1;
                }
                Ok((count, longest))
            })
        };
        let tasks = endpoints.iter().enumerate().map(write).collect();
        Self { stop, tasks }
    }

    /// How many writes there were, and how long the longest took.
    ///
    /// # Errors
    /// When any write failed.
    fn finish(self, runtime: &Runtime) -> Result<(usize, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let (mut count, mut longest) = (0, Duration::ZERO);
        for task in self.tasks {
            let (written, took) = runtime.block_on(task)??;
            (count, longest) = (count + written, longest.max(took));
        }
        Ok((count, longest))
    }
}

fn member(endpoints: &[String], arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("member").args(arguments).arg("--endpoints").arg(endpoints.join(",")).stdin(Stdio::null());
    Ok(command)
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// The number of keys that begin with `prefix` and end in digits, as one member has them itself.
async fn count(endpoint: &str, prefix: &str) -> Result<usize> {
    let request = RangeRequest {
        key: format!("{prefix}0").into(),
        range_end: format!("{prefix}:").into(),
        count_only: true,
        serializable: true,
        ..Default::default()
    };
    let answer = connect(endpoint).await?.range(request).await?.into_inner();
    Ok(usize::try_from(answer.count)?)
}

#[test]
fn the_leader_is_replaced_by_one_command_and_no_write_fails() -> Result<()> {
    let (folder, runtime) = (TempDir::new()?, Runtime::new()?);
    let [p0, p1, p2, p3, c0, c1, c2, c3] = free_addresses();
    let confs = write_confs(folder.path(), "http", &[p0, p1, p2, p3], &[c0, c1, c2, c3], "")?;
    // The fourth comes later: the first three do not know of it.
    for (index, conf) in confs.iter().enumerate() {
        let text = std::fs::read_to_string(conf)?;
        let text = match index {
            3 => format!("{text}ETCD_INITIAL_CLUSTER_STATE=existing\n"),
            _ => text.replace(&format!(",m3={}", url(p3)), ""),
        };
        std::fs::write(conf, text)?;
    }
    let mut members = start_all(&confs[..3])?;
    let endpoints = [c0, c1, c2].map(url);
    let mebibytes = if std::env::var_os("QUORATE_LONG_TESTS").is_some() { LONG_DATA_MIB } else { DATA_MIB };
    runtime.block_on(fill(&endpoints[0], mebibytes))?;

    let old = leader(&endpoints)?;
    let staying: Vec<String> = endpoints.iter().filter(|endpoint| **endpoint != endpoints[old]).cloned().collect();
    let writers = Writers::start(&runtime, &staying);
    let began = Instant::now();
    let new = format!("m3={p3}");
    let command = member(&staying, &["replace", &format!("m{old}"), &new])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("quorate does not run")?;
    members.push(Member::start(&confs[3])?);
    let output = command.wait_with_output()?;
    let took = began.elapsed();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "{said}");
    let (written, longest) = writers.finish(&runtime)?;
    report(&format!(
        "a leader of {mebibytes} MiB is replaced in {:.1} s; {written} writes meanwhile, the longest {:.3} s, none failed",
        took.as_secs_f64(),
        longest.as_secs_f64()
    ));
    ensure!(took < REPLACED_WITHIN, "{took:?}: {said}");

    // Every member that is left has every write, and the one that went stays away.
    let now: Vec<String> = [staying, vec![url(c3)]].concat();
    for endpoint in &now {
        eventually("every write on every member", START, || {
            Ok((runtime.block_on(count(endpoint, "written/"))? == written).then_some(()))
        })?;
        ensure!(runtime.block_on(count(endpoint, "data/"))? == (mebibytes << 20) / VALUE_BYTES);
    }
    let list = etcdctl_prints(&now, &["member", "list"])?;
    ensure!(list.lines().count() == 3 && !list.contains(&format!(" m{old},")), "{list}");
    members[old].wait_until_ended()?;
    let mut again = Member::start(&members[old].conf.clone())?;
    let status = again.wait_until_ended()?;
    ensure!(!status.success() && again.said().contains("removed"), "{status}: {}", again.said());

    // Run again, the command sees that its work is done.
    let output = member(&now, &["replace", &format!("m{old}"), &new])?.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("has been replaced"), "{said}");
    for index in (0..4).filter(|index| *index != old) {
        members[index].stop()?;
    }
    Ok(())
}

#[test]
fn all_addresses_change_at_once_and_the_cluster_comes_back() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_addresses();
    let mut members = start_all(&write_confs(folder.path(), "http", &[p0, p1, p2], &[c0, c1, c2], "")?)?;
    etcdctl_prints(&[url(c0)], &["put", "a", "before"])?;
    for member in &mut members {
        member.stop()?;
    }
    drop(members);
    let [p0, p1, p2, c0, c1, c2] = free_addresses();
    let endpoints = [c0, c1, c2].map(url);
    let mut members = start_all(&write_confs(folder.path(), "http", &[p0, p1, p2], &[c0, c1, c2], "")?)?;
    ensure!(etcdctl_prints(&endpoints[1..2], &["get", "a", "--print-value-only"])? == "before\n");
    ensure!(etcdctl_prints(&endpoints[2..], &["put", "a", "after"])? == "OK\n");
    eventually("the new addresses in the list of members", START, || {
        let list = etcdctl_prints(&endpoints, &["member", "list"])?;
        Ok([p0, p1, p2, c0, c1, c2].iter().all(|address| list.contains(&url(*address))).then_some(()))
    })?;
    members.iter_mut().try_for_each(|member| member.stop().map(|_| ()))
}
