//! Refusing what cannot be captured, before it is touched.

use super::{CaptureError, Result};
use crate::model::Backing;
use crate::sys::{PidFd, await_turn, fill_all, is_filler, pidfd_open, proc};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Why a thread's id is refused; older kernels give a pidfd of it.
const A_THREAD: &str = "it is a thread, not a process; name its process (Tgid in /proc/PID/status)";

/// A process that can be captured.
#[derive(Debug)]
pub struct Target {
    /// Its id.
    pub pid: i32,
    /// Immune to the reuse of the id.
    pub pidfd: PidFd,
    /// Command name.
    pub comm: String,
    /// Path of the executable.
    pub exe: String,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// Arguments.
    pub cmdline: Vec<Vec<u8>>,
}

/// A process runs the program that this one runs: what that has written, as snapshots in a store, is not put back with it.
pub fn is_ksnap(pid: i32) -> bool {
    static OWN: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    let program = |of: &str| {
        let program = std::fs::metadata(format!("/proc/{of}/exe")).ok()?;
        Some((program.dev(), program.ino()))
    };
    let own = OWN.get_or_init(|| program("self"));
    if own.is_none() || program(&pid.to_string()) != *own {
        return false;
    }
    // One that was brought back where that link could not be set has it still, and none of the code.
    let exe = proc::link(pid, "exe").unwrap_or_default();
    proc::maps(pid).is_ok_and(|maps| {
        maps.iter().any(|vma| {
            vma.prot.exec && matches!(&vma.backing, Backing::File { path, .. } if *path == exe)
        })
    })
}

/// Why another ksnap is refused, with what it runs.
fn another_ksnap(pid: i32) -> String {
    let below = proc::children(&[pid]);
    let below: Vec<String> = below
        .iter()
        .flat_map(|(_, children)| children)
        .filter(|child| !is_ksnap(**child))
        .map(i32::to_string)
        .collect();
    let below = match below.is_empty() {
        true => "the process that it watches".to_owned(),
        false => format!("the process that it runs ({})", below.join(", ")),
    };
    format!("it is another ksnap, which would go back without its store: name {below}")
}

/// Checks that a process can be captured.
pub fn preflight(pid: i32) -> Result<Target> {
    let sys = |e| CaptureError::from_sys(pid, e);
    let refused = |why: &str| {
        Err(CaptureError::Refused {
            pid,
            why: why.to_owned(),
        })
    };
    if pid <= 0 {
        return refused("a process id is a positive number");
    }
    if pid == std::process::id() as i32 {
        return refused("it is ksnap itself, which would have to stop itself to look");
    }
    let pidfd = pidfd_open(pid).map_err(|e| match e.errno() {
        Some(libc::EINVAL | libc::ENOENT) => CaptureError::Refused {
            pid,
            why: A_THREAD.into(),
        },
        _ => sys(e),
    })?;
    if is_ksnap(pid) {
        return refused(&another_ksnap(pid));
    }
    let stat = proc::stat(pid, None).map_err(sys)?;
    if stat.is_kernel_thread() {
        return refused("it is a kernel thread and has no memory of its own");
    }
    let zombie = matches!(stat.state, 'Z' | 'X');
    if zombie && !proc::is_alive(pid) {
        return refused("it has ended already (a zombie that its parent has not waited for)");
    }
    if zombie && stays_a_zombie(pid) {
        return refused(
            "its main thread has ended while others go on, and with that thread the kernel's view on the memory of the process",
        );
    }
    let tracer = await_turn(pid);
    let status = proc::status(pid).map_err(sys)?;
    if status.tgid != pid {
        return refused(A_THREAD);
    }
    // Not by this thread, which may have stopped it already, with others of its tree.
    if let Some(tracer) = tracer {
        return Err(CaptureError::Refused {
            pid,
            why: format!(
                "process {tracer} traces it already (a debugger, strace, or another ksnap); only one can"
            ),
        });
    }
    wait_until_loaded(pid)?;
    let exe = proc::exe(pid).map_err(sys)?;
    if is_32_bit(pid) {
        return refused("it is a 32-bit program; only 64-bit ones are supported");
    }
    Ok(Target {
        pid,
        pidfd,
        comm: stat.comm,
        exe,
        start_time: stat.start_time,
        cmdline: proc::cmdline(pid).map_err(sys)?,
    })
}

