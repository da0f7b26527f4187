//! Users, roles, permissions: the services, and what every other request may then do.

use quorate_proto::authpb::permission::Type;
use quorate_proto::authpb::{Permission, UserAddOptions};
use quorate_proto::etcd::{
    AlarmRequest, AlarmResponse, AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest,
    AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListRequest,
    AuthRoleListResponse, AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest,
    AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, AuthUserListRequest,
    AuthUserListResponse, AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, AuthenticateRequest,
    AuthenticateResponse, DefragmentRequest, DefragmentResponse, DeleteRangeRequest, HashKvRequest, HashKvResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, MemberListRequest,
    MemberListResponse, PutRequest, ResponseHeader, StatusRequest, StatusResponse,
};

use super::{
    always, bytes, compact, conditional, delete, deletion, everything, grant, interval, key, never, op_delete, op_put,
    op_range, op_txn, operations, prefix_end, put, range, revoke, txn, value,
};
use crate::call::{Call, learning, normalise, render, unary};
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("auth, users and roles", [users(), roles(), switch()].concat()),
        Group::new("auth, permissions", [reads(), writes(), transactions(), stricter(), other_services()].concat())
            .with_setup(permissions()),
        Group::new("auth, tokens", tokens()).with_setup(permissions()),
        Group::new("auth, a permission that is missing", missing_permission()),
    ]
}

fn user_add(name: &str, password: &str) -> Call {
    let request = AuthUserAddRequest { name: name.to_owned(), password: password.to_owned(), ..Default::default() };
    unary::<_, AuthUserAddResponse>("/etcdserverpb.Auth/UserAdd", request)
}

fn user_add_without_password(name: &str) -> Call {
    let options = Some(UserAddOptions { no_password: true });
    let request = AuthUserAddRequest { name: name.to_owned(), options, ..Default::default() };
    unary::<_, AuthUserAddResponse>("/etcdserverpb.Auth/UserAdd", request)
}

fn user_get(name: &str) -> Call {
    unary::<_, AuthUserGetResponse>("/etcdserverpb.Auth/UserGet", AuthUserGetRequest { name: name.to_owned() })
}

fn user_list() -> Call {
    unary::<_, AuthUserListResponse>("/etcdserverpb.Auth/UserList", AuthUserListRequest {})
}

fn user_delete(name: &str) -> Call {
    unary::<_, AuthUserDeleteResponse>("/etcdserverpb.Auth/UserDelete", AuthUserDeleteRequest { name: name.to_owned() })
}

fn user_password(name: &str, password: &str) -> Call {
    let request =
        AuthUserChangePasswordRequest { name: name.to_owned(), password: password.to_owned(), ..Default::default() };
    unary::<_, AuthUserChangePasswordResponse>("/etcdserverpb.Auth/UserChangePassword", request)
}

fn user_grant(user: &str, role: &str) -> Call {
    let request = AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
    unary::<_, AuthUserGrantRoleResponse>("/etcdserverpb.Auth/UserGrantRole", request)
}

fn user_revoke(name: &str, role: &str) -> Call {
    let request = AuthUserRevokeRoleRequest { name: name.to_owned(), role: role.to_owned() };
    unary::<_, AuthUserRevokeRoleResponse>("/etcdserverpb.Auth/UserRevokeRole", request)
}

fn role_add(name: &str) -> Call {
    unary::<_, AuthRoleAddResponse>("/etcdserverpb.Auth/RoleAdd", AuthRoleAddRequest { name: name.to_owned() })
}

fn role_get(role: &str) -> Call {
    unary::<_, AuthRoleGetResponse>("/etcdserverpb.Auth/RoleGet", AuthRoleGetRequest { role: role.to_owned() })
}

fn role_list() -> Call {
    unary::<_, AuthRoleListResponse>("/etcdserverpb.Auth/RoleList", AuthRoleListRequest {})
}

fn role_delete(role: &str) -> Call {
    unary::<_, AuthRoleDeleteResponse>("/etcdserverpb.Auth/RoleDelete", AuthRoleDeleteRequest { role: role.to_owned() })
}

fn permission(kind: Type, key: &str, end: &[u8]) -> Permission {
    Permission { perm_type: kind.into(), key: bytes(key), range_end: bytes::Bytes::copy_from_slice(end) }
}

