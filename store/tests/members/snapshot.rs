//! Snapshots to and from the etcd of the machine, and through the loss of every member.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use quorate_proto::etcd::RangeRequest;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_store::snapshot::{self, Restore, Restored, SnapshotError};
use quorate_store::{Config, Store};
use quorate_transport::loopback::free_address;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::common::etcd::{Etcd, Etcdctl};
use crate::common::wait;

/// A life with everything that a snapshot must carry: versions, deletions, a key that came
/// back, a compaction, leases with and without keys, values of more than a page.
fn live(endpoint: &str) {
    let long = "x".repeat(20_000);
    let run = |line: &str| run(endpoint, line);
    for number in 0..40 {
        run(&format!("put early/{number} {number}"));
    }
    run("del early/7");
    run("put early/8 again");
    run("put early/8 and-again");
    run("del --prefix early/3");
    run("compaction 44");
    run("put early/7 is-back");
    run("put many 1");
    run("put many 2");
    run("del many");
    run("put many 3");
    etcdctl(endpoint, &["put", "long", &long]);
    let lease = |ttl: u32| run(&format!("lease grant {ttl}")).split(' ').nth(1).unwrap().to_owned();
    let (used, _unused) = (lease(5000), lease(6000));
    run(&format!("put leased/1 a --lease={used}"));
    run(&format!("put leased/2 b --lease={used}"));
    run("put leased/2 free-again");
}

/// Somebody who may read some of it.
fn permit(endpoint: &str) {
    let run = |line: &str| run(endpoint, line);
    run("role add reader");
    run("role grant-permission reader read early/ early0");
    run("user add somebody:secret");
    run("user grant-role somebody reader");
}

/// What clients see of it, without who answers.
fn seen(endpoint: &str) -> Value {
    let run = |line: &str| run(endpoint, line);
    let parsed = |line: &str| serde_json::from_str::<Value>(&run(line)).unwrap();
    let now = parsed("get --prefix '' -w json");
    let revision = now["header"]["revision"].as_i64().unwrap();
    let past: Vec<Value> =
        (44..=revision).map(|at| parsed(&format!("get --prefix '' --rev={at} -w json"))["kvs"].clone()).collect();
    let mut leases: Vec<String> = run("lease list").lines().skip(1).map(ToOwned::to_owned).collect();
    leases.sort();
    let keys: Vec<Value> = leases
        .iter()
        .map(|lease| {
            let lease = parsed(&format!("lease timetolive {lease} --keys -w json"));
            json!({ "id": lease["id"], "granted": lease["granted-ttl"], "keys": lease["keys"] })
        })
        .collect();
    let users = run("user list");
    let users = match users.trim() {
        "" => Vec::new(),
        _ => vec![users, run("user get somebody"), run("role list"), run("role get reader")],
    };
    json!({ "users": users, "revision": revision, "now": now["kvs"], "past": past, "leases": keys })
}

fn run(endpoint: &str, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').map(|word| word.trim_matches('\'')).collect();
    etcdctl(endpoint, &words)
}

