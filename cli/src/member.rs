//! `quorate member`: who is in the cluster, and changing that without endangering it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use quorate_proto::etcd::{Member, MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest};
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use crate::endpoints::{self, Connection, Endpoints};
use crate::members::{self, Seen};
use crate::output::{self, Format};

/// How often a member that is arriving is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A change that the cluster refuses for the moment is asked again for that long.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  quorate member list --endpoints 192.0.2.1:2379
  quorate member add m4 192.0.2.4:2380
  quorate member replace m2 m4=192.0.2.4:2380")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    endpoints: Endpoints,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Print the members: who votes, who leads, where they are.
    List {
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Register a member before its process starts. It votes once it has caught up.
    Add {
        name: String,
        /// Where its peers will reach it; several are separated by commas.
        #[arg(value_name = "ADDRESS:PORT", value_delimiter = ',', required = true)]
        peers: Vec<String>,
        /// It never votes, unless it is promoted.
        #[arg(long)]
        learner: bool,
    },
    /// Let a learner vote.
    Promote {
        #[arg(value_name = "ID|NAME")]
        member: String,
    },
    /// Tell the cluster where a member's peers reach it from now on.
    Update {
        #[arg(value_name = "ID|NAME")]
        member: String,
        #[arg(value_name = "ADDRESS:PORT", value_delimiter = ',', required = true)]
        peers: Vec<String>,
    },
    /// Take a member out for good. Its data directory will not start again.
    Remove {
        #[arg(value_name = "ID|NAME")]
        member: String,
        /// Do it although the cluster can then lose fewer members than now.
        #[arg(long)]
        lower_fault_tolerance: bool,
    },
    /// Put a new member in the place of an old one: add it, wait until it has caught up, let it
    /// vote, and remove the old one. Interrupted, it goes on where it was when run again.
    Replace {
        #[arg(value_name = "OLD ID|NAME")]
        old: String,
        /// The new member; several addresses are separated by commas.
        #[arg(value_name = "NEW=ADDRESS:PORT", value_parser = parse_new)]
        new: New,
        /// How many seconds the new member's process may take to come, and then to catch up.
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        timeout: u64,
        /// Do it although the cluster can then lose fewer members than now.
        #[arg(long)]
        lower_fault_tolerance: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct New {
    name: String,
    urls: Vec<String>,
}

fn parse_new(text: &str) -> Result<New, String> {
    match text.split_once('=') {
        Some((name, addresses)) if !name.is_empty() && addresses.contains(':') => {
            Ok(New { name: name.to_owned(), urls: addresses.split(',').map(str::to_owned).collect() })
        }
        _ => Err(format!("{text:?} is not of the form NAME=ADDRESS:PORT")),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8> {
    let Arguments { command, endpoints } = arguments;
    let (endpoints, _) = endpoints.resolved()?;
    let cluster = Cluster { connections: endpoints.connect().await?, endpoints };
    match command {
        Command::List { output } => cluster.list(output).await,
        Command::Add { name, peers, learner } => cluster.add(&name, &peers, learner).await,
        Command::Promote { member } => cluster.promote(&member).await,
        Command::Update { member, peers } => cluster.update(&member, &peers).await,
        Command::Remove { member, lower_fault_tolerance } => cluster.remove(&member, lower_fault_tolerance).await,
        Command::Replace { old, new, timeout, lower_fault_tolerance } => {
            cluster.replace(&old, &new, Duration::from_secs(timeout), lower_fault_tolerance).await
        }
    }
    .map(|()| 0)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    name: String,
    /// `leader`, `follower`, `learner`, `joining` (will vote), `silent`, or `unstarted`.
    state: &'static str,
    applied_index: Option<u64>,
    peers: Vec<String>,
    clients: Vec<String>,
}

/// How many of the members that live can be lost before writes stop; `None` if they have.
fn tolerance(members: &[Seen]) -> Option<usize> {
    let voters = members.iter().filter(|seen| seen.votes());
    let living = voters.clone().filter(|seen| seen.status.is_some()).count();
    living.checked_sub(voters.count() / 2 + 1)
}

/// Refuses a removal of `id` after which the cluster can lose fewer members than now.
fn check_tolerance(members: &[Seen], id: u64, allowed: bool) -> Result<()> {
    let after: Vec<Seen> = members.iter().filter(|seen| seen.member.id != id).cloned().collect();
    let (now, then) = (tolerance(members), tolerance(&after));
    if allowed || then >= now {
        return Ok(());
    }
    let say = |tolerance: Option<usize>| match tolerance {
        None => "would not have a quorum".to_owned(),
        Some(count) => format!("can lose {count}"),
    };
    bail!(
        "the cluster can lose {} of its voting members now, and afterwards {}; add a member first (quorate member \
         add, or replace), or say --lower-fault-tolerance",
        now.unwrap_or(0),
        say(then)
    )
}

/// A member by its id in hexadecimal, or by its name.
fn find<'a>(members: &'a [Member], wanted: &str) -> Result<&'a Member> {
    let by_name = members.iter().find(|member| member.name == wanted);
    let by_id = || u64::from_str_radix(wanted, 16).ok().and_then(|id| members.iter().find(|member| member.id == id));
    by_name.or_else(by_id).ok_or_else(|| {
        let known: Vec<String> = members.iter().map(|member| format!("{:x} ({})", member.id, member.name)).collect();
        anyhow!("no member has the id or the name {wanted:?}; there are {}", known.join(", "))
    })
}

fn urls(peers: &[String]) -> Vec<String> {
    let url = |peer: &String| if peer.contains("://") { peer.clone() } else { format!("http://{peer}") };
    peers.iter().map(url).collect()
}

/// Whether a member is to run at these addresses, whatever the scheme.
fn is_at(member: &Member, peers: &[String]) -> bool {
    let bare = |url: &String| url.rsplit("://").next().unwrap_or_default().trim_end_matches('/').to_owned();
    member.peer_ur_ls.iter().any(|url| peers.iter().any(|peer| bare(peer) == bare(url)))
}

struct Cluster {
    endpoints: Endpoints,
    connections: Vec<Connection>,
}

impl Cluster {
    async fn members(&self) -> Result<Vec<Member>> {
        endpoints::first(&self.connections, async |connection| connection.members(true).await).await
    }

    /// The members and what each says of itself.
    async fn look(&self) -> Result<Vec<Seen>> {
        members::look(&self.endpoints, &self.connections, true).await
    }

    async fn list(&self, format: Format) -> Result<()> {
        let rows: Vec<Row> = self
            .look()
            .await?
            .into_iter()
            .map(|seen| Row {
                id: format!("{:x}", seen.member.id),
                state: seen.state(),
                applied_index: seen.status.as_ref().map(|status| status.raft_applied_index),
                name: seen.member.name,
                peers: seen.member.peer_ur_ls,
                clients: seen.member.client_ur_ls,
            })
            .collect();
        output::print(format, &rows, |rows| {
            let cells = rows.iter().map(|row| {
                let applied = row.applied_index.map_or_else(|| "-".to_owned(), |index| index.to_string());
                vec![
                    row.id.clone(),
                    if row.name.is_empty() { "-".to_owned() } else { row.name.clone() },
                    row.state.to_owned(),
                    applied,
                    row.peers.join(","),
                    row.clients.join(","),
                ]
            });
            output::columns(&["ID", "NAME", "STATE", "APPLIED", "PEERS", "CLIENTS"], cells)
        })
    }

    async fn add(&self, name: &str, peers: &[String], learner: bool) -> Result<()> {
        let (member, members) = self.add_member(&urls(peers), learner).await?;
        println!("Member {:x} is registered. Start its process on a new data directory:", member.id);
        println!();
        print_start(name, &member, &members);
        Ok(())
    }

    async fn add_member(&self, urls: &[String], learner: bool) -> Result<(Member, Vec<Member>)> {
        let answer = self
            .settle(async |connection| {
                let request = MemberAddRequest { peer_ur_ls: urls.to_vec(), is_learner: learner };
                connection.answer(connection.cluster().member_add(request)).await
            })
            .await?;
        let member = answer.member.context("the cluster did not say which member it added")?;
        Ok((member, answer.members))
    }

    async fn promote(&self, member: &str) -> Result<()> {
        let id = find(&self.members().await?, member)?.id;
        self.ask_promotion(id).await?;
        println!("Member {id:x} votes.");
        Ok(())
    }

    async fn ask_promotion(&self, id: u64) -> Result<()> {
        self.settle(async |connection| {
            connection.answer(connection.cluster().member_promote(MemberPromoteRequest { id })).await
        })
        .await
        .map(|_| ())
    }

    async fn update(&self, member: &str, peers: &[String]) -> Result<()> {
        let id = find(&self.members().await?, member)?.id;
        self.settle(async |connection| {
            let request = MemberUpdateRequest { id, peer_ur_ls: urls(peers) };
            connection.answer(connection.cluster().member_update(request)).await
        })
        .await?;
        println!("The cluster knows that member {id:x} is at {}.", peers.join(","));
        Ok(())
    }

    async fn remove(&self, member: &str, lower: bool) -> Result<()> {
        let seen = self.look().await?;
        let members: Vec<Member> = seen.iter().map(|seen| seen.member.clone()).collect();
        let id = find(&members, member)?.id;
        check_tolerance(&seen, id, lower)?;
        self.ask_removal(id).await?;
        println!("Member {id:x} is removed. Its data directory is of no use any more.");
        Ok(())
    }

    async fn ask_removal(&self, id: u64) -> Result<()> {
        let removed = self
            .settle(async |connection| {
                connection.answer(connection.cluster().member_remove(MemberRemoveRequest { id })).await
            })
            .await;
        match removed {
            Ok(_) => Ok(()),
            // Asked before, with an answer that was lost.
            Err(_) if self.members().await.is_ok_and(|members| members.iter().all(|member| member.id != id)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn replace(&self, old: &str, new: &New, timeout: Duration, lower: bool) -> Result<()> {
        let began = Instant::now();
        let seen = self.look().await?;
        let members: Vec<Member> = seen.iter().map(|seen| seen.member.clone()).collect();
        let known = members.iter().find(|member| is_at(member, &new.urls)).cloned();
        let leaving = match (find(&members, old), &known) {
            (Ok(old), _) => old.clone(),
            (Err(_), Some(done)) if !done.is_learner && done.name == new.name => {
                println!("{} has been replaced by {} already.", old, new.name);
                return Ok(());
            }
            (Err(error), _) => return Err(error),
        };
        if known.as_ref().is_some_and(|known| known.id == leaving.id) {
            bail!("{old:?} is at {} itself; give the new member an address of its own", new.urls.join(","));
        }
        if known.is_none() && members.iter().any(|member| member.name == new.name) {
            bail!("a member is called {:?} already; give the new member a name of its own", new.name);
        }
        let added = match known {
            Some(known) => {
                println!("{} was added before, as member {:x}.", new.name, known.id);
                known
            }
            None => {
                let (added, members) = self.add_member(&urls(&new.urls), true).await?;
                println!(
                    "Added {} as learner {:x}. Its process starts on a new data directory with:",
                    new.name, added.id
                );
                println!();
                print_start(&new.name, &added, &members);
                println!();
                added
            }
        };
        self.wait_for_vote(&added, began + timeout).await?;
        println!("{} has caught up and votes, after {:.1} s.", new.name, began.elapsed().as_secs_f64());
        let seen = self.look().await?;
        // With the new member the cluster must be able to lose as many as before it came.
        let without = |id: u64| seen.iter().filter(|seen| seen.member.id != id).cloned().collect::<Vec<Seen>>();
        if !lower && tolerance(&without(leaving.id)) < tolerance(&without(added.id)) {
            bail!(
                "{} does not answer: without {old} the cluster could lose fewer members than before; look after it \
                 and run the command again, or say --lower-fault-tolerance",
                new.name
            );
        }
        self.ask_removal(leaving.id).await?;
        println!("{old} is removed; replaced in {:.1} s.", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Waits until a learner has come and caught up, and lets it vote.
    async fn wait_for_vote(&self, added: &Member, deadline: Instant) -> Result<()> {
        let mut progress = Progress::default();
        loop {
            // Also over moments without a leader.
            let seen = members::look(&self.endpoints, &self.connections, false)
                .await
                .context("run the same command again to go on")?;
            let Some(here) = seen.iter().find(|seen| seen.member.id == added.id) else {
                bail!("member {:x} was removed while it was awaited", added.id);
            };
            if here.votes() {
                progress.end();
                return Ok(());
            }
            let leader = seen.iter().find(|seen| seen.state() == "leader");
            progress.say(&describe(here, leader));
            if here.state() == "learner" && is_close(here, leader) {
                // It may not have heard of its vote when this returns: the next look tells.
                match self.ask_promotion(added.id).await {
                    Err(error) if !is_for_now(&error.to_string()) => return Err(error),
                    _ => {}
                }
            }
            if Instant::now() >= deadline {
                progress.end();
                bail!("it takes longer than --timeout; run the same command again to go on waiting");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks until a member does it, or refuses for a reason that will not pass.
    async fn settle<T>(&self, ask: impl AsyncFn(&Connection) -> Result<T, Status>) -> Result<T> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let error = match endpoints::first(&self.connections, &ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !is_for_now(&error.to_string()) || Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whether a refusal may pass by itself: leadership moves, or a member has just come.
fn is_for_now(text: &str) -> bool {
    ["unhealthy cluster", "in sync with leader", "no leader", "leader changed"].iter().any(|known| text.contains(known))
}

/// Whether a learner lacks so little that it may be promoted.
fn is_close(here: &Seen, leader: Option<&Seen>) -> bool {
    let (Some(here), Some(leader)) = (&here.status, leader.and_then(|leader| leader.status.as_ref())) else {
        return false;
    };
    here.raft_applied_index > 0 && leader.raft_index.saturating_sub(here.raft_applied_index) <= 1000
}

/// How far a new member has come, in one line.
fn describe(here: &Seen, leader: Option<&Seen>) -> String {
    let leader = leader.and_then(|leader| leader.status.as_ref());
    match (&here.status, leader) {
        (None, _) if here.member.name.is_empty() => "waiting for its process to start".to_owned(),
        (None, _) => "it does not answer".to_owned(),
        (Some(status), Some(leader)) if status.raft_applied_index == 0 => {
            let mib = |bytes: i64| bytes / (1 << 20);
            format!("receiving a snapshot: {} of about {} MiB", mib(status.db_size), mib(leader.db_size))
        }
        (Some(status), Some(leader)) => {
            format!("catching up: entry {} of {}", status.raft_applied_index, leader.raft_index)
        }
        (Some(_), None) => "waiting for a leader".to_owned(),
    }
}

/// One line that changes on a terminal, and a line per change elsewhere.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn say(&mut self, line: &str) {
        if line == self.last {
            return;
        }
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K  {line}");
            // Only decoration.
            let _ = std::io::stdout().flush();
        } else {
            println!("  {line}");
        }
        line.clone_into(&mut self.last);
    }

    fn end(&mut self) {
        if !self.last.is_empty() && std::io::stdout().is_terminal() {
            println!();
        }
        self.last.clear();
    }
}

/// How the process of a member that was added is started.
fn print_start(name: &str, added: &Member, members: &[Member]) {
    let own = added.peer_ur_ls.join(",");
    let named = |member: &Member| if member.id == added.id { name.to_owned() } else { member.name.clone() };
    let cluster: Vec<String> = members
        .iter()
        .flat_map(|member| member.peer_ur_ls.iter().map(move |url| format!("{}={url}", named(member))))
        .collect();
    println!("  quorate store --name {name} --data-dir DIR --initial-cluster-state existing \\");
    println!("    --initial-cluster {} \\", cluster.join(","));
    println!("    --listen-peer-urls {own} --initial-advertise-peer-urls {own} \\");
    println!("    --listen-client-urls URL --advertise-client-urls URL");
}

#[cfg(test)]
mod tests {
    use quorate_proto::etcd::StatusResponse;

    use super::*;

    fn seen(id: u64, learner: bool, living: bool) -> Seen {
        let member = Member { id, name: format!("m{id}"), is_learner: learner, ..Member::default() };
        let status = living.then(|| StatusResponse { leader: 1, ..StatusResponse::default() });
        Seen { member, status, connection: None }
    }

    #[test]
    fn a_removal_must_not_lower_what_can_be_lost_without_a_word() {
        let check = |living: &[bool], gone: u64, fits: bool| {
            let members: Vec<Seen> = living.iter().zip(1..).map(|(living, id)| seen(id, false, *living)).collect();
            assert_eq!(check_tolerance(&members, gone, false).is_ok(), fits, "{living:?} without {gone}");
            assert!(check_tolerance(&members, gone, true).is_ok());
        };
        check(&[true, true, true], 3, false);
        check(&[true, true, false], 3, true);
        check(&[true, true, false], 2, false);
        check(&[true, true, true, true], 4, true);
        check(&[true, true, true, true, true], 5, false);
        let learner = [seen(1, false, true), seen(2, true, true)];
        assert!(check_tolerance(&learner, 2, false).is_ok());
    }

    #[test]
    fn members_are_found_by_name_and_by_id() {
        let members = [Member { id: 0xa1, name: "m1".into(), ..Member::default() }];
        assert_eq!(find(&members, "m1").unwrap().id, 0xa1);
        assert_eq!(find(&members, "a1").unwrap().id, 0xa1);
        let error = find(&members, "m2").unwrap_err().to_string();
        assert!(error.contains("a1 (m1)"), "{error}");
        let at = Member { peer_ur_ls: vec!["https://h:1".into()], ..Member::default() };
        assert!(is_at(&at, &["h:1".into()]) && !is_at(&at, &["h:2".into()]));
    }

    #[test]
    fn the_new_member_has_a_name_and_an_address() {
        let new = parse_new("m4=a:1,b:1").unwrap();
        assert_eq!((new.name.as_str(), new.urls.len()), ("m4", 2));
        for bad in ["m4", "=a:1", "m4=a"] {
            assert!(parse_new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn progress_is_said_in_bytes_and_then_in_entries() {
        let with = |applied, size| {
            let mut seen = seen(4, true, true);
            let status = seen.status.as_mut().unwrap();
            (status.raft_applied_index, status.raft_index, status.db_size) = (applied, applied, size);
            seen
        };
        let leader = with(5000, 1 << 30);
        assert_eq!(describe(&with(0, 512 << 20), Some(&leader)), "receiving a snapshot: 512 of about 1024 MiB");
        assert_eq!(describe(&with(4000, 0), Some(&leader)), "catching up: entry 4000 of 5000");
        assert!(is_close(&with(4000, 0), Some(&leader)) && !is_close(&with(3999, 0), Some(&leader)));
        let unstarted = Seen::default();
        assert_eq!(describe(&unstarted, Some(&leader)), "waiting for its process to start");
    }
}