fn role_grant(role: &str, perm: Option<Permission>) -> Call {
    let request = AuthRoleGrantPermissionRequest { name: role.to_owned(), perm };
    unary::<_, AuthRoleGrantPermissionResponse>("/etcdserverpb.Auth/RoleGrantPermission", request)
}

fn role_revoke(role: &str, key: &str, end: &str) -> Call {
    let request = AuthRoleRevokePermissionRequest { role: role.to_owned(), key: bytes(key), range_end: bytes(end) };
    unary::<_, AuthRoleRevokePermissionResponse>("/etcdserverpb.Auth/RoleRevokePermission", request)
}

fn enable() -> Call {
    unary::<_, AuthEnableResponse>("/etcdserverpb.Auth/AuthEnable", AuthEnableRequest {})
}

fn disable() -> Call {
    unary::<_, AuthDisableResponse>("/etcdserverpb.Auth/AuthDisable", AuthDisableRequest {})
}

/// Signs in; the token is remembered under the user's name.
fn sign_in(name: &'static str, password: &'static str) -> Call {
    let call = learning::<_, AuthenticateResponse>(
        "/etcdserverpb.Auth/Authenticate",
        format!("{name} {password}"),
        move |_| AuthenticateRequest { name: name.to_owned(), password: password.to_owned() },
        move |answer, memory| {
            memory.tokens.insert(name, answer.token.clone());
        },
    );
    call.blur(&["token"])
}

/// 3.4 has no such method.
fn status(enabled: bool, auth_revision: u64, revision: i64) -> Call {
    let call = unary::<_, AuthStatusResponse>("/etcdserverpb.Auth/AuthStatus", AuthStatusRequest {});
    let header = Some(ResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 });
    let newer = AuthStatusResponse { header, enabled, auth_revision };
    call.newer("etcd 3.5 tells whether it asks for users; 3.4 does not know the method", move |_| {
        normalise(&render(&Ok(newer)), &[])
    })
}

/// `root`, and what it takes to ask for users.
fn root() -> Vec<Call> {
    vec![user_add("root", "secret"), role_add("root"), user_grant("root", "root"), enable(), sign_in("root", "secret")]
}

/// Everybody gone, by `root`, who is no longer asked for.
fn end_root() -> Vec<Call> {
    vec![disable().by("root"), user_delete("root"), role_delete("root")]
}

fn users() -> Vec<Script> {
    vec![
        Script::calls("no users, no roles", [user_list(), role_list(), status(false, 1, 1)]),
        Script::one(user_add("", "x")),
        Script::one(user_add("", "")),
        Script::one(user_get("nobody")),
        Script::one(user_get("")),
        Script::one(user_delete("nobody")),
        Script::one(user_delete("")),
        Script::one(user_password("nobody", "x")),
        Script::one(user_password("", "x")),
        Script::one(user_grant("nobody", "nothing")),
        Script::one(user_grant("", "")),
        Script::one(user_revoke("nobody", "nothing")),
        Script::one(user_add_without_password("")),
        Script::calls(
            "a user from beginning to end",
            [
                user_add("u", "p"),
                user_add("u", "q"),
                user_get("u"),
                user_list(),
                user_password("u", "q"),
                user_password("u", ""),
                user_grant("u", "nothing"),
                user_grant("u", ""),
                user_revoke("u", "nothing"),
                role_add("r2"),
                role_add("r1"),
                user_grant("u", "r2"),
                user_grant("u", "r1"),
                user_grant("u", "r1"),
                user_get("u"),
                user_revoke("u", "r2"),
                user_revoke("u", "r2"),
                user_get("u"),
                role_delete("r1"),
                user_get("u"),
                user_delete("u"),
                user_get("u"),
                user_delete("u"),
                role_delete("r2"),
                user_list(),
            ],
        ),
        Script::calls("an empty password", [user_add("empty", ""), user_get("empty"), user_delete("empty")]),
        Script::calls(
            "a user without a password",
            [
                user_add_without_password("cert"),
                user_get("cert"),
                user_add_without_password("cert"),
                user_password("cert", "x"),
                user_delete("cert"),
            ],
        ),
        Script::calls(
            "users are listed in order",
            [
                user_add("b", "x"),
                user_add("c", "x"),
                user_add("a", "x"),
                user_list(),
                user_delete("a"),
                user_delete("b"),
                user_delete("c"),
                user_list(),
            ],
        ),
        Script::one(sign_in("nobody", "x")),
    ]
}

