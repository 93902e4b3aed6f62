//! ksnap is killed at chosen points of a rollback: the process stays stopped, whole or not, until another rollback
//! has put it right. The points are in debug builds only.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::footprint::{await_state, state_of};
use tests::{Background, Footprint, Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);
/// The process is stopped, and nothing of it has been touched.
const UNTOUCHED: &str = "stopped";
/// Points after that, in their order.
const POINTS: [&str; 13] = [
    "ending threads",
    "changing mappings",
    "writing memory",
    "half of the memory written",
    "opening and closing descriptors",
    "writing the contents of files",
    "setting what open files hold",
    "registering threads",
    "making threads",
    "setting attributes",
    "setting registers",
    "registers of one thread set",
    "all done",
];

struct Killed {
    ksnap: Ksnap,
    victim: Victim,
    pid: String,
    before: Footprint,
}

impl Killed {
    fn new(name: &str, args: &[&str]) -> Result<Self> {
        let victim = Victim::spawn(name, &[args, &["--rollbacks"]].concat())?;
        Ok(Self {
            ksnap: Ksnap::new()?,
            pid: victim.pid().to_string(),
            before: Footprint::of(victim.pid())?,
            victim,
        })
    }

    fn snapshot(&self) -> Result<String> {
        self.ksnap.snap(self.victim.pid(), &[])
    }

    fn start(&self, point: &str, args: &[&str]) -> Result<Background> {
        let mut command = self.ksnap.command();
        command.args(args).env("KSNAP_KILL_AT", point);
        let mut process = Background::start(command)?;
        process.close_stdin();
        Ok(process)
    }

    /// A rollback that is killed at a point: by itself, or in the watcher that it asks.
    fn roll_back(&mut self, point: &str, watched: bool) -> Result<()> {
        let id = self.snapshot()?;
        let then = self.victim.status()?.counter;
        self.victim.wait_beyond(then + 20, LIMIT)?;
        let rollback = ["rollback", &self.pid, &id, "-y"];
        let mut dying = match watched {
            false => self.start(point, &rollback)?,
            true => {
                let watch = self.start(point, &["watch", &self.pid, "--every", "50ms"])?;
                let socket = self.ksnap.store().join(format!("{}.sock", self.pid));
                let end = Instant::now() + LIMIT;
                while std::os::unix::net::UnixStream::connect(&socket).is_err() {
                    ensure!(Instant::now() < end, "no watcher: {}", watch.stderr());
                    std::thread::sleep(Duration::from_millis(2));
                }
                let asked = self.ksnap.run(&rollback)?;
                ensure!(asked.code()? == 1, "{asked:?}");
                watch
            }
        };
        let ended = dying.finish(LIMIT)?;
        match ended.status.signal() {
            Some(libc::SIGKILL) => {}
            _ => bail!("it was not killed at '{point}' (not a debug build?): {ended:?}"),
        }
        self.stays_stopped()
    }

    fn stays_stopped(&self) -> Result<()> {
        let pid = self.victim.pid();
        let end = Instant::now() + LIMIT;
        // The kernel lets go of what a dead tracer traced.
        while state_of(pid) != 'T' {
            ensure!(
                Instant::now() < end,
                "it is not stopped but {}",
                state_of(pid)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        ensure!(state_of(pid) == 'T', "it went on: {}", state_of(pid));
        Ok(())
    }

    /// Others know that it is on a mixed state, and leave it as it is.
    fn is_refused(&self) -> Result<()> {
        for args in [
            &["snap", &self.pid][..],
            &["snap", "--tree", &self.pid],
            &["watch", &self.pid, "--count", "1"],
        ] {
            let refused = self.ksnap.run(args)?;
            ensure!(refused.code()? == 1, "{args:?}: {refused:?}");
            for word in ["mixed state", "ksnap rollback", "kill -9"] {
                ensure!(refused.stderr.contains(word), "{args:?}: {refused:?}");
            }
        }
        self.stays_stopped()?;
        ensure!(self.marks()?.len() == 1, "{:?}", self.marks());
        Ok(())
    }

    /// What the store has of its mixed states.
    fn marks(&self) -> Result<Vec<String>> {
        let mut marks = Vec::new();
        for session in std::fs::read_dir(self.ksnap.store())? {
            let Ok(names) = std::fs::read_dir(session?.path()) else {
                continue;
            };
            for name in names {
                let name = name?.file_name().to_string_lossy().into_owned();
                marks.extend(name.starts_with("mixed-").then_some(name));
            }
        }
        Ok(marks)
    }

    fn go_on(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.victim.pid()), Signal::SIGCONT)?;
        let then = self.victim.check()?.counter;
        self.victim.wait_beyond(then, LIMIT)?;
        self.victim.check()?;
        Ok(())
    }

