//! Where cargo put the binaries: beside the test executable.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The folder of this build's binaries (`target/<profile>`).
pub fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where the test executable is")?;
    // Test executables are in target/<profile>/deps, binaries one folder above.
    let folder = own.parent().context("the test executable has no folder")?;
    match folder.file_name().is_some_and(|name| name == "deps") {
        true => Ok(folder
            .parent()
            .context("deps has no parent folder")?
            .to_owned()),
        false => Ok(folder.to_owned()),
    }
}

/// The `ksnap` binary: `KSNAP_BIN`, or the one of this build.
pub fn ksnap() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("KSNAP_BIN") {
        let path = PathBuf::from(named);
        return match path.is_file() {
            true => Ok(path),
            false => bail!("KSNAP_BIN names {}, which is not a file", path.display()),
        };
    }
    let path = binaries()?.join("ksnap");
    match path.is_file() {
        true => Ok(path),
        false => bail!(
            "there is no {}: build it first: cargo build -p snap-user",
            path.display()
        ),
    }
}

/// The `victim` binary of this build.
pub fn victim() -> Result<PathBuf> {
    let path = binaries()?.join("victim");
    match path.is_file() {
        true => Ok(path),
        false => bail!(
            "there is no {}: build it first: cargo build -p tests",
            path.display()
        ),
    }
}

/// Copies a program, by another process: a descriptor open for writing here could be inherited by a child that
/// another test's thread starts just now, and the copy would be busy (ETXTBSY) as long as that one has it.
pub fn copy_program(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let done = std::process::Command::new("cp").arg(from).arg(to).status();
    match done.context("start cp")?.success() {
        true => Ok(()),
        false => bail!("cannot copy {} to {}", from.display(), to.display()),
    }
}

/// A program on PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
