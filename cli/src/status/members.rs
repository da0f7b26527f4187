//! Any store, by its endpoints: members, roles, terms, lag, and where the space is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use quorate_proto::etcd::alarm_request::AlarmAction;
use quorate_proto::etcd::{AlarmRequest, AlarmType, Member};
use serde::{Deserialize, Serialize};

use super::{NO_QUORUM, summary};
use crate::endpoints::{Connection, Endpoints};
use crate::layout::{ClusterState, MasterPlace, Running};
use crate::members::{self, Seen};
use crate::output::{self, Format};

/// How many prefixes the table lists; JSON has all that the member tells.
const TABLE_PREFIXES: usize = 10;

/// A member that lacks more entries than this is named: followers of a busy leader always
/// lack a few.
const NOTABLE_LAG: u64 = 1000;

/// The histogram of the log's syncs, as etcd names it.
/// Of the last minute, and in a real etcd since the process has started.
const FSYNC: [&str; 2] = ["quorate_store_wal_fsync_seconds", "etcd_disk_wal_fsync_duration_seconds"];

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Where the API of a cluster of `quorate up` answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    leader: Option<String>,
    term: u64,
    revision: i64,
    /// How many more voting members may fail before writes stop.
    can_lose: usize,
    summary: String,
    members: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    space: Option<Space>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    id: String,
    /// As [`Seen::state`] says.
    role: &'static str,
    endpoint: Option<String>,
    term: Option<u64>,
    applied_index: Option<u64>,
    /// Entries that the furthest member has committed and this one has not applied.
    lag: Option<u64>,
    db_size_bytes: Option<i64>,
    db_size_in_use_bytes: Option<i64>,
    /// 99 of 100 syncs of the log took no longer.
    fsync_p99_ms: Option<f64>,
    version: Option<String>,
    /// What the member says is wrong: alarms, no leader.
    errors: Vec<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
}

/// A master of `quorate up` on this machine.
#[derive(Debug, Serialize)]
struct Process {
    api: SocketAddr,
    client: SocketAddr,
    peer: SocketAddr,
    pid: Option<u32>,
}

/// Where the keys' bytes are, as Quorate's members tell.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Space {
    total_bytes: u64,
    #[serde(default)]
    other_bytes: u64,
    prefixes: Vec<Prefix>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Prefix {
    prefix: String,
    bytes: u64,
}

pub(super) async fn run(endpoints: &Endpoints, output: Format) -> Result<u8> {
    let (endpoints, state) = endpoints.resolved()?;
    let connections = endpoints.connect().await?;
    let seen = match (members::look(&endpoints, &connections, false).await, &state) {
        (Ok(seen), _) => seen,
        // Down, and still known.
        (Err(_), Some(state)) => state.masters.iter().map(silent).collect(),
        (Err(error), None) => return Err(error),
    };
    let fsync_p99 = futures::future::join_all(seen.iter().map(fsync_p99)).await;
    let (mut alarms, mut space) = (BTreeMap::new(), None);
    if let Some(connection) = seen.iter().find_map(|seen| seen.connection.as_ref()) {
        alarms = alarms_of(connection).await;
        space = connection.get("/quorate/v1/space").await.ok().and_then(|body| serde_json::from_slice(&body).ok());
    }
    let report = report(&seen, &fsync_p99, &alarms, space, state.as_ref());
    output::print(output, &report, table)?;
    Ok(if report.leader.is_some() { 0 } else { NO_QUORUM })
}

/// A master of `quorate up` that does not answer, and of which nobody tells.
fn silent(master: &Running<MasterPlace>) -> Seen {
    let MasterPlace { name, client, peer, .. } = &master.place;
    let member = Member {
        name: name.clone(),
        client_ur_ls: vec![format!("https://{client}")],
        peer_ur_ls: vec![format!("https://{peer}")],
        ..Member::default()
    };
    Seen { member, ..Seen::default() }
}

