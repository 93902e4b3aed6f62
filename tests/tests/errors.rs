//! What ksnap refuses, with which exit code, and that a refusal touches nothing.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::background::Ended;
use tests::footprint::{await_reading, state_of};
use tests::{Background, Footprint, Ksnap, Need, Python, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

/// Each verb that takes a process ends with this code and says all of these words on stderr.
fn refused(ksnap: &Ksnap, pid: i32, code: i32, words: &[&str]) -> Result<()> {
    let pid = pid.to_string();
    for verb in ["snap", "watch"] {
        let ended = ksnap.run(&[verb, &pid, "--json"])?;
        let what = format!("ksnap {verb} {pid}: {ended:?}");
        ensure!(ended.code()? == code, "{what}");
        ensure!(ended.stdout.is_empty(), "{what}");
        for word in words.iter().chain([&pid.as_str()]) {
            ensure!(ended.stderr.contains(word), "no {word:?} in {what}");
        }
    }
    Ok(())
}

#[test]
fn a_process_that_is_not_there_is_14() -> Result<()> {
    require!(Root, Ksnap);
    let mut child = Command::new("true").spawn()?;
    child.wait()?;
    refused(&Ksnap::new()?, child.id() as i32, 14, &["gone"])
}

#[test]
fn a_zombie_is_refused() -> Result<()> {
    require!(Root, Ksnap);
    let mut child = Command::new("true").spawn()?;
    let pid = child.id() as i32;
    let end = Instant::now() + LIMIT;
    while tests::footprint::state_of(pid) != 'Z' {
        ensure!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    refused(&Ksnap::new()?, pid, 1, &["zombie"])?;
    child.wait()?;
    Ok(())
}

/// Nothing of it can be looked at by its own id any more, but it is not gone.
#[test]
fn a_process_whose_main_thread_has_ended_is_refused() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    // exit(2) ends the thread that calls it, and no other.
    let script = format!(
        "import ctypes, threading, time\n\
         threading.Thread(target=time.sleep, args=(600,)).start()\n\
         ctypes.CDLL(None).syscall({}, 0)\n",
        libc::SYS_exit
    );
    let python = Python::script(&script)?;
    let end = Instant::now() + LIMIT;
    while tests::footprint::state_of(python.pid()) != 'Z' {
        ensure!(Instant::now() < end, "its main thread does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    refused(&Ksnap::new()?, python.pid(), 1, &["main thread"])
}

#[test]
fn a_kernel_thread_is_refused() -> Result<()> {
    require!(Root, Ksnap, KernelThreads);
    let ksnap = Ksnap::new()?;
    refused(&ksnap, 2, 1, &["kernel thread"])?;
    let ended = ksnap.run(&["rollback", "2", "latest", "-y"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("kernel thread"), "{ended:?}");
    Ok(())
}

#[test]
fn a_32_bit_program_is_refused_and_not_touched() -> Result<()> {
    require!(Root, Ksnap, Ia32);
    let ksnap = Ksnap::new()?;
    let program = tests::elf32::Paused::start()?;
    let before = Footprint::of(program.pid())?;
    refused(&ksnap, program.pid(), 1, &["32-bit"])?;
    let pid = program.pid().to_string();
    for verb in ["profile", "inspect"] {
        let ended = ksnap.run(&[verb, &pid])?;
        ensure!(ended.code()? == 1, "{verb}: {ended:?}");
        ensure!(ended.stderr.contains("32-bit"), "{verb}: {ended:?}");
    }
    // There is no snapshot of it to go back to, and another's is not for it.
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    ksnap.ok(&["snap", &victim.pid().to_string()])?;
    let ended = ksnap.run(&["rollback", &pid, "latest", "-y"])?;
    ensure!(ended.code()? != 0, "{ended:?}");
    ensure!(ended.stderr.contains("32-bit"), "{ended:?}");
    Footprint::of(program.pid())?.nothing_left_since(&before)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn doctor_ends_with_12_where_no_process_can_be_stopped() -> Result<()> {
    require!(Root, Ksnap, Program("strace"));
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("strace");
    command
        .args(["-f", "-o", "/dev/null", "-e", "trace=ptrace"])
        .args(["-e", "inject=ptrace:error=EPERM"])
        .arg(tests::paths::ksnap()?)
        .arg("--store")
        .arg(ksnap.store())
        .args(["doctor", "--json"]);
    let ended = Background::start(command)?.finish(LIMIT)?;
    ensure!(ended.code()? == 12, "{ended:?}");
    let said: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    ensure!(said["ready"] == false, "{said}");
    let verdict = said["verdict"].as_str().context("no verdict")?;
    ensure!(verdict.contains("ksnap cannot work here"), "{verdict}");
    Ok(())
}

#[test]
fn a_thread_is_refused_and_its_process_named() -> Result<()> {
    require!(Root, Ksnap);
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    let tid = std::fs::read_dir(format!("/proc/{}/task", victim.pid()))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|tid| *tid != victim.pid())
        .context("no other thread")?;
    refused(&Ksnap::new()?, tid, 1, &["thread", "Tgid"])?;
    victim.check()?;
    victim.quit()
}

/// The id has to be known before it is there: a shell becomes ksnap.
#[test]
fn ksnap_itself_is_refused() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" --store "$1" snap $$"#])
        .arg(tests::paths::ksnap()?)
        .arg(ksnap.store());
    let ended = Background::start(command)?.finish(LIMIT)?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("ksnap itself"), "{ended:?}");
    Ok(())
}

#[test]
fn a_traced_process_is_refused_and_its_tracer_named() -> Result<()> {
    require!(Root, Ksnap, Program("strace"));
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-o", "/dev/null", "-p", &victim.pid().to_string()])
        .stdin(Stdio::null());
    let strace = Background::start(strace)?;
    let end = Instant::now() + LIMIT;
    while Footprint::of(victim.pid())?.tracer == 0 {
        ensure!(Instant::now() < end, "strace: {}", strace.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    let tracer = strace.pid().to_string();
    refused(&ksnap, victim.pid(), 1, &[&tracer, "traces it"])?;
    ensure!(Footprint::of(victim.pid())?.tracer == strace.pid());
    drop(strace);
    let before = Footprint::of(victim.pid())?;
    ksnap.ok(&["snap", &victim.pid().to_string(), "--audit"])?;
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_second_watcher_is_11_and_the_first_goes_on() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    let before = Footprint::of(victim.pid())?;
    let pid = victim.pid().to_string();
    let mut watch = Watch::start(&ksnap, victim.pid(), &["--every", "20ms", "--audit"])?;
    watch.wait_taken(2, LIMIT)?;
    for _ in 0..5 {
        let ended = ksnap.run(&["watch", &pid, "--count", "1"])?;
        ensure!(ended.code()? == 11, "{ended:?}");
        let holder = watch.process().pid().to_string();
        ensure!(ended.stderr.contains(&holder), "not named: {ended:?}");
    }
    // The first one's socket is still there.
    ksnap.ok(&["snap", &pid])?;
    let so_far = watch.ids()?.len();
    watch.wait_taken(so_far + 5, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    watched.left_nothing(&before)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn two_stores_may_watch_one_process_in_turns() -> Result<()> {
    require!(Root, Ksnap);
    let (one, other) = (Ksnap::new()?, Ksnap::new()?);
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    let before = Footprint::of(victim.pid())?;
    let pid = victim.pid().to_string();
    for _ in 0..4 {
        one.ok(&["snap", &pid, "--audit"])?;
        other.ok(&["snap", &pid, "--audit"])?;
    }
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn two_stores_may_watch_one_process_at_once() -> Result<()> {
    require!(Root, Ksnap);
    let (one, other) = (Ksnap::new()?, Ksnap::new()?);
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    let options = ["--every", "100ms", "--count", "20", "--audit"];
    let first = Watch::start(&one, victim.pid(), &options)?;
    let second = Watch::start(&other, victim.pid(), &options)?;
    other.ok(&["snap", &victim.pid().to_string()])?;
    for watch in [first, second] {
        watch.finish(LIMIT)?.took(20)?;
    }
    victim.check()?;
    victim.quit()
}

#[test]
fn what_is_not_there_has_a_code_of_its_own() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    let pid = victim.pid().to_string();
    // No store yet.
    for args in [
        &["log"][..],
        &["show"],
        &["verify"],
        &["rollback", &pid, "latest", "-y"],
    ] {
        let ended = ksnap.run(args)?;
        ensure!(ended.code()? == 10, "{args:?}: {ended:?}");
    }
    ksnap.ok(&["snap", &pid])?;
    // No such snapshot; no consent; no such option.
    let ended = ksnap.run(&["rollback", &pid, "@99", "-y"])?;
    ensure!(matches!(ended.code()?, 1 | 2), "{ended:?}");
    ensure!(ended.stderr.contains("@99"), "{ended:?}");
    for args in [
        &["rollback", &pid, "latest"][..],
        &["snap", "--no-such-option", &pid],
        &["watch", "0"],
        &["run", "--"],
    ] {
        let ended = ksnap.run(args)?;
        ensure!(ended.code()? == 2, "{args:?}: {ended:?}");
    }
    victim.check()?;
    victim.quit()
}

#[test]
fn run_ends_as_its_command_and_says_what_cannot_be_started() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("sleep 0.3; exit 9", 9)] {
        let ended = ksnap.run(&["run", "--every", "50ms", "--", "sh", "-c", script])?;
        ensure!(ended.code()? == code, "{script}: {ended:?}");
        // How many there are, or why there is none.
        ensure!(ended.stderr.contains("snapshot"), "{script}: {ended:?}");
    }
    let ended = ksnap.run(&["run", "--", "sh", "-c", "sleep 0.2; kill -9 $$"])?;
    ensure!(ended.code()? == 137, "{ended:?}");
    let ended = ksnap.run(&["run", "--", "/no/such/program"])?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(ended.stderr.contains("/no/such/program"), "{ended:?}");
    Ok(())
}

#[test]
fn sigterm_ends_run_whose_watching_is_over_and_leaves_the_command_alone() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let script = "echo $$; exec sleep 600";
    let mut run = ksnap.start(&["run", "--count", "1", "--", "sh", "-c", script])?;
    run.close_stdin();
    let pid = run.line(LIMIT)?.context("the command did not start")?;
    let pid: i32 = pid.trim().parse()?;
    // The shell, which becomes sleep.
    let _command = Ended(pid, "s");
    let socket = ksnap.store().join(format!("{pid}.sock"));
    let end = Instant::now() + LIMIT;
    while ksnap.json(&["log"]).map_or(0, |all| all.len()) == 0 || socket.exists() {
        ensure!(Instant::now() < end, "still watched: {}", run.stderr());
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(run.running()?, "it did not wait: {}", run.stderr());
    // Those that come in the moment in which nobody listens any more may be lost.
    while run.running()? {
        ensure!(Instant::now() < end, "it does not end: {}", run.stderr());
        run.signal(Signal::SIGTERM)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let ended = run.finish(LIMIT)?;
    let state = state_of(pid);
    ensure!(ended.status.signal() == Some(libc::SIGTERM), "{ended:?}");
    ensure!(matches!(state, 'S' | 'R'), "the command is {state}");
    Ok(())
}

#[test]
fn a_process_that_ends_during_attach_or_snapshot_is_no_crash() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    for round in 0..20u64 {
        let mut child = Command::new("sleep").arg("10").spawn()?;
        let pid = child.id().to_string();
        let mut process = ksnap.start(&["watch", &pid, "--every", "5ms"])?;
        process.close_stdin();
        std::thread::sleep(Duration::from_millis(5 + round * 6));
        child.kill()?;
        child.wait()?;
        let ended = process.finish(LIMIT)?;
        // Between its end and the wait for it, it is a zombie.
        let was_zombie = ended.code()? == 1 && ended.stderr.contains("a zombie that its parent");
        ensure!(matches!(ended.code()?, 0 | 14) || was_zombie, "{ended:?}");
        ensure!(!ended.stderr.contains("panicked"), "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_command_is_not_started_for_a_tracker_that_does_not_work_here() -> Result<()> {
    require!(Root, Ksnap, NoTracker(&["wp", "soft-dirty"]));
    let ksnap = Ksnap::new()?;
    for tracker in ["wp", "soft-dirty"] {
        if Need::Tracker(tracker).missing().is_none() {
            continue;
        }
        let ended = ksnap.run(&["run", "--tracker", tracker, "--", "echo", "started"])?;
        ensure!(ended.code()? == 12, "{ended:?}");
        ensure!(ended.stdout.is_empty(), "{ended:?}");
        ensure!(ended.stderr.contains(tracker), "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_command_that_cannot_be_watched_goes_on_and_its_status_counts() -> Result<()> {
    require!(Root, Ksnap, OtherUsers);
    use std::os::unix::fs::PermissionsExt;
    let ksnap = Ksnap::as_user(NOBODY)?;
    ksnap.ok(&["run", "--", "true"])?;
    // Nothing can be put there any more: neither the watcher's socket nor a session.
    std::fs::set_permissions(ksnap.store(), std::fs::Permissions::from_mode(0o555))?;
    let script = "sleep 1; echo done; exit 7";
    let ended = ksnap.run(&["run", "--", "sh", "-c", script])?;
    ensure!(ended.code()? == 7, "{ended:?}");
    ensure!(ended.stdout == "done\n", "{ended:?}");
    ensure!(ended.stderr.contains("Permission denied"), "{ended:?}");
    ensure!(
        ended.stderr.contains("goes on without snapshots"),
        "{ended:?}"
    );
    Ok(())
}

/// The watcher takes over what can be asked of it; the rest is refused rather than forgotten.
#[test]
fn options_for_a_watched_process_are_followed_or_refused() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let script = "import tempfile\n\
                  f = tempfile.NamedTemporaryFile()\n\
                  f.write(b'x' * 20000)\n\
                  f.flush()\n\
                  print('ready', flush=True)\n\
                  input()\n";
    let mut python = Python::script(script)?;
    ensure!(python.line(LIMIT)? == "ready");
    // What it writes until then would be in one of the snapshots that are compared, and not in the others.
    await_reading(python.pid(), LIMIT)?;
    let pid = python.pid().to_string();
    let mut watch = Watch::start(&ksnap, python.pid(), &["--every", "1h"])?;
    watch.wait_taken(1, LIMIT)?;
    let first = watch.ids()?.remove(0);
    for words in [
        &["snap", &pid, "--tracker", "hash"][..],
        &["snap", &pid, "--audit", "--no-probes"],
        &["snap", &pid, "--memory", "64M"],
        &["rollback", &pid, &first, "-y", "--no-probes"],
        &["profile", &pid, "--for", "100ms", "--every", "20ms"],
        &["profile", &pid, "--for", "100ms", "--audit"],
    ] {
        let ended = ksnap.run(words)?;
        ensure!(ended.code()? == 2, "{words:?}: {ended:?}");
        ensure!(
            ended.stderr.contains("being watched"),
            "{words:?}: {ended:?}"
        );
    }
    let stored = |words: &[&str]| -> Result<u64> {
        let taken = ksnap.json(words)?.remove(0);
        let shown = ksnap.json(&["show", taken["id"].as_str().context("no id")?])?;
        shown[0]["snapshot"]["pages"].as_u64().context("no pages")
    };
    let without = stored(&["snap", &pid])?;
    let with = stored(&["snap", &pid, "--audit", "--files"])?;
    ensure!(with >= without + 5, "{without} pages, with files {with}");
    // One without them in between takes their pages out of the chain.
    let without = stored(&["snap", &pid])?;
    let again = stored(&["snap", &pid, "--audit", "--files"])?;
    ensure!(again >= without + 5, "{without} pages, with files {again}");
    ksnap.ok(&["profile", &pid, "--for", "100ms"])?;
    watch.interrupt(LIMIT)?.none_failed()?;
    drop(python);
    Ok(())
}

#[test]
fn a_rollback_of_what_cannot_go_back_says_why_before_it_looks_for_snapshots() -> Result<()> {
    require!(Root, Ksnap, OtherUsers);
    let ksnap = Ksnap::new()?;
    let rollback =
        |ksnap: &Ksnap, pid: i32| ksnap.run(&["rollback", &pid.to_string(), "latest", "-y"]);
    let mut child = Command::new("true").spawn()?;
    child.wait()?;
    let ended = rollback(&ksnap, child.id() as i32)?;
    ensure!(ended.code()? == 14, "{ended:?}");
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    let ended = rollback(&Ksnap::as_user(NOBODY)?, victim.pid())?;
    ensure!(ended.code()? == 13, "{ended:?}");
    victim.check()?;
    victim.quit()
}

#[test]
fn a_snapshot_of_another_process_is_named_as_that() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let one = Victim::spawn("counter", &["--mib", "1"])?;
    let other = Victim::spawn("counter", &["--mib", "1"])?;
    ksnap.ok(&["snap", &one.pid().to_string()])?;
    ksnap.ok(&["tag", "first", "latest"])?;
    let pid = other.pid().to_string();
    let refused = ksnap.run(&["rollback", &pid, "first", "-y"])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    let whose = format!("is of process {}", one.pid());
    ensure!(refused.stderr.contains(&whose), "{refused:?}");
    ensure!(
        refused.stderr.contains("ksnap restore first"),
        "{refused:?}"
    );
    one.quit()?;
    other.quit()
}
