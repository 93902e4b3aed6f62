//! `ksnap rollback --tree` of real programs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::family::{capture, roll_back};
use tests::tree::{Pids, children_of};
use tests::{Ksnap, Nginx, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Requests go on, and the master leads its workers, behind each rollback as before it. Once the workers are others, there
/// is no way back in place.
#[test]
fn nginx_and_its_workers_go_back_together() -> Result<()> {
    require!(Root, Ksnap, Program("nginx"));
    let ksnap = Ksnap::new()?;
    let mut server = Nginx::start()?;
    let root = server.process().pid();
    let (first, pids) = capture(&ksnap, root, &[])?;
    ensure!(pids.len() == 3, "{pids:?}");
    let _workers = Pids(pids[1..].to_vec());
    server.answers_all(20)?;
    let (second, again) = capture(&ksnap, root, &[])?;
    ensure!(again == pids, "{again:?}");
    for id in [&first, &second, &second, &first] {
        server.answers_all(20)?;
        let said = roll_back(&ksnap, root, id)?;
        ensure!(
            said["ended"].as_array().is_some_and(Vec::is_empty),
            "{said}"
        );
        server.answers_all(20)?;
    }
    // Reloading replaces the workers: the master talks to them, and waits for their ends.
    kill(Pid::from_raw(root), Signal::SIGHUP)?;
    let end = Instant::now() + LIMIT;
    let is_there = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    while is_there(pids[1]) || is_there(pids[2]) {
        ensure!(Instant::now() < end, "the old workers stay");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.answers_all(5)?;
    let workers = children_of(root)?;
    let refused = ksnap.run(&["rollback", &root.to_string(), &first, "--tree", "-y"])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    for pid in &pids[1..] {
        let why = format!("process {pid} (nginx) has ended since");
        ensure!(refused.stderr.contains(&why), "{refused:?}");
    }
    ensure!(children_of(root)? == workers, "the new workers are gone");
    server.answers_all(5)?;
    kill(Pid::from_raw(root), Signal::SIGQUIT)?;
    let ended = server.process().wait(LIMIT)?.context("nginx lives")?;
    ensure!(ended.success(), "{ended}");
    ksnap.ok(&["verify"])?;
    Ok(())
}
