//! `ksnap restore` of processes that were in namespaces: those that are still there are entered again.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Ended;
use tests::footprint::await_gone;
use tests::{Background, Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(60);
const KINDS: [&str; 4] = ["net", "ipc", "uts", "cgroup"];

/// Has a port, a segment of shared memory and a host name in namespaces of its own, and tells of all of them when it is asked.
const INSIDE: &str = r#"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
socket.sethostname("inside")
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
segment = libc.shmget(0, 4096, 0o1600)
memory = ctypes.cast(libc.shmat(segment, None, 0), ctypes.POINTER(ctypes.c_char * 5))
memory.contents[:] = b"apple"
def tell():
    client = socket.create_connection(("127.0.0.1", port))
    there, _ = listener.accept()
    client.sendall(b"pear")
    got = there.recv(4)
    spaces = [os.readlink("/proc/self/ns/" + kind) for kind in ("net", "ipc", "uts", "cgroup")]
    print(socket.gethostname(), bytes(memory.contents), got, libc.shmget(0, 1, 0) >= 0, spaces, flush=True)
tell()
for line in sys.stdin:
    tell()
"#;

/// The program, in namespaces of its own, and what it told.
fn start() -> Result<(Background, String)> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--ipc", "--uts", "--cgroup", "sh", "-c"]);
    // The device of a new network is down; python3 has no call for it.
    command.args(["ip link set lo up; exec \"$0\" -c \"$1\""]);
    command.arg(Python::interpreter()?).arg(INSIDE);
    let mut process = Background::start(command)?;
    let told = told(&mut process)?;
    ensure!(told.starts_with("inside b'apple' b'pear' True"), "{told}");
    Ok((process, told))
}

fn told(process: &mut Background) -> Result<String> {
    let line = process.line(LIMIT)?;
    line.with_context(|| process.stderr())
}

/// Takes a snapshot of a process, which this program has started or ksnap has brought back, and waits until it has ended by that.
fn end_captured(ksnap: &Ksnap, pid: i32, process: &mut Background) -> Result<()> {
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill", "--audit"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    await_gone(pid, LIMIT)
}

fn bring_back(ksnap: &Ksnap, options: &[&str]) -> Result<(Background, Value)> {
    let args = [&["restore", "latest", "--wait", "--json"], options].concat();
    let mut back = ksnap.start(&args)?;
    let line = told(&mut back)?;
    let said = serde_json::from_str(&line).context(line)?;
    Ok((back, said))
}

fn ask(process: &mut Background) -> Result<String> {
    use std::io::Write;
    process.stdin()?.write_all(b"\n")?;
    told(process)
}

fn namespace(pid: i32, kind: &str) -> Result<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// A process that is in the namespaces of another one, and keeps them.
fn keeper(pid: i32) -> Result<Background> {
    let mut command = Command::new("nsenter");
    command.args([
        "-t",
        &pid.to_string(),
        "--net",
        "--ipc",
        "--uts",
        "--cgroup",
    ]);
    command.args(["sh", "-c", "echo here; exec sleep 600"]);
    let mut keeper = Background::start(command)?;
    ensure!(told(&mut keeper)? == "here");
    Ok(keeper)
}

#[test]
fn namespaces_that_another_process_keeps_are_entered_again() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("ip"),
        Machines,
        ChosenIds
    );
    let ksnap = Ksnap::new()?;
    let (mut process, before) = start()?;
    let keeper = keeper(process.pid())?;
    let mut pid = process.pid();
    for options in [&[][..], &["--pids", "namespace"], &[]] {
        end_captured(&ksnap, pid, &mut process)?;
        let (back, said) = bring_back(&ksnap, options)?;
        ensure!(!said["notes"].to_string().contains("namespace"), "{said}");
        process = back;
        let after = ask(&mut process)?;
        ensure!(after == before, "{after}\ninstead of\n{before}");
        pid = said["pid"].as_i64().context("no pid")? as i32;
        for kind in KINDS {
            let kept = namespace(keeper.pid(), kind)?;
            ensure!(namespace(pid, kind)? == kept, "{kind}");
        }
    }
    end_captured(&ksnap, pid, &mut process)
}

