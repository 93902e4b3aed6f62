//! Helper programs of the host: finding, running and, on Debian as root, installing them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Error, Result};

/// QEMU's program for 64-bit x86 guests.
pub const QEMU: &str = "qemu-system-x86_64";

/// What the virtual machine needs from the host: program, Debian package, accepted only if `check` passes.
const NEEDED: [(&str, &str, Check); 3] = [
    (QEMU, "qemu-system-x86", on_path),
    ("busybox", "busybox-static", static_busybox),
    ("xz", "xz-utils", on_path),
];

type Check = fn(&str) -> Option<PathBuf>;

/// QEMU and a static busybox, installed first where that is possible, with what unpacks kernel modules.
pub fn ensure(say: &mut dyn FnMut(&str)) -> Result<(PathBuf, PathBuf)> {
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(name, _, check)| check(name).is_none())
        .collect();
    if !missing.is_empty() {
        let packages: Vec<_> = missing.iter().map(|(_, package, _)| *package).collect();
        install(&packages, say)?;
    }
    let get = |(name, package, check): (&str, &str, Check)| {
        check(name).ok_or_else(|| Error::Unavailable {
            what: name.into(),
            why: format!("not there even with {package} installed"),
            remedy: format!("check the installation of {package}"),
        })
    };
    let [qemu, busybox, xz] = NEEDED;
    get(xz)?;
    Ok((get(qemu)?, get(busybox)?))
}

fn install(packages: &[&str], say: &mut dyn FnMut(&str)) -> Result<()> {
    let list = packages.join(" ");
    let unavailable = |why: &str, remedy: String| Error::Unavailable {
        what: list.clone(),
        why: why.into(),
        remedy,
    };
    if !Path::new("/etc/debian_version").exists() || !found("apt-get") {
        let remedy = format!("install {QEMU} and a statically linked busybox");
        return Err(unavailable("not a Debian machine", remedy));
    }
    if !is_root() {
        let remedy = format!("run: sudo apt-get install {list}");
        return Err(unavailable("not root", remedy));
    }
    say(&format!("installing {list}"));
    run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages),
        "install what the virtual machines need",
    )?;
    Ok(())
}

/// The effective user is root. Read from /proc: xtask has no unsafe code and needs no crate for this.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|uids| uids.split_whitespace().nth(1))
        == Some("0")
}

/// True if `program` is on PATH.
pub fn found(program: &str) -> bool {
    on_path(program).is_some()
}

/// Where `program` is, in PATH or in the system folders that an ordinary user's PATH lacks.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// A dynamically linked busybox would be a first process that cannot start.
fn static_busybox(name: &str) -> Option<PathBuf> {
    let path = on_path(name)?;
    super::initramfs::shared_libraries(&path)
        .ok()?
        .is_empty()
        .then_some(path)
}

/// Runs a program to its end and gives back its stdout.
///
/// # Errors
/// `Tool` if it ends with anything but success, `Io` if it cannot be started.
pub fn run(command: &mut Command, goal: &str) -> Result<String> {
    let line = describe(command);
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("start", Path::new(command.get_program())))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Tool {
            command: line,
            goal: goal.into(),
            status: output.status.to_string(),
            stderr: last_lines(stderr.trim(), 6),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_reported_with_its_command_line_and_message() {
        let error = run(
            Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]),
            "see it fail",
        )
        .unwrap_err();
        let text = error.to_string();
        for part in ["sh -c", "exit status: 3", "see it fail", "no such thing"] {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        assert!(!error.is_skip());
    }

    #[test]
    fn a_program_that_does_not_exist_is_not_found() {
        assert!(found("sh"));
        assert!(!found("a-program-nobody-has"));
    }

    #[test]
    fn last_lines_takes_the_end() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
