//! Cargo, as the other commands call it.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How binaries are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Dependencies with full optimization, the workspace with a little: quick to build.
    Dev,
    /// What is measured.
    Release,
}

impl Profile {
    /// Cargo's folder for it.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// The repository that this xtask was built in.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(&folder).unwrap_or(folder.into()),
        None => root().join("target"),
    }
}

/// Where a binary of the workspace lies once it is built.
pub fn binary(profile: Profile, name: &str) -> PathBuf {
    target().join(profile.folder()).join(name)
}

/// `cargo ARGUMENTS` in the repository, with the cargo that runs this xtask.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root()).args(arguments);
    // Set for this program by the cargo that started it; another cargo would take them for its own.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// Builds `ksnap` and the victims. Cargo says nothing when there is nothing to do.
///
/// # Errors
/// When cargo cannot be started or the build fails.
pub fn build(profile: Profile) -> Result<()> {
    let mut arguments = vec![
        "build",
        "--quiet",
        "--package",
        "snap-user",
        "--package",
        "tests",
    ];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    if !binary(profile, "ksnap").exists() {
        eprintln!(
            "building ksnap ({} profile); the first time takes a few minutes",
            match profile {
                Profile::Dev => "dev",
                Profile::Release => "release",
            }
        );
    }
    let status = cargo(&arguments).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("building ksnap failed: {status}");
    }
    Ok(())
}
