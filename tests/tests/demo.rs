//! The demo proves what it shows, also with fewer rights.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Background, paths, require};

const LIMIT: Duration = Duration::from_secs(180);
const NOBODY: &str = "65534";

/// Runs it by a command that runs another, from copies of the binaries that everybody can run.
fn proves_itself(by: &[&str]) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("ksnap-demo-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()?;
    // Where it looks for them, as for cargo's.
    let binaries = folder.path().join("debug");
    std::fs::create_dir(&binaries)?;
    std::fs::set_permissions(&binaries, std::fs::Permissions::from_mode(0o755))?;
    let xtask = binaries.join("xtask");
    paths::copy_program(&paths::ksnap()?, &binaries.join("ksnap"))?;
    paths::copy_program(&paths::victim()?, &binaries.join("victim"))?;
    paths::copy_program(&paths::binaries()?.join("xtask"), &xtask)?;
    let mut command = Command::new(by[0]);
    command
        .args(&by[1..])
        .arg(xtask)
        .args(["run", "--built", "--no-sudo"])
        .current_dir("/")
        .env("CARGO_TARGET_DIR", folder.path());
    let ended = Background::start(command)?.finish(LIMIT)?;
    ensure!(ended.code()? == 0, "{ended:?}");
    for line in [
        "it went back",
        "all its data checked",
        "and it runs on",
        "found nothing wrong",
        "All of it was checked, and holds.",
    ] {
        ensure!(ended.stdout.contains(line), "no {line:?} in {ended:?}");
    }
    Ok(())
}

#[test]
fn an_ordinary_user_sees_the_demo_prove_itself() -> Result<()> {
    require!(Root, Ksnap, Xtask, Program("setpriv"), OtherUsers);
    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    proves_itself(&["setpriv", &user, &group, "--clear-groups", "--"])
}

#[test]
fn root_of_a_user_namespace_sees_the_demo_prove_itself() -> Result<()> {
    require!(Root, Ksnap, Xtask, UserNamespace);
    proves_itself(&["unshare", "-U", "-r", "--"])
}
