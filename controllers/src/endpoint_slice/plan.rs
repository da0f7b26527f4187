//! How the endpoints of a Service are spread over slices, changing as few as possible.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::Endpoint;

use crate::endpoints::PortKey;

/// As upstream's `--max-endpoints-per-slice`.
pub(super) const MAX_ENDPOINTS: usize = 100;

/// What a slice cannot change: endpoints of one group share their slices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) address_type: String,
    pub(super) ports: Vec<PortKey>,
}

/// The content of one slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) group: Group,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Vec<Slice>,
    /// By name. Slices that stay as they are are not in it.
    pub(super) update: BTreeMap<String, Slice>,
    pub(super) delete: Vec<String>,
}

/// Plans the way from the slices there are, by name, to the endpoints there should be.
/// Every address type of `wanted` keeps at least one slice, even an empty one: by it
/// clients know that the Service was looked at.
pub(super) fn plan(current: &BTreeMap<String, Slice>, wanted: BTreeMap<Group, Vec<Endpoint>>, types: &[&str]) -> Plan {
    let mut plan = Plan::default();
    let mut wanted = wanted;
    for address_type in types {
        if !wanted.keys().any(|group| group.address_type == *address_type) {
            let placeholder = Group { address_type: (*address_type).to_owned(), ports: Vec::new() };
            wanted.insert(placeholder, Vec::new());
        }
    }
    let mut spare: Vec<&String> =
        current.iter().filter(|(_, slice)| !wanted.contains_key(&slice.group)).map(|(name, _)| name).collect();
    for (group, endpoints) in wanted {
        let mine: Vec<(&String, &Slice)> = current.iter().filter(|(_, slice)| slice.group == group).collect();
        spread(group, endpoints, &mine, &mut plan, &mut spare);
    }
    // Rather than make one and delete another of the same address type, rewrite it.
    let create = std::mem::take(&mut plan.create);
    for slice in create {
        let reusable = spare.iter().position(|name| current[*name].group.address_type == slice.group.address_type);
        match reusable {
            Some(index) => {
                plan.update.insert(spare.remove(index).clone(), slice);
            }
            None => plan.create.push(slice),
        }
    }
    plan.delete.extend(spare.into_iter().cloned());
    plan.delete.sort();
    plan
}

