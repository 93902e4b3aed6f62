//! `ksnap restore` and `ksnap fork`: a snapshot goes on as new processes, when the old one is gone.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::footprint::{adopt_orphans, await_gone, await_state, outlives_kills, state_of};
use tests::ksnap::number;
use tests::subject::request;
use tests::tree::{living, none_but};
use tests::victim::rng::Rng;
use tests::{Background, Ksnap, Python, Redis, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Takes a snapshot, ends the victim, and waits until its id is free.
fn end_captured(ksnap: &Ksnap, victim: &mut Victim) -> Result<()> {
    let pid = victim.pid().to_string();
    let ended = ksnap.run(&["snap", &pid, "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    victim
        .process()
        .wait(LIMIT)?
        .context("the victim lives after snap --kill")?;
    await_gone(victim.pid(), LIMIT)
}

fn bring_back(ksnap: &Ksnap, options: &[&str]) -> Result<Victim> {
    let mut args = vec!["restore", "latest", "--wait", "--json"];
    args.extend(options);
    Victim::brought_back(ksnap.start(&args)?)
}

/// Captured, ended, brought back, twice in a row: it goes on where it was, and all that it checks holds.
fn goes_on(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    if options.is_empty() {
        require!(ChosenIds);
    }
    let ksnap = Ksnap::new()?;
    // Keeps the folder of its files.
    let mut first = Victim::spawn(name, args)?;
    let mut counter = first.check()?.counter;
    end_captured(&ksnap, &mut first)?;
    let mut victim = bring_back(&ksnap, options)?;
    for round in 0..2 {
        let what = || format!("{name} {args:?}, brought back {} times", round + 1);
        if options.is_empty() {
            ensure!(victim.pid() == first.pid(), "another id: {}", what());
        }
        victim.wait_beyond(counter + 20, LIMIT).with_context(what)?;
        counter = victim.check().with_context(what)?.counter;
        if round == 0 {
            end_captured(&ksnap, &mut victim)?;
            victim = bring_back(&ksnap, options)?;
        }
    }
    victim.quit()
}

macro_rules! go_on {
    ($($test:ident: $name:literal, $args:expr;)*) => {$(
        #[test]
        fn $test() -> Result<()> {
            goes_on($name, &$args, &[])
        }
    )*};
}

go_on! {
    a_table_and_its_threads_go_on: "counter", ["--mib", "4"];
    threads_that_come_and_go_go_on: "threads", [];
    vector_registers_come_back: "avx", [];
    restartable_sequences_come_back: "rseq", [];
    clocks_come_back: "clocks", [];
    deep_stacks_come_back: "deepstack", [];
    huge_pages_come_back: "hugepages", [];
    sparse_memory_comes_back: "sparse", [];
    memory_that_was_thrown_away_stays_zero: "dontneed", [];
    changing_mappings_come_back: "maps", [];
    mapped_files_come_back: "filemap", [];
    a_sleep_goes_on: "blocked", ["nanosleep", "--rollbacks"];
    a_sleep_until_goes_on: "blocked", ["clock_nanosleep", "--rollbacks"];
    a_futex_wait_goes_on: "blocked", ["futex", "--rollbacks"];
    a_futex_wait_with_a_timeout_goes_on: "blocked", ["futex-timeout", "--rollbacks"];
    a_poll_goes_on: "blocked", ["poll", "--rollbacks"];
    an_epoll_wait_goes_on: "blocked", ["epoll_wait", "--rollbacks"];
    a_read_of_a_pipe_goes_on: "blocked", ["pipe", "--rollbacks"];
    a_wait_for_a_connection_goes_on: "blocked", ["accept", "--rollbacks"];
    signals_go_on: "signals", ["--rollbacks"];
}

#[test]
fn a_process_goes_on_in_a_namespace_of_its_own_with_its_ids() -> Result<()> {
    goes_on("counter", &["--mib", "4"], &["--pids", "namespace"])
}

/// Timers signal a thread by the id that it has there.
#[test]
fn signals_go_on_in_a_namespace_of_their_own() -> Result<()> {
    goes_on("signals", &["--rollbacks"], &["--pids", "namespace"])
}

/// A fork that is captured by itself borrows what it has from the session that it comes from.
#[test]
fn what_forks_have_from_their_snapshot_is_stored_once() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let script = "import os, time\nnoise = os.urandom(16 << 20)\nprint('ready', flush=True)\ntime.sleep(600)";
    let mut command = Command::new(Python::interpreter()?);
    command.args(["-c", script]);
    let mut python = Background::start(command)?;
    python.line(LIMIT)?.context("it is not ready")?;
    let snap = |pid: &str| -> Result<()> {
        let taken = ksnap.run(&["snap", pid, "--audit"])?;
        ensure!(matches!(taken.code()?, 0 | 3), "{taken:?}");
        Ok(())
    };
    snap(&python.pid().to_string())?;
    let mut process = ksnap.start(&["fork", "latest", "-n", "2", "--json"])?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        snap(&copy["pid"].to_string())?;
        let init = copy["init"].as_i64().context("no process 1")? as i32;
        kill(Pid::from_raw(init), Signal::SIGKILL)?;
        await_gone(init, LIMIT)?;
    }
    let list = ksnap.json(&["log"])?;
    let bytes = list.iter().map(|one| number(&one["file_bytes"]));
    let bytes: Vec<u64> = bytes.collect::<Result<_>>()?;
    ensure!(
        bytes.len() == 3 && bytes[1] * 4 < bytes[0] && bytes[2] * 4 < bytes[0],
        "{bytes:?} bytes"
    );
    ksnap.ok(&["verify"]).map(drop)
}

#[test]
fn copies_live_beside_each_other_and_each_is_whole() -> Result<()> {
    require!(Root, Ksnap);
    const COPIES: usize = 5;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    end_captured(&ksnap, &mut victim)?;
    let mut process = ksnap.start(&["fork", "latest", "-n", "5", "--json"])?;
    let mut copies = Vec::new();
    for _ in 0..COPIES {
        let line = process.line(LIMIT)?.context("too few copies")?;
        copies.push(serde_json::from_str::<Value>(&line)?);
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    let mut inits = Vec::new();
    for copy in &copies {
        ensure!(copy["own_pid"] == victim.pid(), "{copy}");
        inits.push(copy["init"].as_i64().context("no process 1")? as i32);
    }
    // They share ksnap's standard input: whichever comes first takes a request.
    use std::io::Write;
    for n in 0..COPIES {
        process
            .stdin()?
            .write_all(format!("quit {n}\n").as_bytes())?;
        let line = process.line(LIMIT)?.context("no answer")?;
        let reply: Value = serde_json::from_str(&line)?;
        ensure!(
            reply["ok"] == true && reply["pid"] == victim.pid(),
            "{reply}"
        );
    }
    for init in inits {
        await_gone(init, LIMIT)?;
    }
    Ok(())
}

/// A restore is refused with this exit code and these words, and nothing is started.
fn refused(ksnap: &Ksnap, options: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let before = living()?;
    let mut args = vec!["restore", "latest"];
    args.extend(options);
    let ended = ksnap.run(&args)?;
    ensure!(ended.code()? == code, "{ended:?}");
    for word in words {
        ensure!(
            ended.stderr.contains(word),
            "no '{word}' in: {}",
            ended.stderr
        );
    }
    ensure!(ended.stdout.is_empty(), "{ended:?}");
    none_but(&before)
}

#[test]
fn a_taken_id_is_found_before_anything_is_started() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    ksnap.ok(&["snap", &victim.pid().to_string()])?;
    refused(&ksnap, &[], 1, &["taken", "--pids namespace"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_program_that_is_gone_or_another_one_is_named() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("program");
    let copy = || tests::paths::copy_program(&tests::paths::victim()?, &program);
    copy()?;
    let mut command = std::process::Command::new(&program);
    command.args(["counter", "--mib", "1"]);
    let mut victim = Victim::from_command(command)?;
    end_captured(&ksnap, &mut victim)?;
    let name = program.to_str().context("a name")?;
    std::fs::remove_file(&program)?;
    refused(&ksnap, &[], 1, &[name, "No such file"])?;
    std::fs::copy(tests::paths::ksnap()?, &program)?;
    refused(&ksnap, &[], 1, &[name, "another", "--allow-changed-files"])?;
    // The same program again, if not the same file.
    std::fs::remove_file(&program)?;
    copy()?;
    bring_back(&ksnap, &[])?.quit()
}

#[test]
fn a_damaged_image_is_refused_and_nothing_is_started() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    end_captured(&ksnap, &mut victim)?;
    let log = ksnap.json(&["log"])?;
    let path = find_image(ksnap.store(), log[0]["id"].as_str().context("no id")?)?;
    let whole = std::fs::read(&path)?;
    let mut rng = Rng::new(7);
    for _ in 0..8 {
        let mut damaged = whole.clone();
        // Behind the header: with that damaged, `latest` names nothing.
        let at = 256 + rng.below(damaged.len() - 256);
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged)?;
        refused(&ksnap, &[], 15, &["damaged"]).with_context(|| format!("byte {at}"))?;
        ensure!(state_of(victim.pid()) == '?', "started from byte {at}");
    }
    std::fs::write(&path, &whole)?;
    bring_back(&ksnap, &[])?.quit()
}

fn find_image(folder: &Path, id: &str) -> Result<std::path::PathBuf> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Ok(found) = find_image(&path, id) {
                return Ok(found);
            }
        } else if path.to_string_lossy().contains(id) {
            return Ok(path);
        }
    }
    bail!("no file of {id}")
}

