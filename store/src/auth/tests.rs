//! Users, roles and permissions as tables.

use bytes::Bytes;
use quorate_proto::authpb::Permission;
use quorate_proto::authpb::permission::Type;
use quorate_proto::etcd::request_op::Request;
use quorate_proto::etcd::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

use super::check::LeaseKeys;
use super::{Actor, AuthChange, Permit, State};
use crate::command::{ApplyError, Operation};
use crate::mvcc::{EngineError, ReadError};

fn add_user(name: &str) -> AuthChange {
    AuthChange::UserAdd { name: name.into(), password: "hash".into(), no_password: false }
}

fn delete_user(name: &str) -> AuthChange {
    AuthChange::UserDelete { name: name.into() }
}

fn grant(user: &str, role: &str) -> AuthChange {
    AuthChange::UserGrantRole { user: user.into(), role: role.into() }
}

fn revoke(user: &str, role: &str) -> AuthChange {
    AuthChange::UserRevokeRole { user: user.into(), role: role.into() }
}

fn add_role(name: &str) -> AuthChange {
    AuthChange::RoleAdd { name: name.into() }
}

fn delete_role(name: &str) -> AuthChange {
    AuthChange::RoleDelete { name: name.into() }
}

fn permit(role: &str, kind: Type, key: &'static str, end: &'static str) -> AuthChange {
    let permission = Permission { perm_type: kind.into(), key: key.into(), range_end: end.into() };
    AuthChange::RoleGrantPermission { role: role.into(), permission: Some(permission) }
}

fn withdraw(role: &str, key: &'static str, end: &'static str) -> AuthChange {
    AuthChange::RoleRevokePermission { role: role.into(), key: key.into(), range_end: end.into() }
}

fn enable() -> AuthChange {
    AuthChange::Enable { secret: "secret".into() }
}

/// What a change answers, and by how much it moves the revision.
#[test]
fn changes_answer_as_etcd() {
    use ApplyError as Error;
    let ungiven = AuthChange::RoleGrantPermission { role: "r".into(), permission: None };
    let unknown = Permission { perm_type: 9, key: "a".into(), range_end: Bytes::new() };
    let unknown = AuthChange::RoleGrantPermission { role: "r".into(), permission: Some(unknown) };
    let steps: Vec<(AuthChange, Result<u64, Error>)> = vec![
        (enable(), Err(Error::RootUserNotExist)),
        (AuthChange::Disable, Ok(0)),
        (add_user(""), Err(Error::UserEmpty)),
        (add_user("root"), Ok(1)),
        (add_user("root"), Err(Error::UserAlreadyExist)),
        (enable(), Err(Error::RootRoleNotExist)),
        (grant("root", "r"), Err(Error::RoleNotFound)),
        (grant("nobody", "root"), Err(Error::UserNotFound)),
        // The root role need not exist to be granted.
        (grant("root", "root"), Ok(1)),
        (grant("root", "root"), Ok(0)),
        (add_role(""), Err(Error::RoleEmpty)),
        (add_role("r"), Ok(1)),
        (add_role("r"), Err(Error::RoleAlreadyExist)),
        (ungiven, Err(Error::PermissionNotGiven)),
        (unknown, Err(Error::InvalidAuthManagement)),
        (permit("nothing", Type::Read, "a", ""), Err(Error::RoleNotFound)),
        (permit("r", Type::Read, "", ""), Err(Error::InvalidAuthManagement)),
        (permit("r", Type::Read, "b", "a"), Err(Error::InvalidAuthManagement)),
        (permit("r", Type::Read, "b", "\0"), Ok(1)),
        (permit("r", Type::Write, "b", "\0"), Ok(1)),
        (permit("r", Type::Read, "a", ""), Ok(1)),
        (withdraw("r", "a", "b"), Err(Error::PermissionNotGranted)),
        (withdraw("nothing", "a", ""), Err(Error::RoleNotFound)),
        (withdraw("r", "a", ""), Ok(1)),
        (withdraw("r", "a", ""), Err(Error::PermissionNotGranted)),
        (revoke("nobody", "r"), Err(Error::UserNotFound)),
        (revoke("root", "r"), Err(Error::RoleNotGranted)),
        (add_user("u"), Ok(1)),
        (grant("u", "r"), Ok(1)),
        (AuthChange::UserChangePassword { name: "nobody".into(), password: "h".into() }, Err(Error::UserNotFound)),
        (AuthChange::UserChangePassword { name: "u".into(), password: "h".into() }, Ok(1)),
        (delete_user("nobody"), Err(Error::UserNotFound)),
        (delete_role("nothing"), Err(Error::RoleNotFound)),
        (enable(), Ok(0)),
        (enable(), Ok(0)),
        (delete_user("root"), Err(Error::InvalidAuthManagement)),
        (delete_role("root"), Err(Error::InvalidAuthManagement)),
        (revoke("root", "root"), Err(Error::InvalidAuthManagement)),
        (delete_role("r"), Ok(1)),
        (revoke("u", "r"), Err(Error::RoleNotGranted)),
        (AuthChange::Disable, Ok(1)),
        (AuthChange::Disable, Ok(0)),
        (delete_user("root"), Ok(1)),
    ];
    let mut state = State::default();
    assert_eq!(state.revision(), 1, "as etcd's");
    for (number, (change, expected)) in steps.into_iter().enumerate() {
        let before = state.revision();
        let moved = state.apply(&change).map(|_| state.revision() - before);
        assert_eq!(moved, expected, "step {number}: {change:?}");
    }
    assert_eq!(state.user("u").map(|user| user.roles.len()), Some(0));
}

