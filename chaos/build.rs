//! Compiles the library that stands between a process and its disk, so that whoever has the
//! program can fail disks with it and needs no compiler.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/fault/shim.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("shim.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(&compiler)
        .args(["-O2", "-Wall", "-shared", "-fPIC", "-o"])
        .arg(&out)
        .args([SOURCE, "-ldl", "-lpthread"])
        .status()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}; install gcc", compiler.display()));
    assert!(status.success(), "{SOURCE} does not compile");
}