    /// Another rollback, of the stopped process, puts it right.
    fn recover(&mut self) -> Result<()> {
        let id = self.ksnap.json(&["log", "-n", "1"])?.remove(0);
        let id = id["id"].as_str().context("no id")?.to_owned();
        self.ksnap.ok(&["rollback", &self.pid, &id, "-y"])?;
        ensure!(self.marks()?.is_empty(), "{:?}", self.marks());
        self.go_on()
    }

    fn end(self) -> Result<()> {
        self.ksnap.ok(&["verify"])?;
        Footprint::of(self.victim.pid())?.nothing_left_since(&self.before)?;
        self.victim.quit()
    }
}

fn killed_at_every_point(name: &str, args: &[&str], watched: bool) -> Result<()> {
    let mut killed = Killed::new(name, args)?;
    let at = |point: &str| format!("killed at '{point}'");
    for point in POINTS {
        killed
            .roll_back(point, watched)
            .with_context(|| at(point))?;
        killed.is_refused().with_context(|| at(point))?;
        killed.recover().with_context(|| at(point))?;
    }
    killed.roll_back(UNTOUCHED, watched)?;
    // As it was: it may go on at once.
    killed.go_on().with_context(|| at(UNTOUCHED))?;
    killed.end()
}

#[test]
fn a_killed_rollback_leaves_the_process_stopped_until_another_puts_it_right() -> Result<()> {
    require!(Root, Ksnap);
    killed_at_every_point("counter", &["--mib", "4"], false)
}

#[test]
fn a_watcher_killed_in_a_rollback_leaves_the_process_stopped_until_another_puts_it_right()
-> Result<()> {
    require!(Root, Ksnap);
    killed_at_every_point("counter", &["--mib", "4"], true)
}

#[test]
fn so_does_one_that_changes_mappings() -> Result<()> {
    require!(Root, Ksnap);
    killed_at_every_point("maps", &[], false)
}

/// What it holds then is no moment of the process, and must not be taken for one.
#[test]
fn a_watcher_takes_no_snapshot_between_a_rollback_that_failed_and_one_that_succeeds() -> Result<()>
{
    require!(Root, Ksnap);
    // Once, in the middle, where the memory is written already.
    let ksnap = Ksnap::new()?.with_variable("KSNAP_FAIL_AT", "making threads".into());
    let mut victim = Victim::spawn("counter", &["--mib", "4", "--rollbacks"])?;
    let pid = victim.pid();
    let word = pid.to_string();
    let mut watch = Watch::start(&ksnap, pid, &["--every", "30ms", "--audit"])?;
    watch.wait_taken(3, LIMIT)?;
    let ids = watch.ids()?;
    let then = victim.status()?.counter;
    victim.wait_beyond(then + 20, LIMIT)?;
    let failed = ksnap.run(&["rollback", &word, &ids[0], "-y"])?;
    ensure!(
        failed.code()? == 1 && failed.stderr.contains("mixed state"),
        "it did not fail in the middle (not a debug build?): {failed:?}"
    );
    watch.next("mixed", LIMIT)?.context("it is not told")?;
    let so_far = watch.ids()?.len();
    std::thread::sleep(Duration::from_millis(300));
    ensure!(watch.ids()?.len() == so_far, "snapshots of a mixed state");
    let refused = ksnap.run(&["snap", &word])?;
    ensure!(refused.code()? == 1, "{refused:?}");
    ensure!(refused.stderr.contains("roll it back again"), "{refused:?}");
    await_state(pid, 'T', LIMIT)?;
    // To another one than the one whose memory it has by now.
    ksnap.ok(&["rollback", &word, &ids[1], "-y"])?;
    kill(Pid::from_raw(pid), Signal::SIGCONT)?;
    watch.wait_taken(so_far + 3, LIMIT)?;
    let then = victim.check()?.counter;
    victim.wait_beyond(then, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(watched.ended["mixed"] == false, "{}", watched.ended);
    ksnap.ok(&["verify"])?;
    victim.check()?;
    victim.quit()
}
