//! Users, roles and tokens: where newer etcds differ from 3.4, and what a script of
//! `etcdctl` cannot ask. The scripts themselves are in `tests/store`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Output;

use quorate_proto::authpb::Permission;
use quorate_proto::authpb::permission::Type;
use quorate_proto::etcd::auth_client::AuthClient;
use quorate_proto::etcd::cluster_client::ClusterClient;
use quorate_proto::etcd::kv_client::KvClient;
use quorate_proto::etcd::lease_client::LeaseClient;
use quorate_proto::etcd::maintenance_client::MaintenanceClient;
use quorate_proto::etcd::watch_client::WatchClient;
use quorate_proto::etcd::watch_request::RequestUnion;
use quorate_proto::etcd::{
    AlarmRequest, AuthStatusRequest, AuthUserAddRequest, AuthenticateRequest, CompactionRequest, DefragmentRequest,
    HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, MemberListRequest, MoveLeaderRequest, PutRequest, RangeRequest, StatusRequest,
    WatchCreateRequest, WatchRequest,
};
use quorate_store::auth::AuthChange;
use quorate_store::{AuthToken, Store};
use quorate_transport::authority::{Authority, Profile};
use quorate_transport::tls::{STORE_SERVER_NAME, TlsFiles};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::common::Cluster;
use crate::common::etcd::Etcdctl;

/// Where a newer etcd differs from 3.4 on purpose, and what it answers instead: more of
/// it is for admins, or for those who have said who they are; errors have their code.
const NEWER: &[(&str, &str)] = &[
    ("role grant-permission r9 read b a --user root:r", "Error: etcdserver: invalid auth management"),
    ("snapshot save /dev/null --user al:a", "Error: etcdserver: permission denied"),
    ("lease grant 100", "Error: failed to grant lease (etcdserver: user name is empty)"),
    ("lease list", "Error: etcdserver: user name is empty"),
    ("compaction 1", "Error: etcdserver: user name is empty"),
    ("member list", "Error: etcdserver: user name is empty"),
    ("alarm list", "Error: etcdserver: user name is empty"),
];

fn start_plain(change: impl Fn(&mut quorate_store::Config)) -> Cluster {
    let cluster = Cluster::start_with(3, |config| {
        config.listen_client = Some(([127, 0, 0, 1], 0).into());
        config.bcrypt_cost = 4;
        change(config);
    });
    cluster.wait_for_leader();
    cluster
}

fn ctl(cluster: &Cluster, member: usize) -> Etcdctl {
    let endpoint = format!("--endpoints=http://{}", cluster.client_address(member));
    Etcdctl { flags: vec![endpoint, "--command-timeout=30s".to_owned(), "--dial-timeout=10s".to_owned()] }
}