fn roles() -> Vec<Script> {
    let ranges = [("a", "b"), ("a", ""), ("k", "\0"), ("", ""), ("", "\0"), ("c", "a"), ("\0", "\0"), ("a", "a")];
    let mut scripts = vec![
        Script::one(role_add("")),
        Script::one(role_get("nothing")),
        Script::one(role_get("")),
        Script::one(role_delete("nothing")),
        Script::one(role_delete("")),
        Script::one(role_grant("nothing", Some(permission(Type::Read, "a", b"")))),
        Script::one(role_revoke("nothing", "a", "")),
        Script::calls(
            "a role from beginning to end",
            [
                role_add("r"),
                role_add("r"),
                role_get("r"),
                role_grant("r", Some(permission(Type::Readwrite, "m", b"n"))),
                role_grant("r", Some(permission(Type::Read, "a", b""))),
                role_grant("r", Some(permission(Type::Write, "z", b"\0"))),
                role_get("r"),
                role_grant("r", Some(permission(Type::Write, "a", b""))),
                role_get("r"),
                role_revoke("r", "a", "b"),
                role_revoke("r", "a", ""),
                role_revoke("r", "a", ""),
                role_revoke("r", "m", "n"),
                role_get("r"),
                role_list(),
                role_delete("r"),
                role_list(),
            ],
        ),
        Script::calls(
            "the role root takes no permissions",
            [
                role_add("root"),
                role_grant("root", Some(permission(Type::Read, "a", b""))),
                role_get("root").newer("3.5 shows that root may do everything", |answer| {
                    let all = answer.replace("perm_type: Read,", "perm_type: Readwrite,").replace("b\"\"", "b\"\\0\"");
                    all.replace("key: b\"a\"", "key: b\"\"")
                }),
                role_delete("root"),
            ],
        ),
    ];
    for (from, end) in ranges {
        let granted = role_grant("g", Some(permission(Type::Read, from, end.as_bytes())));
        if from.is_empty() || !(end.is_empty() || end == "\0" || from < end) {
            let granted = granted.newer("3.5 takes no permission for an interval that holds nothing", |_| {
                "InvalidArgument: etcdserver: invalid auth management".to_owned()
            });
            let name = format!("no permission from {from:?} to {end:?}");
            scripts.push(Script::calls(name, [role_add("g"), granted, role_delete("g")]));
            continue;
        }
        scripts.push(Script::calls(
            format!("a permission from {from:?} to {end:?}"),
            [role_add("g"), granted, role_get("g"), role_revoke("g", from, end), role_get("g"), role_delete("g")],
        ));
    }
    scripts
}

/// 3.4 falls over this request: a group of its own.
fn missing_permission() -> Vec<Script> {
    let granted = role_grant("none", None)
        .newer("3.5 survives a missing permission", |_| "InvalidArgument: etcdserver: permission not given".to_owned());
    vec![Script::calls("a permission of nothing", [role_add("none"), granted])]
}

fn switch() -> Vec<Script> {
    vec![
        Script::one(enable()),
        Script::one(disable()),
        Script::calls(
            "root has to have its role",
            [
                user_add("root", "secret"),
                enable(),
                role_add("root"),
                enable(),
                user_grant("root", "root"),
                enable(),
                enable(),
                sign_in("root", "secret"),
                disable(),
                disable().by("root"),
                user_delete("root"),
                role_delete("root"),
            ],
        ),
        Script::calls(
            "on and off",
            [root(), vec![range(key("a")), range(key("a")).by("root")], end_root(), vec![range(key("a"))]].concat(),
        ),
        Script::calls(
            "what root cannot lose",
            [
                root(),
                vec![
                    user_delete("root").by("root"),
                    role_delete("root").by("root"),
                    user_revoke("root", "root").by("root"),
                    user_get("root").by("root"),
                ],
                end_root(),
            ]
            .concat(),
        ),
        Script::calls(
            "signing in",
            [
                root(),
                vec![
                    user_add("u", "p").by("root"),
                    sign_in("u", "wrong"),
                    sign_in("nobody", "p"),
                    sign_in("", ""),
                    sign_in("u", ""),
                    sign_in("u", "p"),
                    user_password("u", "q").by("root"),
                    sign_in("u", "p"),
                    sign_in("u", "q"),
                    user_add_without_password("cert").by("root"),
                    sign_in("cert", ""),
                    sign_in("cert", "x"),
                    user_delete("u").by("root"),
                    user_delete("cert").by("root"),
                    sign_in("u", "q"),
                ],
                end_root(),
                vec![sign_in("root", "secret")],
            ]
            .concat(),
        ),
    ]
}

