//! Builds `snap-ebpf/prebuilt/ksnap.bpf.o`, or checks that it is what its sources make.
//!
//! The same sources and toolchain give the same bytes, wherever they lie: paths are mapped to fixed
//! names, both crates are compiled from a copy at relative places that do not change, and debugging
//! sections, which only the linker needs to make .BTF, are removed.

mod compare;
mod inputs;
mod strip;

use crate::toolchain::Toolchain;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Build the eBPF object from source into snap-ebpf/prebuilt
#[derive(clap::Args)]
pub struct Options {
    /// Build into a temporary folder and compare with the committed object instead
    #[arg(long)]
    check: bool,
}

/// Parts of the repository by role.
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The repository that this xtask was built in.
    pub fn here() -> Self {
        Self {
            root: Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
        }
    }

    fn prebuilt(&self, name: &str) -> PathBuf {
        self.root.join("snap-ebpf/prebuilt").join(name)
    }

    /// The committed object.
    pub fn object(&self) -> PathBuf {
        self.prebuilt("ksnap.bpf.o")
    }

    /// Hash of what the object was built from.
    pub fn input_hash(&self) -> PathBuf {
        self.prebuilt("INPUT_HASH")
    }

    /// What the object was built with.
    pub fn toolchain(&self) -> PathBuf {
        self.prebuilt("TOOLCHAIN")
    }
}

/// Builds or checks.
///
/// # Errors
/// When a tool is missing, the build fails, or the committed object is not what its sources make.
pub fn run(options: Options) -> Result<()> {
    let layout = Layout::here();
    let recorded = fs::read_to_string(layout.toolchain()).unwrap_or_default();
    let toolchain = Toolchain::find(recorded.trim())?;
    println!("building with {}", toolchain.identity);
    let object = build(&layout, &toolchain)?;
    let hash = inputs::hash(&layout.root)?;
    if options.check {
        check_hash(&layout, &hash)?;
        let committed = read(&layout.object())?;
        let same_toolchain = recorded.trim() == toolchain.identity;
        return compare::report(&committed, &object, same_toolchain, recorded.trim());
    }
    fs::create_dir_all(layout.prebuilt(""))?;
    write(&layout.object(), &object)?;
    write(&layout.input_hash(), format!("{hash}\n").as_bytes())?;
    write(
        &layout.toolchain(),
        format!("{}\n", toolchain.identity).as_bytes(),
    )?;
    println!("{}: {} bytes", layout.object().display(), object.len());
    Ok(())
}

fn check_hash(layout: &Layout, hash: &str) -> Result<()> {
    let recorded = fs::read_to_string(layout.input_hash()).unwrap_or_default();
    if recorded.trim() != hash {
        bail!(
            "the eBPF object was built from other sources than these (inputs {hash}, recorded {}). \
             Run cargo xtask build-ebpf and commit snap-ebpf/prebuilt",
            recorded.trim()
        );
    }
    Ok(())
}

/// Compiles in a fresh folder and strips.
fn build(layout: &Layout, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder to build in")?;
    // Relative places as in the repository, without the workspace around them.
    inputs::copy(&layout.root, folder.path())?;
    let path = folder.path().canonicalize()?;
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let mut flags = vec![
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        remap(&path, "/ksnap"),
        remap(&toolchain.library(), "/rust/library"),
    ];
    flags.extend(cargo_home.map(|home| remap(&home.join("registry/src"), "/registry")));
    let status = toolchain
        .cargo()
        .current_dir(path.join("snap-ebpf"))
        .args(["build", "--release", "--locked", "--quiet"])
        .env("CARGO_TARGET_DIR", path.join("target"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("building snap-ebpf failed: {status}");
    }
    let built = read(&path.join("target/bpfel-unknown-none/release/ksnap"))?;
    strip::strip(&built)
}

fn remap(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_was_built_from_the_sources_here() {
        let layout = Layout::here();
        let hash = inputs::hash(&layout.root).unwrap();
        check_hash(&layout, &hash).unwrap();
    }
}
