//! The rules of the house that a machine can check.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Which room may call which. A test's own dependencies count as its room's.
const DOORS: &[(&str, &[&str])] = &[
    ("quorate-proto", &[]),
    ("quorate-transport", &[]),
    ("quorate-store", &["quorate-proto", "quorate-transport"]),
    ("quorate-runtime", &["quorate-proto"]),
    ("quorate-controllers", &["quorate-proto", "quorate-runtime"]),
    ("quorate-apiserver", &["quorate-proto", "quorate-transport", "quorate-store", "quorate-runtime"]),
    ("quorate-node-agent", &["quorate-proto", "quorate-transport", "quorate-runtime"]),
    ("quorate-chaos", &["quorate-proto", "quorate-transport"]),
    ("quorate-tests", &["quorate-proto", "quorate-transport", "quorate-chaos"]),
    (
        "quorate",
        &[
            "quorate-proto",
            "quorate-transport",
            "quorate-store",
            "quorate-apiserver",
            "quorate-runtime",
            "quorate-controllers",
            "quorate-node-agent",
            "quorate-chaos",
        ],
    ),
];

/// Crates that must not come back: another TLS stack, or a compiler that machines lack.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "TLS is rustls"),
    ("aws-lc-sys", "rustls uses ring"),
    ("serde_yaml", "unmaintained; use serde-saphyr"),
];

/// The three crates whose versions are pinned exactly.
const PINNED: &[(&str, &str)] = &[("openraft", "0.10.0-alpha.37"), ("k8s-openapi", "0.29.0"), ("k8s-pb", "0.9.0")];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        // Not offline: a build has fetched the crates of this platform alone.
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(quorate_tests::root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// Our own packages and the packages of ours that each depends on.
fn our_doors(metadata: &serde_json::Value) -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata["packages"].as_array().expect("packages");
    let ours = |name: &str| name == "quorate" || name.starts_with("quorate-");
    packages
        .iter()
        .filter_map(|package| {
            let name = package["name"].as_str()?;
            if !ours(name) {
                return None;
            }
            let dependencies = package["dependencies"].as_array()?;
            let doors = dependencies.iter().filter_map(|dependency| dependency["name"].as_str());
            Some((name.to_owned(), doors.filter(|name| ours(name)).map(str::to_owned).collect()))
        })
        .collect()
}

/// Every door that is open but not on the list.
fn wrong_doors(doors: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = DOORS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (room, opened) in doors {
        let Some(may) = allowed.get(room.as_str()) else {
            wrong.push(format!("{room} is a room that the list of doors does not know"));
            continue;
        };
        wrong
            .extend(opened.iter().filter(|door| !may.contains(&door.as_str())).map(|door| format!("{room} -> {door}")));
    }
    wrong
}

#[test]
fn no_room_has_another_door() {
    let wrong = wrong_doors(&our_doors(&metadata()));
    assert!(wrong.is_empty(), "doors that STYLE does not list: {wrong:#?}");
}

#[test]
fn a_wrong_door_is_noticed() {
    let doors = BTreeMap::from([("quorate-store".to_owned(), BTreeSet::from(["quorate-apiserver".to_owned()]))]);
    assert_eq!(wrong_doors(&doors), ["quorate-store -> quorate-apiserver"]);
}

#[test]
fn dependencies_are_those_that_were_chosen() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let versions = |wanted: &str| -> Vec<&str> {
        let named = packages.iter().filter(|package| package["name"] == wanted);
        named.filter_map(|package| package["version"].as_str()).collect()
    };
    for (name, why) in BANNED {
        assert!(versions(name).is_empty(), "{name} is in the tree: {why}");
    }
    for (name, version) in PINNED {
        assert_eq!(versions(name), [*version], "{name}");
    }
}

#[test]
fn manifests_take_versions_from_the_root() {
    for package in metadata()["packages"].as_array().expect("packages") {
        let manifest = package["manifest_path"].as_str().expect("a path");
        if !package["source"].is_null() {
            continue;
        }
        let text = std::fs::read_to_string(manifest).expect("our own manifests are readable");
        let sections = text.split("\n[").filter(|section| section.trim_start_matches('[').contains("dependencies]"));
        for line in sections.flat_map(|section| section.lines().skip(1)).filter(|line| line.contains('=')) {
            assert!(line.contains("workspace = true"), "{manifest}: {line}");
        }
    }
}
