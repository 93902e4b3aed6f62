//! The programs that the end-to-end tests work on.

use super::stage::Stages;
use crate::{cargo, host};
use std::path::Path;
use std::process::{Command, Stdio};

/// Program and Debian package.
const PROGRAMS: [(&str, &str); 12] = [
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("python3", "python3"),
    ("sqlite3", "sqlite3"),
    ("gdb", "gdb"),
    ("nginx", "nginx-core"),
    ("strace", "strace"),
    ("tmux", "tmux"),
    ("node", "nodejs"),
    ("javac", "default-jdk-headless"),
    ("ip", "iproute2"),
    ("pg_ctlcluster", "postgresql"),
];

/// What makes an environment of Python's, on Debian.
const VENV: &str = "python3-venv";
/// The S3 server, in the version that the tests were written for.
const MOTO: &str = "moto[server,s3]==5.*";
/// The Azure Blob server, likewise.
const AZURITE: &str = "azurite@3";

/// Installs what is missing where that is possible. What stays missing is no failure: the tests that
/// need it are skipped.
pub fn programs(stages: &mut Stages) {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| host::find(program).is_none())
        .collect();
    if missing.is_empty() {
        return;
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    let list = packages.join(" ");
    if !host::can_install() {
        stages.skip(
            "programs under test",
            &list,
            &format!("apt-get install {list}, or as your system has it"),
        );
        return;
    }
    if !packages_installed(&packages) {
        stages.skip(
            "programs under test",
            &list,
            "apt-get could not install them; see above",
        );
    }
}

/// Installs packages; `false` where that fails.
fn packages_installed(packages: &[&str]) -> bool {
    println!("installing {}", packages.join(" "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        succeeds(command.args(arguments))
    };
    let install = [
        &["install", "-q", "-y", "--no-install-recommends"][..],
        packages,
    ]
    .concat();
    // Package lists may be missing or old.
    apt(&install) || (apt(&["update", "-q"]) && apt(&install))
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The S3 server that object storage is tested against, from Python's package index, into a folder of the build.
pub fn s3(stages: &mut Stages) {
    let folder = cargo::target().join("moto");
    let how = format!(
        "apt-get install {VENV}; python3 -m venv target/moto && target/moto/bin/pip install '{MOTO}'"
    );
    if host::find("moto_server").is_some() || folder.join("bin/moto_server").is_file() {
        return;
    }
    println!("installing moto");
    // On Debian that takes a package of its own, without which there is no pip in it.
    let lacks_venv = || !folder.join("bin/pip").is_file() && host::can_install();
    let done =
        has_moto(&folder) || (lacks_venv() && packages_installed(&[VENV]) && has_moto(&folder));
    if !done {
        stages.skip("an S3 server", "moto_server", &how);
    }
}

/// The Azure Blob server, from npm's registry, into a folder of the build.
pub fn azure(stages: &mut Stages) {
    let folder = cargo::target().join("azurite");
    let program = "node_modules/azurite/dist/src/blob/main.js";
    if host::find("azurite-blob").is_some() || folder.join(program).is_file() {
        return;
    }
    println!("installing azurite");
    let install = || {
        let mut command = Command::new("npm");
        // No scripts: nothing of it has to be built.
        let arguments = ["install", "--no-audit", "--no-fund", "--ignore-scripts"];
        command.args(arguments).arg("--prefix").arg(&folder);
        succeeds(command.arg(AZURITE)) && folder.join(program).is_file()
    };
    // Debian's package of npm brings hundreds of others: who has node.js from elsewhere has npm with it.
    if host::find("npm").is_none() || !install() {
        let how = format!("install npm; npm install --prefix target/azurite {AZURITE}");
        stages.skip("an Azure server", "the program azurite-blob", &how);
    }
}

/// Makes an environment of Python's with moto in it; `false` where that fails.
fn has_moto(folder: &Path) -> bool {
    let Some(python) = host::find("python3") else {
        return false;
    };
    succeeds(Command::new(python).args(["-m", "venv"]).arg(folder))
        && succeeds(Command::new(folder.join("bin/pip")).args(["install", "--quiet", MOTO]))
}
