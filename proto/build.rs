//! Compiles the `.proto` files in Rust, so that no machine needs `protoc`.

use std::path::{Path, PathBuf};

const CLIENT_FOLDER: &str = "src/etcd";

const FOLDERS: [&str; 3] = [CLIENT_FOLDER, "src/raft", "src/cri"];

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
    write_client_descriptors();
}

/// The client port's services and messages as data, for those who read their names at
/// run time.
fn write_client_descriptors() {
    let mut compiler = protox::Compiler::new([CLIENT_FOLDER]).expect("the folder of .proto files is readable");
    compiler.include_imports(true);
    let mut files = proto_files(Path::new(CLIENT_FOLDER));
    files.sort();
    compiler.open_files(files).expect("the .proto files compile");
    let directory = std::env::var_os("OUT_DIR").expect("cargo names the folder of outputs");
    std::fs::write(Path::new(&directory).join("etcd.bin"), compiler.encode_file_descriptor_set())
        .expect("the folder of outputs is writable");
}

fn proto_files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .expect("the folder of .proto files is readable")
        .map(|entry| entry.expect("a folder entry is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect()
}
