//! What a path and a method ask for, before anybody knows whether it exists.
//!
//! Source: apiserver's documentation of "Resource and non-resource requests".

use http::Method;
use quorate_proto::selector::FieldSelector;

use super::query::{self, Query};

/// The names in a request. Empty text stands for "not named".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource: `/api/v1/…` or `/apis/apps/v1/…`.
    pub is_resource_request: bool,
    /// The path as sent, without the query.
    pub path: String,
    /// A Kubernetes verb for resources, the method in lower case for other paths.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// Empty for the core group.
    pub api_group: String,
    pub api_version: String,
    pub namespace: String,
    /// The plural.
    pub resource: String,
    pub subresource: String,
    /// From the path, or from a field selector on metadata.name.
    pub name: String,
    /// The decoded segments from the resource on: `["pods", "web-1", "proxy", "a", "b"]`.
    pub parts: Vec<String>,
    /// The name came from a field selector: the request is still a list or a watch.
    pub name_from_selector: bool,
}

impl RequestInfo {
    /// Reads a method, a path and a query. Paths that make no sense are non-resource requests.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { path: path.to_owned(), verb: method.as_str().to_ascii_lowercase(), ..Self::default() };
        let segments: Vec<String> = match path.trim_matches('/') {
            "" => Vec::new(),
            trimmed => trimmed.split('/').map(|segment| query::decode(segment, false)).collect(),
        };
        let rest = match segments.first().map(String::as_str) {
            Some("api") if segments.len() >= 3 => &segments[1..],
            Some("apis") if segments.len() >= 4 => {
                info.api_group = segments[1].clone();
                &segments[2..]
            }
            _ => return info,
        };
        info.is_resource_request = true;
        info.api_prefix = segments[0].clone();
        info.api_version = rest[0].clone();
        let mut rest = &rest[1..];
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        if rest[0] == "watch" && rest.len() >= 2 {
            info.verb = "watch".to_owned();
            rest = &rest[1..];
        }
        if rest[0] == "namespaces" && rest.len() > 1 {
            info.namespace = rest[1].clone();
            // `namespaces/x/status` is the namespace itself; `namespaces/x/pods` lies in it.
            if rest.len() > 2 && !matches!(rest[2].as_str(), "status" | "finalize") {
                rest = &rest[2..];
            }
        }
        info.parts = rest.to_vec();
        info.resource = rest[0].clone();
        info.name = rest.get(1).cloned().unwrap_or_default();
        info.subresource = rest.get(2).cloned().unwrap_or_default();
        info.settle_verb(query);
        info
    }

    fn settle_verb(&mut self, query: &Query) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" => self.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned(),
            "delete" => self.verb = "deletecollection".to_owned(),
            _ => {}
        }
        // For authorization a list of one named object is about that object.
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") {
            let selector = FieldSelector::parse(query.text("fieldSelector")).unwrap_or_default();
            if let Some(name) = selector.exact("metadata.name")
                && !name.is_empty()
                && !name.contains('/')
            {
                self.name = name.to_owned();
                self.name_from_selector = true;
            }
        }
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn group_version(&self) -> String {
        if self.api_group.is_empty() {
            self.api_version.clone()
        } else {
            format!("{}/{}", self.api_group, self.api_version)
        }
    }

    /// Whether the answer may take as long as it likes.
    pub fn is_long_running(&self, query: &Query) -> bool {
        self.is_resource_request
            && (self.verb == "watch"
                || matches!(self.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
                || (self.subresource == "log" && query.flag("follow")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verb, group, version, namespace, resource, subresource, name.
    #[track_caller]
    fn check(method: &str, uri: &str, expected: [&str; 7]) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let info = RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query));
        assert!(info.is_resource_request, "{uri}");
        let found = [
            &info.verb,
            &info.api_group,
            &info.api_version,
            &info.namespace,
            &info.resource,
            &info.subresource,
            &info.name,
        ];
        assert_eq!(found.map(String::as_str), expected, "{method} {uri}");
    }

    #[test]
    fn paths_name_resources() {
        check("GET", "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check("GET", "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "", "a"]);
        check("PUT", "/api/v1/namespaces/a/finalize", ["update", "", "v1", "a", "namespaces", "finalize", "a"]);
        check("GET", "/api/v1/namespaces/a/pods", ["list", "", "v1", "a", "pods", "", ""]);
        check("GET", "/api/v1/namespaces/a/pods/b/log?follow=true", ["get", "", "v1", "a", "pods", "log", "b"]);
        check("POST", "/api/v1/namespaces/a/pods/b/exec", ["create", "", "v1", "a", "pods", "exec", "b"]);
        check("GET", "/api/v1/pods?watch=1", ["watch", "", "v1", "", "pods", "", ""]);
        check("GET", "/api/v1/pods?watch=false", ["list", "", "v1", "", "pods", "", ""]);
        check(
            "DELETE",
            "/apis/apps/v1/namespaces/a/deployments",
            ["deletecollection", "apps", "v1", "a", "deployments", "", ""],
        );
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            ["patch", "apps", "v1", "a", "deployments", "scale", "b"],
        );
        check("GET", "/api/v1/nodes/n/proxy/a/b", ["get", "", "v1", "", "nodes", "proxy", "n"]);
        check("GET", "/api/v1/nodes/a%2Fb", ["get", "", "v1", "", "nodes", "", "a/b"]);
    }

    #[test]
    fn the_old_watch_prefix_is_a_watch() {
        check("GET", "/api/v1/watch/namespaces/a/pods", ["watch", "", "v1", "a", "pods", "", ""]);
        check("GET", "/api/v1/watch/namespaces/a/pods/b", ["watch", "", "v1", "a", "pods", "", "b"]);
    }

    #[test]
    fn a_field_selector_on_the_name_names_the_object() {
        check(
            "GET",
            "/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Db",
            ["list", "", "v1", "a", "pods", "", "b"],
        );
        check(
            "GET",
            "/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name=b,spec.x=c",
            ["watch", "", "v1", "a", "pods", "", "b"],
        );
        check(
            "GET",
            "/api/v1/namespaces/a/pods?fieldSelector=metadata.name!=b",
            ["list", "", "v1", "a", "pods", "", ""],
        );
    }

    #[test]
    fn other_paths_are_non_resource() {
        for path in
            ["/", "/version", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz/ping", "/x/y/z/w"]
        {
            let info = RequestInfo::parse(&Method::GET, path, &Query::default());
            assert!(!info.is_resource_request, "{path}");
            assert_eq!(info.verb, "get");
        }
    }
}
