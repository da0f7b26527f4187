//! HTTP: the JSON gateway, health, version.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::{put, value};
use crate::call::Call;
use crate::http::http;
use crate::script::{Group, Script};

pub(super) fn groups() -> Vec<Group> {
    vec![
        Group::new("gateway", [kv(), rest(), wrong()].concat())
            .with_setup(vec![put(value("a", "1")), put(value("b", "2"))]),
    ]
}

fn b(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn post(path: &'static str, body: impl Into<String>) -> Call {
    http("POST", path, body)
}

fn kv() -> Vec<Script> {
    let (a, all, k) = (b("a"), b("\0"), b("k"));
    vec![
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{a}"}}"#))),
        Script::one(post("/v3beta/kv/range", format!(r#"{{"key":"{a}"}}"#))),
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{all}","range_end":"{all}"}}"#))),
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{all}","rangeEnd":"{all}","limit":"1"}}"#))),
        Script::one(post(
            "/v3/kv/range",
            format!(r#"{{"key":"{all}","range_end":"{all}","limit":1,"count_only":true}}"#),
        )),
        Script::one(post(
            "/v3/kv/range",
            format!(r#"{{"key":"{all}","range_end":"{all}","sort_order":"DESCEND","sort_target":"KEY"}}"#),
        )),
        Script::one(post(
            "/v3/kv/range",
            format!(r#"{{"key":"{all}","range_end":"{all}","sort_order":2,"keys_only":true}}"#),
        )),
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{a}","revision":"99"}}"#))),
        Script::one(post("/v3/kv/range", "{}")),
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{}"}}"#, b("nothing")))),
        Script::one(post("/v3/kv/put", format!(r#"{{"key":"{k}","value":"{a}"}}"#))),
        Script::one(post("/v3/kv/put", format!(r#"{{"key":"{k}","value":"{a}","prev_kv":true}}"#))),
        Script::one(post("/v3/kv/put", format!(r#"{{"key":"{k}","lease":"99"}}"#))),
        Script::one(post("/v3/kv/put", format!(r#"{{"key":"{}","ignore_value":true}}"#, b("none")))),
        Script::one(post(
            "/v3/kv/txn",
            format!(
                r#"{{"compare":[{{"target":"VERSION","key":"{k}","result":"EQUAL","version":"2"}}],"success":[{{"request_put":{{"key":"{k}","value":"{a}"}}}},{{"request_range":{{"key":"{k}"}}}}],"failure":[{{"request_range":{{"key":"{a}"}}}}]}}"#
            ),
        )),
        Script::one(post(
            "/v3/kv/txn",
            format!(
                r#"{{"compare":[{{"target":"CREATE","key":"{k}","create_revision":"0"}}],"success":[],"failure":[{{"requestDeleteRange":{{"key":"{k}","prev_kv":true}}}}]}}"#
            ),
        )),
        Script::one(post("/v3/kv/txn", "{}")),
        Script::one(post("/v3/kv/deleterange", format!(r#"{{"key":"{a}","prev_kv":true}}"#))),
        Script::one(post("/v3/kv/deleterange", format!(r#"{{"key":"{a}"}}"#))),
        Script::one(post("/v3/kv/deleterange", "{}")),
        Script::one(post("/v3/kv/compaction", r#"{"revision":"3"}"#)),
        Script::one(post("/v3/kv/compaction", r#"{"revision":"3","physical":true}"#)),
        Script::one(post("/v3/kv/compaction", r#"{"revision":99}"#)),
    ]
}

fn rest() -> Vec<Script> {
    vec![
        Script::one(post("/v3/lease/grant", r#"{"TTL":"600","ID":"9"}"#)),
        Script::one(post("/v3/lease/grant", r#"{"TTL":600,"ID":9}"#)),
        Script::one(post("/v3/lease/timetolive", r#"{"ID":"9","keys":true}"#).blur(&["TTL"])),
        Script::one(post("/v3/kv/lease/timetolive", r#"{"ID":"8"}"#)),
        Script::one(post("/v3/lease/keepalive", r#"{"ID":"9"}"#)),
        Script::one(post("/v3/lease/keepalive", r#"{"ID":"404"}"#)),
        Script::one(post("/v3/lease/leases", "{}")),
        Script::one(post("/v3/kv/lease/leases", "{}")),
        Script::one(post("/v3/lease/revoke", r#"{"ID":"9"}"#)),
        Script::one(post("/v3/kv/lease/revoke", r#"{"ID":"9"}"#)),
        // Newer ones send a header.
        Script::one(post("/v3/maintenance/alarm", "{}").first_lines(1)),
        Script::one(post("/v3/maintenance/defragment", "{}")),
        Script::one(
            post("/v3/maintenance/hash", r#"{"revision":"0"}"#)
                .blur(&["hash"])
                .newer("3.6 tells the revision of the hash", |answer| answer.to_owned()),
        ),
        Script::one(post("/v3/cluster/member/remove", r#"{"ID":"5"}"#)),
        Script::one(post("/v3/auth/enable", "{}")),
        Script::one(post("/v3/auth/disable", "{}")),
        Script::one(post("/v3/auth/authenticate", r#"{"name":"x","password":"y"}"#)),
        Script::one(post("/v3/auth/user/add", r#"{"name":"g","password":"y"}"#)),
        Script::one(post("/v3/auth/user/get", r#"{"name":"g"}"#)),
        Script::one(post("/v3/auth/user/list", "{}")),
        Script::one(post("/v3/auth/user/delete", r#"{"name":"g"}"#)),
        Script::one(post("/v3/auth/role/add", r#"{"name":"r"}"#)),
        Script::one(post(
            "/v3/auth/role/grant",
            format!(r#"{{"name":"r","perm":{{"permType":"READWRITE","key":"{}"}}}}"#, b("a")),
        )),
        Script::one(post("/v3/auth/role/get", r#"{"role":"r"}"#)),
        Script::one(post("/v3/auth/role/list", "{}")),
        Script::one(post("/v3/auth/role/delete", r#"{"role":"r"}"#)),
        Script::one(http("GET", "/health", "").newer("3.5 tells the reason", |answer| {
            answer.replace("\"health\": \"true\"", "\"health\": \"true\",\n  \"reason\": \"\"")
        })),
        Script::one(http("POST", "/health", "")),
        Script::one(
            http("GET", "/version", "")
                .blur(&["etcdserver", "etcdcluster"])
                .newer("3.6 tells the version of its storage", |answer| {
                    answer.replace("\n}", "\n  \"storage\": \"3.7.0\"\n}")
                }),
        ),
        Script::one(http("PUT", "/version", "")),
    ]
}

fn wrong() -> Vec<Script> {
    vec![
        Script::one(http("GET", "/v3/kv/range", "")),
        Script::one(http("PUT", "/v3/kv/range", "{}")),
        Script::one(post("/v3/kv/nothing", "{}")),
        Script::one(post("/v3/kv/range", "")),
        Script::one(post("/v3/kv/range", "not json").first_lines(1)),
        Script::one(post("/v3/kv/range", r#"{"key":5}"#).first_lines(1)),
        Script::one(post("/v3/kv/range", r#"{"key":"%%%"}"#).first_lines(1)),
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{}","unheard":1}}"#, b("b"))).first_lines(1)),
        Script::one(post("/v3/kv/range", format!(r#"{{"key":"{}","sort_order":"NOPE"}}"#, b("b"))).first_lines(1)),
    ]
}
