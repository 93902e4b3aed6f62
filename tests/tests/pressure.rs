//! More than ksnap can keep up with: a store that is slow, and a ring buffer that overflows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Background, Footprint, Ksnap, Victim, effort, require};

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
struct Told {
    process: Background,
    taken: Vec<Value>,
    late: Vec<Value>,
    failed: Vec<Value>,
}

impl Told {
    fn start(ksnap: &Ksnap, victim: &Victim, options: &[&str]) -> Result<Self> {
        let pid = victim.pid().to_string();
        let usual = ["watch", &pid, "--json", "--progress", "always"];
        let mut process = ksnap.start(&[&usual, options].concat())?;
        process.close_stdin();
        Ok(Self {
            process,
            taken: Vec::new(),
            late: Vec::new(),
            failed: Vec::new(),
        })
    }

    /// Waits for the next snapshot.
    fn next(&mut self) -> Result<&Value> {
        let end = Instant::now() + effort::patience(LIMIT);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.process.line(left)?;
            let line = line.with_context(|| format!("no snapshot: {}", self.process.stderr()))?;
            let event: Value = serde_json::from_str(&line).context(line)?;
            match event["event"].as_str() {
                Some("late") => self.late.push(event),
                Some("failed") => self.failed.push(event),
                Some("taken") => {
                    self.taken.push(event);
                    return Ok(&self.taken[self.taken.len() - 1]);
                }
                _ => {}
            }
        }
    }

    /// The most memory that it has had at once, in bytes: VmHWM in proc_pid_status(5).
    fn peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().next());
        Ok(kib.context("no VmHWM")?.parse::<u64>()? << 10)
    }

    /// Ends it as Ctrl-C does, and gives what it has said on standard error.
    fn end(mut self) -> Result<String> {
        self.process.signal(Signal::SIGINT)?;
        let finished = self.process.finish(LIMIT)?;
        ensure!(finished.code()? == 130, "{finished:?}");
        Ok(finished.stderr)
    }
}

fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("no number: {value}"))
}

/// What a watch takes that has nothing to wait for.
fn usual_peak(options: &[&str]) -> Result<u64> {
    let victim = Victim::spawn("counter", &["--mib", "1"])?;
    let mut watch = Told::start(&Ksnap::new()?, &victim, options)?;
    for _ in 0..4 {
        watch.next()?;
    }
    let peak = watch.peak()?;
    watch.end()?;
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
    let mut watch = Told::start(&ksnap, &victim, &options)?;
    for _ in 0..effort::times(6) {
        watch.next()?;
    }
    // One that is asked for meanwhile, and compared with all that came before it.
    ksnap.snap(victim.pid(), &["--audit"])?;
    watch.next()?;
    watch.next()?;

    let peak = watch.peak()?;
    let bound = usual + 2 * MEMORY + size / 4096 * OF_A_PAGE;
    ensure!(
        peak <= bound,
        "{} MiB at most, where {} are allowed and {} are usual",
        peak / MIB,
        bound / MIB,
        usual / MIB
    );
    for pair in watch.taken.windows(2) {
        let gap = number(&pair[1]["time_ns"])?.saturating_sub(number(&pair[0]["time_ns"])?);
        ensure!(u128::from(gap) >= DELAY.as_nanos(), "{gap} ns: {pair:?}");
    }
    ensure!(watch.failed.is_empty(), "{:?}", watch.failed);
    ensure!(!watch.late.is_empty(), "none was late");
    for late in &watch.late {
        ensure!(number(&late["by_ns"])? > 0, "{late}");
    }
    let said = watch.end()?;
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

#[test]
fn lost_events_cost_a_full_scan_and_no_page() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"), Probes);
    // Room for some eighty events. ksnap looks after it every 20 ms, unless it is stopped.
    let ksnap = Ksnap::new()?.with_variable("KSNAP_RING_BYTES", "4096".into());
    let mut victim = Victim::spawn("counter", &["--mib", "16", "--rate", "100"])?;
    let before = Footprint::of(victim.pid())?;
    let mut watch = Told::start(&ksnap, &victim, &["--every", "100ms", "--audit"])?;
    watch.next()?;
    let end = Instant::now() + effort::patience(LIMIT);
    let (mut made_up, mut lost_before) = (0, 0);
    while made_up < 3 {
        ensure!(Instant::now() < end, "{:?}", watch.taken);
        watch.process.signal(Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_secs(1));
        watch.process.signal(Signal::SIGCONT)?;
        let mut has_lost = false;
        for _ in 0..20 {
            let (lost, scanned) = lost_and_scanned(watch.next()?)?;
            ensure!(scanned || lost == 0, "{:?}", watch.taken.last());
            // What a stop looked at is protected behind it only, so that the next one may look there again; the one
            // after that uses the log.
            ensure!(!scanned || lost > 0 || lost_before > 0, "{:?}", watch.taken);
            if has_lost && !scanned {
                made_up += 1;
                break;
            }
            has_lost |= lost > 0;
            lost_before = lost;
        }
    }
    // Stopped while it was stopping the victim, it finds that this has taken too long.
    for failed in &watch.failed {
        let why = failed["why"].as_str().unwrap_or_default();
        ensure!(why.contains("it does not stop"), "{failed}");
    }
    watch.end()?;
    ksnap.ok(&["verify"])?;
    victim.check()?;
    Footprint::of(victim.pid())?.nothing_left_since(&before)?;
    victim.quit()
}
