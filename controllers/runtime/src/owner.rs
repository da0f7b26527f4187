//! Who controls what, and taking or giving up that control.

use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::meta::{ObjectMeta, OwnerReference};
use quorate_proto::object::Object;
use quorate_proto::selector::LabelSelector;
use quorate_proto::status::Status;
use serde_json::json;

use crate::client::{Client, Patch, Result, WriteOptions};

/// The reference that makes `owner` the controller of what carries it.
pub fn controller_reference(owner: &Object) -> OwnerReference {
    OwnerReference {
        api_version: owner.gvk().api_version(),
        kind: owner.gvk().kind.clone(),
        name: owner.meta().name.clone(),
        uid: owner.meta().uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What an owner does about an object that it might control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the owner's already.
    Keep,
    /// It has no controller and the labels match.
    Adopt,
    /// It is the owner's, but its labels no longer match.
    Release,
    Ignore,
}

/// Decides about `object` in the name of `owner`. Both are of one namespace.
pub fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let matches = selector.matches(&object.labels);
    match object.controller() {
        Some(controller) if controller.uid != owner.uid => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.is_terminating() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !owner.is_terminating() && !object.is_terminating() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// Makes `owner` the controller of `object`, unless either is another than it was.
///
/// # Errors
/// The server's; `Conflict` when the owner is being deleted or was made anew.
pub async fn adopt(
    client: &dyn Client,
    owner_resource: &GroupVersionResource,
    owner: &Object,
    resource: &GroupVersionResource,
    object: &ObjectMeta,
) -> Result<()> {
    // The cache may be behind: a live look keeps a dying owner from adopting.
    let live = client.get(owner_resource, namespace(owner.meta()), &owner.meta().name).await?;
    if live.meta().uid != owner.meta().uid || live.meta().is_terminating() {
        return Err(Status::conflict(
            &owner_resource.group,
            &owner_resource.resource,
            &owner.meta().name,
            "the owner is being deleted or was replaced",
        ));
    }
    let patch = json!({"metadata": {"ownerReferences": [controller_reference(owner)], "uid": object.uid}});
    client
        .patch(resource, namespace(object), &object.name, None, Patch::Strategic(patch), WriteOptions::default())
        .await?;
    Ok(())
}

/// Gives up control of `object`. One that is gone is given up already.
///
/// # Errors
/// The server's.
pub async fn release(
    client: &dyn Client,
    owner: &ObjectMeta,
    resource: &GroupVersionResource,
    object: &ObjectMeta,
) -> Result<()> {
    let patch = json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner.uid}], "uid": object.uid}});
    let released = client
        .patch(resource, namespace(object), &object.name, None, Patch::Strategic(patch), WriteOptions::default())
        .await;
    match released {
        Err(error) if !error.is_not_found() && error.code != 422 => Err(error),
        _ => Ok(()),
    }
}

/// The namespace as clients name it: `None` for cluster-scoped objects.
pub fn namespace(meta: &ObjectMeta) -> Option<&str> {
    (!meta.namespace.is_empty()).then_some(meta.namespace.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(controller: Option<&str>, matches: bool, owner_dies: bool, object_dies: bool, expected: Claim) {
        let time = || Some("2026-01-01T00:00:00Z".to_owned());
        let owner = ObjectMeta {
            uid: "me".to_owned(),
            deletion_timestamp: owner_dies.then(time).flatten(),
            ..ObjectMeta::default()
        };
        let mut object = ObjectMeta { deletion_timestamp: object_dies.then(time).flatten(), ..ObjectMeta::default() };
        if matches {
            object.labels.insert("app".to_owned(), "web".to_owned());
        }
        if let Some(uid) = controller {
            object.owner_references.push(OwnerReference {
                uid: uid.to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            });
        }
        let selector = LabelSelector::parse("app=web").unwrap();
        assert_eq!(claim(&owner, &selector, &object), expected);
    }

    #[test]
    fn claims_follow_controller_labels_and_deletion() {
        check(Some("other"), true, false, false, Claim::Ignore);
        check(Some("me"), true, false, false, Claim::Keep);
        check(Some("me"), true, true, false, Claim::Keep);
        check(Some("me"), false, false, false, Claim::Release);
        check(Some("me"), false, true, false, Claim::Ignore);
        check(None, true, false, false, Claim::Adopt);
        check(None, true, true, false, Claim::Ignore);
        check(None, true, false, true, Claim::Ignore);
        check(None, false, false, false, Claim::Ignore);
    }
}
