//! What a Service takes from ranges that all Services share: cluster IPs and node ports.
//!
//! A claim is a key of its own, written in the same transaction as the Service: two
//! servers that choose the same address at the same moment cannot both succeed.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use bytes::Bytes;
use quorate_proto::codec;
use quorate_proto::status::{Status, StatusCause};
use rand::RngExt;
use serde_json::{Value, json};

use super::Registry;
use super::create::now;
use super::strategy::{child, items, items_mut, set, text};
use crate::schema::{ResourceDef, resource};
use crate::storage::{Condition, Transaction, Write};

const NODE_PORTS: &str = "/registry/quorate/nodeports/";

/// How often a random address is tried before the range is searched in order.
const RANDOM_ATTEMPTS: usize = 64;

/// How many addresses are looked at before the range counts as full.
const SEARCH_LIMIT: u32 = 1 << 17;

/// Keys that are written and deleted together with an object.
#[derive(Debug, Default)]
pub(super) struct Claims {
    takes: Vec<(String, Bytes)>,
    releases: Vec<String>,
    /// Everything taken was chosen here, so that something else can be.
    pub(super) can_choose_again: bool,
    /// What the client asked for, when it did.
    asked: String,
}

impl Claims {
    pub(super) fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.releases.is_empty()
    }

    pub(super) fn add_to(&self, transaction: &mut Transaction) {
        for (key, value) in &self.takes {
            transaction.conditions.push(Condition { key: key.clone(), mod_revision: 0 });
            transaction.writes.push(Write::Put { key: key.clone(), value: value.clone() });
        }
        transaction.writes.extend(self.releases.iter().map(|key| Write::Delete { key: key.clone() }));
    }

    /// The answer when what the client asked for is taken.
    pub(super) fn refusal(&self, def: &ResourceDef, name: &str) -> Status {
        let (field, message) = match self.asked.parse::<u16>() {
            Ok(port) => {
                ("spec.ports[0].nodePort", format!("Invalid value: {port}: provided port is already allocated"))
            }
            Err(_) => (
                "spec.clusterIPs",
                format!(
                    "Invalid value: [{:?}]: failed to allocate IP {}: provided IP is already allocated",
                    self.asked, self.asked
                ),
            ),
        };
        let cause = StatusCause { reason: "FieldValueInvalid".to_owned(), message, field: field.to_owned() };
        Status::invalid(def.group, def.kind, name, vec![cause])
    }
}

impl Registry {
    /// Chooses what `object` needs and does not name, and returns what it takes and gives back.
    pub(super) fn allocate(
        &self,
        def: &ResourceDef,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Claims, Status> {
        if def.resource != "services" || !def.group.is_empty() {
            return Ok(Claims::default());
        }
        let mut claims = Claims { can_choose_again: true, ..Claims::default() };
        self.allocate_address(def, object, old, &mut claims)?;
        self.allocate_ports(def, object, old, &mut claims)?;
        Ok(claims)
    }

    /// Gives back everything that a Service holds, as it is deleted.
    pub(super) fn release_claims(&self, def: &ResourceDef, object: &Value, transaction: &mut Transaction) {
        if def.resource != "services" || !def.group.is_empty() {
            return;
        }
        let address = address_of(object).map(address_key);
        let ports = ports_of(object).into_iter().map(port_key);
        transaction.writes.extend(address.into_iter().chain(ports).map(|key| Write::Delete { key }));
    }

    fn allocate_address(
        &self,
        def: &ResourceDef,
        object: &mut Value,
        old: Option<&Value>,
        claims: &mut Claims,
    ) -> Result<(), Status> {
        let held = old.and_then(address_of);
        if text(&object["spec"], "type") == "ExternalName" || text(&object["spec"], "clusterIP") == "None" {
            claims.releases.extend(held.map(address_key));
            return Ok(());
        }
        let range = self.inner.config.service_cidr;
        let asked = text(&object["spec"], "clusterIP").to_owned();
        let name = text(&object["metadata"], "name").to_owned();
        let address = if asked.is_empty() {
            self.free_address().ok_or_else(|| {
                Status::failure(500, "InternalError", format!("failed to allocate a serviceIP: range {range} is full"))
            })?
        } else {
            let invalid = |why: String| {
                let message = format!("Invalid value: [{asked:?}]: {why}");
                let cause = StatusCause {
                    reason: "FieldValueInvalid".to_owned(),
                    message,
                    field: "spec.clusterIPs".to_owned(),
                };
                Status::invalid(def.group, def.kind, &name, vec![cause])
            };
            let address: Ipv4Addr = asked
                .parse()
                .map_err(|_| invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()))?;
            if !range.contains(&address) || address == range.network() || address == range.broadcast() {
                return Err(invalid(format!(
                    "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
                )));
            }
            if held != Some(address) {
                claims.can_choose_again = false;
                claims.asked = address.to_string();
            }
            address
        };
        let spec = child(object, "spec");
        set(spec, "clusterIP", address.to_string());
        set(spec, "clusterIPs", json!([address.to_string()]));
        if held != Some(address) {
            claims.releases.extend(held.map(address_key));
            claims.takes.push((address_key(address), address_object(address, object)));
        }
        Ok(())
    }

