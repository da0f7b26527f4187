//! Acting as somebody else, for those who may.

use http::HeaderMap;
use quorate_proto::status::Status;

use super::user::{AUTHENTICATED, UNAUTHENTICATED, User};
use crate::authz::{Attributes, Authorizer};
use crate::http::query;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user that the headers name, or `user` when they name none.
///
/// # Errors
/// 403 when `user` may not act as that one, 400 when the headers do not name a user.
pub fn impersonate(user: User, headers: &HeaderMap, authorizer: &Authorizer) -> Result<User, Status> {
    let Some(target) = target(headers)? else { return Ok(user) };
    for mut question in questions(&target) {
        question.user = user.clone();
        question.verb = "impersonate".to_owned();
        question.is_resource_request = true;
        question.api_version = "v1".to_owned();
        authorizer.check(&question)?;
    }
    Ok(complete(target))
}

fn target(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let texts = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let mut target = User {
        name: texts(USER).into_iter().next().unwrap_or_default(),
        uid: texts(UID).into_iter().next().unwrap_or_default(),
        groups: texts(GROUP),
        ..User::default()
    };
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA), value.to_str()) {
            target.extra.entry(query::decode(key, false)).or_default().push(value.to_owned());
        }
    }
    if !target.name.is_empty() {
        return Ok(Some(target));
    }
    if target == User::default() {
        return Ok(None);
    }
    Err(Status::internal("requested impersonation without impersonating a user"))
}

fn questions(target: &User) -> Vec<Attributes> {
    let about = |group: &str, resource: &str, name: &str| Attributes {
        api_group: group.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let mut questions = vec![match target.service_account() {
        Some((namespace, name)) => Attributes { namespace: namespace.to_owned(), ..about("", "serviceaccounts", name) },
        None => about("", "users", &target.name),
    }];
    questions.extend(target.groups.iter().map(|group| about("", "groups", group)));
    if !target.uid.is_empty() {
        questions.push(about("authentication.k8s.io", "uids", &target.uid));
    }
    for (key, values) in &target.extra {
        let extra = values.iter().map(|value| Attributes {
            subresource: key.clone(),
            ..about("authentication.k8s.io", "userextras", value)
        });
        questions.extend(extra);
    }
    questions
}

/// Adds the groups that follow from the name.
fn complete(mut user: User) -> User {
    if let (Some((namespace, name)), true) = (user.service_account(), user.groups.is_empty()) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        user.groups = User::of_service_account(&namespace, &name, "").groups;
    }
    let implied = if user.name == User::anonymous().name { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(implied) {
        user.groups.push(implied.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn headers_name_a_user() {
        assert_eq!(target(&headers(&[])), Ok(None));
        assert!(target(&headers(&[(GROUP, "a")])).is_err());
        let user =
            target(&headers(&[(USER, "jane"), (GROUP, "dev"), ("impersonate-extra-a%2fb", "c")])).unwrap().unwrap();
        assert_eq!(user.extra["a/b"], ["c"]);
        assert_eq!(questions(&user).len(), 3);
        assert_eq!(complete(user).groups, ["dev", AUTHENTICATED]);
    }

    #[test]
    fn service_accounts_bring_their_groups() {
        let user = complete(target(&headers(&[(USER, "system:serviceaccount:a:b")])).unwrap().unwrap());
        assert!(user.is_in("system:serviceaccounts:a"));
    }
}
