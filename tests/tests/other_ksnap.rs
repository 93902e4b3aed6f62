//! ksnap beside another ksnap, and with nobody who hears it.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Background, Ksnap, require};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

/// It would go back without its store, which it would then go on writing.
#[test]
fn another_ksnap_is_refused_and_what_it_runs_is_named() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut running = ksnap.start(&["run", "--every", "20ms", "--", "sleep", "600"])?;
    let end = Instant::now() + LIMIT;
    while ksnap.run(&["log", "--json"])?.stdout.lines().count() < 2 {
        ensure!(Instant::now() < end, "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    let [sleep] = tests::tree::children_of(running.pid())?[..] else {
        anyhow::bail!("it has other children");
    };
    let other = Ksnap::new()?;
    let refused = other.run(&["snap", &running.pid().to_string()])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    for word in ["another ksnap", &sleep.to_string()] {
        ensure!(refused.stderr.contains(word), "no {word:?} in {refused:?}");
    }
    // In a tree it is left out.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            r#""$0" --store "$1" run -- sleep 600 & sleep 600 & wait"#,
        ])
        .arg(tests::paths::ksnap()?)
        .arg(other.store().with_extension("inner"));
    let shell = Background::start(command)?;
    let ksnaps =
        || tests::footprint::processes(|pid| tests::tree::parent_of(pid) == Some(shell.pid()));
    while ksnaps()?.len() < 2 {
        ensure!(Instant::now() < end, "{}", shell.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    let children = ksnaps()?;
    let is_ksnap = |pid: &&i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.trim() == "ksnap")
    };
    while children.iter().filter(is_ksnap).count() < 1 {
        ensure!(Instant::now() < end, "{}", shell.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    let left_out = *children.iter().find(is_ksnap).context("no ksnap")?;
    let tree = other.run(&["snap", &shell.pid().to_string(), "--tree", "--json"])?;
    let said: serde_json::Value = serde_json::from_str(&tree.stdout)?;
    ensure!(tree.code()? == 3, "{tree:?}");
    let told = format!("process {left_out} is ksnap, and is left out");
    ensure!(tree.stderr.contains(&told), "{tree:?}");
    ensure!(
        said["processes"].as_array().map(Vec::len) == Some(2),
        "{said}"
    );
    let inner = tests::tree::children_of(left_out)?;
    for child in children.into_iter().chain(inner) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGTERM);
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleep), Signal::SIGTERM)?;
    let ended = running.finish(LIMIT)?;
    ensure!(ended.code()? == 128 + Signal::SIGTERM as i32, "{ended:?}");
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// What ksnap says when nobody reads standard error any more is lost, and nothing else.
#[test]
fn diagnostics_that_nobody_reads_end_nothing() -> Result<()> {
    require!(Root, Ksnap, Program("sh"));
    let ksnap = Ksnap::new()?;
    // Its standard error is a pipe without a reader.
    let script = r#"exec 3>&2; { "$0" -vv --store "$1" run --every 10ms --for 300ms -- sh -c 'sleep 1; exit 7' 2>&1 >/dev/null 3>&-; echo "ended with $?" >&3; } | true"#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(tests::paths::ksnap()?)
        .arg(ksnap.store());
    let ended = Background::start(command)?.finish(LIMIT)?;
    ensure!(ended.stderr.contains("ended with 7"), "{ended:?}");
    ensure!(!ksnap.json(&["log"])?.is_empty());
    Ok(())
}

/// It was made by ksnap, and where nothing may be chosen its program is still told to be ksnap's.
#[test]
fn a_process_that_ksnap_has_brought_back_is_none() -> Result<()> {
    require!(Root, Ksnap, OtherUsers);
    let ksnap = Ksnap::as_user(NOBODY)?;
    let mut command = Command::new("sleep");
    command.arg("600").uid(NOBODY).gid(NOBODY);
    let mut process = Background::start(command)?;
    let pid = process.pid();
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    process.wait(LIMIT)?.context("it lives on")?;
    let back = ksnap.run(&["restore", "latest", "--pids", "new", "--json"])?;
    let said: serde_json::Value = serde_json::from_str(&back.stdout).context(back.stderr)?;
    let pid = said["pid"].as_i64().context("no pid")?.to_string();
    let taken = ksnap.run(&["snap", &pid, "--kill"])?;
    ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
    Ok(())
}