    /// An address that no Service has, as far as this server knows.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let cache = self.cache().of(resource("networking.k8s.io", "v1", "ipaddresses")?).ok()?;
        let range = self.inner.config.service_cidr;
        let (first, last) = (u32::from(range.network()) + 1, u32::from(range.broadcast()).saturating_sub(1));
        // The lower part is left to those who ask for a certain address, as upstream
        // does: a sixteenth of the range, 16 to 256 addresses.
        let reserved = (last.checked_sub(first)? / 16).clamp(16, 256);
        let low = first.saturating_add(reserved).min(last);
        let is_free = |address: &u32| cache.get(&Ipv4Addr::from(*address).to_string()).is_none();
        let mut random = rand::rng();
        let tried = (0..RANDOM_ATTEMPTS).map(|_| random.random_range(low..=last)).find(is_free);
        tried.or_else(|| (first..=last).rev().take(SEARCH_LIMIT as usize).find(is_free)).map(Ipv4Addr::from)
    }

    fn allocate_ports(
        &self,
        def: &ResourceDef,
        object: &mut Value,
        old: Option<&Value>,
        claims: &mut Claims,
    ) -> Result<(), Status> {
        let held = old.map(ports_of).unwrap_or_default();
        let wants = matches!(text(&object["spec"], "type"), "NodePort" | "LoadBalancer");
        let allocates =
            text(&object["spec"], "type") == "NodePort" || object["spec"]["allocateLoadBalancerNodePorts"] != false;
        let service = format!("{}/{}", text(&object["metadata"], "namespace"), text(&object["metadata"], "name"));
        let name = text(&object["metadata"], "name").to_owned();
        let mut mine = ports_of(object);
        if wants {
            for port in mine.difference(&held) {
                if !self.inner.config.node_ports.contains(port) {
                    let range = &self.inner.config.node_ports;
                    let message = format!(
                        "Invalid value: {port}: provided port is not in the valid range. The range of valid ports is {}-{}",
                        range.start(),
                        range.end()
                    );
                    let field = "spec.ports[0].nodePort".to_owned();
                    let cause = StatusCause { reason: "FieldValueInvalid".to_owned(), message, field };
                    return Err(Status::invalid(def.group, def.kind, &name, vec![cause]));
                }
                claims.can_choose_again = false;
                claims.asked = port.to_string();
            }
            if allocates {
                for port in items_mut(child(object, "spec"), "ports") {
                    if port["nodePort"].as_i64().unwrap_or(0) == 0 {
                        let chosen = self
                            .free_port(&mine)
                            .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?;
                        set(port, "nodePort", chosen);
                        mine.insert(chosen);
                    }
                }
            }
        }
        let value = Bytes::from(json!({"service": service}).to_string());
        claims.takes.extend(mine.difference(&held).map(|port| (port_key(*port), value.clone())));
        claims.releases.extend(held.difference(&mine).map(|port| port_key(*port)));
        Ok(())
    }

    fn free_port(&self, mine: &BTreeSet<u16>) -> Option<u16> {
        let cache = self.cache().of(resource("", "v1", "services")?).ok()?;
        let everything = cache.list(&crate::watch_cache::Selection::default(), "", 0);
        let mut taken: BTreeSet<u16> = everything.items.iter().flat_map(|service| ports_of(service.value())).collect();
        taken.extend(mine);
        let range = self.inner.config.node_ports.clone();
        let free: Vec<u16> = range.filter(|port| !taken.contains(port)).collect();
        (!free.is_empty()).then(|| free[rand::rng().random_range(0..free.len())])
    }
}

fn address_of(service: &Value) -> Option<Ipv4Addr> {
    text(&service["spec"], "clusterIP").parse().ok()
}

fn ports_of(service: &Value) -> BTreeSet<u16> {
    let ports = items(&service["spec"], "ports").map(|port| &port["nodePort"]);
    ports
        .chain([&service["spec"]["healthCheckNodePort"]])
        .filter_map(|port| u16::try_from(port.as_i64()?).ok())
        .filter(|port| *port != 0)
        .collect()
}

fn port_key(port: u16) -> String {
    format!("{NODE_PORTS}{port}")
}

fn address_key(address: Ipv4Addr) -> String {
    format!("/registry/ipaddresses/{address}")
}

/// The IPAddress that shows in the API whose address it is.
fn address_object(address: Ipv4Addr, service: &Value) -> Bytes {
    codec::encode_stored(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": now(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {
            "group": "",
            "resource": "services",
            "namespace": service["metadata"]["namespace"],
            "name": service["metadata"]["name"],
        }},
    }))
}
