//! Turns `src/schema/resources.tsv` into a Rust table.

use std::fmt::Write as _;

/// The generated source: one `ResourceDef` per row, in the rows' order.
///
/// # Panics
/// When a row is malformed: that is a mistake in the table.
pub(crate) fn generate(tsv: &str) -> String {
    let mut out = String::from("static RESOURCES: &[ResourceDef] = &[\n");
    for row in tsv.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = row.split('\t').collect();
        let [group_version, resource, kind, scope, verbs, subresources, short_names, categories, storage] = columns[..]
        else {
            panic!("nine columns expected: {row}")
        };
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let singular = kind.to_lowercase();
        let storage = if storage == "-" { "" } else { storage };
        writeln!(
            out,
            "ResourceDef {{ group: {group:?}, version: {version:?}, resource: {resource:?}, kind: {kind:?}, \
             list_kind: \"{kind}List\", singular: {singular:?}, namespaced: {}, verbs: {}, subresources: &[{}], \
             short_names: {}, categories: {}, storage_prefix: {storage:?} }},",
            scope == "NS",
            verb_list(verbs),
            subresources
                .split(';')
                .filter(|sub| *sub != "-")
                .map(|sub| subresource(sub, group, version, kind))
                .collect::<String>(),
            string_list(short_names),
            string_list(categories),
        )
        .expect("writing to a string does not fail");
    }
    out.push_str("];\n");
    out
}

fn subresource(text: &str, group: &str, version: &str, kind: &str) -> String {
    let mut parts = text.split(':');
    let name = parts.next().expect("a name");
    let verbs = parts.next().unwrap_or_else(|| panic!("{text} has no verbs"));
    let (group, version, kind) = match parts.next() {
        None => (group, version, kind),
        Some(own) => match own.split_once('@') {
            None => (group, version, own),
            Some((kind, group_version)) => {
                let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
                (group, version, kind)
            }
        },
    };
    let verbs = verb_list(verbs);
    format!(
        "SubresourceDef {{ name: {name:?}, group: {group:?}, version: {version:?}, kind: {kind:?}, verbs: {verbs} }}, "
    )
}

fn verb_list(text: &str) -> String {
    let verbs: Vec<&str> = text
        .split(',')
        .map(|verb| match verb {
            "create" => "Verb::Create",
            "delete" => "Verb::Delete",
            "deletecollection" => "Verb::DeleteCollection",
            "get" => "Verb::Get",
            "list" => "Verb::List",
            "patch" => "Verb::Patch",
            "update" => "Verb::Update",
            "watch" => "Verb::Watch",
            other => panic!("unknown verb {other}"),
        })
        .collect();
    format!("&[{}]", verbs.join(", "))
}

fn string_list(text: &str) -> String {
    let items: Vec<&str> = text.split(',').filter(|item| *item != "-").collect();
    format!("&{items:?}")
}
