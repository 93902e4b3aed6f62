//! Installs what building the eBPF object takes. Nothing else in ksnap needs any of it.

use crate::toolchain::{BPF_LINKER, DEBIAN_PACKAGES, LLVM, Toolchain, linker_version, output};
use anyhow::{Context, Result, bail};
use std::env;
use std::path::Path;
use std::process::Command;

/// Install what is needed to build the eBPF object from source (using ksnap needs none of it)
#[derive(clap::Args)]
pub struct Options {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Installs what is missing, saying each command before it runs.
///
/// # Errors
/// When a command fails, or this system has no package manager that is known.
pub fn run(options: Options) -> Result<()> {
    let debian = output("apt-get", &["--version"]).is_some();
    if !has_compiler() {
        if debian {
            step(&options, "apt-get", &["update"], &[])?;
            let install = [
                &["install", "-y", "--no-install-recommends"][..],
                &DEBIAN_PACKAGES,
            ]
            .concat();
            step(
                &options,
                "apt-get",
                &install,
                &[("DEBIAN_FRONTEND", "noninteractive")],
            )?;
        } else if output("rustup", &["--version"]).is_some() {
            let install = [
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ];
            step(&options, "rustup", &install, &[])?;
        } else {
            bail!(
                "this system has neither apt-get nor rustup: install a nightly Rust with rust-src"
            );
        }
    } else {
        println!("compiler: there");
    }

    match linker_version() {
        Ok(version) if version.ends_with(BPF_LINKER) => println!("linker: {version}"),
        _ => {
            let version = format!("bpf-linker@{BPF_LINKER}");
            let llvm = format!("/usr/lib/llvm-{LLVM}");
            let feature = format!("llvm-{LLVM}");
            if debian && !Path::new(&llvm).join("include").exists() {
                let package = format!("llvm-{LLVM}-dev");
                step(
                    &options,
                    "apt-get",
                    &["install", "-y", &package],
                    &[("DEBIAN_FRONTEND", "noninteractive")],
                )?;
            }
            let mut install = vec!["install", "--locked", &version];
            if debian {
                install.extend(["--no-default-features", "--features", &feature]);
            }
            step(&options, "cargo", &install, &[("LLVM_PREFIX", &llvm)])?;
        }
    }
    if options.dry_run {
        return Ok(());
    }
    let toolchain = Toolchain::find("").context("something is still missing after the set-up")?;
    println!("ready: {}", toolchain.identity);
    Ok(())
}

/// True when a compiler with its library's source is here, with or without the linker.
fn has_compiler() -> bool {
    let source = |sysroot: &str| {
        Path::new(sysroot)
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .exists()
    };
    let nightly = output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"]);
    let debian = output("/usr/bin/rustc", &["--print", "sysroot"]);
    [nightly, debian]
        .iter()
        .flatten()
        .any(|sysroot| source(sysroot))
}

/// Runs one command, through sudo where installing packages takes it.
fn step(
    options: &Options,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<()> {
    let sudo = program == "apt-get"
        && env::var("USER").as_deref() != Ok("root")
        && output("id", &["-u"]).as_deref() != Some("0");
    let mut command = Command::new(if sudo { "sudo" } else { program });
    if sudo {
        command.arg(program);
    }
    command.args(arguments).envs(variables.iter().copied());
    println!(
        "setup: {}{program} {}",
        if sudo { "sudo " } else { "" },
        arguments.join(" ")
    );
    if options.dry_run {
        return Ok(());
    }
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