/// `u` may read `r*`, write `w*`, both `b*` and the key `one`; `nobody` may nothing.
fn permissions() -> Vec<Call> {
    let mut calls = vec![
        user_add("u", "p"),
        user_add("nobody", "p"),
        role_add("role"),
        role_grant("role", Some(permission(Type::Read, "r", &prefix_end("r")))),
        role_grant("role", Some(permission(Type::Write, "w", &prefix_end("w")))),
        role_grant("role", Some(permission(Type::Readwrite, "b", &prefix_end("b")))),
        role_grant("role", Some(permission(Type::Readwrite, "one", b""))),
        user_grant("u", "role"),
        grant(70, 600),
        grant(71, 600),
        put(PutRequest { lease: 70, ..value("b/leased", "x") }),
        put(PutRequest { lease: 71, ..value("secret/leased", "x") }),
    ];
    calls.extend(["r/1", "r/2", "w/1", "w/2", "b/1", "one", "secret"].map(|key| put(value(key, "old"))));
    calls.extend(root());
    calls.extend([sign_in("u", "p"), sign_in("nobody", "p")]);
    calls
}

fn reads() -> Vec<Script> {
    let places = [
        key("r/1"),
        key("w/1"),
        key("b/1"),
        key("one"),
        key("secret"),
        key("r"),
        interval("r", "s"),
        interval("r/1", "r/2"),
        interval("r", "t"),
        interval("r", "\0"),
        interval("b", "s"),
        interval("one", "one\0"),
        interval("z", "a"),
        everything(),
        key(""),
    ];
    let mut scripts = Vec::new();
    for place in places {
        for who in CALLERS {
            scripts.push(Script::one(range(place.clone()).by(who)));
        }
    }
    scripts.push(Script::one(range(key("r/1"))));
    scripts.push(Script::one(range(quorate_proto::etcd::RangeRequest { serializable: true, ..key("r/1") }).by("u")));
    scripts.push(Script::one(range(quorate_proto::etcd::RangeRequest { serializable: true, ..key("w/1") }).by("u")));
    scripts.push(Script::one(range(quorate_proto::etcd::RangeRequest { serializable: true, ..key("w/1") }).by("x")));
    scripts
}

fn writes() -> Vec<Script> {
    let mut scripts = Vec::new();
    for name in ["r/1", "w/1", "b/1", "one", "secret", "fresh", ""] {
        for who in ["u", "nobody", "root"] {
            for prev_kv in [false, true] {
                scripts.push(Script::one(put(PutRequest { prev_kv, ..value(name, "new") }).by(who)));
                scripts.push(Script::one(delete(DeleteRangeRequest { prev_kv, ..deletion(name, "") }).by(who)));
            }
        }
    }
    for (from, end) in [("w", "x"), ("r", "s"), ("b", "c"), ("b", "\0"), ("w", "z"), ("one", "p")] {
        for prev_kv in [false, true] {
            scripts.push(Script::one(delete(DeleteRangeRequest { prev_kv, ..deletion(from, end) }).by("u")));
        }
    }
    for lease in [70, 71, 99] {
        scripts.push(Script::one(put(PutRequest { lease, ..value("w/leased", "x") }).by("u")));
        scripts.push(Script::one(put(PutRequest { lease, ..value("b/leased", "x") }).by("u")));
    }
    scripts.push(Script::one(put(PutRequest { ignore_value: true, ..value("w/1", "") }).by("u")));
    scripts.push(Script::one(put(PutRequest { ignore_lease: true, ..value("w/1", "x") }).by("u")));
    scripts.push(Script::one(put(value("w/1", "x"))));
    scripts.push(Script::one(delete(deletion("w/1", ""))));
    scripts.push(Script::one(compact(2, false).by("u")));
    scripts.push(Script::one(compact(2, false).by("a token that never was")));
    let anybody = compact(3, false).newer("3.6 lets users only compact", |_| NOBODY.to_owned());
    scripts.push(Script::one(anybody));
    scripts
}

