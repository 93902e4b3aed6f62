//! ksnap is killed at random moments, or its disk is full: the process is alive and right, the store whole.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::footprint::state_of;
use tests::victim::rng::Rng;
use tests::watch::{programs_are_gone, programs_of};
use tests::{Background, Footprint, Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);
/// Killed ksnap processes in all, over the ways of using it.
const KILLS: usize = 200;
/// The longest time from a start to the kill: attaching, the first snapshot and a few more are in it.
const LONGEST_MS: u64 = 120;

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

    /// Starts ksnap and kills it after a random time.
    fn kill(&mut self, way: Way) -> Result<()> {
        let mut process = self.start(way)?;
        process.close_stdin();
        let wait = Duration::from_micros(self.rng.word() % (LONGEST_MS * 1000));
        let asker = match way {
            Way::WatchRollingBack => {
                // The time counts from when it is attached: its first snapshot is there.
                self.attached(&mut process)?;
                let id = self.some_id()?;
                let mut asker = self.ksnap.start(&["rollback", &self.pid, &id, "-y"])?;
                asker.close_stdin();
                Some(asker)
            }
            _ => None,
        };
        std::thread::sleep(wait);
        self.programs.extend(programs_of(process.pid()));
        process.signal(Signal::SIGKILL)?;
        process.finish(LIMIT)?;
        if let Some(mut asker) = asker {
            // It may find itself without a watcher, and do the work itself; it is not to be killed here.
            asker.finish(LIMIT)?;
        }
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

    /// The victim runs and is right. Only a rollback may have left it stopped: then another one helps.
    fn recover(&mut self, way: Way) -> Result<()> {
        let pid = self.victim.pid();
        ensure!(self.victim.alive(), "the victim is dead");
        if is_stopped(pid)? {
            ensure!(
                matches!(way, Way::Rollback | Way::WatchRollingBack),
                "stopped by a ksnap that only took snapshots"
            );
            self.stopped += 1;
            let id = self.some_id()?;
            self.ksnap.ok(&["rollback", &self.pid, &id, "-y"])?;
            if is_stopped(pid)? {
                // It was stopped when the second rollback came, which cannot know by whom.
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)?;
            }
        }
        self.victim.check()?;
        Footprint::of(pid)?.nothing_left_since(&self.before)
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

/// Whether a process is in a job-control stop. A tracer that was just killed lets go a moment later.
fn is_stopped(pid: i32) -> Result<bool> {
    let end = Instant::now() + Duration::from_secs(5);
    while state_of(pid) == 't' {
        ensure!(
            Instant::now() < end,
            "process {pid} is traced by nobody and stopped"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(state_of(pid) == 'T')
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
            .kill(way)
            .with_context(|| format!("after kill {round} of {way:?}"))?;
        if round % 16 == 15 {
            trial.ksnap.ok(&["verify"])?;
        }
    }
    eprintln!("{way:?}: found stopped {} times", trial.stopped);
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
            std::thread::sleep(Duration::from_millis(50));
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
