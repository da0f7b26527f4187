//! Compiles the `.proto` files in Rust, so that no machine needs `protoc`.

use std::path::{Path, PathBuf};

const FOLDERS: [&str; 3] = ["src/etcd", "src/raft", "src/cri"];

fn main() {
    let mut files = Vec::new();
    let folders = FOLDERS.map(Path::new);
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        println!("cargo:rerun-if-changed={}", folder.display());
        files.extend(proto_files(folder));
    }
    files.sort();
    if files.is_empty() {
        return;
    }
    let includes = folders.iter().filter(|folder| folder.is_dir());
    let descriptors = protox::compile(&files, includes).expect("the .proto files compile");
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)
        .expect("code is generated from the .proto files");
}

fn proto_files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .expect("the folder of .proto files is readable")
        .map(|entry| entry.expect("a folder entry is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect()
}
