//! Programs brought back under another kernel than the one that they were captured under, as far as one machine can show
//! it: ksnap is told to take this kernel for another one, so that all that a program remembers of the kernel's code leads
//! elsewhere. `cargo xtask test --vm` has really other kernels.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::family::capture;
use tests::footprint::await_gone;
use tests::{Background, Ksnap, Python, Redis, Resp, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// A ksnap that takes this kernel for another one than that of any snapshot.
fn elsewhere(ksnap: Ksnap) -> Ksnap {
    ksnap.with_variable("KSNAP_OTHER_MACHINE", "1".into())
}

/// The next line that a program prints, and not ksnap of it.
fn said(process: &mut Background) -> Result<String> {
    let line = process.line(LIMIT)?;
    let line = line.with_context(|| format!("it has ended: {}", process.stderr()))?;
    Ok(line.trim().to_owned())
}

/// Takes a snapshot of a process, and waits until it has ended by that.
fn end_captured(ksnap: &Ksnap, pid: i32, process: &mut Background) -> Result<()> {
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill", "--audit"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    await_gone(pid, LIMIT)
}

/// How often a process's memory has the code of a kernel: its own one, and those that it remembers.
fn kernels_of(pid: i32) -> Result<(usize, usize)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let own = maps.lines().filter(|line| line.ends_with("[vdso]")).count();
    let is_code = |line: &&str| line.contains(" r-xp ") && line.ends_with(" 0 ");
    Ok((own, maps.lines().filter(is_code).count()))
}

/// Brings the latest snapshot back, whose program must be well and get on.
fn bring_back(ksnap: &Ksnap) -> Result<Victim> {
    let args = ["restore", "latest", "--wait", "--json"];
    let mut victim = Victim::brought_back(ksnap.start(&args)?)?;
    let counter = victim.check()?.counter;
    victim.wait_beyond(counter + 100, LIMIT)?;
    Ok(victim)
}

#[test]
fn clocks_go_on_from_one_kernel_to_the_next() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = elsewhere(Ksnap::new()?);
    let mut victim = Victim::spawn("clocks", &[])?;
    let pid = victim.pid();
    for generation in 1..=3 {
        victim.check()?;
        end_captured(&ksnap, pid, victim.process())?;
        victim = bring_back(&ksnap)?;
        ensure!(
            kernels_of(pid)? == (1, generation),
            "{:?}",
            kernels_of(pid)?
        );
    }
    let said = victim.process().stderr();
    ensure!(said.contains("captured under another kernel"), "{said}");
    victim.quit()
}

#[test]
fn under_its_own_kernel_nothing_is_led_elsewhere() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("clocks", &[])?;
    let pid = victim.pid();
    end_captured(&ksnap, pid, victim.process())?;
    let mut victim = bring_back(&ksnap)?;
    let said = victim.process().stderr();
    ensure!(!said.contains("kernel"), "{said}");
    ensure!(kernels_of(pid)? == (1, 0), "{:?}", kernels_of(pid)?);
    victim.quit()
}