#[test]
fn a_thousand_threads_come_back() -> Result<()> {
    goes_on(
        "counter",
        &["--mib", "8", "--threads", "1000", "--rate", "2"],
        &[],
    )
}

#[test]
fn twenty_generations_lose_nothing() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut first = Victim::spawn("counter", &["--mib", "4"])?;
    end_captured(&ksnap, &mut first)?;
    let mut counter = 0;
    for generation in 0..20 {
        let what = || format!("generation {generation}");
        let mut victim = bring_back(&ksnap, &[])?;
        counter = victim
            .wait_beyond(counter + 10, LIMIT)
            .with_context(what)?
            .counter;
        victim.check().with_context(what)?;
        end_captured(&ksnap, &mut victim).with_context(what)?;
    }
    ksnap.ok(&["verify"])?;
    bring_back(&ksnap, &[])?.quit()
}

#[test]
fn a_restore_that_is_killed_leaves_a_whole_process_or_none() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    adopt_orphans()?;
    const KILLS: usize = 50;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    end_captured(&ksnap, &mut victim)?;
    let pid = victim.pid();
    let mut rng = Rng::new(11);
    let (mut whole, mut none) = (0, 0);
    for round in 0..KILLS {
        let what = || format!("after kill {round}");
        let mut process = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
        let wait = Duration::from_micros(rng.word() % 60_000);
        std::thread::sleep(wait);
        process.signal(Signal::SIGKILL)?;
        ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
        // What the kernel kills with ksnap takes a moment to be gone.
        if !outlives_kills(pid, LIMIT)? {
            none += 1;
        } else {
            ensure!(state_of(pid) != 't', "still traced {}", what());
            let reply = request(&mut process, "check", round, LIMIT).with_context(what)?;
            ensure!(reply["ok"] == true, "{reply} {}", what());
            whole += 1;
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        await_gone(pid, LIMIT).with_context(what)?;
    }
    eprintln!("whole {whole} times, not there {none} times");
    ensure!(none > 0, "no kill came early enough");
    bring_back(&ksnap, &[])?.quit()
}

