//! More than ksnap can keep up with: a store that is slow, and a ring buffer that overflows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::ksnap::number;
use tests::{Footprint, Ksnap, Victim, Watch, effort, require};

/// How long something may take on a busy machine that takes a few seconds on an idle one.
const LIMIT: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;

/// `--memory`: as much for copied pages that wait, and as much again for encoded ones (session/pipeline.rs).
const MEMORY: u64 = 16 * MIB;
/// What is known of each page of the process: where it is stored, its hash, its place in a snapshot that is under way.
const OF_A_PAGE: u64 = 512;
/// How long the store takes for a batch of 256 pages.
const DELAY: Duration = Duration::from_millis(30);

/// A watch that tells of itself in every way there is: as JSON, by its status line, and by its summary.
fn watched(ksnap: &Ksnap, victim: &Victim, options: &[&str]) -> Result<Watch> {
    let options = [&["--progress", "always"], options].concat();
    Watch::start(ksnap, victim.pid(), &options)
}

/// Waits for the next snapshot.
fn next(watch: &mut Watch) -> Result<Value> {
    let taken = watch.next("taken", LIMIT)?;
    taken.with_context(|| format!("no snapshot: {}", watch.process().stderr()))
}

/// The most memory that a process has had at once, in bytes: VmHWM in proc_pid_status(5).
fn peak_of(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next());
    Ok(kib.context("no VmHWM")?.parse::<u64>()? << 10)
}

/// What a watch takes that has nothing to wait for.
fn usual_peak(options: &[&str]) -> Result<u64> {
    let victim = Victim::spawn("counter", &["--mib", "1"])?;
    // Its store goes when this is dropped.
    let ksnap = Ksnap::new()?;
    let mut watch = watched(&ksnap, &victim, options)?;
    for _ in 0..4 {
        next(&mut watch)?;
    }
    let peak = peak_of(watch.process().pid())?;
    watch.interrupt(LIMIT)?;
    victim.quit()?;
    Ok(peak)
}

#[test]
fn a_slow_store_makes_snapshots_rarer_and_takes_no_more_memory() -> Result<()> {
    require!(Root, Ksnap);
    let memory = MEMORY.to_string();
    let options = ["--every", "5ms", "--memory", &memory, "--mirror", "0"];
    let usual = usual_peak(&options)?;

    let ksnap =
        Ksnap::new()?.with_variable("KSNAP_WRITE_DELAY_MS", DELAY.as_millis().to_string().into());
    let size = 192 * MIB;
    let mib = (size / MIB).to_string();
    let mut victim = Victim::spawn("counter", &["--mib", &mib])?;
    let before = Footprint::of(victim.pid())?;
    let mut watch = watched(&ksnap, &victim, &options)?;
    for _ in 0..effort::times(6) {
        next(&mut watch)?;
    }
    // One that is asked for meanwhile, and compared with all that came before it.
    ksnap.snap(victim.pid(), &["--audit"])?;
    next(&mut watch)?;
    next(&mut watch)?;

    let peak = peak_of(watch.process().pid())?;
    let bound = usual + 2 * MEMORY + size / 4096 * OF_A_PAGE;
    ensure!(
        peak <= bound,
        "{} MiB at most, where {} are allowed and {} are usual",
        peak / MIB,
        bound / MIB,
        usual / MIB
    );
    let watched = watch.interrupt(LIMIT)?;
    for pair in watched.taken.windows(2) {
        let gap = number(&pair[1]["time_ns"])?.saturating_sub(number(&pair[0]["time_ns"])?);
        ensure!(u128::from(gap) >= DELAY.as_nanos(), "{gap} ns: {pair:?}");
    }
    watched.none_failed()?;
    ensure!(!watched.late.is_empty(), "none was late");
    for late in &watched.late {
        ensure!(number(&late["by_ns"])? > 0, "{late}");
    }
    let said = watched.stderr;
    let is_status = |part: &str| part.contains(" snapshots, ") && part.contains(" late");
    ensure!(said.split('\r').any(is_status), "{said}");
    ensure!(
        said.contains("late: storing takes longer than the interval"),
        "{said}"
    );
    ksnap.ok(&["verify"])?;
    ksnap.snap(victim.pid(), &["--audit"])?;
    victim.check()?;
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.quit()
}

/// Two numbers of a snapshot: events lost before it, and whether its stop looked at everything.
fn lost_and_scanned(taken: &Value) -> Result<(u64, bool)> {
    let costs = &taken["costs"];
    let scanned = costs["full_scan"].as_bool();
    Ok((
        number(&costs["ring_drops"])?,
        scanned.with_context(|| format!("no full_scan: {costs}"))?,
    ))
}

/// Of each snapshot the same two numbers.
fn told_of(all: &[Value]) -> Result<Vec<(u64, bool)>> {
    all.iter().map(lost_and_scanned).collect()
}

#[test]
fn lost_events_cost_a_full_scan_and_no_page() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"), Probes);
    // Room for some eighty events. ksnap looks after it every 20 ms, unless it is stopped.
    let ksnap = Ksnap::new()?.with_variable("KSNAP_RING_BYTES", "4096".into());
    let mut victim = Victim::spawn("counter", &["--mib", "16", "--rate", "100"])?;
    let before = Footprint::of(victim.pid())?;
    let mut watch = watched(&ksnap, &victim, &["--every", "100ms", "--audit"])?;
    // Without fentry, get_user_pages is told by the lock that it takes. A fault inside a system call whose processor is
    // taken away before it takes that lock looks the same, and has everything looked at, twice (snap-ebpf/src/mm_lock.rs).
    let by_lock = !watch.attached()["faults"].to_string().contains("fentry");
    let mut all = vec![next(&mut watch)?];
    let end = Instant::now() + effort::patience(LIMIT);
    let (mut made_up, mut lost_before, mut unexplained) = (0, 0, 0);
    while made_up < 3 {
        ensure!(Instant::now() < end, "{all:?}");
        watch.process().signal(Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_secs(1));
        watch.process().signal(Signal::SIGCONT)?;
        let mut has_lost = false;
        for _ in 0..20 {
            let taken = next(&mut watch)?;
            let (lost, scanned) = lost_and_scanned(&taken)?;
            ensure!(scanned || lost == 0, "{taken}");
            all.push(taken);
            // What a stop looked at is protected behind it only, so that the next one may look there again; the one
            // after that uses the log.
            unexplained += usize::from(scanned && lost == 0 && lost_before == 0);
            lost_before = lost;
            if has_lost && !scanned {
                made_up += 1;
                break;
            }
            has_lost |= lost > 0;
        }
    }
    let most = if by_lock { 2 + all.len() / 10 } else { 0 };
    ensure!(unexplained <= most, "{:?}", told_of(&all)?);
    // Stopped while it was stopping the victim, it finds that this has taken too long.
    for why in &watch.interrupt(LIMIT)?.failed {
        ensure!(why.contains("it does not stop"), "{why}");
    }
    ksnap.ok(&["verify"])?;
    victim.check()?;
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.quit()
}