/// How long 99 of 100 syncs of a member's log take at most, in seconds, if it tells.
async fn fsync_p99(seen: &Seen) -> Option<f64> {
    let metrics = seen.connection.as_ref()?.get("/metrics").await.ok()?;
    let metrics = String::from_utf8_lossy(&metrics);
    FSYNC.iter().find_map(|name| p99_seconds(&metrics, name))
}

/// The alarms that are raised, by member.
async fn alarms_of(connection: &Connection) -> BTreeMap<u64, Vec<String>> {
    let mut client = connection.maintenance();
    let request = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
    let mut alarms: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    if let Ok(answer) = connection.answer(client.alarm(request)).await {
        for alarm in answer.alarms {
            let kind = AlarmType::try_from(alarm.alarm).map_or("unknown alarm", |kind| kind.as_str_name());
            alarms.entry(alarm.member_id).or_default().push(format!("alarm {kind}"));
        }
    }
    alarms
}

/// Decides what to say from what the members answered.
fn report(
    seen: &[Seen],
    fsync_p99: &[Option<f64>],
    alarms: &BTreeMap<u64, Vec<String>>,
    space: Option<Space>,
    state: Option<&ClusterState>,
) -> Report {
    let statuses = || seen.iter().filter_map(|seen| seen.status.as_ref());
    let term = statuses().map(|status| status.raft_term).max().unwrap_or(0);
    let commit = statuses().map(|status| status.raft_index).max().unwrap_or(0);
    let members: Vec<Row> =
        seen.iter().zip(fsync_p99).map(|(seen, fsync_p99)| row(seen, *fsync_p99, alarms, commit, state)).collect();
    let voters = seen.iter().filter(|seen| seen.votes()).count();
    let living = seen.iter().filter(|seen| seen.votes() && seen.status.is_some()).count();
    let quorum = voters / 2 + 1;
    // One that leads nobody says so for a while.
    let leader = members.iter().find(|member| member.role == "leader" && member.term == Some(term) && living >= quorum);
    let leader = leader.map(|member| member.name.clone());
    let can_lose = if leader.is_some() { living.saturating_sub(quorum) } else { 0 };
    let mut summary =
        summary(if state.is_some() { "master" } else { "member" }, leader.as_deref(), term, living, voters, can_lose);
    for member in &members {
        if let Some(lag) = member.lag.filter(|lag| *lag > NOTABLE_LAG) {
            summary.push_str(&format!(" {} is {lag} entries behind.", member.name));
        }
        if member.errors.iter().any(|error| error == "alarm NOSPACE") {
            summary.push_str(&format!(" {} is out of space: writes are refused until there is room.", member.name));
        }
    }
    Report {
        endpoint: state.map(|state| state.endpoint),
        leader,
        term,
        revision: statuses()
            .filter_map(|status| status.header.as_ref())
            .map(|header| header.revision)
            .max()
            .unwrap_or(0),
        can_lose,
        summary,
        members,
        space,
    }
}

fn row(
    seen: &Seen,
    fsync_p99: Option<f64>,
    alarms: &BTreeMap<u64, Vec<String>>,
    commit: u64,
    state: Option<&ClusterState>,
) -> Row {
    let (member, status) = (&seen.member, seen.status.as_ref());
    let mut errors = status.map(|status| status.errors.clone()).unwrap_or_default();
    errors.extend(alarms.get(&member.id).into_iter().flatten().cloned());
    Row {
        name: seen.name(),
        id: format!("{:x}", member.id),
        role: seen.state(),
        endpoint: member.client_ur_ls.first().cloned(),
        term: status.map(|status| status.raft_term),
        applied_index: status.map(|status| status.raft_applied_index),
        lag: status.map(|status| commit.saturating_sub(status.raft_applied_index)),
        db_size_bytes: status.map(|status| status.db_size),
        db_size_in_use_bytes: status.map(|status| status.db_size_in_use),
        fsync_p99_ms: fsync_p99.map(|seconds| seconds * 1000.0),
        version: status.map(|status| status.version.clone()),
        errors,
        process: state.and_then(|state| process(state, &member.name)),
    }
}

