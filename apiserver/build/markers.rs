//! Reads what `k8s-pb` knows beyond its types: the comment markers of the Kubernetes
//! sources and the protobuf field numbers, both found in its source text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A protobuf message; the key of the map that holds it is its path, see [`key`].
pub(crate) struct Message {
    /// Where relative type paths of its fields start: `["api", "core", "v1"]`.
    pub(crate) module: Vec<String>,
    pub(crate) markers: Markers,
    pub(crate) fields: Vec<MessageField>,
}

pub(crate) struct MessageField {
    /// In snake case, as the Rust source names it.
    pub(crate) name: String,
    pub(crate) tag: u32,
    pub(crate) repeated: bool,
    pub(crate) map: bool,
    /// The type path of a message or of a map's message values, as written.
    pub(crate) message: Option<String>,
    pub(crate) markers: Markers,
}

/// `+name=value` lines of a comment, in order.
#[derive(Clone, Default)]
pub(crate) struct Markers(Vec<(String, String)>);

impl Markers {
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    fn read(comment: &str) -> Option<(String, String)> {
        let marker = comment.trim().strip_prefix('+')?;
        let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
        Some((name.to_owned(), value.to_owned()))
    }
}

/// Letters and digits in lower case: `hostIP`, `host_ip` and `HostIp` are one name.
pub(crate) fn normalise(name: &str) -> String {
    let name = name.strip_prefix("r#").unwrap_or(name);
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// The key under which a message is found: its module, then its normalised name.
pub(crate) fn key(module: &[String], name: &str) -> String {
    format!("{}::{}", module.join("::"), normalise(name))
}

/// Where cargo has put the source of `k8s-pb`.
pub(crate) fn source_dir() -> PathBuf {
    let cargo = std::env::var_os("CARGO").expect("cargo sets CARGO");
    let host = std::env::var("HOST").expect("cargo sets HOST");
    let output = Command::new(cargo)
        // Of the other platforms' crates, cargo has downloaded none.
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &host])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let manifest = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .find(|package| package["name"] == "k8s-pb")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("k8s-pb is a build dependency");
    Path::new(manifest).parent().expect("a manifest has a folder").join("src")
}

/// All messages below `root`.
pub(crate) fn scan(root: &Path) -> HashMap<String, Message> {
    let mut messages = HashMap::new();
    let mut folders = vec![(root.to_owned(), Vec::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the crate's folders are readable") {
            let entry = entry.expect("the crate's folders are readable");
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                let mut inner: Vec<String> = module.clone();
                inner.push(name);
                folders.push((entry.path(), inner));
            } else if name == "mod.rs" {
                let text = std::fs::read_to_string(entry.path()).expect("the crate's sources are readable");
                scan_file(&text, &module, &mut messages);
            }
        }
    }
    messages
}

fn scan_file(text: &str, module: &[String], messages: &mut HashMap<String, Message>) {
    let mut markers = Markers::default();
    let mut attribute = String::new();
    let mut is_message = false;
    let mut open: Option<(String, Message)> = None;
    // rustfmt wraps long attributes and types: a piece is joined until it is whole.
    let mut piece = String::new();
    for line in text.lines().map(str::trim) {
        if piece.is_empty() {
            if let Some(comment) = line.strip_prefix("///") {
                markers.0.extend(Markers::read(comment));
                continue;
            }
        } else {
            piece.push(' ');
        }
        piece.push_str(line);
        if piece.starts_with("#[") {
            if !piece.ends_with(")]") {
                continue;
            }
            is_message |= piece.contains("::prost::Message");
            if let Some(inner) = piece.strip_prefix("#[prost(") {
                attribute = inner.trim_end_matches(")]").to_owned();
            }
            piece.clear();
            continue;
        }
        if let Some((key, message)) = open.as_mut() {
            if piece == "}" {
                messages.insert(std::mem::take(key), open.take().expect("a message is open").1);
            } else if !piece.ends_with(',') || piece.matches('<').count() != piece.matches('>').count() {
                continue;
            } else {
                message.fields.push(read_field(&piece, &attribute, std::mem::take(&mut markers)));
            }
        } else if let Some(name) = piece.strip_prefix("pub struct ") {
            if std::mem::take(&mut is_message) {
                let empty = name.ends_with("{}");
                let name = name.split([' ', '{']).next().expect("a struct has a name");
                let message =
                    Message { module: module.to_vec(), markers: std::mem::take(&mut markers), fields: Vec::new() };
                if empty {
                    messages.insert(key(module, name), message);
                } else {
                    open = Some((key(module, name), message));
                }
            }
            markers = Markers::default();
        }
        piece.clear();
    }
}

fn read_field(declaration: &str, attribute: &str, markers: Markers) -> MessageField {
    let (name, field_type) = declaration
        .trim_start_matches("pub ")
        .trim_end_matches(',')
        .split_once(": ")
        .unwrap_or_else(|| panic!("not a field: {declaration}"));
    let tag = attribute
        .rsplit_once("tag = \"")
        .and_then(|(_, rest)| rest.trim_end_matches(['"', ' ', ',']).parse().ok())
        .unwrap_or_else(|| panic!("no tag in {attribute}"));
    let is_message = attribute.trim_start().starts_with("message") || attribute.contains("message\"");
    let inner = field_type.trim_end_matches(['>', ',', ' ']);
    let inner = inner.rsplit(['<', ' ']).next().expect("rsplit yields at least one piece");
    MessageField {
        name: name.to_owned(),
        tag,
        repeated: attribute.contains("repeated"),
        map: attribute.trim_start().starts_with("btree_map"),
        message: is_message.then(|| inner.to_owned()),
        markers,
    }
}

impl Message {
    /// The key of the message that a field of this one names by `path`.
    pub(crate) fn resolve(&self, path: &str) -> String {
        let mut module = self.module.clone();
        let mut parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
        let name = parts.pop().expect("a type path has a name");
        for part in parts {
            if part == "super" {
                module.pop();
            } else {
                module.push(part.strip_prefix("r#").unwrap_or(part).to_owned());
            }
        }
        key(&module, name)
    }
}
