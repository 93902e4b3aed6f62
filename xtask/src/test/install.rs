//! The programs that the end-to-end tests work on.

use super::stage::Stages;
use crate::{cargo, host};
use std::process::Command;

/// Program and Debian package.
const PROGRAMS: [(&str, &str); 7] = [
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("python3", "python3"),
    ("sqlite3", "sqlite3"),
    ("gdb", "gdb"),
    ("nginx", "nginx-core"),
    ("strace", "strace"),
];

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
    println!("installing {list}");
    let apt = |arguments: &[&str]| {
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let install = [
        &["install", "-q", "-y", "--no-install-recommends"][..],
        &packages,
    ]
    .concat();
    // Package lists may be missing or old.
    let done = apt(&install) || (apt(&["update", "-q"]) && apt(&install));
    if !done {
        stages.skip(
            "programs under test",
            &list,
            "apt-get could not install them; see above",
        );
    }
}

/// The S3 server that object storage is tested against, from Python's package index, into a folder of the build.
pub fn s3(stages: &mut Stages) {
    let folder = cargo::target().join("moto");
    let how = "pip install 'moto[server,s3]', and have moto_server on PATH";
    if host::find("moto_server").is_some() || folder.join("bin/moto_server").is_file() {
        return;
    }
    println!("installing moto");
    let run = |program: &std::path::Path, arguments: &[&str]| {
        Command::new(program)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let made = host::find("python3")
        .is_some_and(|python| run(&python, &["-m", "venv", &folder.to_string_lossy()]));
    let pip = folder.join("bin/pip");
    if !made || !run(&pip, &["install", "--quiet", "moto[server,s3]"]) {
        stages.skip("an S3 server", "moto_server", how);
    }
}
