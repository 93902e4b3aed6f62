//! ksnap is killed at random moments, or its disk is full: the process is alive and right, the store whole.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::footprint::{state_of, tracer_of};
use tests::subject::Unanswered;
use tests::victim::rng::Rng;
use tests::watch::{programs_are_gone, programs_of};
use tests::{Background, Footprint, Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);
/// Killed ksnap processes in all, over the ways of using it.
const KILLS: usize = 200;
/// The longest time from when the victim is first traced to the kill: attaching, the first snapshot and a few more are in it.
const LONGEST_MS: u64 = 120;
/// The same at first for three of four kills: what a single snapshot or rollback does is over soon. How soon is found out.
const SHORT_MS: u64 = 20;
/// The least that it comes to, in microseconds.
const LEAST_US: u64 = 200;

/// What is being killed.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `snap`, without a watcher.
    Snap,
    /// `watch`, as fast as it goes.
    Watch,
    /// `rollback`, without a watcher.
    Rollback,
    /// `watch`, while another ksnap asks it for rollbacks.
    WatchRollingBack,
}

const WAYS: [Way; 4] = [Way::Snap, Way::Watch, Way::Rollback, Way::WatchRollingBack];

struct Trial {
    ksnap: Ksnap,
    victim: Victim,
    pid: String,
    before: Footprint,
    rng: Rng,
    programs: BTreeSet<u32>,
    stopped: usize,
    /// Kills that came after ksnap had begun with the victim, or was asked to.
    reached: usize,
    /// Those of them that ended a ksnap which was not done.
    cut: usize,
    /// The longest time for three of four kills, in microseconds.
    most_us: u64,
}

impl Trial {
    fn new(seed: u64) -> Result<Self> {
        let ksnap = Ksnap::new()?;
        let victim = Victim::spawn("counter", &["--mib", "2", "--rollbacks"])?;
        let pid = victim.pid().to_string();
        let before = Footprint::of(victim.pid())?;
        // Something to roll back to from the start.
        for _ in 0..2 {
            ksnap.ok(&["snap", &pid, "--audit"])?;
        }
        Ok(Self {
            ksnap,
            victim,
            pid,
            before,
            rng: Rng::new(seed),
            programs: BTreeSet::new(),
            stopped: 0,
            reached: 0,
            cut: 0,
            most_us: SHORT_MS * 1000,
        })
    }

    fn some_id(&mut self) -> Result<String> {
        let log = self.ksnap.json(&["log", "-n", "40"])?;
        let entry = &log[self.rng.below(log.len())];
        Ok(entry["id"].as_str().context("no id")?.to_owned())
    }

    fn start(&mut self, way: Way) -> Result<Background> {
        match way {
            Way::Snap => self.ksnap.start(&["snap", &self.pid]),
            Way::Watch => self.ksnap.start(&["watch", &self.pid, "--every", "1ms"]),
            Way::Rollback => {
                let id = self.some_id()?;
                self.ksnap.start(&["rollback", &self.pid, &id, "-y"])
            }
            Way::WatchRollingBack => self.ksnap.start(&["watch", &self.pid, "--every", "20ms"]),
        }
    }

    /// Starts ksnap, and kills it a random time after it has begun with the victim.
    fn kill(&mut self, way: Way, round: usize) -> Result<()> {
        let mut process = self.start(way)?;
        process.close_stdin();
        let most = match round.is_multiple_of(4) {
            true => LONGEST_MS * 1000,
            false => self.most_us,
        };
        let wait = Duration::from_micros(self.rng.word() % most);
        let asker = match way {
            Way::WatchRollingBack => {
                // The time counts from when it is attached: its first snapshot is there.
                self.attached(&mut process)?;
                let id = self.some_id()?;
                let mut asker = self.ksnap.start(&["rollback", &self.pid, &id, "-y"])?;
                asker.close_stdin();
                self.reached += usize::from(self.asked(&mut asker)?);
                Some(asker)
            }
            _ => {
                self.reached += usize::from(self.traced(&mut process)?);
                None
            }
        };
        std::thread::sleep(wait);
        self.programs.extend(programs_of(process.pid()));
        process.signal(Signal::SIGKILL)?;
        let killed = process.finish(LIMIT)?.status.signal().is_some();
        let cut = match asker {
            // It may find itself without a watcher, and do the work itself; it is not to be killed here.
            Some(mut asker) => killed && !asker.finish(LIMIT)?.status.success(),
            None => killed,
        };
        self.cut += usize::from(cut);
        // How long there is something to cut depends on the machine.
        let other = match cut {
            true => self.most_us * 3 / 2,
            false => self.most_us * 2 / 3,
        };
        self.most_us = other.clamp(LEAST_US, LONGEST_MS * 1000);
        self.recover(way)
    }

