//! Every command of Debian's `etcdctl`, run on both clusters, answers compared.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_tests::report;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::known;
use crate::script::difference;
use crate::server::{Cluster, Program};

/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a command that does not end may speak.
const LISTENING: Duration = Duration::from_millis(1200);

/// Commands and their standard input, run in this order. `{folder}` is the cluster's own.
const COMMANDS: &[(&str, &str)] = &[
    ("version", ""),
    ("put a 1", ""),
    ("put a 2 --prev-kv", ""),
    ("put b 1", ""),
    ("put fromstdin", "a value\nof two lines"),
    ("get fromstdin", ""),
    ("del fromstdin", ""),
    ("get a", ""),
    ("get nothing", ""),
    ("get a -w json", ""),
    ("get a -w fields", ""),
    ("get a --hex", ""),
    ("get a --rev=2 -w json", ""),
    ("get --prefix '' -w json", ""),
    ("get --from-key b", ""),
    ("get a c", ""),
    ("get --prefix '' --keys-only", ""),
    ("get --prefix '' --limit=1 -w json", ""),
    ("get --prefix '' --sort-by=MODIFY --order=DESCEND", ""),
    ("get --prefix '' --sort-by=VALUE --order=ASCEND", ""),
    ("get --prefix '' --sort-by=CREATE", ""),
    ("get --prefix '' --sort-by=VERSION --order=DESCEND", ""),
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
    ("del --from-key zzz", ""),
    ("txn", "mod(\"f\") = \"0\"\n\nput f 1\nget f\n\nget f\n\n"),
    ("txn", "mod(\"f\") = \"0\"\n\nput f 2\n\nget f\n\n"),
    ("txn -w json", "value(\"f\") = \"1\"\nver(\"f\") > \"0\"\n\nput f 3\ndel e\n\nput f 4\n\n"),
    ("txn", "\nput g 1\nput g 2\n\n\n"),
    ("txn", "\nput h 1\ndel h\n\n\n"),
    ("txn -w json", "create(\"nothing\") = \"0\"\n\nget f\n\n\n"),
    ("lease grant 100", ""),
    ("lease grant 9000000001", ""),
    ("lease timetolive 4d2", ""),
    ("lease revoke 4d2", ""),
    ("lease keep-alive 4d2 --once", ""),
    ("lease list", ""),
    ("compaction 5", ""),
    ("compaction 5", ""),
    ("compaction 6 --physical", ""),
    ("compaction 99999", ""),
    ("get a --rev=2", ""),
    ("get a --rev=99999", ""),
    ("get a --rev=6", ""),
    ("get --prefix '' -w json", ""),
    ("get --prefix '' -w protobuf", ""),
    ("alarm list", ""),
    ("alarm disarm", ""),
    ("defrag", ""),
    ("endpoint health", ""),
    ("endpoint status", ""),
    ("endpoint hashkv", ""),
    ("member list", ""),
    ("member list -w table", ""),
    ("member add m0", ""),
    ("member add late --learner --peer-urls=http://127.0.0.9:9", ""),
    ("member list", ""),
    ("member add other --peer-urls=nonsense", ""),
    ("member remove 123", ""),
    ("member promote 123", ""),
    ("member update 123 --peer-urls=http://127.0.0.9:9", ""),
    ("move-leader 123", ""),
    ("lock name echo held", ""),
    ("lock name --ttl=5 false", ""),
    ("get --prefix name", ""),
    ("snapshot save {folder}/snapshot", ""),
    ("snapshot save", ""),
    ("completion bash", ""),
    ("no-such-command", ""),
];

/// Users and roles, as an administrator sets them up.
const AUTH: &[(&str, &str)] = &[
    ("user add root:secret", ""),
    ("user add root:secret", ""),
    ("user add u --interactive=false", "p\n"),
    ("user add cert --no-password", ""),
    ("user list", ""),
    ("user get u", ""),
    ("user get nobody", ""),
    ("user passwd u --interactive=false", "q\n"),
    ("role add root", ""),
    ("role add r", ""),
    ("role add r", ""),
    ("role grant-permission r read a", ""),
    ("role grant-permission r readwrite b --prefix", ""),
    ("role grant-permission r write x y", ""),
    ("role grant-permission r read k --from-key", ""),
    ("role grant-permission nothing read a", ""),
    ("role grant-permission r paint a", ""),
    ("role get r", ""),
    ("role get nothing", ""),
    ("role list", ""),
    ("role revoke-permission r x y", ""),
    ("role revoke-permission r x y", ""),
    ("role revoke-permission r k --from-key", ""),
    ("role get r", ""),
    ("auth enable", ""),
    ("user grant-role root root", ""),
    ("user grant-role u r", ""),
    ("user grant-role u nothing", ""),
    ("user get u --detail", ""),
    ("put a 1", ""),
    ("auth enable", ""),
    ("put a 2", ""),
    ("get a", ""),
    ("get a --user=u:q", ""),
    ("get a --user=u:p", ""),
    ("get a --user=u --password=q", ""),
    ("put a 2 --user=u:q", ""),
    ("put b/1 1 --user=u:q", ""),
    ("get b/ --prefix --user=u:q", ""),
    ("get a z --user=u:q", ""),
    ("get '' --prefix --user=u:q", ""),
    ("del b/1 --user=u:q", ""),
    ("user list --user=u:q", ""),
    ("user get u --user=u:q", ""),
    ("user list --user=root:secret", ""),
    ("get '' --prefix --user=root:secret", ""),
    ("user revoke-role u r --user=root:secret", ""),
    ("get a --user=u:q", ""),
    ("endpoint health --user=root:secret", ""),
    ("member list --user=u:q", ""),
    ("compaction 2 --user=u:q", ""),
    ("user delete root --user=root:secret", ""),
    ("role delete r --user=root:secret", ""),
    ("user delete u --user=root:secret", ""),
    ("auth disable --user=root:secret", ""),
    ("user delete cert", ""),
    ("user delete cert", ""),
    ("role delete r", ""),
    ("user list", ""),
    ("role list", ""),
];

