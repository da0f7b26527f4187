//! Derives the schema table from the crates that carry it; nothing derived is committed.

use std::path::{Path, PathBuf};

#[path = "build/definitions.rs"]
mod definitions;
#[path = "build/emit.rs"]
mod emit;
#[path = "build/join.rs"]
mod join;
#[path = "build/markers.rs"]
mod markers;
#[path = "build/resources.rs"]
mod resources;

fn main() {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/schema/resources.tsv");
    let tsv = std::fs::read_to_string("src/schema/resources.tsv").expect("src/schema/resources.tsv is readable");
    write(&out_dir.join("resources.rs"), resources::generate(&tsv).as_bytes());

    let messages = markers::scan(&markers::source_dir());
    let mut definitions = definitions::generate();
    let (types, extensions) = join::join(&mut definitions, &messages);
    write(&out_dir.join("types.rs"), emit::types(&types, messages.len(), extensions).as_bytes());
    join::to_openapi(&mut definitions);
    write(&out_dir.join("definitions.zst"), &emit::definitions(&definitions));
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}