/// A client, as soon as the server answers.
fn connect(redis: &Redis) -> Result<Resp> {
    let end = Instant::now() + LIMIT;
    loop {
        match redis.client() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
}

#[test]
fn redis_goes_on_under_another_kernel_and_its_keys_expire() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"), ChosenIds);
    let ksnap = elsewhere(Ksnap::new()?);
    let mut redis = Redis::start()?;
    let mut client = redis.client()?;
    client.set("stays", "here")?;
    client.command(&["SET", "goes", "soon", "PX", "2000"])?;
    drop(client);
    let ended = ksnap.run(&["snap", &redis.pid().to_string(), "--kill", "--audit"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    redis.ended(LIMIT)?;
    let back = ksnap.start(&["restore", "latest", "--wait"])?;
    let mut client = connect(&redis)?;
    ensure!(client.get("stays")?.as_deref() == Some("here"));
    let said = back.stderr();
    ensure!(said.contains("captured under another kernel"), "{said}");
    let end = Instant::now() + LIMIT;
    while client.integer(&["EXISTS", "goes"])? == 1 {
        ensure!(Instant::now() < end, "{}", back.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    // It ends without an answer.
    let _ = client.command(&["SHUTDOWN", "NOSAVE"]);
    Ok(())
}

#[test]
fn a_tree_goes_on_under_another_kernel() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    const SCRIPT: &str = r#"
import multiprocessing, time
def work(n):
    began = time.monotonic()
    for _ in range(300):
        assert time.time() > 1.6e9 and time.monotonic() >= began
        time.sleep(0.005)
    return n
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        waiting = pool.map_async(work, range(4), chunksize=1)
        print("ready", flush=True)
        print("done", sum(waiting.get()), flush=True)
"#;
    let ksnap = elsewhere(Ksnap::new()?);
    let mut command = Command::new(Python::interpreter()?);
    command.args(["-c", SCRIPT]);
    let mut process = Background::start(command)?;
    ensure!(process.line(LIMIT)?.as_deref() == Some("ready"));
    let pid = process.pid();
    let (_, all) = capture(&ksnap, pid, &["--kill"])?;
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    ensure!(all.len() == 3, "{all:?}");
    for one in all {
        await_gone(one, LIMIT)?;
    }
    let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
    let said = said(&mut back)?;
    ensure!(said == "done 6", "{said}: {}", back.stderr());
    ensure!(back.stderr().contains("captured under another kernel"));
    Ok(())
}

/// Says over and over how far the clocks that count from the machine's start are behind the time of day, which is the same each
/// time.
const SINCE_START: &str = r#"
import time
print("ready", flush=True)
while True:
    real = time.clock_gettime(time.CLOCK_REALTIME)
    print("clocks", time.monotonic() - real, time.clock_gettime(time.CLOCK_BOOTTIME) - real, flush=True)
    time.sleep(0.05)
"#;

/// What it says of monotonic and boot time, in seconds.
fn clocks_of(process: &mut Background) -> Result<[f64; 2]> {
    let line = said(process)?;
    let words: Vec<f64> = line
        .strip_prefix("clocks ")
        .context(line.clone())?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{line:?}"))?;
    words.try_into().ok().context(line)
}

fn are_close(a: [f64; 2], b: [f64; 2]) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.5)
}

/// Starts a program in a time namespace whose clocks are `ahead` of this machine's.
fn start_ahead(ahead: u32) -> Result<Background> {
    let mut command = Command::new("unshare");
    let ahead = ahead.to_string();
    command.args(["-T", "--monotonic", &ahead, "--boottime", &ahead]);
    command
        .arg(Python::interpreter()?)
        .args(["-c", SINCE_START]);
    let mut process = Background::start(command)?;
    let ready = process.line(LIMIT)?;
    ensure!(
        ready.as_deref() == Some("ready"),
        "{ready:?}: {}",
        process.stderr()
    );
    Ok(process)
}

/// Captures and ends such a program; gives its id, and what it said.
fn captured_ahead(ksnap: &Ksnap) -> Result<(i32, [f64; 2])> {
    let mut process = start_ahead(1_000_000)?;
    let pid = process.pid();
    let said = clocks_of(&mut process)?;
    end_captured(ksnap, pid, &mut process)?;
    Ok((pid, said))
}

#[test]
fn clocks_of_a_time_namespace_are_what_they_were() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), TimeNamespace, ChosenIds);
    let ksnap = Ksnap::new()?;
    let (pid, before) = captured_ahead(&ksnap)?;
    for _ in 0..2 {
        let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
        let after = clocks_of(&mut back)?;
        ensure!(are_close(before, after), "{before:?} {after:?}");
        end_captured(&ksnap, pid, &mut back)?;
    }
    Ok(())
}

#[test]
fn clocks_go_on_from_where_they_were_when_the_machine_was_started_since() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), TimeNamespace, ChosenIds);
    let ksnap = Ksnap::new()?;
    let begun = Instant::now();
    let (_, before) = captured_ahead(&ksnap)?;
    std::thread::sleep(Duration::from_secs(3));
    let ksnap = elsewhere(ksnap);
    let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
    // What has passed since is not in them.
    let after = clocks_of(&mut back)?;
    let passed = begun.elapsed().as_secs_f64();
    for (before, after) in before.iter().zip(after) {
        let behind = before - after;
        ensure!(
            (2.9..passed).contains(&behind),
            "{behind}: {before} {after}"
        );
    }
    Ok(())
}
