//! Where a proxied request goes and what it asks for there. Pure.

use std::net::IpAddr;

use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::Value;

use super::forward::Place;
use crate::http::Query;
use crate::http::query::encode;

/// A conversation with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streaming {
    Exec,
    Attach,
    PortForward,
}

impl Streaming {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portForward",
        }
    }
}

/// The agent of a node, by what the node's status says.
pub(super) fn kubelet_place(node: &Object) -> Option<Place> {
    let status = &node.value()["status"];
    let addresses = status["addresses"].as_array()?;
    let address = ["InternalIP", "ExternalIP"].iter().find_map(|kind| {
        addresses.iter().find(|address| address["type"] == *kind).and_then(|address| address["address"].as_str())
    })?;
    let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|port| u16::try_from(port).ok());
    Some(Place::new(address.parse().ok()?, port.filter(|port| *port > 0).unwrap_or(10250), true))
}

/// The container that is meant: the named one, or the only one.
pub(super) fn container_of(pod: &Object, name: &str) -> Result<String, Status> {
    let value = pod.value();
    let names = |list: &str| -> Vec<String> {
        let items = value["spec"][list].as_array().into_iter().flatten();
        items.filter_map(|container| container["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = &pod.meta().name;
    if !name.is_empty() {
        let known = [&containers, &init, &ephemeral].iter().any(|list| list.iter().any(|known| known == name));
        return if known {
            Ok(name.to_owned())
        } else {
            Err(Status::bad_request(format!("container {name} is not valid for pod {pod_name}")))
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Status::bad_request(format!("a container name must be specified for pod {pod_name}"))),
        several => {
            let mut text = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                several.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

/// What the node is asked for logs: the options of `PodLogOptions` but the container.
pub(super) fn log_query(query: &Query) -> String {
    const OPTIONS: [&str; 8] =
        ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];
    join(
        query
            .pairs()
            .iter()
            .filter(|(name, _)| OPTIONS.contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str())),
    )
}

/// What the node is asked for a conversation, in the kubelet's own names.
pub(super) fn streaming_query(kind: Streaming, query: &Query) -> String {
    if kind == Streaming::PortForward {
        return join(query.all("ports").map(|port| ("port", port)));
    }
    let flags = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];
    let commands = query.all("command").filter(|_| kind == Streaming::Exec).map(|word| ("command", word));
    let flags = flags.into_iter().filter(|(name, _)| query.flag(name)).map(|(_, name)| (name, "1"));
    join(commands.chain(flags))
}

fn join<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    pairs.map(|(name, value)| format!("{name}={}", encode(value))).collect::<Vec<_>>().join("&")
}

/// `https:web:8443` → (`https`, `web`, `8443`); scheme and port may be absent.
pub(super) fn split_proxy_name(name: &str) -> (&str, &str, &str) {
    match name.split(':').collect::<Vec<_>>()[..] {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", name, ""),
    }
}

pub(super) fn first_container_port(pod: &Object) -> Option<u16> {
    let first = pod.value()["spec"]["containers"]
        .as_array()?
        .iter()
        .find_map(|container| container["ports"].as_array()?.iter().find_map(|port| port["containerPort"].as_u64()));
    u16::try_from(first.unwrap_or(80)).ok()
}

/// An address behind a port of a Service: the port by name or number, or the only one.
pub(super) fn service_endpoint(service: &Object, endpoints: &Object, asked: &str) -> Option<(IpAddr, u16)> {
    let service = service.value();
    let ports = service["spec"]["ports"].as_array()?;
    let port = match asked {
        "" if ports.len() == 1 => &ports[0],
        "" => return None,
        asked => ports.iter().find(|port| {
            port["name"] == asked || port["port"].as_u64().is_some_and(|number| number.to_string() == asked)
        })?,
    };
    let name = port["name"].as_str().unwrap_or("");
    for subset in endpoints.value()["subsets"].as_array()? {
        let fits = |candidate: &&Value| candidate["name"].as_str().unwrap_or("") == name;
        let number = subset["ports"].as_array().into_iter().flatten().find(fits).and_then(|port| port["port"].as_u64());
        let addresses: Vec<IpAddr> = subset["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|address| address["ip"].as_str()?.parse().ok())
            .collect();
        if let (Some(number), false) = (number.and_then(|number| u16::try_from(number).ok()), addresses.is_empty()) {
            return Some((addresses[rand::random_range(0..addresses.len())], number));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: &[&str]) -> Object {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web"}, "spec": {"containers": containers, "initContainers": [{"name": "init"}]}});
        Object::from_value(&pod, 1).unwrap()
    }

    #[test]
    fn the_only_container_need_not_be_named() {
        assert_eq!(container_of(&pod(&["a"]), "").unwrap(), "a");
        assert_eq!(container_of(&pod(&["a", "b"]), "b").unwrap(), "b");
        assert_eq!(container_of(&pod(&["a"]), "init").unwrap(), "init");
        assert_eq!(container_of(&pod(&["a"]), "c").unwrap_err().message, "container c is not valid for pod web");
        assert_eq!(
            container_of(&pod(&["a", "b"]), "").unwrap_err().message,
            "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [init]"
        );
    }

    #[test]
    fn options_are_renamed_for_the_node() {
        let query = Query::parse("container=a&command=sh&command=-c&command=a%26b&stdin=true&stdout=true&tty=false");
        assert_eq!(streaming_query(Streaming::Exec, &query), "command=sh&command=-c&command=a%26b&input=1&output=1");
        assert_eq!(streaming_query(Streaming::Attach, &query), "input=1&output=1");
        assert_eq!(streaming_query(Streaming::PortForward, &Query::parse("ports=80&ports=81")), "port=80&port=81");
        assert_eq!(log_query(&Query::parse("container=a&follow=true&tailLines=5")), "follow=true&tailLines=5");
    }

    #[test]
    fn proxy_names_carry_scheme_and_port() {
        assert_eq!(split_proxy_name("https:web:8443"), ("https", "web", "8443"));
        assert_eq!(split_proxy_name("web:http"), ("", "web", "http"));
        assert_eq!(split_proxy_name("web"), ("", "web", ""));
    }

    #[test]
    fn a_services_port_leads_to_an_endpoint() {
        let object = |value: Value| Object::from_value(&value, 1).unwrap();
        let service = object(json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}));
        let endpoints = object(json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {"name": "web"},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 8080}]}]}));
        let expected = Some(("10.0.0.1".parse().unwrap(), 8080));
        for asked in ["", "http", "80"] {
            assert_eq!(service_endpoint(&service, &endpoints, asked), expected, "{asked}");
        }
        assert_eq!(service_endpoint(&service, &endpoints, "81"), None);
    }
}
