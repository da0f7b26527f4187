//! Every command of Debian's `etcdctl`, run on both clusters, answers compared.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::report;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::commands::{COMMANDS, PERMISSIONS, USERS};
use crate::known;
use crate::script::difference;
use crate::server::{Cluster, Program};

/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a command that does not end may speak.
const LISTENING: Duration = Duration::from_millis(1200);

struct Etcdctl<'a> {
    cluster: &'a Cluster,
    endpoints: String,
}

impl<'a> Etcdctl<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        Self { cluster, endpoints: cluster.endpoints() }
    }

    fn at(cluster: &'a Cluster, member: usize) -> Self {
        Self { cluster, endpoints: format!("http://{}", cluster.members[member].client) }
    }

    fn spawn(&self, command: &str) -> Result<Child> {
        let command = command.replace("{folder}", &self.cluster.folder().to_string_lossy());
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints))
            .args(words(&command))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("etcdctl does not run (Debian: etcd-client)")
    }

    /// Runs a command to its end, or listens to one that has none.
    async fn run(&self, command: &str, input: &str) -> Result<Output> {
        if command.starts_with("watch ") {
            return self.listen(command).await;
        }
        let mut child = self.spawn(command)?;
        let mut stdin = child.stdin.take().context("standard input is a pipe")?;
        // A command that does not read may have ended already.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let ended = timeout(PATIENCE, child.wait_with_output()).await;
        Ok(ended.with_context(|| format!("{command} hangs"))??)
    }

    /// What it prints when it succeeds.
    async fn succeed(&self, command: &str) -> Result<String> {
        let output = self.run(command, "").await?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{:?}: {command}: {errors}", self.cluster.program);
        Ok(String::from_utf8(output.stdout)? + &errors)
    }

    /// Lets a command that does not end speak for a while.
    async fn listen(&self, command: &str) -> Result<Output> {
        let child = self.spawn(command)?;
        sleep(LISTENING).await;
        interrupted(child, "TERM").await
    }
}

/// Ends a command by a signal; what it said until then.
async fn interrupted(child: Child, signal: &str) -> Result<Output> {
    let id = child.id().context("it ended by itself")?;
    Command::new("kill").args([format!("-{signal}"), id.to_string()]).status().await?;
    Ok(timeout(PATIENCE, child.wait_with_output()).await.context("it does not end")??)
}

/// A command line's words; single quotes keep a word together.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(ToOwned::to_owned));
        }
    }
    words
}

