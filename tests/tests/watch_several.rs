//! `ksnap watch PID PID PID`: each process as if it were watched alone, and none in the way of another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::watch::{programs_are_gone, programs_of};
use tests::{Background, Finished, Footprint, Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(180);

/// A watch of several processes, and what it has said so far.
struct Several {
    process: Background,
    events: Vec<Value>,
}

impl Several {
    fn start(ksnap: &Ksnap, pids: &[i32], options: &[&str]) -> Result<Self> {
        let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
        let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
        let flags = ["--json", "--progress", "never", "--every", "20ms"];
        let mut process = ksnap.start(&[&["watch"], &pids[..], &flags, options].concat())?;
        process.close_stdin();
        Ok(Self {
            process,
            events: Vec::new(),
        })
    }

    /// Waits until each of these has so many snapshots.
    fn wait_taken(&mut self, pids: &[i32], count: usize) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while pids
            .iter()
            .any(|pid| of(&self.events, "taken", *pid).len() < count)
        {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.process.line(left)?;
            let line = line.with_context(|| format!("not {count} of each: {:?}", self.events))?;
            self.events.push(serde_json::from_str(&line)?);
        }
        Ok(())
    }

    /// Waits for its end; its exit code, and all that it said.
    fn finish(mut self) -> Result<(i32, Vec<Value>, Finished)> {
        let finished = self.process.finish(LIMIT)?;
        for line in finished.stdout.lines() {
            self.events.push(serde_json::from_str(line)?);
        }
        Ok((finished.code()?, self.events, finished))
    }
}

fn of<'a>(events: &'a [Value], kind: &str, pid: i32) -> Vec<&'a Value> {
    let about = |event: &&Value| event["event"] == kind && event["pid"] == pid;
    events.iter().filter(about).collect()
}

fn ended(events: &[Value], pid: i32) -> Result<&Value> {
    let ended = of(events, "ended", pid).pop();
    ended.with_context(|| format!("no end of {pid}: {events:?}"))
}

fn three() -> Result<Vec<Victim>> {
    let start = |name: &str, args: &[&str]| Victim::spawn(name, args);
    Ok(vec![
        start("counter", &["--mib", "8", "--rollbacks"])?,
        start("threads", &["--rollbacks"])?,
        start("maps", &["--rollbacks"])?,
    ])
}

fn pids(victims: &[Victim]) -> Vec<i32> {
    victims.iter().map(Victim::pid).collect()
}

fn whole(ksnap: &Ksnap, victims: Vec<Victim>) -> Result<()> {
    ksnap.ok(&["verify"])?;
    for mut victim in victims {
        let then = victim.check()?.counter;
        victim.wait_beyond(then, LIMIT)?;
        victim.quit()?;
    }
    Ok(())
}

#[test]
fn each_has_its_snapshots_and_one_that_ends_does_not_end_the_others() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victims = three()?;
    let all = pids(&victims);
    let before: Vec<Footprint> = all[1..]
        .iter()
        .map(|pid| Footprint::of(*pid))
        .collect::<Result<_>>()?;
    // The first one is to end long before it has as many, also where the last one is slow to have its first.
    let options = ["--count", "200", "--audit"];
    let mut several = Several::start(&ksnap, &all, &options)?;
    several.wait_taken(&all, 5)?;
    let programs = programs_of(several.process.pid());
    victims.remove(0).quit()?;
    let (code, events, finished) = several.finish()?;
    ensure!(code == 0, "{code}: {events:?} {finished:?}");
    for pid in &all {
        ensure!(of(&events, "attached", *pid).len() == 1, "{events:?}");
        ensure!(of(&events, "failed", *pid).is_empty(), "{events:?}");
        let (end, taken) = (ended(&events, *pid)?, of(&events, "taken", *pid));
        ensure!(end["taken"] == taken.len(), "{end}");
        let first = *pid == all[0];
        ensure!(
            end["ended"] == if first { "target_exited" } else { "count" },
            "{end}"
        );
        ensure!(first || taken.len() == 200, "{end}");
        // A row of the summary.
        let row = |line: &str| line.split_whitespace().next() == Some(&pid.to_string());
        ensure!(finished.stderr.lines().any(row), "{}", finished.stderr);
        let listed = ksnap.json(&["log", "--pid", &pid.to_string()])?;
        ensure!(listed.len() == taken.len(), "{} listed", listed.len());
        ensure!(
            listed
                .iter()
                .all(|one| one["session"] == listed[0]["session"])
        );
    }
    for footprint in &before {
        Footprint::of(footprint.pid)?.nothing_left_since(footprint)?;
    }
    programs_are_gone(&programs)?;
    whole(&ksnap, victims)
}