/// Rows that are read back make the same state.
#[test]
fn rows_hold_all_of_it() {
    let mut state = State::default();
    for change in [add_user("root"), grant("root", "root"), add_role("r"), permit("r", Type::Read, "a", "b"), enable()]
    {
        state.apply(&change).unwrap();
    }
    let users = state.users().map(|(name, user)| (name.clone(), user.clone()));
    let roles = state.roles().map(|(name, role)| (name.clone(), role.clone()));
    let read = State::from_rows((state.enabled(), state.revision(), state.secret().clone()), users, roles);
    assert_eq!(format!("{read:?}"), format!("{:?}", state.clone()));
}

/// `root`; `reader` of [a, c); `writer` of [a, c) and of x; `both` of everything from n on.
fn cast() -> State {
    let mut state = State::default();
    let users = ["root", "reader", "writer", "both", "none"];
    let mut changes: Vec<AuthChange> = users.iter().map(|name| add_user(name)).collect();
    changes.extend([
        grant("root", "root"),
        add_role("r"),
        add_role("w"),
        add_role("rw"),
        permit("r", Type::Read, "a", "c"),
        permit("w", Type::Write, "a", "c"),
        permit("w", Type::Write, "x", ""),
        permit("rw", Type::Readwrite, "n", "\0"),
        grant("reader", "r"),
        grant("writer", "w"),
        grant("both", "rw"),
        enable(),
    ]);
    changes.iter().for_each(|change| drop(state.apply(change).unwrap()));
    state
}

/// Lease 1 holds a and z.
struct Leases;

impl LeaseKeys for Leases {
    fn lease_keys(&self, lease: i64) -> Result<Vec<Bytes>, EngineError> {
        Ok(if lease == 1 { vec!["a".into(), "z".into()] } else { Vec::new() })
    }
}

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), ..Default::default() }
}

