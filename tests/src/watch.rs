//! `ksnap watch` in the background, as a script sees it: one JSON object a line.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::background::Background;
use crate::bpf;
use crate::effort;
use crate::footprint::Footprint;
use crate::ksnap::Ksnap;

/// Exit codes that a watch may end with.
const DONE: i32 = 0;
const INCOMPLETE: i32 = 3;
const INTERRUPTED: i32 = 130;
/// How long attaching may take.
const ATTACH: Duration = Duration::from_secs(60);
/// How long the kernel may take to free programs that nobody holds.
const FREED: Duration = Duration::from_secs(60);

/// A watch that goes on. The ksnap process is killed when this is dropped.
pub struct Watch {
    process: Background,
    attached: Value,
    events: Vec<Value>,
    programs: BTreeSet<u32>,
    /// It is of a tree.
    tree: bool,
}

/// A watch that is over.
#[derive(Debug)]
pub struct Watched {
    /// The `attached` event.
    pub attached: Value,
    /// The `taken` events, or of a tree the `taken_tree` events.
    pub taken: Vec<Value>,
    /// The `rolled_back` events, or of a tree the `rolled_back_tree` events.
    pub rolled_back: Vec<Value>,
    /// The `late` events.
    pub late: Vec<Value>,
    /// Reasons of the `failed` events.
    pub failed: Vec<String>,
    /// The `ended` event.
    pub ended: Value,
    /// What ksnap said on stderr.
    pub stderr: String,
    programs: BTreeSet<u32>,
}

impl Watch {
    /// `ksnap watch PID OPTIONS`, once it says that it is attached. Without a status line, unless an option asks for it.
    pub fn start(ksnap: &Ksnap, pid: i32, options: &[&str]) -> Result<Self> {
        let pid = pid.to_string();
        let quiet: &[&str] = match options.contains(&"--progress") {
            true => &[],
            false => &["--progress", "never"],
        };
        let args = [&["watch", &pid, "--json"], quiet, options].concat();
        let mut watch = Self {
            process: ksnap.start(&args)?,
            attached: Value::Null,
            events: Vec::new(),
            programs: BTreeSet::new(),
            tree: options.contains(&"--tree"),
        };
        watch.process.close_stdin();
        watch.attached = watch
            .next("attached", ATTACH)?
            .with_context(|| format!("ksnap {} does not attach", args.join(" ")))?;
        watch.programs = programs_of(watch.process.pid());
        Ok(watch)
    }

    /// The ksnap process.
    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// What it said when it was attached.
    pub fn attached(&self) -> &Value {
        &self.attached
    }