/// What must be the same: whether it succeeds, the answer without the names of who
/// answered, and the last line of an error.
fn essence(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&text).into_iter().collect();
    let answer = match values {
        Ok(mut values) if values.iter().any(Value::is_object) => {
            values.iter_mut().for_each(forget_who);
            values.iter().map(|value| format!("{value:#}")).collect::<Vec<_>>().join("\n")
        }
        _ => text,
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    // Lines of its log bear the time.
    let error = errors.lines().rfind(|line| !line.starts_with(r#"{"level""#)).unwrap_or_default();
    let code = output.status.code();
    format!("code {code:?}\n{}\nerror: {}", impersonal(&answer), impersonal(error))
}

fn forget_who(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["cluster_id", "member_id", "raft_term"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(forget_who);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_who),
        _ => {}
    }
}

/// Without ids, addresses, sizes and times, which no two clusters share.
fn impersonal(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        // A lease, a member, a cluster: long hexadecimal numbers; a lock's key ends in one.
        let last = bare.rsplit('/').next().unwrap_or_default();
        let id = last.len() >= 11 && last.bytes().all(|byte| byte.is_ascii_hexdigit());
        if id {
            return word.replace(last, "<id>");
        }
        if word.contains("127.") || word.contains("/tmp/") || word.contains("quorate-diff-") {
            return "<place>".to_owned();
        }
        word.to_owned()
    };
    let line = |line: &str| {
        if let Some((name, _)) = line.split_once(" : ")
            && ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""].contains(&name)
        {
            return format!("{name} : <id>");
        }
        // Of an id with fewer digits than most, etcdctl makes up for the others by spaces.
        line.split(' ').map(word).collect::<Vec<_>>().join(" ").replace("  <id>", " <id>")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// What cannot be the same: the version and size of a database, hashes, how long it took,
/// and the widths of tables with such. Whether it succeeds is.
fn is_measure(command: &str) -> bool {
    let measures = ["endpoint", "-w table", "-w protobuf", "version"];
    measures.iter().any(|measure| command.contains(measure))
}

/// One member of etcd, and `size` of Quorate.
async fn pair(size: usize, flags: &[&str]) -> Result<[Cluster; 2]> {
    let (etcd, quorate) =
        tokio::join!(Cluster::start(Program::Etcd, 1, flags), Cluster::start(Program::Quorate, size, flags));
    Ok([etcd?, quorate?])
}

/// Runs all commands on both, each at the next member; returns the differences.
async fn compare(clusters: &[Cluster; 2], commands: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for (number, (command, input)) in commands.iter().enumerate() {
        let [etcd, quorate] = clusters.each_ref().map(|cluster| Etcdctl::at(cluster, number % cluster.members.len()));
        let (theirs, ours) = tokio::join!(etcd.run(command, input), quorate.run(command, input));
        let shown = |output: &Output| match *command {
            command if is_measure(command) => output.status.to_string(),
            // In the order of their ids, which each cluster chooses.
            "member list" => sorted(&essence(output)),
            _ => essence(output),
        };
        let (expected, found) = (shown(&theirs?), shown(&ours?));
        if expected != found {
            differences.push(format!("etcdctl {command} {input:?}\n{}", difference(&expected, &found)));
        }
    }
    Ok(differences)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_sees_no_difference() -> Result<()> {
    let differences = known::unknown(known::COMMANDS, compare(&pair(1, &[]).await?, COMMANDS).await?);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_administers_users() -> Result<()> {
    let mut differences = Vec::new();
    for (size, commands) in [(1, USERS), (3, PERMISSIONS)] {
        differences.extend(compare(&pair(size, &["--bcrypt-cost=4"]).await?, commands).await?);
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Waits until a command that goes on has printed so many lines.
async fn lines_of(child: &mut Child, count: usize) -> Result<Vec<String>> {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let stdout = child.stdout.as_mut().context("standard output is a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut found = Vec::new();
    while found.len() < count {
        let line = timeout(PATIENCE, lines.next_line()).await.context("it says nothing")??;
        found.push(line.context("it ended")?);
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_elections_exclude_each_other() -> Result<()> {
    let cluster = Cluster::start(Program::Quorate, 3, &[]).await?;
    let ctl = Etcdctl::of(&cluster);

    let journal = cluster.folder().join("journal").to_string_lossy().into_owned();
    let work = format!("lock mutex -- sh -c 'echo in >> {journal}; sleep 0.2; echo out >> {journal}'");
    let (a, b, c) = tokio::join!(ctl.run(&work, ""), ctl.run(&work, ""), ctl.run(&work, ""));
    ensure!([a?, b?, c?].iter().all(|output| output.status.success()), "a lock was not given");
    ensure!(std::fs::read_to_string(&journal)? == "in\nout\n".repeat(3), "two held the lock at once");

    let mut holder = ctl.spawn("lock mutex")?;
    let key = lines_of(&mut holder, 1).await?.concat();
    ensure!(key.starts_with("mutex/"), "{key}");
    let mut waiting = ctl.spawn("lock mutex echo mine")?;
    ensure!(timeout(LISTENING, waiting.wait()).await.is_err(), "the lock was given twice");
    interrupted(holder, "INT").await?;
    ensure!(lines_of(&mut waiting, 1).await? == ["mine"], "the lock is lost");

    let mut first = ctl.spawn("elect office one")?;
    let elected = lines_of(&mut first, 2).await?;
    ensure!(elected[0].starts_with("office/") && elected[1] == "one", "{elected:?}");
    let mut observer = ctl.spawn("elect -l office")?;
    ensure!(lines_of(&mut observer, 2).await? == elected, "another leader is seen");
    let mut second = ctl.spawn("elect office two")?;
    interrupted(first, "INT").await?;
    let next = lines_of(&mut second, 2).await?;
    ensure!(next[0].starts_with("office/") && next[1] == "two", "{next:?}");
    interrupted(second, "INT").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_operates_three_members() -> Result<()> {
    let cluster = Cluster::start(Program::Quorate, 3, &[]).await?;
    let ctl = Etcdctl::of(&cluster);
    ensure!(ctl.succeed("member list").await?.lines().count() == 3, "three members");
    ensure!(ctl.succeed("endpoint health --cluster").await?.matches("is healthy").count() == 3, "all healthy");
    let (ids, leader) = cluster.who().await?;
    let heir = (leader + 1) % 3;
    ctl.succeed(&format!("move-leader {:x}", ids[heir])).await?;
    ensure!(cluster.who().await?.1 == heir, "leadership did not move");
    let refused = Etcdctl::at(&cluster, leader).run(&format!("move-leader {:x}", ids[leader]), "").await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("no leader endpoint given"), "{said}");
    ensure!(ctl.succeed("endpoint hashkv --cluster").await?.lines().count() == 3, "three hashes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_agree_with_their_sources() -> Result<()> {
    let clusters = pair(1, &[]).await?;
    for (source, destination) in [(0, 1), (1, 0)] {
        let (from, to) = (Etcdctl::of(&clusters[source]), Etcdctl::of(&clusters[destination]));
        from.succeed("put mirror/before 1").await?;
        let mirror = from.spawn(&format!("make-mirror --prefix mirror/ --dest-prefix copy/ {}", to.endpoints))?;
        let expected = "copy/before\n1\ncopy/during\n2\n";
        let mut found = String::new();
        from.succeed("put mirror/during 2").await?;
        for _ in 0..100 {
            found = to.succeed("get --prefix copy/").await?;
            if found == expected {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        drop(mirror);
        ensure!(found == expected, "{:?} mirrored into {:?}: {found}", from.cluster.program, to.cluster.program);
        from.succeed("del --prefix mirror/").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_etcds() -> Result<()> {
    let clusters = pair(1, &[]).await?;
    let mut states = Vec::new();
    for cluster in &clusters {
        let ctl = Etcdctl::of(cluster);
        for number in 0..50 {
            ctl.succeed(&format!("put key{} {number}", number % 20)).await?;
        }
        ctl.succeed("snapshot save {folder}/snapshot").await?;
        let status: Value = serde_json::from_str(&ctl.succeed("snapshot status {folder}/snapshot -w json").await?)?;
        ctl.succeed("snapshot restore {folder}/snapshot --data-dir {folder}/restored").await?;
        states.push((status["revision"].clone(), ctl.succeed("get --prefix '' -w json --rev=30").await?));
    }
    ensure!(states[0].0 == states[1].0, "the revisions of the snapshots differ: {states:?}");
    // etcd starts from what Quorate saved, with the same history.
    let [_, quorate] = &clusters;
    let restored = Cluster::start_from(Program::Etcd, &quorate.folder().join("restored")).await?;
    let ctl = Etcdctl::of(&restored);
    let mut values = [ctl.succeed("get --prefix '' -w json --rev=30").await?, states[1].1.clone()]
        .map(|text| serde_json::from_str::<Value>(&text));
    for value in values.iter_mut().flatten() {
        value["header"] = Value::Null;
    }
    let [theirs, ours] = values;
    ensure!(theirs? == ours?, "another history was restored");
    Ok(())
}

/// What `etcdctl` measures: the small load always, the minute of `check perf` if asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_checks_pass() -> Result<()> {
    let cluster = Cluster::start(Program::Quorate, 1, &[]).await?;
    let ctl = Etcdctl::of(&cluster);
    let mut checks = vec!["check datascale --load=s --auto-compact --auto-defrag --command-timeout=60s"];
    if std::env::var_os("QUORATE_LONG_TESTS").is_some() {
        checks.push("check perf --auto-compact --auto-defrag --command-timeout=60s");
    }
    for command in checks {
        let child = ctl.spawn(command)?;
        let output = timeout(Duration::from_secs(180), child.wait_with_output()).await.context("it hangs")??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && said.contains("PASS") && !said.contains("FAIL"), "{command}: {said}");
        for line in said.lines().filter(|line| line.contains("PASS")) {
            report(&format!("etcdctl {command}: {}", line.trim()));
        }
    }
    Ok(())
}
