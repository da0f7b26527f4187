//! The members of a store, and what each says of itself.

use std::time::Duration;

use anyhow::Result;
use quorate_proto::etcd::{Member, StatusRequest, StatusResponse};

use crate::endpoints::{self, Connection, Endpoints};

/// A member that does not say how it is within that is taken for dead.
const PATIENCE: Duration = Duration::from_secs(2);

/// A member and what it says of itself, if it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) member: Member,
    pub(crate) status: Option<StatusResponse>,
    /// The way to where it answered.
    pub(crate) connection: Option<Connection>,
}

impl Seen {
    /// `leader`, `follower`, `learner`, `joining` (will vote), `silent`, or `unstarted`.
    pub(crate) fn state(&self) -> &'static str {
        match &self.status {
            _ if self.member.name.is_empty() => "unstarted",
            None => "silent",
            Some(status) if status.leader == self.member.id => "leader",
            Some(_) if self.member.is_learner => "learner",
            Some(status) if status.is_learner => "joining",
            Some(_) => "follower",
        }
    }

    /// Whether it counts when a quorum is sought, living or not.
    pub(crate) fn votes(&self) -> bool {
        !self.member.is_learner && !matches!(self.state(), "joining" | "unstarted")
    }

    /// As people name it; one that has not started has no name yet.
    pub(crate) fn name(&self) -> String {
        if self.member.name.is_empty() { format!("{:x}", self.member.id) } else { self.member.name.clone() }
    }
}

/// Every member as whichever of `connections` answers lists it, asked itself. A list that
/// is not `linearizable` may be old, and is there without a leader.
///
/// # Errors
/// When nobody lists the members.
pub(crate) async fn look(endpoints: &Endpoints, connections: &[Connection], linearizable: bool) -> Result<Vec<Seen>> {
    let mut members = endpoints::first(connections, async |connection| connection.members(linearizable).await).await?;
    members.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    let asked = members.into_iter().map(async |member| {
        let ways = endpoints.towards(&member.client_ur_ls, connections).unwrap_or_default();
        let answer = tokio::time::timeout(PATIENCE, ask(&ways, member.id)).await.ok().flatten();
        let (status, connection) = answer.unzip();
        Seen { member, status, connection }
    });
    Ok(futures::future::join_all(asked).await)
}

/// What a member says through the first of its addresses that leads to it: one that leads
/// to another member says nothing of this one.
async fn ask(ways: &[Connection], id: u64) -> Option<(StatusResponse, Connection)> {
    for connection in ways {
        let mut client = connection.maintenance();
        if let Ok(status) = connection.answer(client.status(StatusRequest::default())).await
            && status.header.as_ref().is_some_and(|header| header.member_id == id)
        {
            return Some((status, connection.clone()));
        }
    }
    None
}