/// What is said to who does not say who it is, and to who may not.
const NOBODY: &str = "InvalidArgument: etcdserver: user name is empty";
const DENIED: &str = "PermissionDenied: etcdserver: permission denied";

fn transactions() -> Vec<Script> {
    use quorate_proto::etcd::compare::TargetUnion;
    let compare_of = |name: &str| super::compare(name, super::RESULTS[0], TargetUnion::Version(1));
    let requests = [
        operations(vec![op_range(key("r/1"))]),
        operations(vec![op_range(key("w/1"))]),
        operations(vec![op_put(value("w/1", "x"))]),
        operations(vec![op_put(value("r/1", "x"))]),
        operations(vec![op_delete(deletion("w", "x"))]),
        operations(vec![op_delete(deletion("r", "s"))]),
        operations(vec![op_delete(DeleteRangeRequest { prev_kv: true, ..deletion("w", "x") })]),
        conditional(vec![compare_of("r/1")], vec![op_put(value("w/1", "x"))], vec![op_put(value("w/1", "y"))]),
        conditional(vec![compare_of("w/1")], vec![], vec![]),
        conditional(vec![compare_of("secret")], vec![op_put(value("w/1", "x"))], vec![]),
        conditional(vec![always()], vec![op_put(value("w/1", "x"))], vec![]),
        conditional(vec![compare_of("b/1")], vec![op_put(value("b/1", "x"))], vec![op_put(value("secret", "y"))]),
        conditional(vec![never()], vec![op_put(value("w/1", "x"))], vec![]),
        operations(vec![op_txn(operations(vec![op_put(value("b/1", "x"))]))]),
        quorate_proto::etcd::TxnRequest::default(),
    ];
    let mut scripts = Vec::new();
    for request in requests {
        for who in ["u", "root"] {
            scripts.push(Script::one(txn(request.clone()).by(who)));
        }
    }
    let previous = operations(vec![op_put(PutRequest { prev_kv: true, ..value("w/1", "x") })]);
    let why = "a value that is shown has to be readable";
    scripts.push(Script::one(txn(previous.clone()).by("u").newer(why, |_| DENIED.to_owned())));
    scripts.push(Script::one(txn(previous).by("root")));
    // 3.4 does not look into nested transactions (GHSA-xg4h-6gfc-h4m8 and its kin were mended later).
    let nested = operations(vec![op_txn(operations(vec![op_range(key("secret"))]))]);
    scripts.push(Script::one(
        txn(nested).by("u").newer("permissions are checked within nested transactions", |_| DENIED.to_owned()),
    ));
    scripts
}

/// Who asks; the last one has no token that is good.
const CALLERS: [&str; 4] = ["u", "nobody", "root", STRANGER];
const STRANGER: &str = "a token that never was";

/// What 3.4 lets anybody do, or refuses in other words.
fn stricter() -> Vec<Script> {
    let left = |id| {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        unary::<_, LeaseTimeToLiveResponse>("/etcdserverpb.Lease/LeaseTimeToLive", request)
    };
    // And who may.
    let calls: [(Call, &[&str]); 8] = [
        (
            unary::<_, MemberListResponse>("/etcdserverpb.Cluster/MemberList", MemberListRequest::default()),
            &["u", "nobody", "root"],
        ),
        (
            unary::<_, AlarmResponse>("/etcdserverpb.Maintenance/Alarm", AlarmRequest::default()),
            &["u", "nobody", "root"],
        ),
        (unary::<_, StatusResponse>("/etcdserverpb.Maintenance/Status", StatusRequest {}), &["root"]),
        (unary::<_, DefragmentResponse>("/etcdserverpb.Maintenance/Defragment", DefragmentRequest {}), &["root"]),
        (unary::<_, HashKvResponse>("/etcdserverpb.Maintenance/HashKV", HashKvRequest { revision: 0 }), &["root"]),
        (unary::<_, LeaseLeasesResponse>("/etcdserverpb.Lease/LeaseLeases", LeaseLeasesRequest {}), &["root"]),
        (left(70), &["u", "root"]),
        (left(71), &["root"]),
    ];
    let mut scripts = Vec::new();
    for who in CALLERS {
        for (call, allowed) in &calls {
            let call = call.clone().first_word().by(who);
            let refusal = if who == STRANGER { "Unauthenticated" } else { "PermissionDenied" };
            let why = "newer ones ask who it is, and who may see the keys of a lease";
            let refused = |call: Call| call.newer(why, move |_| refusal.to_owned());
            scripts.push(Script::one(if allowed.contains(&who) { call } else { refused(call) }));
        }
    }
    scripts
}

