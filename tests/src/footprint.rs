//! What a process looks like from outside, to find what ksnap left behind in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Descriptors, mappings and tracing state of a process at one moment.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// The process.
    pub pid: i32,
    /// Descriptor number → what it is (`/proc/PID/fd` link).
    pub fds: BTreeMap<i32, String>,
    /// Mappings: `range perms … path` lines of `/proc/PID/maps`.
    pub maps: Vec<String>,
    /// How many mappings are registered with some userfaultfd (`uw`, `um` or `ui` in VmFlags).
    pub registered: usize,
    /// The tracer's thread id, 0 if there is none.
    pub tracer: i32,
    /// The state letter of the main thread: R, S, D, T (stopped), t (traced), Z.
    pub state: char,
    /// How many threads.
    pub threads: usize,
}

impl Footprint {
    /// Looks at a process. The threads run on meanwhile, so the parts may be of slightly different moments.
    pub fn of(pid: i32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let mut fds = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))
            .with_context(|| format!("list descriptors of {pid}"))?
        {
            let Ok(entry) = entry else { continue };
            // A descriptor may be closed between listing and looking.
            if let (Some(number), Ok(link)) = (
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok()),
                fs::read_link(entry.path()),
            ) {
                fds.insert(number, link.to_string_lossy().into_owned());
            }
        }
        let registered = read("smaps")?
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags:"))
            .filter(|flags| {
                flags
                    .split_whitespace()
                    .any(|flag| ["uw", "um", "ui"].contains(&flag))
            })
            .count();
        let status = read("status")?;
        let threads = field(&status, "Threads:")
            .and_then(|value| value.parse().ok())
            .context("no Threads")?;
        let maps = read("maps")?.lines().map(str::to_owned).collect();
        Ok(Self {
            pid,
            fds,
            maps,
            registered,
            tracer: tracer_in(&status)?,
            state: state_of(pid),
            threads,
        })
    }

    /// Descriptors that hold a userfaultfd.
    pub fn userfaultfds(&self) -> Vec<i32> {
        self.fds
            .iter()
            .filter(|(_, link)| link.contains("userfaultfd"))
            .map(|(fd, _)| *fd)
            .collect()
    }

    /// Anonymous executable mappings, such as a stub page.
    pub fn anonymous_code(&self) -> Vec<&str> {
        let is_code = |line: &&str| {
            let mut words = line.split_whitespace().skip(1);
            let executable = words.next().is_some_and(|flags| flags.contains('x'));
            executable && (words.nth(3).is_none() || line.contains("ksnap"))
        };
        self.maps
            .iter()
            .map(String::as_str)
            .filter(is_code)
            .collect()
    }

    /// Demands that the process is not traced, not stopped, registered with nothing, and has no descriptor of a
    /// kind and no code page that it did not have before.
    pub fn nothing_left_since(&self, before: &Self) -> Result<()> {
        let pid = self.pid;
        ensure!(
            self.tracer == 0,
            "process {pid} is still traced by {}",
            self.tracer
        );
        ensure!(
            !matches!(self.state, 'T' | 't'),
            "process {pid} is still stopped (state {})",
            self.state
        );
        self.no_descriptors_since(before)?;
        ensure!(
            self.registered <= before.registered,
            "process {pid} has {} mappings registered with a userfaultfd, {} before",
            self.registered,
            before.registered
        );
        self.no_code_since(before)
    }

    /// Demands that the process has no anonymous code page that it did not have before.
    pub fn no_code_since(&self, before: &Self) -> Result<()> {
        let old = before.anonymous_code();
        let new: Vec<_> = self
            .anonymous_code()
            .into_iter()
            .filter(|line| !old.contains(line))
            .collect();
        ensure!(
            new.is_empty(),
            "process {} has code pages that are not its own: {new:?}",
            self.pid
        );
        Ok(())
    }

    /// Demands that the process has no more anonymous inodes (userfaultfd, BPF, eventfd…), memfds, pipes and
    /// sockets than before. Holds while it is being watched too: what ksnap makes in a target it takes out again
    /// at once. Files with a path are not counted: programs open and close those at any time.
    pub fn no_descriptors_since(&self, before: &Self) -> Result<()> {
        let (old, new) = (before.kinds(), self.kinds());
        for (kind, now) in new {
            let was = old.get(kind).copied().unwrap_or_default();
            ensure!(
                now <= was,
                "process {} has {now} descriptors of {kind:?}, {was} before: {:?}",
                self.pid,
                self.fds
            );
        }
        Ok(())
    }

    fn kinds(&self) -> BTreeMap<&str, usize> {
        let mut kinds = BTreeMap::new();
        for link in self.fds.values() {
            let kind = match link.split_once(':') {
                Some(("anon_inode", _)) => link.as_str(),
                Some((kind @ ("/memfd" | "pipe" | "socket"), _)) => kind,
                _ => continue,
            };
            *kinds.entry(kind).or_default() += 1;
        }
        kinds
    }
}

/// The state letter of a process: `?` if there is no such process.
pub fn state_of(pid: i32) -> char {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "State:")
        .and_then(|value| value.chars().next())
        .unwrap_or('?')
}