#[test]
fn one_that_cannot_be_watched_does_not_stop_the_others_and_the_exit_code_says_so() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut gone = std::process::Command::new("true").spawn()?;
    gone.wait()?;
    let mut victims = three()?;
    victims.pop();
    let all = [victims[0].pid(), gone.id() as i32, victims[1].pid()];
    let several = Several::start(&ksnap, &all, &["--count", "10", "--audit"])?;
    let (code, events, finished) = several.finish()?;
    ensure!(code == 3, "{code}: {events:?} {finished:?}");
    let error = of(&events, "error", all[1]);
    ensure!(error.len() == 1, "{events:?}");
    ensure!(
        finished.stderr.contains(&format!("process {}", all[1])),
        "{}",
        finished.stderr
    );
    for pid in [all[0], all[2]] {
        ensure!(ended(&events, pid)?["taken"] == 10, "{events:?}");
    }
    whole(&ksnap, victims)
}

#[test]
fn an_interrupt_ends_the_watching_of_all() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let victims = three()?;
    let all = pids(&victims);
    let mut several = Several::start(&ksnap, &all, &["--audit"])?;
    several.wait_taken(&all, 3)?;
    several.process.signal(Signal::SIGINT)?;
    let (code, events, finished) = several.finish()?;
    ensure!(code == 130, "{code}: {finished:?}");
    for pid in all {
        ensure!(ended(&events, pid)?["ended"] == "interrupted", "{events:?}");
    }
    whole(&ksnap, victims)
}

#[test]
fn commands_on_each_go_through_its_own_watcher() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut victims = three()?;
    let all = pids(&victims);
    let mut several = Several::start(&ksnap, &all, &["--audit"])?;
    several.wait_taken(&all, 3)?;
    for round in 0..3 {
        for (pid, victim) in all.iter().zip(&mut victims) {
            ensure!(ksnap.store().join(format!("{pid}.sock")).exists());
            let pid = pid.to_string();
            let taken = ksnap.json(&["snap", &pid])?.remove(0);
            let id = taken["id"].as_str().context("no id")?;
            ksnap.json(&["rollback", &pid, id, "-y"])?;
            victim.check().with_context(|| format!("round {round}"))?;
        }
    }
    several.process.signal(Signal::SIGINT)?;
    let (_, events, finished) = several.finish()?;
    for pid in all {
        ensure!(of(&events, "rolled_back", pid).len() == 3, "{events:?}");
        ensure!(
            of(&events, "failed", pid).is_empty(),
            "{events:?} {finished:?}"
        );
        ensure!(!ksnap.store().join(format!("{pid}.sock")).exists());
    }
    whole(&ksnap, victims)
}

#[test]
fn all_share_one_set_of_probes() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let victims = three()?;
    let all = pids(&victims);
    let mut one = Watch::start(&ksnap, all[0], &["--every", "20ms"])?;
    one.wait_taken(1, LIMIT)?;
    let of_one = programs_of(one.process().pid()).len();
    one.interrupt(LIMIT)?;
    let mut several = Several::start(&ksnap, &all, &[])?;
    several.wait_taken(&all, 2)?;
    let of_all = programs_of(several.process.pid()).len();
    ensure!(
        of_all == of_one,
        "{of_all} programs, {of_one} for one process"
    );
    several.process.signal(Signal::SIGINT)?;
    several.finish()?;
    whole(&ksnap, victims)
}
