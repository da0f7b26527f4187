//! Locks and elections that the server holds. Leases are chosen, so that keys are known.

use bytes::Bytes;
use quorate_proto::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use quorate_proto::etcd::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

use super::{bytes, delete, deletion, everything, grant, put, range, revoke, value};
use crate::call::{Call, learning, render, streamed, unary, unary_with};
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    let leases = || vec![grant(1, 600), grant(2, 600), grant(255, 600)];
    vec![Group::new("lock", locks()).with_setup(leases()), Group::new("election", elections()).with_setup(leases())]
}

fn lock(name: &str, lease: i64) -> Call {
    unary::<_, LockResponse>("/v3lockpb.Lock/Lock", LockRequest { name: bytes(name), lease })
}

fn unlock(key: &str) -> Call {
    unary::<_, UnlockResponse>("/v3lockpb.Lock/Unlock", UnlockRequest { key: bytes(key) })
}

/// Answers when the first call of two is still waiting and the second has let it go on.
fn waiting(first: Call, second: Call) -> Call {
    Call::new(format!("{}, until {}", first.text(), second.text()), move |target| {
        let (first, second) = (first.clone(), second.clone());
        Box::pin(async move {
            let waits = {
                let target = target.clone();
                tokio::spawn(async move { first.send(&target).await })
            };
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let early = waits.is_finished();
            let released = second.send(&target).await;
            let answer = waits.await.unwrap_or_else(|error| error.to_string());
            format!("early: {early}\n{answer}\n{released}")
        })
    })
}

fn locks() -> Vec<Script> {
    let picked = learning::<_, LockResponse>(
        "/v3lockpb.Lock/Lock",
        "with a lease that the server picks".to_owned(),
        |_| LockRequest { name: bytes("picked"), lease: 0 },
        |answer, _| {
            // The lease's number is the key's end.
            answer.key = answer.key.slice(..answer.key.len().min("picked/".len()));
        },
    );
    vec![
        Script::calls("a lock", [lock("name", 1), range(everything()), unlock("name/1"), range(everything())]),
        Script::calls(
            "the same owner again",
            [lock("again", 1), lock("again", 1), range(everything()), unlock("again/1")],
        ),
        Script::calls("a lease's number in hexadecimal", [lock("hex", 255), range(everything()), unlock("hex/ff")]),
        Script::calls("a name with a slash", [lock("a/b/", 1), range(everything()), unlock("a/b//1")]),
        Script::calls("no name", [lock("", 1), range(everything()), unlock("/1")]),
        Script::one(lock("unknown lease", 99)),
        Script::one(unlock("never locked")),
        Script::one(unlock("")),
        Script::calls(
            "the second waits",
            [lock("wait", 1), waiting(lock("wait", 2), unlock("wait/1")), range(everything()), unlock("wait/2")],
        ),
        Script::calls(
            "the second waits for the key to go",
            [lock("gone", 1), waiting(lock("gone", 2), delete(deletion("gone/1", ""))), unlock("gone/2")],
        ),
        Script::calls(
            "a holder loses its lease",
            [grant(4, 600), lock("holder", 4), waiting(lock("holder", 2), revoke(4)), unlock("holder/2")],
        ),
        Script::calls(
            "a key that begins alike is no owner",
            [put(value("alike/0", "x")), waiting(lock("alike", 1), delete(deletion("alike/0", ""))), unlock("alike/1")],
        ),
        Script::calls("a lease that the server picks", [picked, delete(deletion("picked", "picked0"))]),
    ]
}

fn campaign(name: &str, lease: i64, text: &str) -> Call {
    let request = CampaignRequest { name: bytes(name), lease, value: bytes(text) };
    learning::<_, CampaignResponse>(
        "/v3electionpb.Election/Campaign",
        format!("{request:?}"),
        move |_| request.clone(),
        |answer, memory| {
            memory.numbers.insert("won", answer.leader.as_ref().map_or(0, |leader| leader.rev as u64));
        },
    )
}

fn leader(name: &str) -> Call {
    unary::<_, LeaderResponse>("/v3electionpb.Election/Leader", LeaderRequest { name: bytes(name) })
}

fn key_of(name: &str, lease: i64, rev: i64) -> LeaderKey {
    LeaderKey { name: bytes(name), key: Bytes::from(format!("{name}/{lease:x}")), rev, lease }
}

fn proclaim(name: &'static str, lease: i64, text: &'static str) -> Call {
    unary_with::<_, ProclaimResponse>("/v3electionpb.Election/Proclaim", &format!("{name} {text}"), move |memory| {
        ProclaimRequest { leader: Some(key_of(name, lease, memory.id("won"))), value: bytes(text) }
    })
}

fn resign(name: &'static str, lease: i64) -> Call {
    unary_with::<_, ResignResponse>("/v3electionpb.Election/Resign", name, move |memory| ResignRequest {
        leader: Some(key_of(name, lease, memory.id("won"))),
    })
}

fn observe(name: &str, most: usize) -> Call {
    let request = LeaderRequest { name: bytes(name) };
    streamed::<_, LeaderResponse>("/v3electionpb.Election/Observe", request, most, |messages| {
        messages.iter().map(|message| render(&Ok(message.clone()))).collect::<Vec<_>>().join("\n")
    })
}

fn elections() -> Vec<Script> {
    let wrong_revision = unary::<_, ProclaimResponse>(
        "/v3electionpb.Election/Proclaim",
        ProclaimRequest { leader: Some(key_of("term", 1, 1)), value: bytes("x") },
    );
    vec![
        Script::one(leader("nobody")),
        Script::one(leader("")),
        Script::calls(
            "a term of office",
            [
                campaign("term", 1, "one"),
                leader("term"),
                range(everything()),
                proclaim("term", 1, "uno"),
                leader("term"),
                wrong_revision,
                observe("term", 1),
                resign("term", 1),
                resign("term", 1),
                leader("term"),
                proclaim("term", 1, "after"),
                range(everything()),
            ],
        ),
        Script::calls(
            "the same candidate again",
            [campaign("again", 1, "x"), campaign("again", 1, "y"), leader("again"), resign("again", 1)],
        ),
        Script::calls(
            "the second candidate waits",
            [
                campaign("wait", 1, "one"),
                waiting(campaign("wait", 2, "two"), delete(deletion("wait/1", ""))),
                leader("wait"),
                resign("wait", 2),
            ],
        ),
        Script::calls("a leader loses its lease", [grant(4, 600), campaign("gone", 4, "x"), revoke(4), leader("gone")]),
        Script::calls(
            "who looks on before there is a leader",
            [waiting(observe("later", 1), campaign("later", 1, "x")), resign("later", 1)],
        ),
        Script::calls(
            "who looks on sees what is proclaimed",
            [campaign("show", 1, "x"), waiting(observe("show", 2), proclaim("show", 1, "y")), resign("show", 1)],
        ),
        Script::one(campaign("unknown lease", 99, "x")),
        Script::one(campaign("", 1, "x")),
        Script::one(unary::<_, ProclaimResponse>("/v3electionpb.Election/Proclaim", ProclaimRequest::default())),
        Script::one(unary::<_, ResignResponse>("/v3electionpb.Election/Resign", ResignRequest::default())),
    ]
}
