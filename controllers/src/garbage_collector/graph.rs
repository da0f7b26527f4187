//! Who owns whom, over all resources, and what follows from it for one object.

use std::collections::{BTreeSet, HashMap};

use quorate_proto::meta::{ObjectMeta, OwnerReference};

/// Set by a deletion that leaves the dependents.
pub(super) const ORPHAN: &str = "orphan";
/// Set by a deletion that waits for the dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";

/// What the graph knows of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Index into the collector's table of resources.
    pub(super) resource: usize,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) is_terminating: bool,
    /// Its dependents are to be left.
    pub(super) orphans: bool,
    /// It waits for its dependents.
    pub(super) waits: bool,
}

impl Node {
    pub(super) fn of(resource: usize, meta: &ObjectMeta) -> Self {
        let has = |finalizer: &str| meta.finalizers.iter().any(|one| one == finalizer);
        Self {
            resource,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            owners: meta.owner_references.clone(),
            is_terminating: meta.is_terminating(),
            orphans: has(ORPHAN),
            waits: has(FOREGROUND),
        }
    }

    fn is_waiting(&self) -> bool {
        self.is_terminating && self.waits
    }

    fn is_orphaning(&self) -> bool {
        self.is_terminating && self.orphans
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|one| one.uid == owner && one.block_owner_deletion == Some(true))
    }
}

/// Nodes and edges by uid. Always: `dependents[o]` holds exactly the nodes that name `o`.
#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, BTreeSet<String>>,
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    Present,
    /// It is being deleted and waits for its dependents.
    Waiting,
    Absent,
}

/// What is to be done about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Take the references to it from these dependents, then let it go.
    OrphanDependents(Vec<String>),
    /// Nothing blocks its deletion any more.
    FinishForeground,
    /// Its deletion waits for these.
    Await(Vec<String>),
    /// Take these owners out of its references; another one keeps it.
    DropOwners(Vec<String>),
    Delete {
        policy: &'static str,
    },
}