/// Watches, which do not end by themselves. They begin after the compacted revision, of
/// which 3.4 forgets deletions and newer ones do not.
const WATCHES: &[&str] = &[
    "watch --prefix '' --rev=7",
    "watch a --rev=7 --prev-kv",
    "watch --prefix '' --rev=2",
    "watch f --rev=7 -- echo changed",
    "watch a g --rev=7 -w json",
];

struct Etcdctl<'a> {
    cluster: &'a Cluster,
    endpoints: String,
}

impl<'a> Etcdctl<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        Self { cluster, endpoints: cluster.endpoints() }
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

    async fn run(&self, command: &str, input: &str) -> Result<Output> {
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
    let error = errors.lines().last().unwrap_or_default();
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
        if word.contains("127.0.0.1:") || word.contains("/tmp/") || word.contains("quorate-diff-") {
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
        line.split(' ').map(word).collect::<Vec<_>>().join(" ")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// What cannot be the same: the version and size of a database, hashes, how long it took,
/// and the widths of tables with such. Whether it succeeds is.
fn is_measure(command: &str) -> bool {
    let measures = ["endpoint", "-w table", "-w protobuf", "version"];
    measures.iter().any(|measure| command.contains(measure))
}

async fn pair(size: usize) -> Result<[Cluster; 2]> {
    let (etcd, quorate) =
        tokio::join!(Cluster::start(Program::Etcd, size, &[]), Cluster::start(Program::Quorate, size, &[]));
    Ok([etcd?, quorate?])
}

/// Runs all commands on both; returns the differences.
fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

async fn compare(clusters: &[Cluster; 2], commands: &[(&str, &str)]) -> Result<Vec<String>> {
    let [etcd, quorate] = [0, 1].map(|side: usize| Etcdctl::of(&clusters[side]));
    let mut differences = Vec::new();
    for (command, input) in commands {
        let (theirs, ours) = tokio::join!(etcd.run(command, input), quorate.run(command, input));
        let (theirs, ours) = (theirs?, ours?);
        let (expected, found) = match is_measure(command) {
            true => (theirs.status.to_string(), ours.status.to_string()),
            // Members are listed by their ids, which are drawn.
            false if command.starts_with("member list") => (sorted(&essence(&theirs)), sorted(&essence(&ours))),
            false => (essence(&theirs), essence(&ours)),
        };
        if expected != found {
            differences.push(format!("etcdctl {command} {input:?}\n{}", difference(&expected, &found)));
        }
    }
    Ok(differences)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_sees_no_difference() -> Result<()> {
    let clusters = pair(1).await?;
    let mut differences = compare(&clusters, COMMANDS).await?;
    let [etcd, quorate] = [0, 1].map(|side: usize| Etcdctl::of(&clusters[side]));
    for command in WATCHES {
        let (theirs, ours) = tokio::join!(etcd.listen(command), quorate.listen(command));
        let (expected, found) = (essence(&theirs?), essence(&ours?));
        if expected != found {
            differences.push(format!("etcdctl {command}\n{}", difference(&expected, &found)));
        }
    }
    let differences = known::unknown(known::COMMANDS, differences);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_administers_users() -> Result<()> {
    let differences = compare(&pair(1).await?, AUTH).await?;
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
    let at_follower = Etcdctl { cluster: &cluster, endpoints: format!("http://{}", cluster.members[leader].client) };
    let refused = at_follower.run(&format!("move-leader {:x}", ids[leader]), "").await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("no leader endpoint given"), "{said}");
    ensure!(ctl.succeed("endpoint hashkv --cluster").await?.lines().count() == 3, "three hashes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_agree_with_their_sources() -> Result<()> {
    let clusters = pair(1).await?;
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
    let clusters = pair(1).await?;
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
