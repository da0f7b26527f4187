//! The JSON gateway and the pages of monitoring: the same requests to Quorate and to the
//! etcd of the machine, answers compared byte for byte.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use quorate_transport::loopback::free_address;

use crate::common::Cluster;
use crate::common::etcd::Etcd;

/// Paths and bodies, sent in this order.
const REQUESTS: &[(&str, &str)] = &[
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
    ("/v3/kv/put", r#"{"key":"Zm9v","prevKv":true,"ignoreValue":true}"#),
    ("/v3/kv/put", r#"{"value":"YmFy"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","unknown":1}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","revision":"99"}"#),
    ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","limit":"1","sort_order":"DESCEND","sortTarget":1}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","count_only":true}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","serializable":null}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v"} trailing"#),
    ("/v3/kv/range", r#"{"key":"Zm9v"}{"key":"YQ=="}"#),
    ("/v3/kv/range", "{}"),
    ("/v3/kv/range", ""),
    ("/v3/kv/range", "null"),
    ("/v3beta/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3alpha/kv/range", r#"{"key":"Zm9v"}"#),
    ("/v3/kv/nothing", "{}"),
    ("/v3/kv/range/", "{}"),
    ("/v3/", "{}"),
    ("/nothing", "{}"),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"target":"VALUE","key":"Zm9v","value":"YmF6"}],"success":[{"request_put":{"key":"YQ==","value":"MQ=="}},{"requestRange":{"key":"YQ=="}}],"failure":[{"request_delete_range":{"key":"YQ=="}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare":[{"result":"GREATER","target":3,"key":"Zm9v","value":"enp6"}],"failure":[{"request_txn":{"success":[{"request_range":{"key":"YQ=="}}]}}]}"#,
    ),
    ("/v3/kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#),
    ("/v3/kv/deleterange", r#"{"key":"YQ==","prev_kv":true}"#),
    ("/v3/kv/deleterange", r#"{"key":"YQ=="}"#),
    ("/v3/kv/compaction", r#"{"revision":"2"}"#),
    ("/v3/kv/compaction", r#"{"revision":2}"#),
    ("/v3/kv/compaction", r#"{"revision":99}"#),
    ("/v3/lease/grant", r#"{"TTL":100,"ID":77}"#),
    ("/v3/lease/grant", r#"{"TTL":100,"ID":77}"#),
    ("/v3/lease/keepalive", r#"{"ID":77}"#),
    ("/v3/lease/keepalive", r#"{"ID":77}{"ID":"78"}"#),
    ("/v3/lease/keepalive", ""),
    ("/v3/kv/lease/timetolive", r#"{"ID":78}"#),
    ("/v3/lease/leases", "{}"),
    ("/v3/kv/lease/leases", ""),
    ("/v3/lease/revoke", r#"{"ID":78}"#),
    ("/v3/lock/lock", r#"{"name":"bG9jaw==","lease":77}"#),
    ("/v3/lock/lock", r#"{"name":"bG9jaw==","lease":"77"}"#),
    ("/v3/lock/lock", r#"{"name":"bG9jaw==","lease":78}"#),
    ("/v3/lock/unlock", r#"{"key":"bG9jay80ZA=="}"#),
    ("/v3/lock/unlock", r#"{"key":"bG9jay80ZA=="}"#),
    ("/v3/lock/unlock", "{}"),
    ("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    ("/v3/election/campaign", r#"{"name":"ZQ==","value":"djE=","lease":77}"#),
    ("/v3/election/campaign", r#"{"name":"ZQ==","value":"djI=","lease":77}"#),
    ("/v3/election/campaign", r#"{"name":"ZQ==","value":"djI=","lease":78}"#),
    ("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    ("/v3/election/proclaim", "{}"),
    ("/v3/election/proclaim", r#"{"leader":{}}"#),
    ("/v3/election/proclaim", r#"{"leader":{"name":"ZQ==","key":"ZS80ZA==","rev":"1","lease":77},"value":"djM="}"#),
    ("/v3/election/resign", r#"{"leader":{"name":"ZQ==","key":"ZS80ZA==","rev":"1","lease":77}}"#),
    ("/v3/election/resign", "{}"),
    ("/v3/kv/lease/revoke", r#"{"ID":"77"}"#),
    ("/v3/election/leader", r#"{"name":"ZQ=="}"#),
    ("/v3/maintenance/transfer-leadership", r#"{"targetID":5}"#),
];

/// Malformed requests: who refuses says so in its own words.
const MALFORMED: &[(&str, &str)] = &[
    ("/v3/kv/range", "x"),
    ("/v3/kv/range", r#"{"key":"#),
    ("/v3/kv/range", "[]"),
    ("/v3/kv/range", r#"{"key":"!!"}"#),
    ("/v3/kv/range", r#"{"key":7}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","sort_order":"BOGUS"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","limit":1.5}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","limit":"abc"}"#),
    ("/v3/kv/range", r#"{"key":"Zm9v","serializable":"true"}"#),
];

/// Streams, with the lines that they give before nothing more comes.
const STREAMS: &[(&str, &str, usize)] = &[
    ("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":3}}"#, 2),
    ("/v3/watch", r#"{"create_request":{"key":"Zm9v","watch_id":7}}{"create_request":{"key":"YQ=="}}"#, 2),
    ("/v3/election/observe", r#"{"name":"bG9jazI="}"#, 1),
];

fn start_quorate() -> (Cluster, SocketAddr) {
    let cluster = Cluster::start_with(1, |config| config.listen_client = Some(([127, 0, 0, 1], 0).into()));
    cluster.wait_for_leader();
    let address = cluster.client_address(0);
    (cluster, address)
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    kind: String,
    body: String,
}

/// Sends a request and reads the head of its answer. HTTP/1.0, so that the body is what
/// follows.
fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: store\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut status, mut kind) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim_end();
        if line.is_empty() {
            return (status, kind, reader);
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-type") => kind = value.to_owned(),
            Some(_) => {}
            None => status = line.split(' ').nth(1).unwrap().parse().unwrap(),
        }
    }
}

fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    let (status, kind, mut reader) = send(address, method, path, body);
    let mut body = Vec::new();
    match reader.read_to_end(&mut body) {
        Ok(_) => {}
        // Who closes before it has read all of a request resets the connection, and what it
        // answered is there.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{method} {path}: {error}"),
    }
    Answer { status, kind, body: without_names(&String::from_utf8(body).unwrap()) }
}

/// Whoever answered, and in which term.
fn without_names(text: &str) -> String {
    let mut text = text.to_owned();
    for name in ["cluster_id", "member_id", "raft_term"] {
        let mark = format!("\"{name}\":\"");
        let mut from = 0;
        while let Some(found) = text[from..].find(&mark) {
            let start = from + found + mark.len();
            let end = start + text[start..].find('"').unwrap();
            text.replace_range(start..end, "0");
            from = start;
        }
    }
    text
}

#[test]
fn json_is_answered_as_etcd_does() {
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&directory.path().join("data"), free_address());
    let (_cluster, quorate) = start_quorate();
    let mut differences = Vec::new();
    for (path, body) in REQUESTS {
        let (ours, theirs) = (ask(quorate, "POST", path, body), ask(etcd.address, "POST", path, body));
        if ours != theirs {
            differences.push(format!("{path} {body}\n  etcd    {theirs:?}\n  Quorate {ours:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for (path, body) in MALFORMED {
        let (ours, theirs) = (ask(quorate, "POST", path, body), ask(etcd.address, "POST", path, body));
        assert_eq!((ours.status, ours.kind), (theirs.status, theirs.kind), "{path} {body}");
        assert!(ours.body.ends_with(",\"code\":3}"), "{}", ours.body);
    }
    for method in ["GET", "PUT", "DELETE"] {
        let ours = ask(quorate, method, "/v3/kv/range", "");
        assert_eq!(ours, ask(etcd.address, method, "/v3/kv/range", ""), "{method}");
        assert_eq!(ours.status, 405);
    }
    let large = "A".repeat(2_200_000 / 3 * 4);
    let large = format!("{{\"key\":\"Zm9v\",\"value\":\"{large}\"}}");
    assert_eq!(ask(quorate, "POST", "/v3/kv/put", &large), ask(etcd.address, "POST", "/v3/kv/put", &large));
    let lock = (r#"{"TTL":600,"ID":5}"#, r#"{"name":"bG9jazI=","lease":5}"#);
    for address in [quorate, etcd.address] {
        assert_eq!(ask(address, "POST", "/v3/lease/grant", lock.0).status, 200);
        assert_eq!(ask(address, "POST", "/v3/lock/lock", lock.1).status, 200);
    }
    for (path, body, lines) in STREAMS {
        let read = |address| {
            let (status, kind, reader) = send(address, "POST", path, body);
            let lines: Vec<String> = reader.lines().take(*lines).map(|line| without_names(&line.unwrap())).collect();
            (status, kind, lines)
        };
        assert_eq!(read(quorate), read(etcd.address), "{path} {body}");
    }
}

#[test]
fn newer_etcds_ways_are_taken_too() {
    let (_cluster, quorate) = start_quorate();
    assert_eq!(ask(quorate, "POST", "/v3/kv/put", r#"{"key":"-_8","value":""}"#).status, 200);
    let answer = ask(quorate, "POST", "/v3/kv/range", r#"{"key":"+/8="}"#);
    assert!(answer.body.contains("\"key\":\"+/8=\""), "{}", answer.body);
    let status = ask(quorate, "POST", "/v3/auth/status", "{}");
    assert_eq!(status.status, 200, "{}", status.body);
    assert_eq!(ask(quorate, "POST", "/v3/maintenance/hashkv", "{}").status, 200);
    let streamed = ask(quorate, "POST", "/v3/kv/rangestream", r#"{"key":"AA==","range_end":"AA=="}"#);
    assert!(streamed.body.starts_with(r#"{"result":{"range_response":{"header""#), "{}", streamed.body);
    assert_eq!(ask(quorate, "POST", "/v3/lease/keepalive", "x").status, 400);
}

#[test]
fn monitoring_is_answered_as_newer_etcd_does() {
    let (_cluster, quorate) = start_quorate();
    let check = |path: &str, status: u16, kind: &str, body: &str| {
        let expected = Answer { status, kind: kind.to_owned(), body: body.to_owned() };
        assert_eq!(ask(quorate, "GET", path, ""), expected, "{path}");
    };
    let text = "text/plain; charset=utf-8";
    check("/health", 200, text, r#"{"health":"true","reason":""}"#);
    check("/health?serializable=true", 200, text, r#"{"health":"true","reason":""}"#);
    check("/livez", 200, text, "ok\n");
    check("/livez?verbose", 200, text, "[+]serializable_read ok\nok\n");
    check("/livez/serializable_read", 200, text, "ok\n");
    check("/readyz", 200, text, "ok\n");
    check("/readyz/linearizable_read?verbose", 200, text, "[+]linearizable_read ok\nok\n");
    check("/readyz/data_corruption", 200, text, "ok\n");
    check(
        "/readyz?verbose&exclude=linearizable_read&exclude=non_learner&exclude=nothing",
        200,
        text,
        "[+]data_corruption ok\n[+]serializable_read ok\nok\n",
    );
    check("/readyz/nothing", 404, text, "404 page not found\n");
    check("/nothing", 404, text, "404 page not found\n");
    let version = r#"{"etcdserver":"3.7.0","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
    check("/version", 200, "application/json", version);
    assert_eq!(ask(quorate, "POST", "/health", "").status, 405);

    for (alarm, health) in [("NOSPACE", "ALARM NOSPACE"), ("CORRUPT", "ALARM CORRUPT")] {
        let change = |action: &str| format!(r#"{{"action":"{action}","alarm":"{alarm}","memberID":"5"}}"#);
        assert_eq!(ask(quorate, "POST", "/v3/maintenance/alarm", &change("ACTIVATE")).status, 200);
        let body = format!("{{\"health\":\"false\",\"reason\":\"{health}\"}}\n");
        check("/health", 503, text, &body);
        check(&format!("/health?exclude={alarm}"), 200, text, r#"{"health":"true","reason":""}"#);
        if alarm == "CORRUPT" {
            check("/readyz/data_corruption", 503, text, "[-]data_corruption failed: alarm activated: CORRUPT\n\n");
        }
        assert_eq!(ask(quorate, "POST", "/v3/maintenance/alarm", &change("DEACTIVATE")).status, 200);
        check("/health", 200, text, r#"{"health":"true","reason":""}"#);
    }
}