/// Whoever may fill the memory of a process: it was brought back itself, or forked by one that was.
enum Filler {
    /// Process 1 of its namespace, which does more only when it is asked to.
    Init(i32),
    /// A child of the ksnap that has brought it back, or of one that is gone, for as long as some memory is missing.
    Child(i32),
}

impl Filler {
    /// Process 1 is an ancestor, whoever has ended meanwhile. A child of ksnap is none, and its parents may be gone: where there
    /// are several of them, any may be the one.
    fn of(pid: i32) -> Option<Self> {
        let mut at = pid;
        while let Ok(stat) = proc::stat(at, None) {
            if stat.comm == "ksnap-init" {
                return Some(Self::Init(at));
            }
            at = stat.ppid;
        }
        let filler = proc::processes().into_iter().find(|pid| is_filler(*pid));
        filler.map(Self::Child)
    }

    fn pid(&self) -> i32 {
        match *self {
            Self::Init(pid) | Self::Child(pid) => pid,
        }
    }
}

/// A process that was brought back may still lack memory, which would be taken for zeroes. Whoever fills it is asked to
/// make haste.
fn wait_until_loaded(pid: i32) -> Result<()> {
    const MOST: Duration = Duration::from_secs(120);
    let sys = |e| CaptureError::from_sys(pid, e);
    let end = Instant::now() + MOST;
    let mut asked = false;
    while let Some(filler) = Filler::of(pid) {
        let flags = proc::vm_flags(pid).map_err(sys)?;
        // Waits for missing pages (`VmFlags` in proc_pid_smaps(5)).
        if !flags.0.values().any(|f| f.iter().any(|word| word == "um")) {
            break;
        }
        if let (Filler::Init(init), false) = (&filler, asked) {
            fill_all(*init).map_err(sys)?;
            asked = true;
        }
        if Instant::now() > end {
            return Err(CaptureError::Refused {
                pid,
                why: format!(
                    "the memory that it is brought back with has not all come within {} s: process {} fills it; try again",
                    MOST.as_secs(),
                    filler.pid()
                ),
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// For a moment the main thread of a process looks so whenever another thread replaces the program (execve(2)).
fn stays_a_zombie(pid: i32) -> bool {
    const AN_EXEC: Duration = Duration::from_millis(5);
    let is_zombie = || proc::stat(pid, None).is_ok_and(|stat| matches!(stat.state, 'Z' | 'X'));
    (0..20).all(|_| {
        let zombie = is_zombie();
        if zombie {
            std::thread::sleep(AN_EXEC);
        }
        zombie
    })
}

/// Fifth byte of the ELF identification: 1 for 32-bit objects.
fn is_32_bit(pid: i32) -> bool {
    let mut head = [0u8; 5];
    std::fs::File::open(format!("/proc/{pid}/exe"))
        .and_then(|mut f| f.read_exact(&mut head))
        .is_ok_and(|()| head == [0x7f, b'E', b'L', b'F', 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(pid: i32) -> String {
        preflight(pid).unwrap_err().to_string()
    }

    #[test]
    fn refusals_say_what_and_why() {
        assert!(why(std::process::id() as i32).contains("ksnap itself"));
        assert!(why(-3).contains("positive"));
        assert!(why(i32::MAX).contains("gone"));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        while proc::stat(pid, None).unwrap().state != 'Z' {
            std::thread::yield_now();
        }
        assert!(why(pid).contains("zombie"));
        child.wait().unwrap();
    }

    #[test]
    fn a_thread_is_not_a_process() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let (tid_send, tid) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tid_send.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = receive.recv();
        });
        assert!(why(tid.recv().unwrap()).contains("thread"));
        drop(send);
        thread.join().unwrap();
    }
}
