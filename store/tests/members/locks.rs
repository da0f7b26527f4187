//! Locks and elections, through the port of one member.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::etcd::v3electionpb::election_client::ElectionClient;
use quorate_proto::etcd::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use quorate_proto::etcd::v3lockpb::lock_client::LockClient;
use quorate_proto::etcd::v3lockpb::{LockRequest, UnlockRequest};
use quorate_proto::etcd::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use quorate_store::Store;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::common::Cluster;

fn start() -> Cluster {
    let cluster = Cluster::start_with(1, |config| config.listen_client = Some(([127, 0, 0, 1], 0).into()));
    cluster.wait_for_leader();
    cluster
}

async fn channel(store: &Store) -> Channel {
    let address = store.client_address().unwrap();
    Endpoint::try_from(format!("http://{address}")).unwrap().connect().await.unwrap()
}

async fn grant(store: &Store, id: i64) {
    store.lease_grant(LeaseGrantRequest { ttl: 600, id }).await.unwrap();
}

/// Keys below the prefix, once there are `count`.
async fn keys(store: &Store, count: usize) -> Vec<String> {
    loop {
        let request = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let kvs = store.range(request).await.unwrap().kvs;
        if kvs.len() == count {
            return kvs.into_iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn lock(client: LockClient<Channel>, lease: i64) -> Result<Bytes, Status> {
    let request = LockRequest { name: Bytes::from_static(b"name"), lease };
    client.clone().lock(request).await.map(|response| response.into_inner().key)
}

async fn unlock(mut client: LockClient<Channel>, key: &'static str) {
    client.unlock(UnlockRequest { key: Bytes::from_static(key.as_bytes()) }).await.unwrap();
}

#[test]
fn locks_are_given_in_order_and_who_goes_away_leaves_no_key() {
    start().on(0, async |store| {
        let client = LockClient::new(channel(&store).await);
        for id in [10, 11, 12] {
            grant(&store, id).await;
        }
        assert_eq!(lock(client.clone(), 10).await.unwrap(), "name/a");
        // The holder asks again: it has the lock.
        assert_eq!(lock(client.clone(), 10).await.unwrap(), "name/a");
        let second = tokio::spawn(lock(client.clone(), 11));
        assert_eq!(keys(&store, 2).await, ["name/a", "name/b"]);
        let third = tokio::spawn(lock(client.clone(), 12));
        assert_eq!(keys(&store, 3).await, ["name/a", "name/b", "name/c"]);
        assert!(!second.is_finished());
        third.abort();
        assert_eq!(keys(&store, 2).await, ["name/a", "name/b"]);
        let third = tokio::spawn(lock(client.clone(), 12));
        assert_eq!(keys(&store, 3).await, ["name/a", "name/b", "name/c"]);
        unlock(client.clone(), "name/a").await;
        assert_eq!(second.await.unwrap().unwrap(), "name/b");
        assert!(!third.is_finished());
        unlock(client.clone(), "name/b").await;
        assert_eq!(third.await.unwrap().unwrap(), "name/c");
    });
}

#[test]
fn a_lock_ends_with_its_lease() {
    start().on(0, async |store| {
        let client = LockClient::new(channel(&store).await);
        let unknown = lock(client.clone(), 99).await.unwrap_err();
        assert_eq!((unknown.code(), unknown.message()), (Code::Unknown, "etcdserver: requested lease not found"));
        grant(&store, 10).await;
        grant(&store, 11).await;
        lock(client.clone(), 10).await.unwrap();
        let waiting = tokio::spawn(lock(client.clone(), 11));
        keys(&store, 2).await;
        store.lease_revoke(LeaseRevokeRequest { id: 11 }).await.unwrap();
        let expired = waiting.await.unwrap().unwrap_err();
        assert_eq!((expired.code(), expired.message()), (Code::Unknown, "mutex: session is expired"));
        let waiting = tokio::spawn(lock(client.clone(), 0));
        keys(&store, 2).await;
        store.lease_revoke(LeaseRevokeRequest { id: 10 }).await.unwrap();
        let key = waiting.await.unwrap().unwrap();
        assert!(key.starts_with(b"name/"));
        // A wait that is given up takes the lease that it was granted with it.
        let waiting = tokio::spawn(lock(client.clone(), 0));
        keys(&store, 2).await;
        waiting.abort();
        keys(&store, 1).await;
        assert_eq!(store.leases().await.unwrap().leases.len(), 1);
    });
}

async fn campaign(mut client: ElectionClient<Channel>, lease: i64, value: &'static str) -> Result<LeaderKey, Status> {
    let (name, value) = (Bytes::from_static(b"name"), Bytes::from_static(value.as_bytes()));
    let response = client.campaign(CampaignRequest { name, lease, value }).await?;
    Ok(response.into_inner().leader.unwrap())
}

fn seen(response: LeaderResponse) -> (Bytes, Bytes) {
    let kv = response.kv.unwrap();
    (kv.key, kv.value)
}

#[test]
fn leaders_are_elected_in_order_and_observed() {
    start().on(0, async |store| {
        let mut client = ElectionClient::new(channel(&store).await);
        let name = || LeaderRequest { name: Bytes::from_static(b"name") };
        let nobody = client.leader(name()).await.unwrap_err();
        assert_eq!((nobody.code(), nobody.message()), (Code::Unknown, "election: no leader"));
        let mut leaders = client.observe(name()).await.unwrap().into_inner();
        for id in [10, 11] {
            grant(&store, id).await;
        }
        let first = campaign(client.clone(), 10, "one").await.unwrap();
        assert_eq!((&first.key[..], first.lease), (&b"name/a"[..], 10));
        assert_eq!(seen(leaders.next().await.unwrap().unwrap()), ("name/a".into(), "one".into()));
        let second = tokio::spawn(campaign(client.clone(), 11, "two"));
        keys(&store, 2).await;
        let value = Bytes::from_static(b"three");
        let proclaimed = ProclaimRequest { leader: Some(first.clone()), value: value.clone() };
        client.proclaim(proclaimed.clone()).await.unwrap();
        assert_eq!(seen(leaders.next().await.unwrap().unwrap()), ("name/a".into(), value.clone()));
        assert_eq!(seen(client.leader(name()).await.unwrap().into_inner()), ("name/a".into(), value));
        assert!(!second.is_finished());
        client.resign(ResignRequest { leader: Some(first) }).await.unwrap();
        assert_eq!(second.await.unwrap().unwrap().key, "name/b");
        assert_eq!(seen(leaders.next().await.unwrap().unwrap()), ("name/b".into(), "two".into()));
        let deposed = client.proclaim(proclaimed).await.unwrap_err();
        assert_eq!((deposed.code(), deposed.message()), (Code::Unknown, "election: not leader"));
        // The lease's end is the leader's, and the observer waits for the next one.
        store.lease_revoke(LeaseRevokeRequest { id: 11 }).await.unwrap();
        keys(&store, 0).await;
        let last = campaign(client.clone(), 0, "four").await.unwrap();
        assert_eq!(seen(leaders.next().await.unwrap().unwrap()), (last.key, "four".into()));
        assert!(store.leases().await.unwrap().leases.iter().any(|lease| lease.id == last.lease));
    });
}
