//! The compilers that can build the eBPF object: finding one, and naming it exactly.

use anyhow::{Context, Result, bail};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The linker and its version; others may emit other instructions.
pub const BPF_LINKER: &str = "0.13.0";
/// The LLVM that the linker is built with on Debian; as new as the compiler's.
pub const LLVM: &str = "22";
/// Debian's packages: compiler, cargo, the library's source, LLVM for the linker.
pub const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];

/// A compiler with the source of its library beside it.
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    /// First line of `rustc --version` and of `bpf-linker --version`: what the object depends on.
    pub identity: String,
}

impl Toolchain {
    /// The toolchain whose identity is `preferred`, if it is here; else any that can do it.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn find(preferred: &str) -> Result<Self> {
        let mut found = Self::all()?;
        let best = found
            .iter()
            .position(|t| t.identity == preferred)
            .unwrap_or(0);
        if found.is_empty() {
            bail!(
                "no Rust toolchain here can build for bpfel-unknown-none: it takes a nightly with \
                 rust-src (rustup toolchain install nightly --component rust-src), or Debian's {}. \
                 `cargo xtask setup` installs what is missing",
                DEBIAN_PACKAGES.join(", ")
            );
        }
        Ok(found.swap_remove(best))
    }

    /// Every usable toolchain: rustup's nightly first, then Debian's.
    fn all() -> Result<Vec<Self>> {
        let linker = linker_version()?;
        let nightly = || -> Option<[PathBuf; 2]> {
            let which = |tool| output("rustup", &["which", "--toolchain", "nightly", tool]);
            Some([which("cargo")?.into(), which("rustc")?.into()])
        };
        let debian = ["/usr/bin/cargo", "/usr/bin/rustc"].map(PathBuf::from);
        Ok([nightly(), Some(debian)]
            .into_iter()
            .flatten()
            .filter_map(|[cargo, rustc]| Self::at(cargo, rustc, &linker))
            .collect())
    }

    fn at(cargo: PathBuf, rustc: PathBuf, linker: &str) -> Option<Self> {
        let sysroot = PathBuf::from(output(&rustc, &["--print", "sysroot"])?);
        let usable = cargo.exists() && library(&sysroot).join("core/src/lib.rs").exists();
        let version = output(&rustc, &["--version"])?;
        usable.then(|| Self {
            cargo,
            rustc,
            sysroot,
            identity: format!("{version}; {linker}"),
        })
    }

    /// A `cargo` of this toolchain, free of what the calling cargo left in the environment.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let inherited = name.starts_with("CARGO") || name.starts_with("RUST");
            let needed = ["CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE"].contains(&&*name)
                || name.starts_with("CARGO_REGISTR")
                || name.starts_with("CARGO_HTTP");
            if inherited && !needed {
                command.env_remove(name);
            }
        }
        // Debian's compiler is a stable one; the eBPF target needs what only nightly admits to.
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// Where the compiler's own library has its source.
    pub fn library(&self) -> PathBuf {
        library(&self.sysroot)
    }
}

fn library(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// `bpf-linker`'s own version line.
///
/// # Errors
/// When it is not on the PATH.
pub fn linker_version() -> Result<String> {
    output("bpf-linker", &["--version"]).with_context(|| {
        format!("bpf-linker is not on the PATH. `cargo xtask setup` installs version {BPF_LINKER}")
    })
}

/// Standard output of a command that succeeds, trimmed.
pub fn output(program: impl AsRef<Path>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program.as_ref())
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