fn other_services() -> Vec<Script> {
    let mut scripts = Vec::new();
    for who in CALLERS {
        let calls = [
            user_get("u"),
            user_get("nobody"),
            user_list(),
            user_add("new", "x"),
            user_delete("new"),
            user_password("u", "p"),
            role_get("role"),
            role_get("root").first_word(),
            role_list(),
            role_add("new"),
            role_delete("new"),
            role_grant("role", Some(permission(Type::Read, "x", b""))),
            role_revoke("role", "x", ""),
            user_grant("nobody", "none"),
            user_revoke("nobody", "role"),
            enable(),
            grant(80, 600),
            revoke(80),
            revoke(71),
        ];
        for call in calls {
            scripts.push(Script::calls(
                call.clone().by(who).text(),
                // Changes of users end their tokens.
                [call.by(who), sign_in("root", "secret"), sign_in("u", "p"), sign_in("nobody", "p")],
            ));
        }
    }
    scripts
}

/// Of a token that comes although nobody asks for one.
fn without_looking(call: Call) -> Call {
    let why = "3.5 does not look at tokens while it asks for none";
    call.first_word().newer(why, |_| "RangeResponse".to_owned())
}

/// When a token is no longer good.
fn tokens() -> Vec<Script> {
    vec![
        Script::calls(
            "a permission that is taken away is gone at once",
            [
                range(key("r/1")).by("u"),
                role_revoke("role", "r", "s").by("root"),
                range(key("r/1")).by("u"),
                sign_in("u", "p"),
                range(key("r/1")).by("u"),
                role_grant("role", Some(permission(Type::Read, "r", &prefix_end("r")))).by("root"),
                range(key("r/1")).by("u"),
            ],
        ),
        Script::calls(
            "a changed password ends the tokens",
            [
                sign_in("root", "secret"),
                sign_in("u", "p"),
                range(key("r/1")).by("u"),
                user_password("u", "q").by("root"),
                range(key("r/1")).by("u"),
                sign_in("u", "q"),
                range(key("r/1")).by("u"),
                user_password("u", "p").by("root"),
            ],
        ),
        Script::calls(
            "a deleted user is nobody",
            [
                sign_in("root", "secret"),
                user_add("gone", "p").by("root"),
                user_grant("gone", "role").by("root"),
                sign_in("gone", "p"),
                range(key("r/1")).by("gone"),
                user_delete("gone").by("root"),
                range(key("r/1")).by("gone"),
                put(value("w/1", "x")).by("gone"),
                sign_in("gone", "p"),
            ],
        ),
        Script::calls(
            "a role that is deleted",
            [
                sign_in("root", "secret"),
                role_add("brief").by("root"),
                role_grant("brief", Some(permission(Type::Readwrite, "secret", b""))).by("root"),
                user_grant("nobody", "brief").by("root"),
                sign_in("nobody", "p"),
                range(key("secret")).by("nobody"),
                role_delete("brief").by("root"),
                range(key("secret")).by("nobody"),
                user_get("nobody").by("root"),
            ],
        ),
        Script::calls(
            "a role that is taken from a user",
            [
                sign_in("root", "secret"),
                sign_in("u", "p"),
                put(value("w/1", "x")).by("u"),
                user_revoke("u", "role").by("root"),
                put(value("w/1", "y")).by("u"),
                user_grant("u", "role").by("root"),
                put(value("w/1", "z")).by("u"),
            ],
        ),
        Script::calls(
            "off and on again",
            [
                sign_in("root", "secret"),
                sign_in("u", "p"),
                disable().by("root"),
                without_looking(range(key("secret")).by("u")),
                without_looking(range(key("secret")).by("a token that never was")),
                put(value("secret", "x")),
                enable(),
                range(key("r/1")).by("u"),
                sign_in("u", "p"),
                range(key("r/1")).by("u"),
                range(key("secret")).by("u"),
            ],
        ),
    ]
}
