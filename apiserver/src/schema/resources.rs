//! The table of built-in resources: what is served, under which names, with which verbs.
//!
//! The rows are `resources.tsv`, in the order in which discovery shows them.

include!(concat!(env!("OUT_DIR"), "/resources.rs"));

/// What can be done with a resource, as discovery and authorization name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

/// One resource in one group and version.
#[derive(Debug)]
pub struct ResourceDef {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// The plural, as in paths.
    pub resource: &'static str,
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub singular: &'static str,
    pub namespaced: bool,
    pub verbs: &'static [Verb],
    pub subresources: &'static [SubresourceDef],
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    /// `/registry/pods`; empty when objects of this kind are never stored.
    pub storage_prefix: &'static str,
}

/// A part of a resource with a path of its own.
#[derive(Debug)]
pub struct SubresourceDef {
    pub name: &'static str,
    /// The kind that the body has, which may be of another group than the resource.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [Verb],
}

impl ResourceDef {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        join(self.group, self.version)
    }

    /// `deployments.apps`, or `pods` for the core group.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.resource.to_owned() } else { format!("{}.{}", self.resource, self.group) }
    }

    pub fn has_verb(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&'static SubresourceDef> {
        self.subresources.iter().find(|sub| sub.name == name)
    }
}

impl SubresourceDef {
    pub fn api_version(&self) -> String {
        join(self.group, self.version)
    }
}

/// All built-in resources.
pub fn resources() -> &'static [ResourceDef] {
    RESOURCES
}

/// The resource that a path names.
pub fn resource(group: &str, version: &str, resource: &str) -> Option<&'static ResourceDef> {
    RESOURCES.iter().find(|def| def.resource == resource && def.version == version && def.group == group)
}

/// The resource whose objects are of this kind.
pub fn resource_for_kind(group: &str, version: &str, kind: &str) -> Option<&'static ResourceDef> {
    RESOURCES.iter().find(|def| def.kind == kind && def.version == version && def.group == group)
}

fn join(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_surface_is_there() {
        assert_eq!(resources().len(), 66);
        let pods = resource("", "v1", "pods").unwrap();
        assert_eq!((pods.kind, pods.list_kind, pods.singular), ("Pod", "PodList", "pod"));
        assert_eq!(pods.storage_prefix, "/registry/pods");
        assert_eq!(pods.short_names, ["po"]);
        let scale = resource("apps", "v1", "deployments").unwrap().subresource("scale").unwrap();
        assert_eq!((scale.api_version().as_str(), scale.kind), ("autoscaling/v1", "Scale"));
        assert!(!resource("", "v1", "namespaces").unwrap().has_verb(Verb::DeleteCollection));
        assert_eq!(resource_for_kind("", "v1", "Node").unwrap().storage_prefix, "/registry/minions");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = resources().iter().map(|def| (def.group, def.version, def.resource)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), resources().len());
    }
}