#[test]
fn a_network_that_is_mounted_is_entered_again() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("ip"),
        Machines,
        ChosenIds,
        Mount,
        Kernel(6, 18)
    );
    let ksnap = Ksnap::new()?;
    let (mut process, before) = start()?;
    let inside = namespace(process.pid(), "net")?;
    // As `ip netns` does.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("name with blanks");
    File::create(&path)?;
    let source = format!("/proc/{}/ns/net", process.pid());
    let run = |program: &str, args: &[&std::ffi::OsStr]| -> Result<()> {
        let done = Command::new(program).args(args).output()?;
        ensure!(done.status.success(), "{done:?}");
        Ok(())
    };
    run(
        "mount",
        &["--bind".as_ref(), source.as_ref(), path.as_os_str()],
    )?;
    let outcome = (|| {
        let pid = process.pid();
        end_captured(&ksnap, pid, &mut process)?;
        let (mut back, said) = bring_back(&ksnap, &[])?;
        let notes = said["notes"].to_string();
        ensure!(!notes.contains("net namespace"), "{said}");
        for kind in ["ipc", "uts", "cgroup"] {
            let gone = format!("{kind} namespace");
            ensure!(notes.contains(&gone), "{said}");
        }
        ensure!(notes.contains("which is not there any more"), "{said}");
        let after = ask(&mut back)?;
        ensure!(after.contains(&inside), "{after}\nwas\n{before}");
        ensure!(after.contains("b'apple' b'pear'"), "{after}");
        let pid = said["pid"].as_i64().context("no pid")? as i32;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        ensure!(back.wait(LIMIT)?.is_some(), "it lives");
        // With a network of its own, it is in no other one.
        let (back, said) = bring_back(&ksnap, &["--net", "private"])?;
        let pid = said["pid"].as_i64().context("no pid")? as i32;
        let own = namespace(pid, "net")?;
        let outside = namespace(std::process::id() as i32, "net")?;
        ensure!(own != inside && own != outside, "{own}");
        drop(back);
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(())
    })();
    run("umount", &["--lazy".as_ref(), path.as_os_str()])?;
    outcome
}

#[test]
fn namespaces_that_are_gone_are_named() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("ip"),
        Machines,
        ChosenIds
    );
    let ksnap = Ksnap::new()?;
    let (mut process, _) = start()?;
    let pid = process.pid();
    end_captured(&ksnap, pid, &mut process)?;
    let (mut back, said) = bring_back(&ksnap, &[])?;
    let notes = said["notes"].to_string();
    for kind in KINDS {
        let named = format!("it was in another {kind} namespace");
        ensure!(notes.contains(&named), "{said}");
    }
    ensure!(notes.contains("which is not there any more"), "{said}");
    let pid = said["pid"].as_i64().context("no pid")? as i32;
    for kind in KINDS {
        let own = namespace(std::process::id() as i32, kind)?;
        ensure!(namespace(pid, kind)? == own, "{kind}");
    }
    let after = ask(&mut back)?;
    ensure!(after.contains("b'apple' b'pear'"), "{after}");
    Ok(())
}

/// Mounts that nobody else sees are named; a namespace of mounts that are ksnap's as well makes no difference.
#[test]
fn mounts_of_a_process_of_its_own_are_named() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("unshare"),
        Program("mount"),
        Mount,
        ChosenIds
    );
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let own = format!("mount -t tmpfs none '{}'; ", folder.path().display());
    for (mount, is_named) in [("", false), (own.as_str(), true)] {
        let mut command = Command::new("unshare");
        let script = format!("{mount}echo here; exec sleep 600 </dev/null >/dev/null 2>&1");
        command.args(["--mount", "sh", "-c", &script]);
        let mut process = Background::start(command)?;
        ensure!(told(&mut process)? == "here");
        let end = std::time::Instant::now() + LIMIT;
        let mut pid = process.pid();
        let _ended = Ended(pid, "sleep");
        while std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() != "sleep" {
            ensure!(std::time::Instant::now() < end, "{}", process.stderr());
            std::thread::sleep(Duration::from_millis(1));
        }
        end_captured(&ksnap, pid, &mut process)?;
        for (options, is_named) in [
            (&["--pids", "namespace"][..], is_named),
            // From here on it is in a namespace that ksnap has made.
            (&[], false),
            (&["--pids", "same"], false),
        ] {
            let args = [&["restore", "latest", "--json"], options].concat();
            let back = ksnap.run(&args)?;
            let said: Value = serde_json::from_str(&back.stdout).context(back.stderr)?;
            let named = said["notes"].to_string().contains("another mnt namespace");
            ensure!(named == is_named, "{options:?}: {said}");
            pid = said["pid"].as_i64().context("no pid")? as i32;
            if options.contains(&"same") {
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            } else {
                let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
                ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
            }
            await_gone(pid, LIMIT)?;
        }
    }
    Ok(())
}