    fn attached(&self, process: &mut Background) -> Result<()> {
        let socket = self.ksnap.store().join(format!("{}.sock", self.pid));
        let end = Instant::now() + LIMIT;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            ensure!(process.running()?, "it ended: {}", process.stderr());
            ensure!(Instant::now() < end, "no watcher at {}", socket.display());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until ksnap traces the victim for the first time; `false` where it ended unseen.
    fn traced(&self, process: &mut Background) -> Result<bool> {
        self.await_sight(process, || Ok(tracer_of(self.victim.pid())? != 0))
    }

    /// Waits until the watcher has the connection of whoever asks it; `false` where that one ended unseen.
    fn asked(&self, asker: &mut Background) -> Result<bool> {
        let name = format!("/{}.sock", self.pid);
        // Sockets of accepted connections have the name of the one that listens.
        self.await_sight(asker, || {
            let sockets = std::fs::read_to_string("/proc/net/unix")?;
            Ok(sockets.lines().filter(|line| line.ends_with(&name)).count() > 1)
        })
    }

    fn await_sight(
        &self,
        process: &mut Background,
        seen: impl Fn() -> Result<bool>,
    ) -> Result<bool> {
        let end = Instant::now() + LIMIT;
        while !seen()? {
            if !process.running()? {
                return Ok(false);
            }
            ensure!(
                Instant::now() < end,
                "it does not begin: {}",
                process.stderr()
            );
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(true)
    }

    /// The victim runs and is right. Only a rollback may have left it stopped: then another one helps.
    fn recover(&mut self, way: Way) -> Result<()> {
        let pid = self.victim.pid();
        ensure!(self.victim.alive(), "the victim is dead");
        if self.is_stopped()? {
            ensure!(
                matches!(way, Way::Rollback | Way::WatchRollingBack),
                "stopped by a ksnap that only took snapshots"
            );
            self.stopped += 1;
            let id = self.some_id()?;
            self.ksnap.ok(&["rollback", &self.pid, &id, "-y"])?;
            if self.is_stopped()? {
                // It was stopped when the second rollback came, which cannot know by whom.
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)?;
            }
        }
        self.victim.check()?;
        Footprint::of(pid)?.nothing_left_since(&self.before)
    }

    /// Whether the victim is in a job-control stop. A tracer that was just killed lets go a moment later, and a stop
    /// that is under way then comes later still: the victim runs when it answers. One that is broken says so at once.
    fn is_stopped(&mut self) -> Result<bool> {
        let pid = self.victim.pid();
        let end = Instant::now() + LIMIT;
        loop {
            match state_of(pid) {
                'T' => return Ok(true),
                't' => {
                    ensure!(
                        Instant::now() < end,
                        "process {pid} is traced by nobody and stopped"
                    );
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => match self.victim.ask("status", Duration::from_secs(1)) {
                    Ok(_) => return Ok(false),
                    Err(e) if !e.is::<Unanswered>() || Instant::now() > end => return Err(e),
                    // Stopped meanwhile, so that it does not answer.
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                },
            }
        }
    }

    /// Demands that the kills came when there was something to harm.
    fn was_at_work(&self, way: Way, probes: bool) -> Result<()> {
        let (rounds, reached, cut) = (KILLS / WAYS.len(), self.reached, self.cut);
        ensure!(
            reached * 2 > rounds,
            "only {reached} of {rounds} kills came after {way:?} had begun"
        );
        ensure!(
            cut * 5 > rounds,
            "only {cut} of {rounds} kills came before {way:?} was done"
        );
        // Each trial begins with two.
        let listed = self.ksnap.json(&["log"])?.len();
        ensure!(
            listed > 2 || matches!(way, Way::Rollback),
            "no snapshot was taken by {way:?}"
        );
        ensure!(
            !probes || !self.programs.is_empty(),
            "no program of {way:?} was seen"
        );
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.ksnap.ok(&["verify"])?;
        // The next ksnap finds everything usable.
        let id = self.some_id()?;
        self.ksnap.ok(&["snap", &self.pid, "--audit"])?;
        self.ksnap.ok(&["rollback", &self.pid, &id, "-y"])?;
        self.ksnap.ok(&["snap", &self.pid, "--audit"])?;
        self.ksnap.ok(&["verify"])?;
        self.victim.check()?;
        Footprint::of(self.victim.pid())?.nothing_left_since(&self.before)?;
        programs_are_gone(&self.programs)?;
        no_temporary_files(self.ksnap.store())?;
        self.victim.quit()
    }
}

/// A killed ksnap may leave what it had not published; the next one clears that away.
fn no_temporary_files(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            no_temporary_files(&path)?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        ensure!(!name.contains("tmp"), "{} is left behind", path.display());
    }
    Ok(())
}

fn killed(way: Way, seed: u64) -> Result<()> {
    let mut trial = Trial::new(seed)?;
    for round in 0..KILLS / WAYS.len() {
        trial
            .kill(way, round)
            .with_context(|| format!("after kill {round} of {way:?}"))?;
        if round % 16 == 15 {
            trial.ksnap.ok(&["verify"])?;
        }
    }
    eprintln!(
        "{way:?}: {} reached, {} cut, found stopped {} times",
        trial.reached, trial.cut, trial.stopped
    );
    trial.was_at_work(way, trial.ksnap.has_probes()?)?;
    trial.end()
}

#[test]
fn a_killed_snap_does_no_harm() -> Result<()> {
    require!(Root, Ksnap);
    killed(Way::Snap, 1)
}

#[test]
fn a_killed_watch_does_no_harm() -> Result<()> {
    require!(Root, Ksnap);
    killed(Way::Watch, 2)
}

#[test]
fn a_killed_rollback_leaves_the_process_right_or_stopped() -> Result<()> {
    require!(Root, Ksnap);
    killed(Way::Rollback, 3)
}

#[test]
fn a_watch_killed_while_it_rolls_back_leaves_the_process_right_or_stopped() -> Result<()> {
    require!(Root, Ksnap);
    killed(Way::WatchRollingBack, 4)
}

/// A small file system in memory, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(mib: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-small-").tempdir()?;
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "ksnap-test"])
            .arg(folder.path())
            .status()?;
        ensure!(done.success(), "mount: {done}");
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all but so many KiB of what is free.
    fn fill(&self, but_kib: u64) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(self.path())?;
        let free = stat.blocks_available() * stat.fragment_size();
        let bytes = free.saturating_sub(but_kib << 10);
        let written = std::fs::write(self.path().join("filler"), vec![1; bytes as usize]);
        match written {
            // Someone else was faster: just as full.
            Err(e) if e.kind() != std::io::ErrorKind::StorageFull => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.path().join("filler"))?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn on_a_full_disk_a_snapshot_fails_and_the_next_one_has_everything() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let disk = Small::mount(64)?;
    let ksnap = Ksnap::with_store(disk.path().join("store"))?;
    let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
    let before = Footprint::of(victim.pid())?;
    let pid = victim.pid().to_string();
    let mut watch = Watch::start(&ksnap, victim.pid(), &["--every", "1h", "--audit"])?;
    watch.wait_taken(1, LIMIT)?;
    for but_kib in [0, 40, 200] {
        disk.fill(but_kib)?;
        for _ in 0..3 {
            // So many pages have changed that they do not fit into what is free.
            let then = victim.status()?.counter;
            victim.wait_beyond(then + 1000, LIMIT)?;
            let ended = ksnap.run(&["snap", &pid])?;
            ensure!(ended.code()? == 1, "{ended:?}");
            ensure!(ended.stderr.contains("no space left"), "{ended:?}");
            victim.status()?;
        }
        ksnap.ok(&["verify"])?;
        disk.free()?;
        // Audited: what the failed ones had copied is in this one.
        ksnap.ok(&["snap", &pid])?;
        victim.check()?;
    }
    let watched = watch.interrupt(LIMIT)?;
    ensure!(watched.taken.len() == 4, "{watched:?}");
    watched.left_nothing(&before)?;
    ksnap.ok(&["verify"])?;
    no_temporary_files(ksnap.store())?;
    victim.quit()
}