fn etcdctl(endpoint: &str, arguments: &[&str]) -> String {
    let output = Etcdctl { flags: vec![format!("--endpoints={endpoint}")] }.run_words(arguments, "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdctl {}: {errors}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// Members of one cluster, in this process.
struct Members {
    runtime: Runtime,
    stores: Vec<Store>,
}

impl Members {
    fn start(configs: &[Config]) -> Members {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stores = configs.iter().map(|config| runtime.block_on(Store::start(config.clone())).unwrap()).collect();
        let members = Members { runtime, stores };
        wait("a leader", || members.stores.iter().find(|store| store.leadership().borrow().is_some()).map(|_| ()));
        members
    }

    fn endpoint(&self, member: usize) -> String {
        format!("http://{}", self.stores[member].client_address().unwrap())
    }

    fn wait_for_agreement(&self) {
        wait("agreement", || {
            let mut states: Vec<_> =
                self.stores.iter().map(|store| (store.status().hash_index, store.status().hash)).collect();
            states.dedup();
            (states.len() == 1).then_some(())
        });
        let mut hashes: Vec<_> = self.stores.iter().map(|store| store.hash_kv(0).unwrap()).map(|kv| kv.hash).collect();
        hashes.dedup();
        assert_eq!(hashes.len(), 1);
    }

    fn stop(self) {
        for store in &self.stores {
            self.runtime.block_on(store.shutdown());
        }
    }
}

fn configs(root: &Path, count: usize) -> Vec<Config> {
    let addresses: Vec<_> = (0..count).map(|_| free_address()).collect();
    let names: Vec<(String, String)> =
        addresses.iter().enumerate().map(|(number, address)| (format!("m{number}"), address.to_string())).collect();
    let config = |(number, address): (usize, &SocketAddr)| {
        let mut config = Config::new(format!("m{number}"), root.join(format!("m{number}")));
        config.listen_peer = *address;
        config.listen_client = Some(([127, 0, 0, 1], 0).into());
        config.initial_cluster = names.clone();
        config
    };
    addresses.iter().enumerate().map(config).collect()
}

fn restore(source: &Path, member: &Config, bump: Option<u64>) -> Result<Restored, SnapshotError> {
    let restore = Restore {
        source: source.to_owned(),
        skip_hash_check: false,
        bump_revision: bump,
        mark_compacted: None,
        member: member.clone(),
    };
    snapshot::restore(&restore, &mut |_, _| {})
}

/// `etcdctl snapshot status`, and ours, which must not differ.
fn status(file: &Path) -> Value {
    let file_name = file.to_str().unwrap();
    let theirs: Value =
        serde_json::from_str(&etcdctl("x:1", &["snapshot", "status", file_name, "-w", "json"])).unwrap();
    let ours = snapshot::summarize(file, false, &mut |_, _| {}).unwrap();
    assert_eq!(serde_json::to_value(ours).unwrap(), theirs);
    theirs
}

fn save(endpoint: &str, file: &Path) {
    etcdctl(endpoint, &["snapshot", "save", file.to_str().unwrap()]);
}

#[test]
fn etcd_goes_on_as_quorate() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("etcd");
    let etcd = Etcd::start(&data, free_address());
    live(&etcd.endpoint());
    permit(&etcd.endpoint());
    let expected = seen(&etcd.endpoint());
    let file = root.path().join("etcd.db");
    save(&etcd.endpoint(), &file);
    status(&file);
    // A running etcd writes its file: that is no snapshot.
    let running = restore(&data, &configs(root.path(), 1)[0], None);
    assert!(matches!(running, Err(SnapshotError::InUse { .. })), "{running:?}");
    etcd.stop();

    for (name, source, bump) in [("file", &file, Some(0)), ("directory", &data, None)] {
        let configs = configs(&root.path().join(name), 3);
        for config in &configs {
            restore(source, config, bump).unwrap();
        }
        let members = Members::start(&configs);
        for member in 0..3 {
            assert_eq!(seen(&members.endpoint(member)), expected, "{name}");
        }
        etcdctl(&members.endpoint(1), &["put", "after", "1"]);
        members.wait_for_agreement();
        members.stop();
    }
}

/// What it confirmed is in its log only, as far as its backend is behind: here from the start.
#[test]
fn a_killed_etcd_goes_on_as_quorate() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("etcd");
    let peer = free_address();
    Etcd::start(&data, peer).stop();
    let behind = ["--backend-batch-interval=1h", "--backend-batch-limit=1000000"];
    let etcd = Etcd::start_with(&data, peer, &behind);
    live(&etcd.endpoint());
    let expected = seen(&etcd.endpoint());
    // Dropped, it is killed.
    drop(etcd);
    let configs = configs(&root.path().join("quorate"), 3);
    for config in &configs {
        let restored = restore(&data, config, None).unwrap();
        // Only its compaction has made it write the backend.
        assert!(restored.from_log > 5, "{restored:?}");
        assert_eq!(Some(restored.revision), expected["revision"].as_i64());
    }
    let members = Members::start(&configs);
    for member in 0..3 {
        assert_eq!(seen(&members.endpoint(member)), expected);
    }
    etcdctl(&members.endpoint(1), &["put", "after", "1"]);
    members.wait_for_agreement();
    members.stop();

    // A change of users is not taken from the log, and not left out in silence.
    let etcd = Etcd::start_with(&data, peer, &behind);
    etcdctl(&etcd.endpoint(), &["user", "add", "somebody:secret"]);
    drop(etcd);
    let member = Config::new("m0", root.path().join("refused"));
    let refused = restore(&data, &member, None).unwrap_err().to_string();
    assert!(refused.contains("start this etcd once more"), "{refused}");
    assert!(!member.data_dir.exists());
    // Started again, it has everything in its backend when it ends in order.
    Etcd::start(&data, peer).stop();
    assert_eq!(restore(&data, &member, None).unwrap().from_log, 0);
    // A log whose middle has changed is not taken either.
    let log = std::fs::read_dir(data.join("member/wal")).unwrap().map(|entry| entry.unwrap().path());
    let log = log.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).min().unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    // A byte of an entry: those between two records belong to none.
    let place = bytes.windows(8).position(|window| window == b"peerURLs").unwrap();
    bytes[place] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let refused = restore(&data, &Config::new("m0", root.path().join("damaged")), None).unwrap_err();
    assert!(matches!(refused, SnapshotError::Log { .. }), "{refused}");
}

/// etcd's tokens are not in its file, and neither is what would sign ours.
#[test]
fn whoever_signs_in_first_after_a_restore_is_known_to_every_member() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("etcd");
    let etcd = Etcd::start(&data, free_address());
    for line in ["put k v", "user add root:secret", "user grant-role root root", "auth enable"] {
        run(&etcd.endpoint(), line);
    }
    etcd.stop();
    let configs = configs(&root.path().join("quorate"), 3);
    for config in &configs {
        restore(&data, config, None).unwrap();
    }
    for round in 0..2 {
        let members = Members::start(&configs);
        let tokens = members.runtime.block_on(async {
            let sign_in = members.stores.iter().map(|store| store.authenticate("root", "secret"));
            futures::future::join_all(sign_in).await
        });
        for (token, member) in tokens.into_iter().flat_map(|token| {
            let token = token.unwrap();
            (0..3).map(move |member| (token.clone(), member))
        }) {
            let endpoint = members.endpoint(member);
            let answer = members.runtime.block_on(async move {
                let mut request = tonic::Request::new(RangeRequest { key: "k".into(), ..Default::default() });
                request.metadata_mut().insert("token", token.parse().unwrap());
                KvClient::connect(endpoint).await.unwrap().range(request).await
            });
            assert_eq!(answer.unwrap().into_inner().count, 1, "round {round}, member {member}");
        }
        members.stop();
    }
}