fn spread<'a>(
    group: Group,
    endpoints: Vec<Endpoint>,
    mine: &[(&'a String, &Slice)],
    plan: &mut Plan,
    spare: &mut Vec<&'a String>,
) {
    let mut missing: BTreeMap<Key, Endpoint> =
        endpoints.into_iter().map(|endpoint| (key(&endpoint), endpoint)).collect();
    // What stands in a slice stays there, in its newest form.
    let mut kept: Vec<(&'a String, &Slice, Vec<Endpoint>)> = mine
        .iter()
        .map(|(name, slice)| {
            let stays = slice.endpoints.iter().filter_map(|endpoint| missing.remove(&key(endpoint))).collect();
            (*name, *slice, stays)
        })
        .collect();
    // Newcomers go where writing is needed anyway, then where it is fullest.
    kept.sort_by_key(|(_, slice, stays)| (*stays == slice.endpoints, usize::MAX - stays.len()));
    let mut newcomers = missing.into_values().peekable();
    for (_, _, stays) in &mut kept {
        while stays.len() < MAX_ENDPOINTS && newcomers.peek().is_some() {
            stays.extend(newcomers.next());
        }
    }
    let mut remaining = kept.iter().filter(|(_, _, stays)| !stays.is_empty()).count();
    while newcomers.peek().is_some() {
        let endpoints = newcomers.by_ref().take(MAX_ENDPOINTS).collect();
        plan.create.push(Slice { group: group.clone(), endpoints });
        remaining += 1;
    }
    for (name, slice, stays) in kept {
        if stays.is_empty() {
            if remaining > 0 {
                spare.push(name);
                continue;
            }
            // The last one stays as the placeholder.
            remaining = 1;
        }
        if stays != slice.endpoints {
            plan.update.insert(name.clone(), Slice { group: group.clone(), endpoints: stays });
        }
    }
    if remaining == 0 {
        plan.create.push(Slice { group, endpoints: Vec::new() });
    }
}

type Key = (Vec<String>, Option<String>);

/// An address and the pod behind it: another pod with a reused address is another endpoint.
fn key(endpoint: &Endpoint) -> Key {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::EndpointConditions;

    use super::*;

    fn group(port: i32) -> Group {
        let port = PortKey { name: String::new(), port, protocol: "TCP".to_owned(), app_protocol: None };
        Group { address_type: "IPv4".to_owned(), ports: vec![port] }
    }

    fn endpoints(range: std::ops::Range<usize>) -> Vec<Endpoint> {
        range.map(|index| Endpoint { addresses: vec![format!("10.0.0.{index:04}")], ..Endpoint::default() }).collect()
    }

    fn slice(port: i32, range: std::ops::Range<usize>) -> Slice {
        Slice { group: group(port), endpoints: endpoints(range) }
    }

    fn run(current: &[(&str, Slice)], wanted: &[(i32, Vec<Endpoint>)]) -> Plan {
        let current = current.iter().map(|(name, slice)| ((*name).to_owned(), slice.clone())).collect();
        let wanted = wanted.iter().map(|(port, endpoints)| (group(*port), endpoints.clone())).collect();
        plan(&current, wanted, &["IPv4"])
    }

    #[test]
    fn what_is_right_is_left_alone() {
        assert_eq!(run(&[("a", slice(80, 0..3))], &[(80, endpoints(0..3))]), Plan::default());
        let empty = Slice { group: Group { ports: Vec::new(), ..group(80) }, endpoints: Vec::new() };
        assert_eq!(run(&[("a", empty)], &[]), Plan::default());
    }

    #[test]
    fn slices_fill_up_before_new_ones_are_made() {
        let made = run(&[], &[(80, endpoints(0..250))]);
        assert_eq!(made.create.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
        let grown = run(&[("a", slice(80, 0..100)), ("b", slice(80, 100..150))], &[(80, endpoints(0..180))]);
        assert!(grown.create.is_empty() && grown.delete.is_empty());
        assert_eq!(grown.update.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(grown.update["b"].endpoints.len(), 80);
        let shrunk = run(&[("a", slice(80, 0..100)), ("b", slice(80, 100..150))], &[(80, endpoints(0..99))]);
        assert_eq!((shrunk.update["a"].endpoints.len(), shrunk.delete), (99, vec!["b".to_owned()]));
    }

    #[test]
    fn a_changed_endpoint_is_written_where_it_stands() {
        let mut wanted = endpoints(0..2);
        wanted[1].conditions = Some(EndpointConditions { ready: Some(false), ..EndpointConditions::default() });
        let plan = run(&[("a", slice(80, 0..2))], &[(80, wanted.clone())]);
        assert_eq!(plan.update["a"].endpoints, wanted);
    }

    #[test]
    fn slices_change_their_ports_rather_than_their_names() {
        let plan = run(&[("a", slice(80, 0..2))], &[(90, endpoints(0..2))]);
        assert_eq!(plan.update["a"], slice(90, 0..2));
        assert!(plan.create.is_empty() && plan.delete.is_empty());
        // Without endpoints one slice stays, so that nobody waits for the first.
        let emptied = run(&[("a", slice(80, 0..2)), ("b", slice(90, 0..1))], &[]);
        assert_eq!(emptied.update.len() + emptied.delete.len(), 2);
        assert!(emptied.update.values().all(|slice| slice.endpoints.is_empty() && slice.group.ports.is_empty()));
        assert_eq!(run(&[], &[]).create.len(), 1);
    }
}