#[test]
fn a_watch_goes_on_through_a_full_disk() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let disk = Small::mount(64)?;
    let ksnap = Ksnap::with_store(disk.path().join("store"))?;
    let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
    let before = Footprint::of(victim.pid())?;
    let mut watch = Watch::start(&ksnap, victim.pid(), &["--every", "50ms", "--audit"])?;
    watch.wait_taken(2, LIMIT)?;
    disk.fill(0)?;
    let failed = watch.next("failed", LIMIT)?.context("no failure")?;
    ensure!(
        failed["why"].to_string().contains("no space left"),
        "{failed}"
    );
    disk.free()?;
    let so_far = watch.ids()?.len();
    watch.wait_taken(so_far + 3, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    ensure!(!watched.failed.is_empty(), "{watched:?}");
    watched.left_nothing(&before)?;
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn a_first_snapshot_that_finds_no_room_fails_with_the_reason() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let disk = Small::mount(3)?;
    let ksnap = Ksnap::with_store(disk.path().join("store"))?;
    let mut victim = Victim::spawn("counter", &["--mib", "16"])?;
    let before = Footprint::of(victim.pid())?;
    let pid = victim.pid().to_string();
    for verb in ["snap", "watch"] {
        let ended = ksnap.run(&[verb, &pid])?;
        ensure!(ended.code()? == 1, "{ended:?}");
        ensure!(ended.stderr.contains("no space left"), "{ended:?}");
        Footprint::of(victim.pid())?.nothing_left_since(&before)?;
        victim.check()?;
        ksnap.ok(&["verify"])?;
        no_temporary_files(ksnap.store())?;
    }
    victim.quit()
}