/// Waits until a process is in this state: a stop, for one, comes a moment after its signal.
pub fn await_state(pid: i32, state: char, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let now = state_of(pid);
        if now == state {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "process {pid} is in state {now}, not {state}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The system call that a thread waits in, and its first argument (proc_pid_syscall(5)).
pub fn call_of(tid: i32) -> Option<(i64, u64)> {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let first = words.next()?.strip_prefix("0x")?;
    Some((number, u64::from_str_radix(first, 16).ok()?))
}

/// Waits until a process waits for its standard input, and changes nothing meanwhile.
pub fn await_reading(pid: i32, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    while call_of(pid) != Some((libc::SYS_read, 0)) {
        ensure!(
            Instant::now() < end,
            "process {pid} does not read its input ({})",
            state_of(pid)
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The threads of a process.
pub fn threads_of(pid: i32) -> Result<Vec<i32>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {folder}"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// The thread that traces a process, 0 if there is none.
pub fn tracer_of(pid: i32) -> Result<i32> {
    let path = format!("/proc/{pid}/status");
    tracer_in(&fs::read_to_string(&path).with_context(|| format!("read {path}"))?)
}

fn tracer_in(status: &str) -> Result<i32> {
    field(status, "TracerPid:")
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("no TracerPid in {status}"))
}

/// Processes of which this is so, out of all that there are.
pub fn processes(is_one: impl Fn(i32) -> bool) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        if let Ok(pid) = entry?.file_name().to_string_lossy().parse()
            && is_one(pid)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Orphans of this test are its children from here on, and not those of process 1, which may wait for them late.
/// [`await_gone`] and [`outlives_kills`] wait for all of them that have ended.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    ADOPTS.store(true, Ordering::Relaxed);
    Ok(())
}

/// Waits for orphans that have ended, where they are adopted: children that this test has not started.
fn bury_orphans() -> Result<()> {
    if !ADOPTS.load(Ordering::Relaxed) {
        return Ok(());
    }
    let own = std::process::id() as i32;
    for pid in crate::tree::children_of(own)? {
        if state_of(pid) == 'Z' && !crate::background::is_awaited(pid) {
            waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG))?;
        }
    }
    Ok(())
}

static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Waits until there is no process with this id any more.
pub fn await_gone(pid: i32, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    while Path::new(&format!("/proc/{pid}")).exists() {
        bury_orphans()?;
        ensure!(
            Instant::now() < end,
            "process {pid} is still there ({})",
            state_of(pid)
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until a process that is being killed, by the kernel or by what a killed ksnap has left to do so, is gone. `false`
/// where there is none then.
pub fn outlives_kills(pid: i32, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    while let [guard, ..] = left_behind()?[..] {
        ensure!(
            Instant::now() < end,
            "process {guard}, which ksnap left, is still there"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    while is_dying(pid) {
        bury_orphans()?;
        ensure!(
            Instant::now() < end,
            "process {pid} is still dying ({})",
            state_of(pid)
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(!matches!(state_of(pid), '?' | 'Z' | 'X'))
}

/// Children of ksnaps that have ended: they are ended with what they watch over, but for those that keep connections.
fn left_behind() -> Result<Vec<i32>> {
    let ksnap = fs::canonicalize(crate::paths::ksnap()?)?;
    let exe = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let tests = std::env::current_exe()?;
    let is_someones = |pid: i32| {
        let parent = crate::tree::parent_of(pid);
        if parent == Some(std::process::id() as i32) {
            // Else it is an orphan.
            return crate::background::is_awaited(pid);
        }
        let parent = parent.and_then(exe);
        parent.is_some_and(|parent| parent == ksnap || parent.parent() == tests.parent())
    };
    processes(|pid| {
        let is_left = exe(pid).as_deref() == Some(&*ksnap) && !is_someones(pid);
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        is_left
            && name.is_ok_and(|name| name.trim() != "ksnap-tcp")
            && !matches!(state_of(pid), 'Z' | 'X' | '?')
    })
}

/// Whether a process has a SIGKILL pending, which whoever sends it sees to at once, or is exiting.
fn is_dying(pid: i32) -> bool {
    /// include/linux/sched.h
    const PF_EXITING: u64 = 4;
    let read = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else {
        return false;
    };
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| {
        let flags = rest.split_whitespace().nth(6)?;
        flags.parse::<u64>().ok()
    });
    let pending = |name| {
        let set = field(&status, name).and_then(|set| u64::from_str_radix(set, 16).ok());
        set.unwrap_or(0) >> (libc::SIGKILL - 1) & 1 != 0
    };
    let exiting = flags.unwrap_or(0) & PF_EXITING != 0 && !matches!(state_of(pid), 'Z' | 'X');
    exiting || pending("SigPnd:") || pending("ShdPnd:")
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Footprint {
        Footprint::of(std::process::id() as i32).unwrap()
    }

    #[test]
    fn a_descriptor_left_behind_is_found() {
        let before = own();
        // SAFETY: eventfd takes two integers and gives a new descriptor or -1.
        let leak = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(leak >= 0);
        let error = own().no_descriptors_since(&before).unwrap_err().to_string();
        assert!(error.contains("eventfd"), "{error}");
        // SAFETY: this test's own descriptor.
        unsafe { libc::close(leak) };
    }

    #[test]
    fn a_code_page_left_behind_is_found() {
        let before = own();
        let page = crate::victim::mem::Mapping::with(
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        )
        .unwrap();
        let error = own().no_code_since(&before).unwrap_err().to_string();
        assert!(error.contains("code pages"), "{error}");
        drop(page);
    }
}
