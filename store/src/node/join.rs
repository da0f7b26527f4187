//! The first start of a member: it founds its cluster, or finds itself among the members
//! of one that exists.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_proto::raft as wire;
use tokio::time::Instant;

use super::identity::{self, Identity, Joined};
use crate::config::{ClusterState, Config};
use crate::error::StartError;
use crate::peer::{self, Dialer, Verdict};

/// How long one peer may take to say who it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The same for an answer that needs a leader.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between attempts to join, and how often a waiting member says so.
const RETRY_WAIT: Duration = Duration::from_millis(200);
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Who this process is, whose data directory is new (`known` is none) or was left while it
/// joined. `advertised` is where its peers will reach it.
///
/// # Errors
/// When the cluster says that it cannot be, or does not add it in time.
pub(super) async fn introduce(
    config: &Config,
    known: Option<Identity>,
    advertised: &str,
    client_urls: &[String],
    dialer: &Dialer,
) -> Result<Identity, StartError> {
    let asking = match known {
        Some(identity) if identity.joined == Joined::Asking => Some(identity),
        Some(identity) => {
            // Also for what the file of an older version lacks.
            identity.store(&config.data_dir)?;
            return Ok(identity);
        }
        None => None,
    };
    if asking.is_none() && config.initial_cluster_state == ClusterState::New {
        let identity = identity::found(config, String::new());
        for (address, peer) in describe_all(config, dialer).await {
            may_found(&identity, &address, &peer).map_err(StartError::Join)?;
        }
        identity.store(&config.data_dir)?;
        return Ok(identity);
    }
    join(config, asking, advertised, client_urls, dialer).await
}

/// Whether a founder may begin, given what a peer says. One that lost its data may not: the
/// others count on what it acknowledged.
fn may_found(own: &Identity, address: &str, peer: &wire::DescribeResponse) -> Result<(), String> {
    if peer.members.is_empty() {
        return Ok(());
    }
    if peer.cluster_id != own.cluster_id {
        return Err(format!(
            "{address} is of cluster {:x}, and these members would found cluster {:x}; to join it, add this member \
             (quorate member add) and start with the initial cluster state \"existing\"",
            peer.cluster_id, own.cluster_id
        ));
    }
    match peer.members.iter().find(|member| member.id == own.member_id) {
        Some(member) if member.directory == 0 => Ok(()),
        Some(_) => Err(Verdict::OtherDirectory.advice().to_owned()),
        None => Err(Verdict::Removed.advice().to_owned()),
    }
}

/// What the cluster says of somebody at `own`.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A member that has never run.
    Free(u64),
    /// A member whose data is elsewhere.
    Taken(u64),
    /// Nobody has added it.
    Unknown,
}

fn place(own: &BTreeSet<&str>, peer: &wire::DescribeResponse, directory: u64) -> Place {
    let here = |member: &&wire::KnownMember| member.peer_addresses.iter().any(|address| own.contains(address.as_str()));
    match peer.members.iter().find(here) {
        Some(member) if member.directory == 0 || member.directory == directory => Place::Free(member.id),
        Some(member) => Place::Taken(member.id),
        None => Place::Unknown,
    }
}

