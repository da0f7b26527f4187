//! The members of a cluster: what is listed, and what is refused. Changes that succeed
//! are compared with three members.

use quorate_proto::etcd::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};

use super::{everything, range};
use crate::call::{Call, Memory, Wire, learning, unary};
use crate::script::{Group, Script};

/// What a cluster chooses itself; the names of fields as the generated code has them.
const CHOSEN: [&str; 1] = ["id"];

pub(super) fn groups() -> Vec<Group> {
    vec![Group::new("cluster", one()), Group::new("cluster of three", three()).of_three()]
}

pub(super) fn list(linearizable: bool) -> Call {
    ordered::<_, MemberListResponse>(
        "/etcdserverpb.Cluster/MemberList",
        &format!("linearizable {linearizable}"),
        move |_| MemberListRequest { linearizable },
        |answer| &mut answer.members,
    )
}

/// Members are listed by their ids, which each cluster chooses; here by their names.
fn ordered<Q, R>(
    path: &'static str,
    text: &str,
    message: impl Fn(&Memory) -> Q + Send + Sync + 'static,
    members: impl Fn(&mut R) -> &mut Vec<Member> + Send + Sync + 'static,
) -> Call
where
    Q: Wire,
    R: Wire,
{
    let sort = move |answer: &mut R, _: &mut Memory| {
        members(answer).sort_by(|a, b| (&a.name, &a.peer_ur_ls).cmp(&(&b.name, &b.peer_ur_ls)));
    };
    learning::<Q, R>(path, text.to_owned(), message, sort).blur(&CHOSEN).without_addresses()
}

fn add(urls: &[&str], is_learner: bool) -> Call {
    let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
    let request = MemberAddRequest { peer_ur_ls, is_learner };
    learning::<_, MemberAddResponse>(
        "/etcdserverpb.Cluster/MemberAdd",
        format!("{urls:?} {is_learner}"),
        move |_| request.clone(),
        |answer, memory| {
            memory.numbers.insert("added", answer.member.as_ref().map_or(0, |member| member.id));
            answer.members.sort_by(|a, b| (&a.name, &a.peer_ur_ls).cmp(&(&b.name, &b.peer_ur_ls)));
        },
    )
    .blur(&CHOSEN)
    .without_addresses()
}

fn remove(name: &'static str) -> Call {
    let request = move |memory: &Memory| MemberRemoveRequest { id: memory.number(name) };
    ordered::<_, MemberRemoveResponse>("/etcdserverpb.Cluster/MemberRemove", name, request, |answer| {
        &mut answer.members
    })
}

fn remove_unknown(id: u64) -> Call {
    unary::<_, MemberRemoveResponse>("/etcdserverpb.Cluster/MemberRemove", MemberRemoveRequest { id })
}

fn promote(name: &'static str) -> Call {
    let request = move |memory: &Memory| MemberPromoteRequest { id: memory.number(name) };
    ordered::<_, MemberPromoteResponse>("/etcdserverpb.Cluster/MemberPromote", name, request, |answer| {
        &mut answer.members
    })
}

fn update(name: &'static str, urls: &'static [&'static str]) -> Call {
    let request = move |memory: &Memory| MemberUpdateRequest {
        id: memory.number(name),
        peer_ur_ls: urls.iter().map(|url| (*url).to_owned()).collect(),
    };
    ordered::<_, MemberUpdateResponse>(
        "/etcdserverpb.Cluster/MemberUpdate",
        &format!("{name} {urls:?}"),
        request,
        |answer| &mut answer.members,
    )
}

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.9:9";

fn one() -> Vec<Script> {
    let mut scripts = vec![
        Script::one(list(false)),
        Script::one(list(true)),
        Script::one(remove_unknown(0)),
        Script::one(remove_unknown(12345)),
        Script::one(promote("unknown")),
        Script::one(promote("m0")),
        Script::one(update("unknown", &[NOWHERE])),
    ];
    let wrong: [&'static [&'static str]; 8] = [
        &[],
        &[""],
        &["127.0.0.1:2380"],
        &["http://"],
        &["ftp://127.0.0.1:2380"],
        &["http://127.0.0.1"],
        &["http://127.0.0.1:2380/path"],
        &["unix://socket:1", "http://127.0.0.1:x"],
    ];
    for urls in wrong {
        for is_learner in [false, true] {
            scripts.push(Script::one(add(urls, is_learner)));
        }
        scripts.push(Script::one(update("m0", urls)));
    }
    scripts.push(Script::calls(
        "a learner comes and goes",
        [
            add(&[NOWHERE], true),
            list(true),
            // etcd names what exists, the id or the address, by whether a second has passed.
            add(&[NOWHERE], true).first_word(),
            add(&[NOWHERE], false).first_word(),
            add(&["http://127.0.0.9:10"], true),
            promote("added"),
            remove("added"),
            remove("added"),
            list(true),
            range(everything()),
        ],
    ));
    scripts.push(Script::calls(
        "a learner moves",
        [add(&[NOWHERE], true), update("added", &["http://127.0.0.9:11"]), list(true), remove("added"), list(true)],
    ));
    scripts
}

fn three() -> Vec<Script> {
    vec![
        Script::calls("three are listed", [list(true), list(false)]),
        Script::calls(
            "a learner among three",
            [
                add(&[NOWHERE], true).once_healthy(),
                promote("added"),
                add(&["http://127.0.0.9:10"], true),
                remove("added"),
                list(true),
            ],
        ),
        Script::calls("promotion of a voter", [promote("follower"), promote("leader")]),
        Script::calls(
            "an address that another member has",
            [
                add(&["http://127.0.0.9:12"], true).once_healthy(),
                update("follower", &["http://127.0.0.9:12"]).first_word(),
                remove("added"),
            ],
        ),
    ]
}
