//! Letting go of several processes as one.
//!
//! A process that ksnap still holds is killed with it; one that it has let go of is not. So while several are let go
//! of, one after the other, a child of ksnap watches: when ksnap ends before it has said that all of them are free,
//! the child ends those that are.

use super::birth::{self, Parent, bury};
use super::init::close_all_but;
use crate::sys::ptrace::Tid;
use crate::sys::{PidFd, Result, SysError, pidfd_kill};
use std::io::{PipeWriter, Write};
use std::os::fd::{AsRawFd, RawFd};

/// Ends its wards unless it is told that all of them are free.
#[derive(Debug)]
pub struct Guard {
    child: Tid,
    tell: Option<PipeWriter>,
    wards: Vec<PidFd>,
}

impl Guard {
    /// Watches over these processes from here on.
    pub fn over(wards: &[&PidFd]) -> Result<Self> {
        let pipe = |e| SysError::new("pipe", "this process", e);
        let (told, tell) = std::io::pipe().map_err(pipe)?;
        let dup = |ward: &&PidFd| ward.try_clone();
        let wards: std::io::Result<Vec<PidFd>> = wards.iter().map(dup).collect();
        let wards = wards.map_err(|e| SysError::new("dup", "descriptors of new processes", e))?;
        let channel = told.as_raw_fd();
        let mut keep: Vec<RawFd> = wards.iter().map(|ward| ward.as_raw_fd()).collect();
        keep.push(channel);
        keep.sort_unstable();
        Ok(Self {
            child: birth::helper(watch, channel, &keep)?,
            tell: Some(tell),
            wards,
        })
    }

    /// All of them are free: they live without ksnap from here on.
    ///
    /// # Errors
    /// The guard is gone, or cannot be told: they are ended.
    pub fn dismiss(mut self) -> Result<()> {
        let mut tell = self.tell.take().expect("until it is told");
        tell.write_all(&[1]).map_err(|e| {
            for ward in &self.wards {
                // One that has ended needs no more.
                let _ = pidfd_kill(ward);
            }
            SysError::new("write", "the guard of new processes, which are ended", e)
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Closed without a word, where it was not told before.
        drop(self.tell.take());
        bury(self.child);
    }
}

/// What the guard does. Nothing here allocates: another thread of ksnap may have had the allocator's lock when this
/// copy of it was made, and will never give it back.
fn watch(parent: Parent) -> ! {
    let channel = parent.channel();
    // The other end is ksnap's alone: it closes when that ends.
    close_all_but(parent.keep());
    let mut word = 0u8;
    // SAFETY: system calls; the byte is a live local, and no structure is passed.
    unsafe {
        // Whoever ends ksnap's whole session does not mean this one, which has its work to do first.
        libc::setsid();
        let told = channel.map_or(0, |from| libc::read(from, (&raw mut word).cast(), 1));
        if told != 1 {
            for ward in parent.keep().iter().filter(|fd| Some(**fd) != channel) {
                let none = std::ptr::null::<libc::siginfo_t>();
                libc::syscall(libc::SYS_pidfd_send_signal, *ward, libc::SIGKILL, none, 0);
            }
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pidfd_open;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, PidFd) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(child.id() as i32).unwrap();
        (child, pidfd)
    }

    #[test]
    fn wards_are_ended_unless_the_guard_is_dismissed() {
        let (mut free, a) = sleeper();
        let (mut bound, b) = sleeper();
        Guard::over(&[&a]).unwrap().dismiss().unwrap();
        drop(Guard::over(&[&b]).unwrap());
        assert_eq!(bound.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(free.try_wait().unwrap().is_none());
        free.kill().unwrap();
        free.wait().unwrap();
    }

    #[test]
    fn wards_are_ended_when_the_guard_is_gone() {
        let (mut ward, pidfd) = sleeper();
        let guard = Guard::over(&[&pidfd]).unwrap();
        // SAFETY: a system call without pointers, on a child that has not been waited for.
        unsafe { libc::kill(guard.child, libc::SIGKILL) };
        bury(guard.child);
        let error = guard.dismiss().unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPIPE));
        assert_eq!(ward.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
