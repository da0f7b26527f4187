//! `quorate status`: who leads, who lags, what the cluster can lose.

mod members;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_proto::etcd::cluster_client::ClusterClient;
use quorate_proto::etcd::maintenance_client::MaintenanceClient;
use quorate_proto::etcd::{MemberListRequest, StatusRequest, StatusResponse};
use quorate_transport::tls::STORE_SERVER_NAME;
use serde::Serialize;
use tokio::time;

use crate::endpoints::Endpoints;
use crate::layout::{ClusterState, MasterPlace, Running};
use crate::output::{self, Format};
use crate::pki::Pki;

/// A member that does not answer within that is reported as silent.
const PATIENCE: Duration = Duration::from_secs(2);

/// The exit code when the cluster has no leader: scripts can tell it from a failure to ask.
const NO_QUORUM: u8 = 2;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate status                       the cluster that `quorate up` keeps in ./quorate-data
  quorate status --endpoints 127.0.0.1:2379,127.0.0.2:2379
                                       any store, also a real etcd
  quorate status -o json | jq .members
Exit codes: 0 the cluster has a leader; 2 it has none; 1 it could not be asked.")]
pub(crate) struct Arguments {
    /// The data directory that was given to `quorate up`; not used with --endpoints.
    #[arg(long, default_value = "quorate-data", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    endpoints: Endpoints,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    endpoint: SocketAddr,
    leader: Option<String>,
    term: u64,
    /// How many more voting members may fail before writes stop.
    can_lose: usize,
    summary: String,
    members: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    /// `leader`, `follower`, `learner`, or `silent`.
    role: &'static str,
    id: Option<String>,
    term: Option<u64>,
    applied_index: Option<u64>,
    /// Entries that the furthest member has committed and this one has not applied.
    lag: Option<u64>,
    db_size_bytes: Option<i64>,
    version: Option<String>,
    api: SocketAddr,
    client: SocketAddr,
    peer: SocketAddr,
    pid: Option<u32>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    if arguments.endpoints.are_given() {
        return members::run(&arguments.endpoints, arguments.output).await;
    }
    let Some(state) = ClusterState::read(&arguments.data_dir)? else {
        bail!("no cluster was started in {}: run `quorate up`, or name its --data-dir", arguments.data_dir.display());
    };
    let pki = Pki::at(&arguments.data_dir.join("pki"));
    let tls = quorate_transport::tls::client_config(&pki.store_client(), &["h2"])?;
    let asked = state.masters.iter().map(|master| ask(master, Arc::clone(&tls)));
    let answers = futures::future::join_all(asked).await;
    let report = report(&state, answers);
    let quorum = report.leader.is_some();
    output::print(arguments.output, &report, table)?;
    Ok(if quorum { 0 } else { NO_QUORUM })
}

type Answer = (StatusResponse, Option<bool>);

/// One member's own view; `None` when it does not answer.
async fn ask(master: &Running<MasterPlace>, tls: Arc<rustls::ClientConfig>) -> Option<Answer> {
    let talk = async {
        let channel = quorate_transport::channel::channel(&master.place.client.to_string(), tls, STORE_SERVER_NAME)
            .context("the member's address cannot be dialled")?;
        let status = MaintenanceClient::new(channel.clone()).status(StatusRequest::default()).await?.into_inner();
        let members = ClusterClient::new(channel).member_list(MemberListRequest::default()).await.ok();
        let own = status.header.as_ref().map(|header| header.member_id);
        let learner = members.and_then(|list| {
            list.into_inner().members.iter().find(|member| Some(member.id) == own).map(|member| member.is_learner)
        });
        anyhow::Ok((status, learner))
    };
    time::timeout(PATIENCE, talk).await.ok()?.ok()
}

