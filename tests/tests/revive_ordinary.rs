//! `ksnap restore` and `fork` by an ordinary user, who may choose ids only in a user namespace.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::footprint::await_gone;
use tests::subject::request;
use tests::{Ksnap, Victim, require};

const NOBODY: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(60);

/// Takes a snapshot that ends the process.
fn end_captured(ksnap: &Ksnap, victim: &mut Victim, options: &[&str]) -> Result<()> {
    let pid = victim.pid().to_string();
    let args = [&["snap", &pid, "--kill", "--audit"], options].concat();
    let ended = ksnap.run(&args)?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    victim.process().wait(LIMIT)?.context("it lives")?;
    await_gone(victim.pid(), LIMIT)
}

/// What is so of a process that was brought back by an ordinary user.
fn is_in_own_namespaces(victim: &Victim, own_pid: i32) -> Result<()> {
    let said = victim.ready();
    ensure!(said["own_pid"] == own_pid, "{said}");
    let told = said["notes"].to_string();
    ensure!(told.contains("a user namespace of its own"), "{said}");
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    let pid = victim.pid().to_string();
    ensure!(namespace(&pid)? != namespace("self")?, "{said}");
    // It is what it was: every capability is gone that the way there took.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    for none in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let line = format!("{none}:\t{:016x}", 0);
        ensure!(status.contains(&line), "{status}");
    }
    let user = format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}");
    ensure!(status.contains(&user), "{status}");
    Ok(())
}

/// Captured, ended and brought back, twice in a row, all of it by an ordinary user.
fn goes_on(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
    require!(Root, Ksnap, OtherUsers, UserNamespace);
    let ksnap = Ksnap::as_user(NOBODY)?;
    // Keeps its program.
    let mut first = Victim::spawn_as(NOBODY, name, args)?;
    let own_pid = first.pid();
    let mut counter = first.check()?.counter;
    end_captured(&ksnap, &mut first, options)?;
    for round in 0..2 {
        let what = || format!("{name} {args:?}, brought back {} times", round + 1);
        let back = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
        let mut victim = Victim::brought_back(back).with_context(what)?;
        is_in_own_namespaces(&victim, own_pid).with_context(what)?;
        victim.wait_beyond(counter + 20, LIMIT).with_context(what)?;
        counter = victim.check().with_context(what)?.counter;
        match round {
            0 => end_captured(&ksnap, &mut victim, options)?,
            _ => victim.quit()?,
        }
    }
    Ok(())
}

macro_rules! go_on {
    ($($test:ident: $name:literal, $args:expr, $options:expr;)*) => {$(
        #[test]
        fn $test() -> Result<()> {
            goes_on($name, &$args, &$options)
        }
    )*};
}

go_on! {
    a_table_and_its_threads_go_on: "counter", ["--mib", "4"], [];
    threads_that_come_and_go_go_on: "threads", [], [];
    changing_mappings_come_back: "maps", [], [];
    mapped_files_come_back: "filemap", [], [];
    signals_go_on: "signals", ["--rollbacks"], [];
    a_read_of_a_pipe_goes_on: "blocked", ["pipe", "--rollbacks"], [];
    a_tree_goes_on: "tree", [], ["--tree"];
}

#[test]
fn copies_have_their_ids_and_networks() -> Result<()> {
    require!(Root, Ksnap, OtherUsers, UserNamespace);
    let ksnap = Ksnap::as_user(NOBODY)?;
    let mut victim = Victim::spawn_as(NOBODY, "counter", &["--mib", "4"])?;
    let pid = victim.pid();
    let taken = ksnap.run(&["snap", &pid.to_string(), "--audit"])?;
    ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
    let args = ["fork", "latest", "-n", "2", "--net", "private", "--json"];
    let mut process = ksnap.start(&args)?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        ensure!(copy["own_pid"] == pid, "{copy}");
        let net = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
        ensure!(net(&copy["pid"].to_string())? != net("self")?, "{copy}");
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    for n in 0..2 {
        let reply = request(&mut process, "quit", n, LIMIT)?;
        ensure!(reply["ok"] == true && reply["pid"] == pid, "{reply}");
    }
    victim.check()?;
    victim.quit()
}

#[test]
fn ids_that_may_not_be_chosen_are_refused_with_the_ways_out() -> Result<()> {
    require!(Root, Ksnap, OtherUsers);
    let ksnap = Ksnap::as_user(NOBODY)?;
    let mut victim = Victim::spawn_as(NOBODY, "counter", &["--mib", "1"])?;
    end_captured(&ksnap, &mut victim, &[])?;
    let refused = ksnap.run(&["restore", "latest", "--pids", "same"])?;
    ensure!(refused.code()? == 2, "{refused:?}");
    for word in ["CAP_CHECKPOINT_RESTORE", "--pids namespace", "--pids new"] {
        ensure!(refused.stderr.contains(word), "{refused:?}");
    }
    Ok(())
}

#[test]
fn sockets_in_another_network_are_refused_before_anything_is_started() -> Result<()> {
    require!(Root, Ksnap, OtherUsers, UserNamespace);
    let ksnap = Ksnap::as_user(NOBODY)?;
    let mut victim = Victim::spawn_as(NOBODY, "blocked", &["accept", "--rollbacks"])?;
    let pid = victim.pid().to_string();
    let taken = ksnap.run(&["snap", &pid])?;
    ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
    let refused = ksnap.run(&["fork", "latest", "--net", "private"])?;
    ensure!(refused.code()? == 2, "{refused:?}");
    ensure!(refused.stderr.contains("--net private"), "{refused:?}");
    victim.check()?;
    victim.quit()
}

/// What it may do in its user namespace it must not be able to do outside.
#[test]
fn capabilities_of_a_user_namespace_are_not_given_outside_of_it() -> Result<()> {
    require!(Root, Ksnap, UserNamespace);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn_in_user_namespace("counter", &["--mib", "1"])?;
    let pid = victim.pid().to_string();
    let taken = ksnap.run(&["snap", &pid])?;
    ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
    let refused = ksnap.run(&["fork", "latest"])?;
    ensure!(refused.code()? != 0, "{refused:?}");
    ensure!(
        refused.stderr.contains("another user namespace"),
        "{refused:?}"
    );
    victim.check()?;
    victim.quit()
}

/// Root of a user namespace makes PID namespaces, but has no say in the ids of the one that it is in.
#[test]
fn root_of_a_user_namespace_brings_a_process_back() -> Result<()> {
    require!(Root, Ksnap, UserNamespace);
    let mut victim = Victim::spawn_in_user_namespace("counter", &["--mib", "4"])?;
    let own_pid = victim.pid();
    let ksnap = Ksnap::in_user_namespace_of(own_pid)?;
    let counter = victim.check()?.counter;
    // It stays: the namespace is its own, and ends with it.
    let taken = ksnap.run(&["snap", &own_pid.to_string(), "--audit"])?;
    ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
    let back = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    let mut again = Victim::brought_back(back)?;
    ensure!(again.ready()["own_pid"] == own_pid, "{}", again.ready());
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    ensure!(
        namespace(again.pid())? == namespace(own_pid)?,
        "another one"
    );
    again.wait_beyond(counter + 20, LIMIT)?;
    again.check()?;
    again.quit()?;
    victim.check()?;
    victim.quit()
}
