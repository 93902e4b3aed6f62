//! Tries on a process of its own what capture and rollback do to a target.

use super::{About, Check};
use crate::model::PageRange;
use crate::sys::{self, Freeze, Frozen, SysError, proc};
use std::process::{Child, Command, Stdio};

const PTRACE: About = About {
    name: "ptrace",
    title: "stop a process (ptrace)",
    used_for: "freezing a process and reading its registers",
    without: "nothing can be captured or rolled back",
    how: "in a container, allow the ptrace system call (docker: --cap-add SYS_PTRACE, or another seccomp profile); kernel.yama.ptrace_scope must be below 3",
};
const READ_MEMORY: About = About {
    name: "read_memory",
    title: "read a process's memory (process_vm_readv)",
    used_for: "copying pages out of the process",
    without: "nothing can be captured",
    how: "a kernel with CONFIG_CROSS_MEMORY_ATTACH; in a container, a seccomp profile that allows process_vm_readv",
};
const PIDFD_GETFD: About = About {
    name: "pidfd_getfd",
    title: "take over a descriptor (pidfd_getfd)",
    used_for: "taking over the userfaultfd of the wp tracker",
    without: "the wp tracker cannot be used; soft-dirty or hash take its place",
    how: "Linux 5.6 or newer; in a container, a seccomp profile that allows pidfd_getfd",
};

/// A process that waits for its standard input; ended on drop.
struct Waiting(Child);

impl Waiting {
    fn start() -> std::io::Result<Self> {
        Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn checks() -> Vec<Check> {
    let abouts = [PTRACE, READ_MEMORY, PIDFD_GETFD];
    let child = match Waiting::start() {
        Ok(child) => child,
        Err(error) => {
            let why = format!("no process to try it on: cat: {error}");
            return abouts
                .map(|about| about.unknown(why.clone()))
                .into_iter()
                .collect();
        }
    };
    let pid = child.pid();
    vec![
        outcome(PTRACE, stop(pid)),
        outcome(READ_MEMORY, read(pid)),
        outcome(PIDFD_GETFD, take(pid)),
    ]
}

fn outcome(about: About, tried: sys::Result<String>) -> Check {
    match tried {
        Ok(detail) => about.yes(detail),
        Err(error) if error.is_denied() || error.errno() == Some(libc::ENOSYS) => {
            about.no(error.to_string())
        }
        Err(error) => about.unknown(error.to_string()),
    }
}

fn stop(pid: i32) -> sys::Result<String> {
    let start = std::time::Instant::now();
    let frozen = Frozen::freeze(pid, Freeze::default())?;
    frozen.thaw();
    Ok(format!(
        "stopped and let go a process in {} µs",
        start.elapsed().as_micros()
    ))
}

fn read(pid: i32) -> sys::Result<String> {
    let maps = proc::maps(pid)?;
    let readable = maps.iter().find(|vma| vma.prot.read && !vma.is_special());
    let Some(vma) = readable else {
        let none = std::io::Error::other("no readable mapping");
        return Err(SysError::new(
            "process_vm_readv",
            format_args!("process {pid}"),
            none,
        ));
    };
    let first = PageRange::covering(vma.range.start, 1);
    let mut page = vec![0; first.len() as usize];
    let missing = sys::read_ranges(pid, &[first], &mut page)?;
    if missing.is_empty() {
        return Ok("read a page of another process".into());
    }
    let none = std::io::Error::other("the page is not there");
    Err(SysError::new(
        "process_vm_readv",
        format_args!("process {pid}"),
        none,
    ))
}

fn take(pid: i32) -> sys::Result<String> {
    let process = sys::pidfd_open(pid)?;
    sys::pidfd_getfd(&process, 0)?;
    Ok("took over a descriptor of another process".into())
}
