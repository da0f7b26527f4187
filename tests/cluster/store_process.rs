//! `quorate store` in the place of etcd: an `etcd.conf` as it is, etcd's TLS flags,
//! etcd's own client, and an end that no client notices.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Result, ensure};
use quorate_tests::{binary, eventually};
use quorate_transport::authority::{Authority, Profile};
use tempfile::TempDir;

use crate::store_member::{Member, START, etcdctl, etcdctl_prints, free_ports, leader, start_all, write_confs};

#[test]
fn an_etcd_conf_runs_as_it_is() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_ports()?;
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|port| format!("http://127.0.0.1:{port}"));
    let confs = write_confs(folder.path(), "http", &[p0, p1, p2], &clients, "")?;
    let mut members = start_all(&confs)?;
    ensure!(members[0].said().contains("ETCD_SNAPSHOT_COUNT has no effect"), "{}", members[0].said());

    ensure!(etcdctl_prints(&endpoints[..1], &["put", "a", "1"])? == "OK\n");
    for endpoint in &endpoints {
        ensure!(etcdctl_prints(std::slice::from_ref(endpoint), &["get", "a"])? == "a\n1\n");
    }
    eventually("every member to say where clients reach it", START, || {
        let list = etcdctl_prints(&endpoints, &["member", "list"])?;
        let known = |(index, endpoint): (usize, &String)| {
            list.contains(&format!("m{index}, http://")) && list.contains(endpoint.as_str())
        };
        Ok(endpoints.iter().enumerate().all(known).then_some(()))
    })?;

    // A leader that is told to end goes without a failed write.
    let leading = leader(&endpoints)?;
    let others: Vec<String> = endpoints.iter().filter(|endpoint| **endpoint != endpoints[leading]).cloned().collect();
    let status = members[leading].stop()?;
    ensure!(status.success(), "{status}: {}", members[leading].said());
    ensure!(etcdctl_prints(&others[..1], &["put", "a", "2"])? == "OK\n", "a write through a survivor");

    members[leading] = Member::start(&members[leading].conf.clone())?;
    members[leading].wait_until_ready()?;
    ensure!(etcdctl_prints(&endpoints[leading..=leading], &["get", "a", "--print-value-only"])? == "2\n");
    for member in &mut members {
        let status = member.stop()?;
        ensure!(status.success(), "{status}: {}", member.said());
    }
    Ok(())
}

#[test]
fn tls_is_as_etcd_has_it() -> Result<()> {
    let folder = TempDir::new()?;
    let authority = Authority::load_or_create(folder.path(), "ca", "test")?;
    let (cert, key) = (folder.path().join("m.crt"), folder.path().join("m.key"));
    // As operators make them: an address and no name of ours.
    authority.issue(&Profile::new("member").address(Ipv4Addr::LOCALHOST.into()).server().client(), &cert, &key)?;
    let ca = authority.certificate_path().display().to_string();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());

    let [p0, p1, p2, c0, c1, c2, plain] = free_ports()?;
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|port| format!("https://127.0.0.1:{port}"));
    let extra = format!(
        "ETCD_CERT_FILE={cert}\nETCD_KEY_FILE={key}\nETCD_TRUSTED_CA_FILE={ca}\nETCD_CLIENT_CERT_AUTH=true\n\
         ETCD_PEER_CERT_FILE={cert}\nETCD_PEER_KEY_FILE={key}\nETCD_PEER_TRUSTED_CA_FILE={ca}\n\
         ETCD_PEER_CLIENT_CERT_AUTH=true\n"
    );
    let confs = write_confs(folder.path(), "https", &[p0, p1, p2], &clients, &extra)?;
    // One member also serves in plain text and answers monitoring, as its URLs say.
    let text = std::fs::read_to_string(&confs[0])?;
    let urls = format!("ETCD_LISTEN_CLIENT_URLS=\"https://127.0.0.1:{c0}\"");
    let both = format!("ETCD_LISTEN_CLIENT_URLS=\"https://127.0.0.1:{c0},http://127.0.0.1:{plain}\"");
    std::fs::write(&confs[0], text.replace(&urls, &both))?;
    let mut members = start_all(&confs)?;

    let identity = [format!("--cacert={ca}"), format!("--cert={cert}"), format!("--key={key}")];
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    let with_identity = |arguments: &[&'static str]| [arguments, identity.as_slice()].concat();
    ensure!(etcdctl_prints(&endpoints, &with_identity(&["put", "a", "1"]))? == "OK\n");
    let stranger = etcdctl(&endpoints[..1], &["get", "a", "--command-timeout=2s", identity[0]])?;
    ensure!(!stranger.status.success(), "a client without a certificate was let in");
    let plain = [format!("http://127.0.0.1:{plain}")];
    ensure!(etcdctl_prints(&plain, &["get", "a"])? == "a\n1\n", "the plain URL serves beside the other");
    members.iter_mut().try_for_each(|member| member.stop().map(|_| ()))
}

#[test]
fn https_without_certificates_makes_them() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_ports()?;
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|port| format!("https://127.0.0.1:{port}"));
    let mut members = start_all(&write_confs(folder.path(), "https", &[p0, p1, p2], &clients, "")?)?;
    let skip = ["--insecure-transport=false", "--insecure-skip-tls-verify"];
    ensure!(etcdctl_prints(&endpoints, &["put", "a", "1", skip[0], skip[1]])? == "OK\n");
    ensure!(etcdctl_prints(&endpoints[2..], &["get", "a", skip[0], skip[1]])? == "a\n1\n");
    ensure!(folder.path().join("m0.data/fixtures/client/cert.pem").is_file(), "certificates lie in fixtures");
    members.iter_mut().try_for_each(|member| member.stop().map(|_| ()))
}

#[test]
fn what_etcd_wrote_is_not_written_over() -> Result<()> {
    let folder = TempDir::new()?;
    std::fs::create_dir_all(folder.path().join("member/wal"))?;
    let output = Command::new(binary()?).args(["store", "-data-dir"]).arg(folder.path()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("quorate snapshot import"), "{said}");
    Ok(())
}