#[test]
fn quorate_goes_on_as_etcd() {
    let root = tempfile::tempdir().unwrap();
    let configs = configs(root.path(), 3);
    let members = Members::start(&configs);
    live(&members.endpoint(0));
    permit(&members.endpoint(0));
    members.wait_for_agreement();
    let expected = seen(&members.endpoint(1));
    let saved = root.path().join("saved.db");
    save(&members.endpoint(2), &saved);
    let found = status(&saved);
    assert_eq!(found["revision"], expected["revision"]);
    members.stop();
    let exported = root.path().join("exported.db");
    snapshot::export_directory(&configs[1].data_dir, &exported, &mut |_, _| {}).unwrap();
    assert_eq!(status(&exported)["revision"], expected["revision"]);

    for (file, name) in [(saved, "from-saved"), (exported, "from-exported")] {
        let etcd = etcd_from(&file, &root.path().join(name));
        assert_eq!(seen(&etcd.endpoint()), expected, "{name}");
        etcdctl(&etcd.endpoint(), &["put", "after", "1"]);
        etcdctl(&etcd.endpoint(), &["del", "--prefix", "early"]);
        let revision = expected["revision"].as_i64().unwrap() + 2;
        etcdctl(&etcd.endpoint(), &["compaction", &revision.to_string(), "--physical"]);
        etcd.stop();
    }
}

fn etcd_from(file: &Path, data: &Path) -> Etcd {
    let peer = free_address();
    let (data_dir, url) = (format!("--data-dir={}", data.display()), format!("http://{peer}"));
    let cluster = format!("--initial-cluster=default={url}");
    let advertised = format!("--initial-advertise-peer-urls={url}");
    etcdctl("x:1", &["snapshot", "restore", file.to_str().unwrap(), &data_dir, &cluster, &advertised]);
    Etcd::start(data, peer)
}

#[test]
fn every_member_is_lost_and_restored() {
    let root = tempfile::tempdir().unwrap();
    let configs = configs(root.path(), 3);
    let members = Members::start(&configs);
    live(&members.endpoint(0));
    permit(&members.endpoint(0));
    let file = root.path().join("saved.db");
    save(&members.endpoint(1), &file);
    members.wait_for_agreement();
    let expected = seen(&members.endpoint(0));
    let old_cluster = members.stores[0].status().cluster_id;
    etcdctl(&members.endpoint(0), &["put", "lost", "1"]);
    members.stop();
    for config in &configs {
        std::fs::remove_dir_all(&config.data_dir).unwrap();
    }

    let saved = expected["revision"].as_i64().unwrap();
    for config in &configs {
        let restored = restore(&file, config, None).unwrap();
        assert_eq!((restored.saved_revision, restored.revision), (saved, saved + 1_000_000_000));
    }
    let members = Members::start(&configs);
    let endpoint = members.endpoint(2);
    let run = |line: &str| run(&endpoint, line);
    let now: Value = serde_json::from_str(&run("get --prefix '' -w json")).unwrap();
    assert_eq!(now["kvs"], expected["now"], "the same keys, with their revisions and versions");
    assert!(now["header"]["revision"].as_i64() > Some(saved + 1), "above what clients have seen");
    assert_ne!(members.stores[0].status().cluster_id, old_cluster);
    run("put after 1");
    members.wait_for_agreement();
    // A watch that had seen the write which is lost is told so.
    let ctl = Etcdctl { flags: vec![format!("--endpoints={endpoint}")] };
    let watch = ctl.run(&format!("watch lost --rev={}", saved + 2), "");
    let said = String::from_utf8_lossy(&watch.stderr);
    assert!(said.contains("required revision has been compacted"), "{said}");
    members.stop();
    // And again after a restart.
    let members = Members::start(&configs);
    etcdctl(&members.endpoint(0), &["put", "after", "2"]);
    members.wait_for_agreement();
    members.stop();
}

#[test]
fn a_snapshot_without_its_end_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path: PathBuf = root.path().join("short.db");
    std::fs::write(&path, vec![0; 4096]).unwrap();
    let member = Config::new("m0", root.path().join("m0"));
    assert!(matches!(restore(&path, &member, None), Err(SnapshotError::NoChecksum { .. })));
    std::fs::write(&path, vec![0; 4096 + 32]).unwrap();
    assert!(matches!(restore(&path, &member, None), Err(SnapshotError::Checksum { .. })));
    assert!(!member.data_dir.exists());
}