impl Graph {
    pub(super) fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Puts in what was seen of an object; the uids to look at now.
    pub(super) fn observe(&mut self, uid: &str, node: Node) -> Vec<String> {
        let mut look = Vec::new();
        let old = self.nodes.insert(uid.to_owned(), node.clone());
        let was_waiting = old.as_ref().is_some_and(Node::is_waiting);
        let old_owners = old.map(|old| old.owners).unwrap_or_default();
        if old_owners != node.owners {
            for owner in &old_owners {
                self.unlink(&owner.uid, uid);
            }
            for owner in &node.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
            }
            // An owner that waited for us may wait no longer.
            look.extend(old_owners.iter().filter(|owner| self.waits(&owner.uid)).map(|owner| owner.uid.clone()));
        }
        let is_orphan = old_owners != node.owners && !node.owners.is_empty();
        if is_orphan || node.is_waiting() || node.is_orphaning() {
            look.push(uid.to_owned());
        }
        if node.is_waiting() && !was_waiting {
            look.extend(self.dependents(uid));
        }
        look
    }

    /// Takes out an object that is gone; the uids to look at now.
    pub(super) fn forget(&mut self, uid: &str) -> Vec<String> {
        let mut look = self.dependents(uid);
        if let Some(node) = self.nodes.remove(uid) {
            for owner in &node.owners {
                self.unlink(&owner.uid, uid);
                if self.waits(&owner.uid) {
                    look.push(owner.uid.clone());
                }
            }
        }
        look
    }

    /// Everything that there might be something to do about: all but objects whose owners
    /// are plainly there.
    pub(super) fn suspects(&self) -> Vec<String> {
        let is_suspect = |node: &Node| {
            node.is_waiting()
                || node.is_orphaning()
                || node.owners.iter().any(|owner| self.owner_state(node, &owner.uid) != Some(OwnerState::Present))
        };
        self.nodes.iter().filter(|(_, node)| is_suspect(node)).map(|(uid, _)| uid.clone()).collect()
    }

    /// What the graph says of an owner; `None` when only the server can tell.
    pub(super) fn owner_state(&self, dependent: &Node, owner: &str) -> Option<OwnerState> {
        let owner = self.nodes.get(owner)?;
        // An owner is in the dependent's namespace or in none.
        if !owner.namespace.is_empty() && owner.namespace != dependent.namespace {
            return None;
        }
        Some(if owner.is_waiting() { OwnerState::Waiting } else { OwnerState::Present })
    }

    /// Decides about one object. `owner_state` tells of the owners that the graph lacks.
    pub(super) fn decide(&self, uid: &str, owner_state: impl Fn(&OwnerReference) -> OwnerState) -> Action {
        let Some(node) = self.nodes.get(uid) else { return Action::Nothing };
        if node.is_orphaning() {
            return Action::OrphanDependents(self.dependents(uid));
        }
        if node.is_waiting() {
            let blocks = |dependent: &String| self.nodes.get(dependent).is_some_and(|node| node.blocks(uid));
            let blocking: Vec<String> = self.dependents(uid).into_iter().filter(blocks).collect();
            return if blocking.is_empty() { Action::FinishForeground } else { Action::Await(blocking) };
        }
        if node.is_terminating || node.owners.is_empty() {
            return Action::Nothing;
        }
        let state = |owner: &OwnerReference| self.owner_state(node, &owner.uid).unwrap_or_else(|| owner_state(owner));
        let states: Vec<(&OwnerReference, OwnerState)> =
            node.owners.iter().map(|owner| (owner, state(owner))).collect();
        let lost: Vec<String> = states
            .iter()
            .filter(|(_, state)| *state != OwnerState::Present)
            .map(|(owner, _)| owner.uid.clone())
            .collect();
        if lost.is_empty() {
            return Action::Nothing;
        }
        if lost.len() < node.owners.len() {
            return Action::DropOwners(lost);
        }
        // The owner waits for everything below it, not for the first row only.
        let is_awaited = states.iter().any(|(_, state)| *state == OwnerState::Waiting);
        let has_dependents = self.dependents.contains_key(uid);
        let policy = match () {
            () if is_awaited && has_dependents => "Foreground",
            () if node.orphans => "Orphan",
            () if node.waits => "Foreground",
            () => "Background",
        };
        Action::Delete { policy }
    }

    fn waits(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(Node::is_waiting)
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference { uid: uid.to_owned(), block_owner_deletion: Some(true), ..OwnerReference::default() }
    }

    fn node(owners: &[&str]) -> Node {
        Node {
            resource: 0,
            namespace: "a".to_owned(),
            name: "x".to_owned(),
            owners: owners.iter().map(|uid| owner(uid)).collect(),
            is_terminating: false,
            orphans: false,
            waits: false,
        }
    }

    fn waiting(owners: &[&str]) -> Node {
        Node { is_terminating: true, waits: true, ..node(owners) }
    }

    fn graph(nodes: &[(&str, Node)]) -> Graph {
        let mut graph = Graph::default();
        for (uid, node) in nodes {
            graph.observe(uid, node.clone());
        }
        graph
    }

    #[track_caller]
    fn check(nodes: &[(&str, Node)], uid: &str, expected: Action) {
        assert_eq!(graph(nodes).decide(uid, |_| OwnerState::Absent), expected);
    }

    #[test]
    fn what_nobody_owns_any_more_is_deleted() {
        check(&[("d", node(&[]))], "d", Action::Nothing);
        check(&[("d", node(&["o"])), ("o", node(&[]))], "d", Action::Nothing);
        check(&[("d", node(&["o"]))], "d", Action::Delete { policy: "Background" });
        check(&[("d", Node { waits: true, ..node(&["o"]) })], "d", Action::Delete { policy: "Foreground" });
        check(&[("d", Node { orphans: true, ..node(&["o"]) })], "d", Action::Delete { policy: "Orphan" });
        check(&[("d", Node { is_terminating: true, ..node(&["o"]) })], "d", Action::Nothing);
        check(&[("d", node(&["o", "p"])), ("p", node(&[]))], "d", Action::DropOwners(vec!["o".to_owned()]));
        // A namesake's uid in another namespace owns nothing here.
        let stranger = Node { namespace: "b".to_owned(), ..node(&[]) };
        check(&[("d", node(&["o"])), ("o", stranger)], "d", Action::Delete { policy: "Background" });
        let cluster_scoped = Node { namespace: String::new(), ..node(&[]) };
        check(&[("d", node(&["o"])), ("o", cluster_scoped)], "d", Action::Nothing);
    }

    #[test]
    fn a_foreground_deletion_waits_from_the_leaves_up() {
        let tree = [("o", waiting(&[])), ("m", node(&["o"])), ("l", node(&["m"]))];
        check(&tree, "o", Action::Await(vec!["m".to_owned()]));
        check(&tree, "m", Action::Delete { policy: "Foreground" });
        check(&tree, "l", Action::Nothing);
        let next = [("o", waiting(&[])), ("m", waiting(&["o"])), ("l", node(&["m"]))];
        check(&next, "l", Action::Delete { policy: "Background" });
        check(&next, "m", Action::Await(vec!["l".to_owned()]));
        check(&next[..2], "m", Action::FinishForeground);
        let mut unblocking = node(&["o"]);
        unblocking.owners[0].block_owner_deletion = None;
        check(&[("o", waiting(&[])), ("m", unblocking)], "o", Action::FinishForeground);
    }

    #[test]
    fn orphans_are_freed_before_their_owner_goes() {
        let orphaning = Node { is_terminating: true, orphans: true, ..node(&[]) };
        let dependents = vec!["d".to_owned(), "e".to_owned()];
        check(&[("o", orphaning), ("d", node(&["o"])), ("e", node(&["o"]))], "o", Action::OrphanDependents(dependents));
    }

    #[test]
    fn changes_name_what_must_be_looked_at() {
        let mut graph = Graph::default();
        assert!(graph.observe("o", node(&[])).is_empty());
        assert_eq!(graph.observe("d", node(&["o"])), ["d"]);
        assert!(graph.observe("d", node(&["o"])).is_empty());
        assert!(graph.suspects().is_empty());
        assert_eq!(graph.observe("o", waiting(&[])), ["o", "d"]);
        assert_eq!(graph.forget("d"), ["o"]);
        graph.observe("d", node(&["o"]));
        assert_eq!(graph.observe("d", node(&[])), ["o"]);
        graph.observe("d", node(&["o"]));
        assert_eq!(graph.forget("o"), ["d"]);
        assert_eq!(graph.suspects(), ["d"]);
        graph.forget("d");
        assert!(graph.nodes.is_empty() && graph.dependents.is_empty());
    }
}
