//! A stock `etcdctl` sees no difference: the same commands against Quorate (three
//! members, mTLS) and against the etcd beside it, answers compared.

#![allow(clippy::disallowed_methods)] // Threads of the test wait for members that are not theirs to pause.

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use quorate_transport::authority::{Authority, Profile};
use quorate_transport::tls::{STORE_SERVER_NAME, TlsFiles};
use serde_json::Value;
use tempfile::TempDir;

use self::common::etcd::{Etcdctl, essence, start_etcd};
use self::common::{Cluster, wait};

/// Commands and their standard input, run in this order.
const COMMANDS: &[(&str, &str)] = &[
    ("put a 1", ""),
    ("put a 2 --prev-kv", ""),
    ("put b 1", ""),
    ("get a", ""),
    ("get nothing", ""),
    ("get a -w json", ""),
    ("get a --rev=2 -w json", ""),
    ("get --prefix '' -w json", ""),
    ("get --from-key b", ""),
    ("get a c", ""),
    ("get --prefix '' --keys-only", ""),
    ("get --prefix '' --limit=1 -w json", ""),
    ("get --prefix '' --sort-by=MODIFY --order=DESCEND", ""),
    ("get --prefix '' --consistency=s", ""),
    ("get a --print-value-only", ""),
    ("put a --ignore-value", ""),
    ("put nothing --ignore-value", ""),
    ("put c 3 --lease=4d2", ""),
    ("put '' x", ""),
    ("del b --prev-kv", ""),
    ("del b", ""),
    ("put d 1", ""),
    ("put e 1", ""),
    ("del --prefix d", ""),
    ("txn", "mod(\"f\") = \"0\"\n\nput f 1\nget f\n\nget f\n\n"),
    ("txn", "mod(\"f\") = \"0\"\n\nput f 2\n\nget f\n\n"),
    ("txn -w json", "value(\"f\") = \"1\"\nver(\"f\") > \"0\"\n\nput f 3\ndel e\n\nput f 4\n\n"),
    ("txn", "\nput g 1\nput g 2\n\n\n"),
    ("txn", "\nput h 1\ndel h\n\n\n"),
    ("txn -w json", "create(\"nothing\") = \"0\"\n\nget f\n\n\n"),
    ("lease timetolive 4d2", ""),
    ("lease revoke 4d2", ""),
    ("lease keep-alive 4d2 --once", ""),
    ("lease list", ""),
    ("compaction 5", ""),
    ("compaction 5", ""),
    ("compaction 99999", ""),
    ("get a --rev=2", ""),
    ("get a --rev=99999", ""),
    ("get a --rev=5", ""),
    ("get --prefix '' -w json", ""),
    ("alarm list", ""),
    ("defrag", ""),
    ("lock name echo held", ""),
];

/// What a member shows and demands, and where the same files lie for `etcdctl`.
fn identity(directory: &Path) -> TlsFiles {
    let authority = Authority::load_or_create(directory, "ca", "test").unwrap();
    let files = TlsFiles {
        cert: directory.join("member.crt"),
        key: directory.join("member.key"),
        ca: directory.join("ca.crt"),
    };
    let profile =
        Profile::new("member").dns(STORE_SERVER_NAME).address(IpAddr::V4(Ipv4Addr::LOCALHOST)).server().client();
    authority.issue(&profile, &files.cert, &files.key).unwrap();
    files
}

fn start_quorate() -> (Cluster, Etcdctl, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let files = identity(directory.path());
    let cluster = Cluster::start_with(3, |config| {
        config.listen_client = Some(([127, 0, 0, 1], 0).into());
        config.peer_tls = Some(files.clone());
        config.client_tls = Some(files.clone());
    });
    let leader = cluster.wait_for_leader();
    let ctl = Etcdctl { flags: flags(&cluster, (leader + 1) % 3, &files) };
    (cluster, ctl, directory)
}

fn flags(cluster: &Cluster, member: usize, files: &TlsFiles) -> Vec<String> {
    vec![
        format!("--endpoints=https://{}", cluster.client_address(member)),
        format!("--cacert={}", files.ca.display()),
        format!("--cert={}", files.cert.display()),
        format!("--key={}", files.key.display()),
    ]
}

#[test]
fn etcdctl_sees_no_difference() {
    let etcd = start_etcd(&[]);
    let (_cluster, ours, _directory) = start_quorate();
    let mut differences = Vec::new();
    for (command, input) in COMMANDS {
        let (theirs, mine) = (essence(&etcd.ctl.run(command, input)), essence(&ours.run(command, input)));
        if theirs != mine {
            differences.push(format!("{command} {input:?}\n  etcd:    {theirs:?}\n  quorate: {mine:?}"));
        }
    }
    for command in ["watch --prefix '' --rev=5", "watch a --rev=6 --prev-kv", "watch --prefix '' --rev=2"] {
        let time = Duration::from_secs(1);
        let (theirs, mine) = (essence(&etcd.ctl.run_for(command, time)), essence(&ours.run_for(command, time)));
        if theirs != mine {
            differences.push(format!("{command}\n  etcd:    {theirs:?}\n  quorate: {mine:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn etcdctl_operates_the_cluster() {
    let (cluster, ours, directory) = start_quorate();
    let succeed = |command: &str| {
        let output = ours.run(command, "");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap() + &errors
    };
    wait("the members' client addresses", || (succeed("member list").matches("https://").count() == 6).then_some(()));
    assert!(succeed("endpoint health").contains("is healthy"));
    let status: Value = serde_json::from_str(&succeed("endpoint status -w json")).unwrap();
    assert_eq!(status[0]["Status"]["version"], "3.7.0");
    succeed("endpoint hashkv");

    let granted = succeed("lease grant 100");
    let lease = granted.split(' ').nth(1).unwrap();
    succeed(&format!("put leased x --lease={lease}"));
    assert!(succeed(&format!("lease timetolive {lease} --keys")).contains("attached keys([leased])"));
    assert!(succeed("lease list").contains(lease));
    assert!(succeed(&format!("lease keep-alive {lease} --once")).contains("TTL(100)"));
    succeed(&format!("lease revoke {lease}"));
    assert_eq!(succeed("get leased"), "");

    let leader = cluster.wait_for_leader();
    let at_leader = Etcdctl { flags: flags(&cluster, leader, &files(directory.path())) };
    let heir = cluster.on((leader + 1) % 3, async |store| store.status().member_id);
    let moved = at_leader.run(&format!("move-leader {heir:x}"), "");
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    wait("the move of leadership", || (cluster.wait_for_leader() == (leader + 1) % 3).then_some(()));
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (cluster, _, directory) = start_quorate();
    let mut flags = flags(&cluster, 0, &files(directory.path()));
    flags.truncate(2);
    flags.push("--command-timeout=1s".to_owned());
    flags.push("--dial-timeout=1s".to_owned());
    let output = Etcdctl { flags }.run("get a", "");
    assert!(!output.status.success());
}

fn files(directory: &Path) -> TlsFiles {
    TlsFiles { cert: directory.join("member.crt"), key: directory.join("member.key"), ca: directory.join("ca.crt") }
}
