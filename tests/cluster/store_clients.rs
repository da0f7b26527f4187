//! The store as etcd's own client sees it, and how it meets damaged files.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::{TestCluster, eventually};
use serde_json::Value;

/// Debian's etcdctl as the cluster's administrator, against all three members.
fn etcdctl(test: &TestCluster, arguments: &[&str]) -> Result<String> {
    let status = test.cluster.status()?;
    let endpoints: Vec<String> = status.members.iter().map(|member| member.client.to_string()).collect();
    let pki = test.cluster.data_dir().join("pki/etcd");
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .arg(format!("--cacert={}", pki.join("ca.crt").display()))
        .arg(format!("--cert={}", pki.join("healthcheck-client.crt").display()))
        .arg(format!("--key={}", pki.join("healthcheck-client.key").display()))
        .args(arguments)
        .output()
        .context("etcdctl does not run")?;
    ensure!(
        output.status.success(),
        "etcdctl {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn etcdctl_sees_three_members_in_agreement() -> Result<()> {
    let mut test = TestCluster::start(3, 0)?;
    etcdctl(&test, &["put", "greeting", "hello"])?;
    ensure!(etcdctl(&test, &["get", "greeting"])? == "greeting\nhello\n");
    for key in ["/registry/namespaces/default", "/registry/services/specs/default/kubernetes"] {
        eventually(key, Duration::from_secs(10), || {
            let keys = etcdctl(&test, &["get", "/registry/", "--prefix", "--keys-only"])?;
            Ok(keys.lines().any(|line| line == key).then_some(()))
        })?;
    }
    // Hashes are of one revision only when nobody writes between the three questions.
    eventually("the members' hashes to agree", Duration::from_secs(20), || {
        let hashes: Value = serde_json::from_str(&etcdctl(&test, &["endpoint", "hashkv", "-w", "json"])?)?;
        let hashes: Vec<&Value> =
            hashes.as_array().context("a list")?.iter().map(|member| &member["HashKV"]["hash"]).collect();
        Ok((hashes.len() == 3 && hashes.iter().all(|hash| hash.is_u64() && *hash == hashes[0])).then_some(()))
    })?;
    let status: Value = serde_json::from_str(&etcdctl(&test, &["endpoint", "status", "-w", "json"])?)?;
    let members = status.as_array().context("a list")?;
    let terms: Vec<&Value> = members.iter().map(|member| &member["Status"]["raftTerm"]).collect();
    let leaders: Vec<&Value> = members.iter().map(|member| &member["Status"]["leader"]).collect();
    ensure!(terms.len() == 3 && terms.iter().all(|term| *term == terms[0]), "terms differ: {status}");
    ensure!(leaders.iter().all(|leader| *leader == leaders[0]), "leaders differ: {status}");
    ensure!(etcdctl(&test, &["endpoint", "health"]).is_ok(), "a member is not healthy");
    test.cluster.stop()
}

/// The files of one member's log, oldest first.
fn log_files(test: &TestCluster, member: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![test.cluster.data_dir().join(member)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("no folder {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.parent().and_then(Path::file_name).is_some_and(|name| name == "wal") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The place after the last byte that is not zero: the end of what was logged.
fn end_of_log(path: &Path) -> Result<u64> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    let last = bytes.iter().rposition(|byte| *byte != 0).context("the log is not empty")?;
    Ok(u64::try_from(last)? + 1)
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes).context("cannot damage the log")
}

/// The log file that is written now, and where its content ends.
fn current_log(test: &TestCluster) -> Result<(PathBuf, u64)> {
    let files = log_files(test, "m1")?;
    let written = files.into_iter().filter_map(|path| end_of_log(&path).ok().map(|end| (path, end)));
    written.max_by_key(|(_, end)| *end).context("a log file")
}

#[test]
fn damaged_logs_are_met_as_promised() -> Result<()> {
    let mut test = TestCluster::start(1, 0)?;
    let kubectl = test.kubectl();
    for number in 0..20 {
        kubectl.run(&["create", "configmap", &format!("c{number}")])?;
    }
    test.cluster.power_off()?;

    // A torn tail: the last bytes of the last record never reached the disk. What
    // was acknowledged lies before it, for the record after the last answer is cut.
    let (file, end) = current_log(&test)?;
    overwrite(&file, end, &[0xff; 100])?;
    test.cluster.launch()?;
    ensure!(
        kubectl.run(&["get", "configmaps", "-o", "name"])?.matches("/c").count() == 20,
        "an acknowledged object is gone"
    );
    test.cluster.stop()?;

    // Damage before the tail: valid records follow it.
    let (file, end) = current_log(&test)?;
    overwrite(&file, end / 2, &[0x5a; 16])?;
    let refused = test.cluster.launch().err().context("a damaged log was accepted")?;
    let name = file.file_name().context("a name")?.to_string_lossy().into_owned();
    ensure!(format!("{refused:#}").contains(&name), "the refusal does not name {name}: {refused:#}");
    Ok(())
}