fn delete(key: &'static str, end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

fn range(key: &'static str, end: &'static str) -> Request {
    Request::RequestRange(RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() })
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn on_success(request: Request) -> TxnRequest {
    TxnRequest { success: vec![op(request)], ..Default::default() }
}

fn on_failure(request: Request) -> TxnRequest {
    TxnRequest { failure: vec![op(request)], ..Default::default() }
}

fn comparing(key: &'static str, end: &'static str) -> TxnRequest {
    let compare = Compare { key: key.into(), range_end: end.into(), ..Default::default() };
    TxnRequest { compare: vec![compare], ..Default::default() }
}

fn nested(inner: TxnRequest, depth: usize) -> TxnRequest {
    (0..depth).fold(inner, |inner, level| match level % 2 {
        0 => on_failure(Request::RequestTxn(inner)),
        _ => on_success(Request::RequestTxn(inner)),
    })
}

/// Each operation with those who may do it; everybody else is denied.
#[test]
fn operations_need_all_that_they_touch() {
    let previous = |request: PutRequest| PutRequest { prev_kv: true, ..request };
    let leased = |request: PutRequest, lease| PutRequest { lease, ..request };
    let seen = |request: DeleteRangeRequest| DeleteRangeRequest { prev_kv: true, ..request };
    let txn = Operation::Txn;
    let table: Vec<(Operation, &[&str])> = vec![
        (Operation::Put(put("a")), &["writer"]),
        (Operation::Put(put("c")), &[]),
        (Operation::Put(put("x")), &["writer", "both"]),
        (Operation::Put(put("z")), &["both"]),
        (Operation::Put(previous(put("a"))), &[]),
        (Operation::Put(previous(put("z"))), &["both"]),
        // The lease's other keys go with it.
        (Operation::Put(leased(put("z"), 1)), &[]),
        (Operation::Put(leased(put("z"), 2)), &["both"]),
        (Operation::DeleteRange(delete("a", "")), &["writer"]),
        (Operation::DeleteRange(delete("a", "c")), &["writer"]),
        (Operation::DeleteRange(delete("a", "d")), &[]),
        (Operation::DeleteRange(delete("x", "\0")), &["both"]),
        (Operation::DeleteRange(delete("a", "\0")), &[]),
        (Operation::DeleteRange(seen(delete("a", "c"))), &[]),
        (Operation::DeleteRange(seen(delete("n", "o"))), &["both"]),
        (txn(TxnRequest::default()), &["reader", "writer", "both", "none"]),
        (txn(comparing("a", "")), &["reader"]),
        (txn(comparing("a", "c")), &["reader"]),
        (txn(comparing("a", "\0")), &[]),
        (txn(comparing("p", "\0")), &["both"]),
        (txn(on_success(range("a", "c"))), &["reader"]),
        (txn(on_failure(range("a", "c"))), &["reader"]),
        (txn(on_success(range("a", "c\0"))), &[]),
        (txn(on_success(Request::RequestPut(put("b")))), &["writer"]),
        (txn(on_failure(Request::RequestPut(put("b")))), &["writer"]),
        (txn(on_failure(Request::RequestPut(previous(put("b"))))), &[]),
        (txn(on_success(Request::RequestPut(leased(put("x"), 1)))), &[]),
        (txn(on_success(Request::RequestDeleteRange(delete("a", "b")))), &["writer"]),
        (txn(on_success(Request::RequestDeleteRange(seen(delete("a", "b"))))), &[]),
        (txn(nested(on_failure(range("b", "")), 5)), &["reader"]),
        (txn(nested(on_success(Request::RequestPut(put("b"))), 4)), &["writer"]),
        (txn(nested(comparing("b", ""), 3)), &["reader"]),
        (txn(nested(comparing("d", ""), 3)), &[]),
        (txn(nested(on_success(Request::RequestPut(previous(put("p")))), 2)), &["both"]),
        (Operation::Compact(CompactionRequest::default()), &["reader", "writer", "both", "none"]),
        (Operation::LeaseGrant { id: 9, ttl: 9 }, &["reader", "writer", "both", "none"]),
        (Operation::LeaseRevoke { id: 1 }, &[]),
        (Operation::LeaseRevoke { id: 2 }, &["reader", "writer", "both", "none"]),
        (Operation::LeaseCheckpoint(vec![(1, 1)]), &[]),
        (Operation::Noop, &[]),
        (Operation::Auth(add_user("x")), &[]),
        (Operation::Auth(AuthChange::Disable), &[]),
    ];
    let state = cast();
    let decide = |state: &State, user: &str, revision: u64, operation: &Operation| {
        let actor = Actor { user: user.to_owned(), revision };
        match Permit::new(state, &actor).operation(operation, &Leases) {
            Ok(()) => Ok(()),
            Err(ReadError::Apply(error)) => Err(error),
            Err(ReadError::Engine(error)) => panic!("{error}"),
        }
    };
    let now = state.revision();
    for (operation, allowed) in &table {
        assert_eq!(decide(&state, "root", now, operation), Ok(()), "{operation:?}");
        for user in ["reader", "writer", "both", "none", "deleted"] {
            let expected = if allowed.contains(&user) { Ok(()) } else { Err(ApplyError::PermissionDenied) };
            assert_eq!(decide(&state, user, now, operation), expected, "{user}: {operation:?}");
        }
        assert_eq!(decide(&state, "", 0, operation), Err(ApplyError::UserEmpty), "{operation:?}");
    }
    // By users and roles that have changed since, only what an admin does, as in etcd.
    let old = |operation: &Operation| decide(&state, "root", now - 1, operation);
    assert_eq!(old(&Operation::Put(put("a"))), Err(ApplyError::AuthOldRevision));
    assert_eq!(old(&Operation::Auth(add_user("x"))), Ok(()));
    // With authentication off, everything.
    let mut off = cast();
    off.apply(&AuthChange::Disable).unwrap();
    for (operation, _) in &table {
        assert_eq!(decide(&off, "", 0, operation), Ok(()), "{operation:?}");
    }
}

#[test]
fn users_read_themselves_and_their_roles() {
    let state = cast();
    let actor = |user: &str| Actor { user: user.to_owned(), revision: state.revision() };
    let (root, reader, nobody) = (actor("root"), actor("reader"), Actor::default());
    let permit = |actor| Permit::new(&state, actor);
    assert_eq!(permit(&root).read_user("reader"), Ok(()));
    assert_eq!(permit(&reader).read_user("reader"), Ok(()));
    assert_eq!(permit(&reader).read_user("root"), Err(ApplyError::PermissionDenied));
    assert_eq!(permit(&nobody).read_user(""), Err(ApplyError::UserEmpty));
    assert_eq!(permit(&reader).read_role("r"), Ok(()));
    assert_eq!(permit(&reader).read_role("w"), Err(ApplyError::PermissionDenied));
    assert_eq!(permit(&nobody).read_role("r"), Err(ApplyError::UserEmpty));
    assert!(permit(&reader).lease(1, &Leases).is_err());
    assert_eq!(permit(&reader).read_all(&["a".into(), "b".into()]), Ok(()));
    assert_eq!(permit(&reader).read_all(&["a".into(), "c".into()]), Err(ApplyError::PermissionDenied));
}

/// What a role holds changes what its users may, at once.
#[test]
fn permissions_follow_changes() {
    let mut state = cast();
    let may = |state: &State| state.may_read("reader", &"b".into(), &Bytes::new());
    assert!(may(&state));
    state.apply(&withdraw("r", "a", "c")).unwrap();
    assert!(!may(&state));
    state.apply(&permit("r", Type::Write, "b", "")).unwrap();
    assert!(!may(&state));
    state.apply(&permit("r", Type::Readwrite, "b", "")).unwrap();
    assert!(may(&state));
    state.apply(&delete_role("r")).unwrap();
    assert!(!may(&state));
}
