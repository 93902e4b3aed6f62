//! redis-server full of values, a load on it, and how it fares, as its clients see it.

use crate::table::Sorted;
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tests::{Background, Redis, Reply, Resp};

/// Bytes of a value, as the load writes them.
pub const VALUE: u64 = 400;
/// Keys for each MiB that the server is to hold: with its share of the tables and of the allocator's
/// overhead a value of [`VALUE`] bytes takes about 512.
const KEYS_PER_MIB: u64 = 2_000_000 / 1024;
/// Keys per script call, so that each takes well below a second.
const BATCH: u64 = 50_000;
/// From one PING to the next.
const PROBE_EVERY: Duration = Duration::from_millis(2);

/// Sets keys that redis-benchmark will overwrite: its own names, its own length of value.
const FILL: &str = "local value = string.rep('v', tonumber(ARGV[3])) \
    for i = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do \
    redis.call('SET', string.format('key:%012d', i), value) end";

/// Fills the server; gives the number of keys.
pub fn fill(redis: &Redis, mib: u64) -> Result<u64> {
    let keys = if mib == 1024 {
        2_000_000
    } else {
        mib * KEYS_PER_MIB
    };
    let mut client = redis.client()?;
    for from in (0..keys).step_by(BATCH as usize) {
        let to = (from + BATCH).min(keys);
        client.command(&[
            "EVAL",
            FILL,
            "0",
            &from.to_string(),
            &to.to_string(),
            &VALUE.to_string(),
        ])?;
    }
    Ok(keys)
}

/// Starts the load of the issue: 50 connections that set random keys, 8 at a time.
pub fn start(redis: &Redis, keys: u64) -> Result<Background> {
    let (keys, value) = (keys.to_string(), VALUE.to_string());
    // More requests than it will get to.
    redis.load(&[
        "-t",
        "set",
        "-r",
        &keys,
        "-d",
        &value,
        "-P",
        "8",
        "-n",
        "2000000000",
        "-q",
    ])
}

/// Requests that the server has served so far.
pub fn served(client: &mut Resp) -> Result<u64> {
    let Reply::Bulk(text) = client.command(&["INFO", "stats"])? else {
        bail!("redis-server's INFO is no text");
    };
    String::from_utf8_lossy(&text)
        .lines()
        .find_map(|line| {
            line.strip_prefix("total_commands_processed:")?
                .trim()
                .parse()
                .ok()
        })
        .context("redis-server's INFO does not count commands")
}

/// A client that asks for nothing but an answer, over and over.
pub struct Pinger {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<u64>>>>,
}

impl Pinger {
    /// Connects and begins.
    pub fn start(redis: &Redis) -> Result<Self> {
        let mut client = redis.client()?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut times = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let asked = Instant::now();
                client.command(&["PING"])?;
                times.push(asked.elapsed().as_nanos() as u64);
                std::thread::sleep(PROBE_EVERY);
            }
            Ok(times)
        });
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }

    /// Ends it; gives how long each answer took, in nanoseconds.
    pub fn finish(mut self) -> Result<Sorted> {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished twice")?;
        let times = thread
            .join()
            .map_err(|_| anyhow::anyhow!("the pinging thread panicked"))??;
        Ok(Sorted::new(times))
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// How the server fared in a stretch of time.
pub struct Fared {
    /// Requests per second.
    pub rate: f64,
    /// Time for the answer to a PING, in nanoseconds.
    pub pings: Sorted,
}

/// Watches the server for so long.
pub fn observe(redis: &Redis, time: Duration) -> Result<Fared> {
    let mut client = redis.client()?;
    let pinger = Pinger::start(redis)?;
    let (begun, first) = (Instant::now(), served(&mut client)?);
    std::thread::sleep(time);
    let count = served(&mut client)? - first;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    Ok(Fared {
        rate,
        pings: pinger.finish()?,
    })
}
