//! What the crate etcd-client does with a server. Run with the endpoint: one script, which
//! prints what it gets. With `put` and numbers behind it: a load, see `load`.

mod load;

use anyhow::{Context, Result};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType, GetOptions, LeaseTimeToLiveOptions,
    LockOptions, Permission, PutOptions, ResignOptions, RoleRevokePermissionOptions, SortOrder, SortTarget, Txn, TxnOp,
    WatchOptions,
};

/// What must be the same: the answer, or the error's code and text.
fn show<T: std::fmt::Debug>(name: &str, answer: Result<T, Error>) {
    match answer {
        Ok(answer) => println!("{name}: {answer:?}"),
        Err(Error::GRpcStatus(status)) => println!("{name}: {:?} {}", status.code(), status.message()),
        Err(error) => println!("{name}: {error}"),
    }
}

fn pairs(kvs: &[etcd_client::KeyValue]) -> Vec<(String, String, i64, i64, i64)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pair = |kv: &etcd_client::KeyValue| {
        (text(kv.key()), text(kv.value()), kv.create_revision(), kv.mod_revision(), kv.version())
    };
    kvs.iter().map(pair).collect()
}

async fn keys(client: &mut Client) -> Result<(), Error> {
    show("put", client.put("a", "1", None).await.map(|answer| answer.header().map(|header| header.revision())));
    let put = client.put("a", "2", Some(PutOptions::new().with_prev_key())).await?;
    show("previous", Ok(put.prev_key().map(|kv| pairs(std::slice::from_ref(kv)))));
    show("put of nothing", client.put("", "2", None).await);
    show("ignored value", client.put("none", "", Some(PutOptions::new().with_ignore_value())).await);
    client.put("a/1", "x", None).await?;
    client.put("b", "y", None).await?;
    let all = GetOptions::new().with_all_keys();
    let sorted = all.clone().with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(2);
    for (name, options) in [
        ("all", all.clone()),
        ("sorted", sorted),
        ("counted", all.clone().with_count_only()),
        ("keys", all.clone().with_keys_only()),
        ("old", all.with_revision(2)),
        ("prefix", GetOptions::new().with_prefix()),
        ("future", GetOptions::new().with_revision(99)),
    ] {
        let answer = client.get("a", Some(options)).await;
        show(name, answer.map(|answer| (pairs(answer.kvs()), answer.count(), answer.more())));
    }
    let txn = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "2"), Compare::version("b", CompareOp::Greater, 0)])
        .and_then([TxnOp::put("c", "1", None), TxnOp::get("c", None), TxnOp::delete("b", None)])
        .or_else([TxnOp::get("a", None)]);
    for name in ["transaction", "transaction again"] {
        let answer = client.txn(txn.clone()).await;
        show(name, answer.map(|answer| (answer.succeeded(), answer.op_responses().len())));
    }
    let twice = Txn::new().and_then([TxnOp::put("t", "1", None), TxnOp::put("t", "2", None)]);
    show("twice", client.txn(twice).await.map(|answer| answer.succeeded()));
    let deleted = client.delete("a", Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    show("deleted", Ok((deleted.deleted(), pairs(deleted.prev_kvs()))));
    show("compact", client.compact(3, None).await.map(|_| ()));
    show("compact again", client.compact(3, None).await.map(|_| ()));
    show("compacted", client.get("a", Some(GetOptions::new().with_revision(2))).await.map(|_| ()));
    Ok(())
}

async fn watches(client: &mut Client) -> Result<()> {
    let mut stream = client.watch("w/", Some(WatchOptions::new().with_prefix().with_prev_key())).await?;
    client.put("w/1", "1", None).await?;
    client.put("w/1", "2", None).await?;
    client.delete("w/1", None).await?;
    let mut seen = 0;
    while seen < 3 {
        let message = stream.message().await?.context("the stream ended")?;
        for event in message.events() {
            seen += 1;
            let kind = if event.event_type() == EventType::Put { "put" } else { "delete" };
            println!(
                "event: {kind} {:?} before {:?}",
                event.kv().map(|kv| pairs(std::slice::from_ref(kv))),
                event.prev_kv().map(|kv| pairs(std::slice::from_ref(kv)))
            );
        }
    }
    stream.request_progress().await?;
    let message = stream.message().await?.context("the stream ended")?;
    println!("progress: {} events", message.events().len());
    stream.cancel(0).await?;
    let message = stream.message().await?.context("the stream ended")?;
    println!("cancelled: {}", message.canceled());
    Ok(())
}