#[test]
fn python_finishes_what_its_threads_had_begun() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(
        "import sys, threading, hashlib\n\
         def work(n):\n\
         \x20   h, i = hashlib.sha256(str(n).encode()), 0\n\
         \x20   while i < 1000 or not over.is_set():\n\
         \x20       h.update(h.digest()); i += 1\n\
         \x20   results[n] = f'{i}:{h.hexdigest()}'\n\
         results, over = {}, threading.Event()\n\
         threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]\n\
         [t.start() for t in threads]\n\
         print('working')\n\
         sys.stdin.readline()\n\
         over.set()\n\
         [t.join() for t in threads]\n\
         print(' '.join(results[n] for n in range(4)))\n",
    )?;
    ensure!(python.line(LIMIT)? == "working");
    let pid = python.pid().to_string();
    let ended = ksnap.run(&["snap", &pid, "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    python.process().wait(LIMIT)?.context("python lives")?;
    let mut back = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    // Before the result, which comes from another process.
    back.line(LIMIT)?.context("ksnap says nothing")?;
    // Long enough for more work.
    std::thread::sleep(Duration::from_millis(200));
    back.stdin()?.write_all(b"over\n")?;
    let finished = back.finish(LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    let last = finished.stdout.lines().last().unwrap_or_default();
    ensure!(last.split(' ').count() == 4, "{finished:?}");
    let mut again = Python::script(
        "import hashlib, sys\n\
         def work(n, rounds):\n\
         \x20   h = hashlib.sha256(str(n).encode())\n\
         \x20   for i in range(rounds): h.update(h.digest())\n\
         \x20   return f'{rounds}:{h.hexdigest()}'\n\
         counts = [int(one.split(':')[0]) for one in sys.stdin.readline().split()]\n\
         print(' '.join(work(n, rounds) for n, rounds in enumerate(counts)))\n",
    )?;
    writeln!(again.process().stdin()?, "{last}")?;
    let expected = again.line(LIMIT)?;
    ensure!(last == expected, "{last} instead of {expected}");
    Ok(())
}

/// A redis-server that is brought back answers at its port, with its data.
fn redis_is_back(mib: u64, options: &[&str]) -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut redis = Redis::start()?;
    redis.populate(mib * 2000, 400)?;
    let mut client = redis.client()?;
    client.set("greeting", "hello")?;
    let digest = client.digest()?;
    let pid = redis.pid();
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    redis.ended(LIMIT)?;
    for _ in 0..2 {
        let mut args = vec!["restore", "latest", "--wait", "--json"];
        args.extend(options);
        let mut process = ksnap.start(&args)?;
        let line = process.line(LIMIT)?.context("ksnap says nothing")?;
        let said: Value = serde_json::from_str(&line)?;
        ensure!(said["pid"] == pid, "{said}");
        let mut client = redis.client()?;
        ensure!(client.get("greeting")?.as_deref() == Some("hello"));
        ensure!(client.digest()? == digest, "other data");
        // And once more from there.
        let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
        ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
        ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
        await_gone(pid, LIMIT)?;
    }
    Ok(())
}

#[test]
fn redis_answers_at_its_port_again() -> Result<()> {
    redis_is_back(2, &[])
}

#[test]
fn a_large_redis_answers_while_its_memory_comes() -> Result<()> {
    redis_is_back(100, &[])
}

#[test]
fn a_large_redis_is_whole_when_all_memory_comes_first() -> Result<()> {
    redis_is_back(100, &["--eager"])
}

#[test]
fn memory_that_comes_when_it_is_touched_is_right() -> Result<()> {
    for options in [&[][..], &["--pids", "namespace"]] {
        goes_on("counter", &["--mib", "48"], options)?;
        goes_on("fork", &["--mib", "32", "--rollbacks"], options)?;
        goes_on("dontneed", &[], options)?;
        goes_on("hugepages", &[], options)?;
        goes_on("deepstack", &[], options)?;
        goes_on("maps", &[], options)?;
    }
    Ok(())
}

#[test]
fn a_stopped_process_stays_stopped_after_its_snapshot() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
    ksnap.run(&["snap", &victim.pid().to_string(), "--stop"])?;
    await_state(victim.pid(), 'T', LIMIT)?;
    kill(Pid::from_raw(victim.pid()), Signal::SIGCONT)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_restored_process_is_watched_and_rolled_back_like_any_other() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut first = Victim::spawn("counter", &["--mib", "48", "--rollbacks"])?;
    end_captured(&ksnap, &mut first)?;
    let mut victim = bring_back(&ksnap, &[])?;
    let pid = victim.pid().to_string();
    ksnap.run(&["snap", &pid, "--audit"])?;
    let then = victim.status()?.counter;
    victim.wait_beyond(then + 30_000, LIMIT)?;
    let since = Instant::now();
    ksnap.ok(&["rollback", &pid, "latest", "-y"])?;
    // Four threads at 2000 steps a second.
    victim.is_back(then, since, 8)?;
    ksnap.run(&["snap", &pid, "--audit"])?;
    victim.check()?;
    victim.quit()
}