async fn join(
    config: &Config,
    mut identity: Option<Identity>,
    advertised: &str,
    client_urls: &[String],
    dialer: &Dialer,
) -> Result<Identity, StartError> {
    let own: BTreeSet<&str> = peer::split(advertised).collect();
    let deadline = Instant::now() + config.join_timeout;
    let mut say = Instant::now();
    loop {
        let mut found = "no other member answers".to_owned();
        for (address, peer) in describe_all(config, dialer).await {
            let directory = identity.as_ref().map_or(0, |identity| identity.directory);
            match place(&own, &peer, directory) {
                Place::Unknown if peer.members.is_empty() => {}
                Place::Unknown => {
                    found = format!(
                        "no member is registered at {advertised}; run `quorate member add {} {advertised}`",
                        config.name
                    );
                }
                Place::Taken(id) => {
                    let advice = Verdict::OtherDirectory.advice();
                    return Err(StartError::Join(format!("{advertised} is member {id:x}: {advice}")));
                }
                Place::Free(id) => {
                    let ids = (id, peer.cluster_id);
                    let mut asking = identity
                        .take()
                        .filter(|identity| (identity.member_id, identity.cluster_id) == ids)
                        .unwrap_or_else(|| identity::join(config, ids, peer.generation));
                    // Kept first: the cluster will not tie the member to another directory.
                    asking.store(&config.data_dir)?;
                    match tie(&asking, &address, client_urls, dialer).await {
                        Ok(()) => {
                            asking.joined = Joined::Tied;
                            asking.store(&config.data_dir)?;
                            tracing::info!(member = format!("{id:x}"), "joined a cluster that exists");
                            return Ok(asking);
                        }
                        Err(Untied::Refused(reason)) => return Err(StartError::Join(reason)),
                        Err(Untied::NotYet(reason)) => found = reason,
                    }
                    identity = Some(asking);
                }
            }
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(StartError::Join(format!("{found} (waited for {:?})", config.join_timeout)));
        }
        if now >= say {
            say = now + SAY_AGAIN;
            tracing::info!(reason = found, "waiting to join the cluster");
        }
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

enum Untied {
    Refused(String),
    NotYet(String),
}

async fn tie(identity: &Identity, address: &str, client_urls: &[String], dialer: &Dialer) -> Result<(), Untied> {
    let request = wire::JoinRequest {
        cluster_id: identity.cluster_id,
        member: identity.member_id,
        directory: identity.directory,
        name: identity.name.clone(),
        client_urls: client_urls.to_vec(),
    };
    let mut client = dialer.client(address);
    match tokio::time::timeout(JOIN_TIMEOUT, client.join(request)).await {
        Ok(Ok(answer)) => match answer.into_inner().refusal {
            refusal if refusal.is_empty() => Ok(()),
            refusal => Err(Untied::Refused(refusal)),
        },
        Ok(Err(status)) => Err(Untied::NotYet(format!("{address}: {}", status.message()))),
        Err(_) => Err(Untied::NotYet(format!("{address} does not answer"))),
    }
}

/// What each of the other configured members says, of those that answer.
async fn describe_all(config: &Config, dialer: &Dialer) -> Vec<(String, wire::DescribeResponse)> {
    let others = config.initial_cluster.iter().filter(|(name, _)| *name != config.name);
    let asked = others.map(async |(_, address)| {
        let mut client = dialer.client(address);
        let answer = tokio::time::timeout(ASK_TIMEOUT, client.describe(wire::DescribeRequest {})).await;
        Some((address.clone(), answer.ok()?.ok()?.into_inner()))
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(cluster_id: u64, members: &[(u64, u64)]) -> wire::DescribeResponse {
        let member = |(id, directory): &(u64, u64)| wire::KnownMember {
            id: *id,
            name: String::new(),
            peer_addresses: vec![format!("a:{id}"), format!("b:{id}")],
            directory: *directory,
        };
        wire::DescribeResponse { cluster_id, generation: 1, members: members.iter().map(member).collect() }
    }

    #[test]
    fn a_founder_that_lost_its_data_does_not_found_again() {
        let own = identity::found(&Config::new("a", "/nowhere"), String::new());
        let (cluster, id) = (own.cluster_id, own.member_id);
        let check =
            |peer: wire::DescribeResponse, expected: Option<&str>| match (may_found(&own, "x:1", &peer), expected) {
                (Ok(()), None) => {}
                (Err(reason), Some(text)) => assert!(reason.contains(text), "{reason}"),
                (result, _) => panic!("{result:?}"),
            };
        check(described(cluster, &[]), None);
        check(described(9, &[]), None);
        check(described(cluster, &[(id, 0), (2, 5)]), None);
        check(described(cluster, &[(id, 4), (2, 5)]), Some("another data directory"));
        check(described(cluster, &[(2, 5)]), Some("removed"));
        check(described(9, &[(2, 5)]), Some("existing"));
    }

    #[test]
    fn a_joining_member_finds_itself_by_its_address() {
        let peer = described(1, &[(1, 7), (2, 0), (3, 9)]);
        let check = |own: &str, directory, expected| {
            assert_eq!(place(&BTreeSet::from([own]), &peer, directory), expected);
        };
        check("b:2", 0, Place::Free(2));
        check("a:3", 0, Place::Taken(3));
        check("a:3", 9, Place::Free(3));
        check("a:4", 0, Place::Unknown);
    }
}
