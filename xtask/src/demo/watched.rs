//! The demo's program under `ksnap run`, and what it said about itself when.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::{Ksnap, Victim};

/// MiB of the program's table.
const MIB: &str = "64";
/// Threads that rewrite it.
const WRITERS: &str = "4";
/// How often the program is asked for its counter.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// Snapshots carry the time of their end; the freeze began so much before it at most, beside the stop.
const MARGIN_NS: u64 = 20_000_000;

/// One answer: it was asked then, it answered then, by the wall clock in nanoseconds since 1970.
struct Sample {
    asked: u64,
    answered: u64,
    counter: u64,
}

/// A running `victim counter`.
pub struct Watched {
    victim: Victim,
    samples: Vec<Sample>,
}

impl Watched {
    /// Starts it under `ksnap run --every EVERY`.
    pub fn start(ksnap: &Ksnap, program: &Path, every: &str) -> Result<Self> {
        let mut command = ksnap.command();
        command
            .args(["run", "--every", every, "--"])
            .arg(program)
            .args(["counter", "--mib", MIB, "--threads", WRITERS]);
        let victim =
            Victim::from_command(command).context("the program did not start under ksnap run")?;
        Ok(Self {
            victim,
            samples: Vec::new(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.victim.pid()
    }

    /// What it is, in a sentence.
    pub fn description(&self) -> String {
        let ready = self.victim.ready();
        let avx = match ready["avx"].as_str() {
            Some(avx) => format!(
                "one that keeps known values in {} registers, ",
                avx.to_uppercase()
            ),
            None => String::new(),
        };
        format!(
            "victim, process {}: a table of {MIB} MiB, {WRITERS} threads that rewrite it page by page, {avx}and a counter.",
            self.pid()
        )
    }

    /// Its counter now.
    pub fn ask(&mut self) -> Result<u64> {
        let asked = wall_clock_ns();
        let counter = self.victim.status()?.counter;
        self.samples.push(Sample {
            asked,
            answered: wall_clock_ns(),
            counter,
        });
        Ok(counter)
    }

    /// Lets it work, asking for its counter now and then.
    pub fn work(&mut self, how_long: Duration) -> Result<()> {
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            self.ask()?;
            std::thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    /// The most and the least that the counter can have been when a snapshot was taken, from the
    /// answers just before and just after it.
    pub fn counter_at(&self, time_ns: u64, stop_ns: u64) -> Result<(u64, u64)> {
        let begun = time_ns.saturating_sub(stop_ns + MARGIN_NS);
        let least = self.samples.iter().rfind(|s| s.answered < begun);
        let most = self.samples.iter().find(|s| s.asked > time_ns);
        let (least, most) = least
            .zip(most)
            .context("the program was not asked both before and after the snapshot")?;
        ensure!(
            least.counter <= most.counter,
            "the counter went back by itself"
        );
        Ok((least.counter, most.counter))
    }

    /// The most that the counter can grow in such a time: twice as fast as seen so far.
    pub fn most_steps(&self, time: Duration) -> u64 {
        let rate = self
            .samples
            .first()
            .zip(self.samples.iter().max_by_key(|s| s.counter))
            .map_or(0.0, |(first, last)| {
                (last.counter - first.counter) as f64
                    / (last.answered - first.answered).max(1) as f64
            });
        (2.0 * rate * time.as_nanos() as f64) as u64
    }

    /// All of its own checks.
    pub fn check(&mut self) -> Result<Value> {
        Ok(self.victim.check()?.reply)
    }

    /// Waits until it has counted further than this.
    pub fn wait_beyond(&mut self, counter: u64, limit: Duration) -> Result<u64> {
        Ok(self.victim.wait_beyond(counter, limit)?.counter)
    }

    /// Ends it; `ksnap run` must end with it, and with its exit code.
    pub fn end(self) -> Result<()> {
        let finished = self.victim.finish()?;
        ensure!(
            finished.status.success(),
            "ksnap run ended with {}: {}",
            finished.status,
            finished.stderr.trim()
        );
        Ok(())
    }
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