    /// Waits for the next event of this kind; others are kept for the end. Nothing if none came in time.
    pub fn next(&mut self, kind: &str, limit: Duration) -> Result<Option<Value>> {
        let end = Instant::now() + effort::patience(limit);
        while let Some(event) = self.receive(end.saturating_duration_since(Instant::now()))? {
            if event["event"] == kind {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Waits until so many snapshots are taken, those before included; gives the last one's event.
    pub fn wait_taken(&mut self, count: usize, limit: Duration) -> Result<Value> {
        let end = Instant::now() + effort::patience(limit);
        loop {
            if let Some(last) = self.taken().nth(count - 1) {
                return Ok(last.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(
                self.receive(left)?.is_some(),
                "no {count} snapshots within {limit:?}: {:?}; stderr: {}",
                self.events,
                self.process.stderr()
            );
        }
    }

    /// Ids of the snapshots taken so far, oldest first.
    pub fn ids(&mut self) -> Result<Vec<String>> {
        while self.receive(Duration::ZERO)?.is_some() {}
        self.taken().map(id).collect()
    }

    fn taken(&self) -> impl Iterator<Item = &Value> {
        of_kind(&self.events, of_tree("taken", self.tree))
    }

    /// Waits for the watch to end by itself: by its count, its time, or its target's end.
    pub fn finish(mut self, limit: Duration) -> Result<Watched> {
        let finished = self.process.finish(limit)?;
        self.over(finished, &[DONE, INCOMPLETE])
    }

    /// Ends the watch as Ctrl-C does.
    pub fn interrupt(mut self, limit: Duration) -> Result<Watched> {
        self.process.signal(Signal::SIGINT)?;
        let finished = self.process.finish(limit)?;
        self.over(finished, &[INTERRUPTED])
    }

    fn over(mut self, finished: crate::Finished, codes: &[i32]) -> Result<Watched> {
        for line in finished.stdout.lines() {
            self.events.push(parse(line)?);
        }
        let code = finished.code()?;
        let failed: Vec<String> = of_kind(&self.events, "failed")
            .map(|event| event["why"].to_string())
            .collect();
        ensure!(
            codes.contains(&code),
            "ksnap watch ended with exit code {code}; failed: {failed:?}; stderr: {}",
            finished.stderr
        );
        let all = |kind| of_kind(&self.events, kind).cloned().collect::<Vec<_>>();
        let Some(ended) = all("ended").pop() else {
            bail!("ksnap watch ended without saying so: {:?}", self.events)
        };
        Ok(Watched {
            attached: self.attached.clone(),
            taken: all(of_tree("taken", self.tree)),
            rolled_back: all(of_tree("rolled_back", self.tree)),
            late: all("late"),
            failed,
            ended,
            stderr: finished.stderr,
            programs: self.programs,
        })
    }

    fn receive(&mut self, limit: Duration) -> Result<Option<Value>> {
        let Some(line) = self.process.line(limit)? else {
            return Ok(None);
        };
        let event = parse(&line)?;
        self.events.push(event.clone());
        Ok(Some(event))
    }
}

impl Watched {
    /// Demands that no snapshot failed, and that so many were taken.
    pub fn took(&self, count: usize) -> Result<()> {
        self.none_failed()?;
        ensure!(
            self.taken.len() >= count,
            "{} snapshots instead of {count}; {}; stderr: {}",
            self.taken.len(),
            self.ended,
            self.stderr
        );
        Ok(())
    }

    /// Demands that no snapshot failed.
    pub fn none_failed(&self) -> Result<()> {
        ensure!(
            self.failed.is_empty(),
            "{} of {} snapshots failed: {:?}",
            self.failed.len(),
            self.failed.len() + self.taken.len(),
            self.failed
        );
        Ok(())
    }

    /// Demands that the target is as it was, and that the kernel has none of this watch's BPF programs any more.
    pub fn left_nothing(&self, before: &Footprint) -> Result<()> {
        Footprint::of(before.pid)?.nothing_left_since(before)?;
        ensure!(
            self.attached["faults"].is_null() || !self.programs.is_empty(),
            "a fault log without programs"
        );
        programs_are_gone(&self.programs)
    }

    /// Ids of the snapshots, oldest first.
    pub fn ids(&self) -> Result<Vec<String>> {
        self.taken.iter().map(id).collect()
    }
}

/// The kind of event by which a tree says the same.
fn of_tree(kind: &'static str, tree: bool) -> &'static str {
    match (tree, kind) {
        (false, kind) => kind,
        (true, "taken") => "taken_tree",
        (true, _) => "rolled_back_tree",
    }
}

fn parse(line: &str) -> Result<Value> {
    serde_json::from_str(line).with_context(|| format!("ksnap watch printed no JSON: {line:?}"))
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["event"] == kind)
}

fn id(event: &Value) -> Result<String> {
    let id = event["id"].as_str();
    Ok(id.context("a snapshot without an id")?.to_owned())
}

/// Ids of the BPF programs that a process holds by descriptors or links. Empty without the right to look.
pub fn programs_of(pid: i32) -> BTreeSet<u32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return BTreeSet::new();
    };
    let texts = entries
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts
        .filter_map(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("prog_id:"))?;
            line.trim().parse().ok()
        })
        .collect()
}

/// Demands that the kernel has none of these programs any more. It frees them a moment after their last user.
pub fn programs_are_gone(programs: &BTreeSet<u32>) -> Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    let end = Instant::now() + effort::patience(FREED);
    loop {
        let there = bpf::programs()?;
        let left: Vec<_> = there
            .iter()
            .filter(|(id, _)| programs.contains(id))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "BPF programs are left behind: {left:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
