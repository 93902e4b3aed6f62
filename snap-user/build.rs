//! Hands the committed eBPF object to the compiler, so that building ksnap needs no BPF toolchain.

use std::path::Path;
use std::{env, fs};

fn main() {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../snap-ebpf/prebuilt/ksnap.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    let target =
        Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("ksnap.bpf.o");
    if let Err(error) = fs::copy(&object, &target) {
        println!(
            "cargo::error=cannot read the prebuilt eBPF object {}: {error}. It is part of the \
             repository; `cargo xtask build-ebpf` makes it anew.",
            object.display()
        );
    }
}
