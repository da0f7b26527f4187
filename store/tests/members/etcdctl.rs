//! A stock `etcdctl` with a certificate, at a follower of three members.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use quorate_transport::authority::{Authority, Profile};
use quorate_transport::tls::{STORE_SERVER_NAME, TlsFiles};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::etcd::Etcdctl;
use crate::common::{Cluster, wait};

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

    assert_eq!(succeed("put a 1"), "OK\n");
    assert_eq!(succeed("get a"), "a\n1\n");

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