/// Whether a command succeeded, and the last line of its error.
fn outcome(output: &Output) -> (bool, String) {
    let errors = String::from_utf8_lossy(&output.stderr);
    // Lines of its log bear the time.
    let error = errors.lines().rfind(|line| !line.starts_with(r#"{"level""#)).unwrap_or_default();
    (output.status.success(), error.to_owned())
}

#[test]
fn newer_rules_are_kept_too() {
    let cluster = start_plain(|_| {});
    cluster.on(0, async |store| people(&store).await);
    let mut differences = Vec::new();
    for (number, (command, expected)) in NEWER.iter().enumerate() {
        let (success, error) = outcome(&ctl(&cluster, number % 3).run(command, ""));
        if success || error != *expected {
            differences.push(format!("{command}\n  expected: {expected}\n  got:      {success} {error}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // The root role says what it has always permitted.
    let output = ctl(&cluster, 0).run("role get root --user root:r -w json", "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(r#""perm":[{"permType":2,"range_end":"AA=="}]"#), "{text}");
}

/// `root`, whose password is `r`, and `al`, whose is `a`, who reads and writes [a, c).
async fn people(store: &Store) {
    store.user_add("root".into(), Some("r".into())).await.unwrap();
    store.user_add("al".into(), Some("a".into())).await.unwrap();
    let (root, al) = (|| "root".to_owned(), || "al".to_owned());
    let permission = Permission { perm_type: Type::Readwrite.into(), key: "a".into(), range_end: "c".into() };
    for change in [
        AuthChange::RoleAdd { name: root() },
        AuthChange::UserGrantRole { user: root(), role: root() },
        AuthChange::RoleAdd { name: "r9".into() },
        AuthChange::RoleGrantPermission { role: "r9".into(), permission: Some(permission) },
        AuthChange::UserGrantRole { user: al(), role: "r9".into() },
    ] {
        store.change_auth(change).await.unwrap();
    }
    store.auth_enable().await.unwrap();
}

/// The client port of one member, with a token.
#[derive(Clone)]
struct Client {
    channel: Channel,
    token: Option<String>,
}

impl Client {
    async fn connect(address: std::net::SocketAddr) -> Client {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Client { channel, token: None }
    }

    fn with(&self, token: Option<&str>) -> Client {
        Client { channel: self.channel.clone(), token: token.map(ToOwned::to_owned) }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    async fn sign_in(&self, name: &str, password: &str) -> Result<String, Status> {
        let request = AuthenticateRequest { name: name.into(), password: password.into() };
        Ok(AuthClient::new(self.channel.clone()).authenticate(request).await?.into_inner().token)
    }

    async fn get(&self, key: &'static str) -> Result<usize, Status> {
        let request = self.request(RangeRequest { key: key.into(), ..Default::default() });
        Ok(KvClient::new(self.channel.clone()).range(request).await?.into_inner().kvs.len())
    }

    async fn put(&self, request: PutRequest) -> Result<(), Status> {
        KvClient::new(self.channel.clone()).put(self.request(request)).await.map(drop)
    }
}

fn put(key: &'static str, lease: i64) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), lease, ..Default::default() }
}

#[track_caller]
fn refused<T>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.err().unwrap_or_else(|| panic!("it was not refused: {text}"));
    assert_eq!((status.code(), status.message()), (code, text));
}

const DENIED: (Code, &str) = (Code::PermissionDenied, "etcdserver: permission denied");
const NOBODY: (Code, &str) = (Code::InvalidArgument, "etcdserver: user name is empty");
const NO_TOKEN: (Code, &str) = (Code::Unauthenticated, "etcdserver: invalid auth token");

#[test]
fn a_token_of_one_member_is_good_at_all_and_over_a_restart() {
    let mut cluster = start_plain(|_| {});
    cluster.on(0, async |store| people(&store).await);
    let addresses: Vec<_> = (0..3).map(|member| cluster.client_address(member)).collect();
    let token = cluster.on(0, async |_| {
        let clients = futures::future::join_all(addresses.iter().map(|address| Client::connect(*address))).await;
        let token = clients[0].sign_in("al", "a").await.unwrap();
        for client in &clients {
            assert_eq!(client.with(Some(&token)).get("a").await.unwrap(), 0);
            refused(client.with(Some(&token)).get("c").await, DENIED.0, DENIED.1);
            refused(client.with(Some("abcdefghijklmnop.7")).get("a").await, NO_TOKEN.0, NO_TOKEN.1);
            refused(client.with(None).get("a").await, NOBODY.0, NOBODY.1);
        }
        token
    });
    cluster.wait_for_equal_hashes();
    cluster.kill(1);
    cluster.revive(1);
    cluster.wait_for_leader();
    let revived = cluster.client_address(1);
    cluster.on(1, async |store| {
        let client = Client::connect(revived).await;
        assert_eq!(client.with(Some(&token)).get("a").await.unwrap(), 0);
        assert!(store.auth().enabled() && store.auth().user("al").is_some());
        // Another password ends what the old one opened.
        store.user_change_password("al".into(), "b".into()).await.unwrap();
        refused(client.with(Some(&token)).get("a").await, NO_TOKEN.0, NO_TOKEN.1);
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        refused(client.sign_in("al", "a").await, Code::InvalidArgument, wrong);
        assert!(client.sign_in("al", "b").await.is_ok());
    });
    cluster.wait_for_equal_hashes();
}

#[test]
fn leases_watches_and_members_are_guarded() {
    let cluster = start_plain(|_| {});
    cluster.on(0, async |store| people(&store).await);
    let address = cluster.client_address(1);
    cluster.on(1, async |_| {
        let client = Client::connect(address).await;
        let root = client.with(Some(&client.sign_in("root", "r").await.unwrap()));
        let al = client.with(Some(&client.sign_in("al", "a").await.unwrap()));
        let nobody = client.with(None);
        let leases = || LeaseClient::new(client.channel.clone());

        // Of two keys of a lease, al may not touch one.
        let grant = LeaseGrantRequest { id: 77, ttl: 600 };
        refused(leases().lease_grant(nobody.request(grant)).await, NOBODY.0, NOBODY.1);
        leases().lease_grant(al.request(grant)).await.unwrap();
        al.put(put("a", 77)).await.unwrap();
        root.put(put("z", 77)).await.unwrap();
        refused(al.put(put("b", 77)).await, DENIED.0, DENIED.1);
        let keep = |client: &Client| {
            let request = client.request(futures::stream::iter([LeaseKeepAliveRequest { id: 77 }]));
            async { leases().lease_keep_alive(request).await?.into_inner().message().await }
        };
        refused(keep(&al).await, DENIED.0, DENIED.1);
        assert_eq!(keep(&root).await.unwrap().unwrap().ttl, 600);
        let left = |client: &Client, keys| {
            let request = client.request(LeaseTimeToLiveRequest { id: 77, keys });
            async { leases().lease_time_to_live(request).await }
        };
        assert!(left(&al, false).await.is_ok());
        refused(left(&al, true).await, DENIED.0, DENIED.1);
        refused(left(&nobody, false).await, NOBODY.0, NOBODY.1);
        assert_eq!(left(&root, true).await.unwrap().into_inner().keys.len(), 2);
        let list = LeaseLeasesRequest {};
        refused(leases().lease_leases(al.request(list)).await, DENIED.0, DENIED.1);
        refused(leases().lease_revoke(al.request(LeaseRevokeRequest { id: 77 })).await, DENIED.0, DENIED.1);
        leases().lease_revoke(root.request(LeaseRevokeRequest { id: 77 })).await.unwrap();
        assert!(leases().lease_leases(al.request(list)).await.is_ok());

        let watch = |client: &Client, key: &'static str, range_end: &'static str| {
            let create = WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
            let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            // The stream stays open: its end would end the watch.
            let requests = futures::stream::iter([create]);
            let requests = futures::StreamExt::chain(requests, futures::stream::pending());
            let request = client.request(requests);
            let mut service = WatchClient::new(client.channel.clone());
            async move { service.watch(request).await.unwrap().into_inner().message().await.unwrap().unwrap() }
        };
        let check = async |client: &Client, key, end, reason: &str| {
            let answer = watch(client, key, end).await;
            let denied = !reason.is_empty();
            assert!(answer.created && answer.canceled == denied, "{key:?} {end:?}: {answer:?}");
            assert_eq!(answer.cancel_reason, reason, "{key:?} {end:?}");
            assert_eq!(answer.watch_id == -1, denied);
        };
        let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        check(&al, "a", "", "").await;
        check(&al, "a", "c", "").await;
        check(&al, "a", "d", denied).await;
        // An open end is not a single key.
        check(&al, "a", "\0", denied).await;
        check(&al, "", "\0", denied).await;
        check(&al, "", "", denied).await;
        check(&root, "", "\0", "").await;
        check(&nobody, "a", "", "rpc error: code = InvalidArgument desc = etcdserver: user name is empty").await;
        let wrong = client.with(Some("x"));
        check(&wrong, "a", "", "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token").await;

        let maintenance = || MaintenanceClient::new(client.channel.clone());
        refused(maintenance().status(al.request(StatusRequest {})).await, DENIED.0, DENIED.1);
        assert!(maintenance().status(root.request(StatusRequest {})).await.is_ok());
        refused(maintenance().hash_kv(nobody.request(HashKvRequest::default())).await, NOBODY.0, NOBODY.1);
        refused(maintenance().defragment(al.request(DefragmentRequest {})).await, DENIED.0, DENIED.1);
        let transfer = MoveLeaderRequest { target_id: 7 };
        refused(maintenance().move_leader(al.request(transfer)).await, DENIED.0, DENIED.1);
        assert!(maintenance().alarm(al.request(AlarmRequest::default())).await.is_ok());
        let disarm = AlarmRequest { action: 2, ..Default::default() };
        refused(maintenance().alarm(al.request(disarm)).await, DENIED.0, DENIED.1);
        let members = || ClusterClient::new(client.channel.clone());
        refused(members().member_list(nobody.request(MemberListRequest::default())).await, NOBODY.0, NOBODY.1);
        assert!(members().member_list(al.request(MemberListRequest::default())).await.is_ok());
        let compact = CompactionRequest { revision: 2, ..Default::default() };
        let mut kv = KvClient::new(client.channel.clone());
        refused(kv.compact(nobody.request(compact)).await, NOBODY.0, NOBODY.1);
        assert!(kv.compact(al.request(compact)).await.is_ok());
        let mut auth = AuthClient::new(client.channel.clone());
        refused(auth.auth_status(al.request(AuthStatusRequest {})).await, DENIED.0, DENIED.1);
        let status = auth.auth_status(root.request(AuthStatusRequest {})).await.unwrap().into_inner();
        assert_eq!((status.enabled, status.auth_revision), (true, 8));
        let long = AuthUserAddRequest { name: "long".into(), password: "x".repeat(73), ..Default::default() };
        refused(auth.user_add(root.request(long)).await, Code::Unknown, "bcrypt: password length exceeds 72 bytes");
    });
}

#[test]
fn json_web_tokens_say_of_which_revision_they_are() {
    let keys = Path::new("testdata/jwt");
    let flag = format!("jwt,sign-method=RS256,priv-key={0}/rsa.key,pub-key={0}/rsa.pub,ttl=10m", keys.display());
    let token: AuthToken = flag.parse().unwrap();
    let cluster = start_plain(|config| config.auth_token = token.clone());
    cluster.on(0, async |store| people(&store).await);
    let addresses = [cluster.client_address(0), cluster.client_address(1)];
    cluster.on(0, async |store| {
        let (one, other) = (Client::connect(addresses[0]).await, Client::connect(addresses[1]).await);
        let token = one.sign_in("al", "a").await.unwrap();
        assert_eq!(token.split('.').count(), 3, "{token}");
        assert_eq!(other.with(Some(&token)).get("a").await.unwrap(), 0);
        refused(other.with(Some(&token)).get("c").await, DENIED.0, DENIED.1);
        refused(other.with(Some("x.y.z")).get("a").await, NO_TOKEN.0, NO_TOKEN.1);
        store.change_auth(AuthChange::RoleAdd { name: "more".into() }).await.unwrap();
        let old = "etcdserver: revision of auth store is old";
        refused(one.with(Some(&token)).get("a").await, Code::InvalidArgument, old);
        refused(one.with(Some(&token)).put(put("a", 0)).await, Code::InvalidArgument, old);
        let token = one.sign_in("al", "a").await.unwrap();
        one.with(Some(&token)).put(put("a", 0)).await.unwrap();
        assert_eq!(one.with(Some(&token)).get("a").await.unwrap(), 1);
    });
}

#[test]
fn the_name_in_a_certificate_is_a_user() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(directory.path(), "ca", "test").unwrap();
    let issue = |name: &str| {
        let file = |extension: &str| directory.path().join(format!("{name}.{extension}"));
        let files = TlsFiles { cert: file("crt"), key: file("key"), ca: directory.path().join("ca.crt") };
        let profile =
            Profile::new(name).dns(STORE_SERVER_NAME).address(IpAddr::V4(Ipv4Addr::LOCALHOST)).server().client();
        authority.issue(&profile, &files.cert, &files.key).unwrap();
        files
    };
    let (member, al, stranger) = (issue("member"), issue("al"), issue("stranger"));
    for counts in [true, false] {
        let cluster = start_plain(|config| {
            config.client_tls = Some(member.clone());
            config.client_cert_auth = counts;
        });
        cluster.on(0, async |store| people(&store).await);
        let run = |files: &TlsFiles, command: &str| {
            let mut ctl = ctl(&cluster, 0);
            ctl.flags[0] = format!("--endpoints=https://{}", cluster.client_address(0));
            let files = [("cacert", &files.ca), ("cert", &files.cert), ("key", &files.key)];
            ctl.flags.extend(files.map(|(name, path)| format!("--{name}={}", path.display())));
            outcome(&ctl.run(command, ""))
        };
        let check = |files: &TlsFiles, command: &str, error: &str| {
            let (success, got) = run(files, command);
            assert_eq!((success, got.as_str()), (error.is_empty(), error), "{command}");
        };
        if counts {
            check(&al, "put a 1", "");
            check(&al, "put c 1", "Error: etcdserver: permission denied");
            check(&stranger, "put a 1", "Error: etcdserver: permission denied");
        } else {
            check(&al, "put a 1", "Error: etcdserver: user name is empty");
        }
        // What a token says counts more.
        check(&al, "put c 1 --user root:r", "");
        check(&stranger, "put a 1 --user al:a", "");
    }
}

/// Revoked between the port and the log, a permission is gone all the same.
#[test]
fn permissions_are_asked_for_again_at_the_entry() {
    let cluster = start_plain(|_| {});
    cluster.on(0, async |store| people(&store).await);
    let address = cluster.client_address(2);
    cluster.on(2, async |store| {
        let client = Client::connect(address).await;
        let al = client.with(Some(&client.sign_in("al", "a").await.unwrap()));
        // Revocations and writes at the same time: whichever entry comes first decides,
        // and a write after the revocation was confirmed never passes.
        for round in 0..8 {
            let revoke = AuthChange::UserRevokeRole { user: "al".into(), role: "r9".into() };
            let writes = futures::future::join_all((0..16).map(|_| al.put(put("a", 0))));
            let (revoked, written) = futures::join!(store.change_auth(revoke), writes);
            revoked.unwrap();
            for result in written {
                if result.is_err() {
                    refused(result, DENIED.0, DENIED.1);
                }
            }
            refused(al.put(put("a", 0)).await, DENIED.0, DENIED.1);
            let grant = AuthChange::UserGrantRole { user: "al".into(), role: "r9".into() };
            store.change_auth(grant).await.unwrap();
            al.put(put("a", 0)).await.unwrap_or_else(|status| panic!("round {round}: {status}"));
        }
    });
    cluster.wait_for_equal_hashes();
}