/// Decides what to say from what the members answered.
fn report(state: &ClusterState, answers: Vec<Option<Answer>>) -> Report {
    let term = answers.iter().flatten().map(|(status, _)| status.raft_term).max().unwrap_or(0);
    let commit = answers.iter().flatten().map(|(status, _)| status.raft_index).max().unwrap_or(0);
    let members: Vec<Row> = state
        .masters
        .iter()
        .zip(&answers)
        .map(|(master, answer)| {
            let status = answer.as_ref().map(|(status, _)| status);
            let id = status.and_then(|status| status.header.as_ref()).map(|header| header.member_id);
            Row {
                name: master.place.name.clone(),
                role: answer.as_ref().map_or("silent", |answer| role(answer, id, term)),
                id: id.map(|id| format!("{id:x}")),
                term: status.map(|status| status.raft_term),
                applied_index: status.map(|status| status.raft_applied_index),
                lag: status.map(|status| commit.saturating_sub(status.raft_applied_index)),
                db_size_bytes: status.map(|status| status.db_size),
                version: status.map(|status| status.version.clone()),
                api: master.place.api,
                client: master.place.client,
                peer: master.place.peer,
                pid: master.pid,
            }
        })
        .collect();
    let living = members.iter().filter(|member| matches!(member.role, "leader" | "follower")).count();
    let quorum = members.len() / 2 + 1;
    // One that leads nobody says so for a while.
    let leader = members.iter().find(|member| member.role == "leader" && living >= quorum);
    let leader = leader.map(|member| member.name.clone());
    let can_lose = if leader.is_some() { living.saturating_sub(quorum) } else { 0 };
    Report {
        endpoint: state.endpoint,
        summary: summary("master", leader.as_deref(), term, living, members.len(), can_lose),
        leader,
        term,
        can_lose,
        members,
    }
}

fn role((status, learner): &Answer, id: Option<u64>, term: u64) -> &'static str {
    if status.is_learner || *learner == Some(true) {
        "learner"
    } else if id.is_some_and(|id| id == status.leader) && status.raft_term == term {
        "leader"
    } else {
        "follower"
    }
}

/// One sentence on what holds and what can be lost, of `all` voters called `noun`s.
fn summary(noun: &str, leader: Option<&str>, term: u64, living: usize, all: usize, can_lose: usize) -> String {
    match (leader, can_lose) {
        (None, _) if living == 0 => format!("No {noun} answers: the cluster is down."),
        (None, _) => format!("No leader: {living} of {all} {noun}s answer, and writes wait for a majority."),
        (Some(leader), 0) if all == 1 => {
            format!("{leader} leads in term {term}. The only {noun}: losing it stops the cluster.")
        }
        (Some(leader), 0) => {
            format!("{leader} leads in term {term}. {living} of {all} {noun}s answer: losing one more stops writes.")
        }
        (Some(leader), can_lose) => {
            format!(
                "{leader} leads in term {term}. {living} of {all} {noun}s answer: the cluster can lose {can_lose} more."
            )
        }
    }
}

fn table(report: &Report) -> String {
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows = report.members.iter().map(|member| {
        vec![
            member.name.clone(),
            member.role.to_owned(),
            text(member.term.map(|term| term.to_string())),
            text(member.applied_index.map(|index| index.to_string())),
            text(member.lag.map(|lag| lag.to_string())),
            member.api.to_string(),
            member.client.to_string(),
            member.peer.to_string(),
            text(member.pid.map(|pid| pid.to_string())),
        ]
    });
    let header = ["NAME", "ROLE", "TERM", "APPLIED", "LAG", "API", "CLIENT", "PEER", "PID"];
    format!("{}\n{}\n", output::columns(&header, rows), report.summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(leader: Option<&str>, living: usize, all: usize, can_lose: usize, expected: &str) {
        assert_eq!(summary("master", leader, 7, living, all, can_lose), expected);
    }

    #[test]
    fn the_summary_says_what_can_be_lost() {
        check(Some("m1"), 3, 3, 1, "m1 leads in term 7. 3 of 3 masters answer: the cluster can lose 1 more.");
        check(Some("m1"), 2, 3, 0, "m1 leads in term 7. 2 of 3 masters answer: losing one more stops writes.");
        check(Some("m1"), 1, 1, 0, "m1 leads in term 7. The only master: losing it stops the cluster.");
        check(None, 1, 3, 0, "No leader: 1 of 3 masters answer, and writes wait for a majority.");
        check(None, 0, 3, 0, "No master answers: the cluster is down.");
    }
}