fn process(state: &ClusterState, name: &str) -> Option<Process> {
    let Running { pid, place } = state.masters.iter().find(|master| master.place.name == name)?;
    // After a `kill -9` of `quorate up` nobody keeps the numbers of processes that are gone.
    let pid = pid.filter(|pid| Path::new("/proc").join(pid.to_string()).exists());
    Some(Process { api: place.api, client: place.client, peer: place.peer, pid })
}

/// The 99th percentile of `name` in a text of Prometheus metrics: as a summary tells it,
/// or the bound of the histogram's bucket that it lies in.
fn p99_seconds(metrics: &str, name: &str) -> Option<f64> {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix(name)) {
        let (labels, value) = line.rsplit_once(' ')?;
        let value: f64 = value.parse().ok()?;
        if labels.contains("quantile=\"0.99\"") {
            return Some(value).filter(|value| value.is_finite());
        }
        let bound = labels.strip_prefix("_bucket").and_then(|labels| labels.split("le=\"").nth(1)?.split('"').next());
        if let Some(bound) = bound {
            buckets.push((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, value));
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, count) = *buckets.last()?;
    let (bound, _) = buckets.into_iter().find(|(_, below)| *below >= count * 0.99).filter(|_| count > 0.0)?;
    Some(bound).filter(|bound| bound.is_finite())
}

fn table(report: &Report) -> String {
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows = report.members.iter().map(|member| {
        let process = member.process.as_ref();
        let mut cells = vec![
            member.name.clone(),
            member.role.to_owned(),
            member.id.clone(),
            text(member.term.map(|term| term.to_string())),
            text(member.applied_index.map(|index| index.to_string())),
            text(member.lag.map(|lag| lag.to_string())),
            text(member.fsync_p99_ms.map(|milliseconds| format!("{milliseconds:.1}ms"))),
            text(member.db_size_bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(bytes)),
            text(member.version.clone()),
            text(member.endpoint.clone()),
            if member.errors.is_empty() { "-".to_owned() } else { member.errors.join("; ") },
        ];
        if report.endpoint.is_some() {
            cells.push(text(process.map(|process| process.api.to_string())));
            cells.push(text(process.and_then(|process| process.pid).map(|pid| pid.to_string())));
        }
        cells
    });
    let mut header =
        vec!["NAME", "ROLE", "ID", "TERM", "APPLIED", "LAG", "FSYNC-P99", "DB-SIZE", "VERSION", "ENDPOINT", "ERRORS"];
    if report.endpoint.is_some() {
        header.extend(["API", "PID"]);
    }
    let mut out = output::columns(&header, rows);
    if let Some(space) = report.space.as_ref().filter(|space| space.prefixes.iter().any(|part| part.bytes > 0)) {
        out.push('\n');
        let rows = space.prefixes.iter().filter(|part| part.bytes > 0).take(TABLE_PREFIXES).map(|part| {
            let share = part.bytes.saturating_mul(100).checked_div(space.total_bytes).unwrap_or(0);
            vec![part.prefix.clone(), bytes(part.bytes), format!("{share}%")]
        });
        out.push_str(&output::columns(&["PREFIX", "SPACE", "SHARE"], rows));
    }
    format!("{out}\n{}\n", report.summary)
}

