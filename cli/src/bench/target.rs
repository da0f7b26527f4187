//! A cluster under load: the ways to it, and who its members are.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use quorate_proto::etcd::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::keys::{Keys, Values};
use super::servers::{self, Program};
use super::wire::{Method, Wire};
use crate::endpoints::{self, Connection, Endpoints, Service};
use crate::members;

/// More connections and clients than a machine has ports and memory for are a mistake.
const MOST_CONNECTIONS: usize = 10_000;
const MOST_CLIENTS: usize = 100_000;

/// How many writes fill a key space at once.
const FILLERS: usize = 64;

pub(crate) struct Target {
    pub(crate) endpoints: Endpoints,
    connections: Vec<Connection>,
    /// The same number once more, for calls that are counted in microseconds; opened when
    /// they are needed.
    wires: Vec<OnceCell<Wire>>,
    pub(crate) servers: Vec<Server>,
    /// Where the servers' data is, if they are the benchmark's own.
    pub(crate) data_dir: Option<PathBuf>,
}

/// A member as a report names it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) program: Program,
    /// Of the etcd contract, as the member says.
    pub(crate) version: String,
    pub(crate) leader: bool,
    pub(crate) url: String,
}

impl Target {
    /// Makes `number` connections to the endpoints in turn, or all to the leader.
    ///
    /// # Errors
    /// When nobody answers.
    pub(crate) async fn connect(endpoints: &Endpoints, number: usize, to_leader: bool) -> Result<Self> {
        ensure!((1..=MOST_CONNECTIONS).contains(&number), "--conns {number} is not between 1 and {MOST_CONNECTIONS}");
        let known = endpoints.connect().await?;
        let seen =
            members::look(endpoints, &known, true).await.context("the cluster cannot be asked for its members")?;
        let mut servers = Vec::with_capacity(seen.len());
        for member in &seen {
            let (Some(status), Some(connection)) = (&member.status, &member.connection) else { continue };
            servers.push(Server {
                name: member.name(),
                program: servers::program(endpoints, &connection.url).await,
                version: status.version.clone(),
                leader: member.state() == "leader",
                url: connection.url.clone(),
            });
        }
        let urls: Vec<String> = match to_leader {
            false => known.iter().map(|connection| connection.url.clone()).collect(),
            true => vec![servers.iter().find(|server| server.leader).context("no member leads")?.url.clone()],
        };
        let cycled: Vec<String> = urls.iter().cycle().take(number).cloned().collect();
        let connections = endpoints.towards(&cycled, &known)?;
        let wires = connections.iter().map(|_| OnceCell::new()).collect();
        Ok(Self { endpoints: endpoints.clone(), connections, wires, servers, data_dir: None })
    }

    /// The connection of a client: clients are spread over all of them.
    pub(crate) fn connection(&self, client: usize) -> &Connection {
        &self.connections[client % self.connections.len()]
    }

    pub(crate) fn service(&self, client: usize) -> Service {
        self.connection(client).service()
    }

    /// The client's own hold on its connection.
    ///
    /// # Errors
    /// When the connection cannot be opened.
    pub(crate) async fn wire(&self, client: usize) -> Result<Wire> {
        let place = client % self.wires.len();
        let open = || Wire::open(&self.endpoints, &self.connections[place]);
        self.wires[place].get_or_try_init(open).await.cloned()
    }

    /// What the report calls this cluster.
    pub(crate) fn name(&self) -> String {
        let program = self.servers.first().map_or("nobody", |server| server.program.name());
        match self.servers.len() {
            1 => program.to_owned(),
            number => format!("{program}, {number} members"),
        }
    }

    /// Writes the keys of a key space that are not all there yet.
    ///
    /// # Errors
    /// When the store refuses.
    pub(crate) async fn fill(&self, keys: &Keys, value_size: usize) -> Result<()> {
        let all = RangeRequest { key: keys.key(0), range_end: keys.end(), count_only: true, ..RangeRequest::default() };
        let first = RangeRequest { key: keys.key(0), ..RangeRequest::default() };
        let refused = |status| endpoints::refusal(&status).context("the keys to be read cannot be written");
        let mut wire = self.wire(0).await?;
        let count = wire.call::<RangeResponse>(Method::Range, &all).await.map_err(refused)?.count;
        let found: RangeResponse = wire.call(Method::Range, &first).await.map_err(refused)?;
        let size = found.kvs.first().map(|pair| pair.value.len());
        if u64::try_from(count).is_ok_and(|count| count == keys.number) && size == Some(value_size) {
            return Ok(());
        }
        let values = Values::new(value_size)?;
        let values = &values;
        let fillers = (0..FILLERS).map(async |filler| {
            let mut wire = self.wire(filler).await?;
            for number in (filler as u64..keys.number).step_by(FILLERS) {
                let request =
                    PutRequest { key: keys.key(number), value: values.of_key(number), ..PutRequest::default() };
                wire.call::<PutResponse>(Method::Put, &request).await.map_err(refused)?;
            }
            Ok(())
        });
        futures::future::try_join_all(fillers).await.map(|_: Vec<()>| ())
    }
}

/// # Errors
/// When there are too many or none.
pub(crate) fn check_clients(number: usize) -> Result<()> {
    ensure!((1..=MOST_CLIENTS).contains(&number), "--clients {number} is not between 1 and {MOST_CLIENTS}");
    Ok(())
}