async fn leases(client: &mut Client) -> Result<()> {
    let lease = client.lease_grant(100, None).await?;
    client.put("leased", "x", Some(PutOptions::new().with_lease(lease.id()))).await?;
    let left = client.lease_time_to_live(lease.id(), Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
    println!("left: {} {} {:?}", left.ttl() > 90, left.granted_ttl(), left.keys());
    let (mut keeper, mut answers) = client.lease_keep_alive(lease.id()).await?;
    keeper.keep_alive().await?;
    println!("kept: {:?}", answers.message().await?.map(|answer| answer.ttl()));
    println!("leases: {}", client.leases().await?.leases().len());
    client.lease_revoke(lease.id()).await?;
    show("revoked twice", client.lease_revoke(lease.id()).await.map(|_| ()));
    println!("gone: {}", client.get("leased", None).await?.count());
    show("too long", client.lease_grant(9_000_000_001, None).await.map(|_| ()));
    Ok(())
}

async fn locks_and_elections(client: &mut Client) -> Result<()> {
    let lease = client.lease_grant(60, None).await?.id();
    let locked = client.lock("mutex", Some(LockOptions::new().with_lease(lease))).await?;
    let name = format!("mutex/{lease:x}");
    println!("locked: {}", locked.key() == name.as_bytes());
    let mut second = client.clone();
    let other = client.lease_grant(60, None).await?.id();
    let waiting = tokio::spawn(async move { second.lock("mutex", Some(LockOptions::new().with_lease(other))).await });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    println!("given twice: {}", waiting.is_finished());
    client.unlock(locked.key()).await?;
    println!("given then: {}", waiting.await?.is_ok());
    show("unlocked again", client.unlock(locked.key()).await.map(|_| ()));

    let won = client.campaign("office", "one", lease).await?;
    println!("elected: {}", won.leader().is_some());
    let seen = client.leader("office").await?;
    println!("leader: {:?}", seen.kv().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()));
    let leader = won.leader().context("a leader")?.clone();
    client.proclaim("uno", Some(etcd_client::ProclaimOptions::new().with_leader(leader.clone()))).await?;
    let mut observed = client.observe("office").await?;
    let seen = observed.message().await?;
    let value = seen.as_ref().and_then(|seen| seen.kv()).map(|kv| String::from_utf8_lossy(kv.value()).into_owned());
    println!("observed: {value:?}");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    show("nobody leads", client.leader("office").await.map(|_| ()));
    Ok(())
}

async fn users(client: &mut Client, endpoint: &str) -> Result<()> {
    show("no users", client.user_list().await.map(|answer| answer.users().len()));
    for (user, role) in [("root", "root"), ("u", "r")] {
        client.user_add(user, "secret", None).await?;
        client.role_add(role).await?;
        client.user_grant_role(user, role).await?;
    }
    client.role_grant_permission("r", Permission::read_write("u/").with_prefix()).await?;
    client.role_grant_permission("r", Permission::read("x")).await?;
    client.role_revoke_permission("r", "x", None::<RoleRevokePermissionOptions>).await?;
    show("role", client.role_get("r").await.map(|answer| answer.permissions().len()));
    client.auth_enable().await?;
    show("nobody", client.put("u/1", "x", None).await.map(|_| ()));
    let wrong = Client::connect([endpoint], Some(ConnectOptions::new().with_user("u", "wrong"))).await;
    show("wrong", wrong.map(|_| ()));
    let mut user = Client::connect([endpoint], Some(ConnectOptions::new().with_user("u", "secret"))).await?;
    show("allowed", user.put("u/1", "x", None).await.map(|_| ()));
    show("not allowed", user.put("v", "x", None).await.map(|_| ()));
    let mut root = Client::connect([endpoint], Some(ConnectOptions::new().with_user("root", "secret"))).await?;
    root.auth_disable().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let endpoint = std::env::args().nth(1).context("the endpoint is missing")?;
    let more: Vec<String> = std::env::args().skip(2).collect();
    if let Some(("put", numbers)) = more.split_first().map(|(name, rest)| (name.as_str(), rest)) {
        return load::run(&endpoint, numbers).await;
    }
    let mut client = Client::connect([&endpoint], None).await?;
    keys(&mut client).await?;
    watches(&mut client).await?;
    leases(&mut client).await?;
    locks_and_elections(&mut client).await?;
    users(&mut client, &endpoint).await?;
    println!("members: {}", client.member_list().await?.members().len());
    show("status", client.status().await.map(|answer| answer.leader() != 0));
    show("hash", client.hash_kv(0).await.map(|answer| answer.hash() != 0));
    show("defragment", client.defragment().await.map(|_| ()));
    Ok(())
}