/// As people read sizes.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut rest = count;
    let mut tenths = 0;
    while rest >= 1024 && unit + 1 < UNITS.len() {
        tenths = (rest % 1024) * 10 / 1024;
        rest /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{rest} B") } else { format!("{rest}.{tenths} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcd::{ResponseHeader, StatusResponse};

    use super::*;

    fn seen(id: u64, leader: u64, applied: u64) -> Seen {
        let header = ResponseHeader { member_id: id, revision: 7, ..ResponseHeader::default() };
        let status = StatusResponse {
            header: Some(header),
            leader,
            raft_term: 4,
            raft_index: 5000,
            raft_applied_index: applied,
            ..StatusResponse::default()
        };
        let member = Member { id, name: format!("m{id}"), ..Member::default() };
        Seen { member, status: Some(status), connection: None }
    }

    fn silent(id: u64) -> Seen {
        Seen { status: None, ..seen(id, 0, 0) }
    }

    #[track_caller]
    fn check(seen: &[Seen], can_lose: usize, expected: &str) {
        let report = report(seen, &vec![None; seen.len()], &BTreeMap::new(), None, None);
        assert_eq!((report.can_lose, report.summary.as_str()), (can_lose, expected));
    }

    #[test]
    fn what_can_be_lost_counts_voters_that_answer() {
        let learner = |id| {
            let mut seen = seen(id, 1, 5000);
            seen.member.is_learner = true;
            seen
        };
        let leads = "m1 leads in term 4.";
        let all = [seen(1, 1, 5000), seen(2, 1, 4999), seen(3, 1, 5000)];
        check(&all, 1, &format!("{leads} 3 of 3 members answer: the cluster can lose 1 more."));
        let two = [seen(1, 1, 5000), silent(2), seen(3, 1, 5000), learner(4)];
        check(&two, 0, &format!("{leads} 2 of 3 members answer: losing one more stops writes."));
        let joining = |id| {
            let mut seen = seen(id, 1, 7);
            seen.status.as_mut().unwrap().is_learner = true;
            seen
        };
        let four = [seen(1, 1, 5000), seen(2, 1, 4999), seen(3, 1, 5000), joining(4)];
        let report = report(&four, &[None; 4], &BTreeMap::new(), None, None);
        assert_eq!((report.can_lose, report.members[3].role), (1, "joining"), "{}", report.summary);
        let behind = [seen(1, 1, 5000), seen(2, 1, 10), seen(3, 1, 5000)];
        let expected =
            format!("{leads} 3 of 3 members answer: the cluster can lose 1 more. m2 is 4990 entries behind.");
        check(&behind, 1, &expected);
        check(
            &[silent(1), seen(2, 0, 5000), silent(3)],
            0,
            "No leader: 1 of 3 members answer, and writes wait for a majority.",
        );
        check(
            &[seen(1, 1, 5000), silent(2), silent(3)],
            0,
            "No leader: 1 of 3 members answer, and writes wait for a majority.",
        );
        check(&[seen(1, 1, 5000)], 0, &format!("{leads} The only member: losing it stops the cluster."));
    }

    #[test]
    fn a_full_member_is_named() {
        let alarms = BTreeMap::from([(2, vec!["alarm NOSPACE".to_owned()])]);
        let members = [seen(1, 1, 5000), seen(2, 1, 5000), seen(3, 1, 5000)];
        let report = report(&members, &[None; 3], &alarms, None, None);
        assert!(report.summary.contains("m2 is out of space"), "{}", report.summary);
        assert_eq!(report.members[1].errors, ["alarm NOSPACE"]);
    }

    #[test]
    fn percentiles_are_read_from_either_form() {
        let summary = "x_seconds{quantile=\"0.5\"} 0.1\nx_seconds{quantile=\"0.99\"} 0.25\nx_seconds_sum 3\n";
        assert_eq!(p99_seconds(summary, "x_seconds"), Some(0.25));
        let histogram = "# TYPE x_seconds histogram\nx_seconds_bucket{le=\"0.001\"} 90\nx_seconds_bucket{le=\"0.002\"} 99\n\
                         x_seconds_bucket{le=\"+Inf\"} 100\nx_seconds_count 100\n";
        assert_eq!(p99_seconds(histogram, "x_seconds"), Some(0.002));
        assert_eq!(p99_seconds("x_seconds_bucket{le=\"+Inf\"} 0\n", "x_seconds"), None);
        assert_eq!(p99_seconds("x_seconds nonsense\n", "x_seconds"), None);
        assert_eq!(p99_seconds("", "x_seconds"), None);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([0, 1023, 1024, 1536, 5 << 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]);
    }
}
