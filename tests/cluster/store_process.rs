//! `quorate store` in the place of etcd: an `etcd.conf` as it is, etcd's TLS flags,
//! etcd's own client, and an end that no client notices.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quorate_tests::{binary, eventually};
use quorate_transport::authority::{Authority, Profile};
use tempfile::TempDir;

use crate::store_member::{Member, START, etcdctl, etcdctl_prints, free_addresses, leader, start_all, write_confs};

#[test]
fn an_etcd_conf_runs_as_it_is() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_addresses();
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|client| format!("http://{client}"));
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
    let [p0, p1, p2, c0, c1, c2, plain] = free_addresses();
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|client| format!("https://{client}"));
    let authority = Authority::load_or_create(folder.path(), "ca", "test")?;
    let (cert, key) = (folder.path().join("m.crt"), folder.path().join("m.key"));
    // As operators make them: an address and no name of ours.
    authority.issue(&Profile::new("member").address(c0.ip()).server().client(), &cert, &key)?;
    let ca = authority.certificate_path().display().to_string();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let extra = format!(
        "ETCD_CERT_FILE={cert}\nETCD_KEY_FILE={key}\nETCD_TRUSTED_CA_FILE={ca}\nETCD_CLIENT_CERT_AUTH=true\n\
         ETCD_PEER_CERT_FILE={cert}\nETCD_PEER_KEY_FILE={key}\nETCD_PEER_TRUSTED_CA_FILE={ca}\n\
         ETCD_PEER_CLIENT_CERT_AUTH=true\n"
    );
    let confs = write_confs(folder.path(), "https", &[p0, p1, p2], &clients, &extra)?;
    // One member also serves in plain text and answers monitoring, as its URLs say.
    let text = std::fs::read_to_string(&confs[0])?;
    let urls = format!("ETCD_LISTEN_CLIENT_URLS=\"https://{c0}\"");
    let both = format!("ETCD_LISTEN_CLIENT_URLS=\"https://{c0},http://{plain}\"");
    std::fs::write(&confs[0], text.replace(&urls, &both))?;
    let mut members = start_all(&confs)?;

    let identity = [format!("--cacert={ca}"), format!("--cert={cert}"), format!("--key={key}")];
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    let with_identity = |arguments: &[&'static str]| [arguments, identity.as_slice()].concat();
    ensure!(etcdctl_prints(&endpoints, &with_identity(&["put", "a", "1"]))? == "OK\n");
    let stranger = etcdctl(&endpoints[..1], &["get", "a", "--command-timeout=2s", identity[0]])?;
    ensure!(!stranger.status.success(), "a client without a certificate was let in");
    let plain = [format!("http://{plain}")];
    ensure!(etcdctl_prints(&plain, &["get", "a"])? == "a\n1\n", "the plain URL serves beside the other");
    members.iter_mut().try_for_each(|member| member.stop().map(|_| ()))
}

#[test]
fn https_without_certificates_makes_them() -> Result<()> {
    let folder = TempDir::new()?;
    let [p0, p1, p2, c0, c1, c2] = free_addresses();
    let clients = [c0, c1, c2];
    let endpoints = clients.map(|client| format!("https://{client}"));
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

/// The status and the body of a page.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(START))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: store\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    let status = head.split(' ').nth(1).context("an answer begins with its status")?;
    Ok((status.parse()?, body.to_owned()))
}

#[test]
fn a_file_has_the_settings_and_monitoring_a_port() -> Result<()> {
    let folder = TempDir::new()?;
    let [peer, client, metrics] = free_addresses();
    let (file, conf) = (folder.path().join("store.yml"), folder.path().join("m0.conf"));
    let yaml = format!(
        "name: m0\n\
         data-dir: {data}\n\
         listen-peer-urls: http://{peer}\n\
         initial-advertise-peer-urls: http://{peer}\n\
         initial-cluster: m0=http://{peer}\n\
         listen-client-urls: http://{client}\n\
         advertise-client-urls: http://{client}\n\
         listen-metrics-urls: http://{metrics}\n\
         quota-backend-bytes: 1000000000\n\
         client-transport-security:\n  client-cert-auth: false\n",
        data = folder.path().join("data").display(),
    );
    std::fs::write(&file, yaml)?;
    std::fs::write(&conf, format!("ETCD_CONFIG_FILE={}\n", file.display()))?;
    let mut member = Member::start(&conf)?;
    member.wait_until_ready()?;

    // Counters are there before the first event, as alert rules expect.
    let (status, page) = get(metrics, "/metrics")?;
    ensure!(status == 200);
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_proposals_failed_total 0",
        "etcd_server_health_failures 0",
        "etcd_mvcc_put_total 0",
        "etcd_debugging_lease_renewed_total 0",
        "etcd_server_quota_backend_bytes 1000000000",
    ] {
        ensure!(page.lines().any(|found| found == line), "{line:?} is missing:\n{page}");
    }
    let endpoints = [format!("http://{client}")];
    etcdctl_prints(&endpoints, &["put", "a", "1"])?;
    let lease = etcdctl_prints(&endpoints, &["lease", "grant", "100"])?;
    let lease = lease.split(' ').nth(1).context("a lease")?;
    etcdctl_prints(&endpoints, &["lease", "keep-alive", "--once", lease])?;
    let (_, page) = get(metrics, "/metrics")?;
    for line in [
        "etcd_mvcc_put_total 1",
        "etcd_debugging_lease_renewed_total 1",
        "etcd_debugging_lease_ttl_total_bucket{le=\"128\"} 1",
    ] {
        ensure!(page.lines().any(|found| found == line), "{line:?} is missing:\n{page}");
    }
    let synced = page.lines().find_map(|line| line.strip_prefix("quorate_store_wal_fsync_seconds{quantile=\"0.99\"} "));
    let synced: f64 = synced.context("how long syncs took")?.parse()?;
    ensure!(synced > 0.0 && synced < 60.0, "syncs took {synced} s");

    ensure!(get(metrics, "/health")?.1.contains("\"health\":\"true\""));
    ensure!(get(metrics, "/version")?.1.contains("etcdserver"));
    ensure!(get(metrics, "/readyz")? == (200, "ok\n".to_owned()));
    ensure!(get(client, "/metrics")?.0 == 200, "clients' port answers too");
    let keys = etcdctl(&[format!("http://{metrics}")], &["get", "a", "--command-timeout=2s"])?;
    ensure!(!keys.status.success(), "monitoring's port serves keys");
    let status = member.stop()?;
    ensure!(status.success(), "{status}: {}", member.said());
    Ok(())
}
