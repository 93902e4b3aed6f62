//! Letting go of several processes as one, and of those whose memory is still to come.
//!
//! A process that ksnap still holds is killed with it; one that it has let go of is not. So while several are let go
//! of, one after the other, a child of ksnap watches: when ksnap ends before it has said that all of them are free,
//! the child ends those that are.
//!
//! The same child fills memory that they lack, and watches until it is there. It does so itself, and not a thread of
//! ksnap's, because the kernel closes what a killed process had open before it tells anybody: for that moment they
//! would read zeroes.

use super::birth::{self, bury};
use super::filler;
use super::lazy::{Lacking, Loading};
use crate::sys::ptrace::Tid;
use crate::sys::{PidFd, Result, SysError, pidfd_kill, pidfd_open, pidfd_stop, proc};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// What the child says when it watches and has its name.
pub(super) const READY: u8 = 2;
/// What the child says when memory cannot be filled, since what it comes from is damaged. All of them have been ended.
pub(super) const DAMAGED: u8 = 3;
/// What ksnap says when all of them are free, and its child when all memory is there.
pub(super) const DONE: u8 = 1;

/// Ends its wards unless it is told that all of them are free. Fills their memory.
#[derive(Debug)]
pub struct Guard {
    child: Option<Tid>,
    talk: Option<UnixStream>,
    wards: Wards,
    lacking: Vec<Lacking>,
}

impl Guard {
    /// Watches over these processes from here on, and fills what they lack as they touch it.
    pub fn over(wards: &[(Tid, &PidFd)], lacking: Vec<Lacking>) -> Result<Self> {
        let pair = |e| SysError::new("socketpair", "this process", e);
        let (talk, other) = UnixStream::pair().map_err(pair)?;
        let dup = |(pid, pidfd): &(Tid, &PidFd)| Ok((*pid, pidfd.try_clone()?));
        let wards: std::io::Result<Vec<_>> = wards.iter().map(dup).collect();
        let wards = wards.map_err(|e| SysError::new("dup", "descriptors of new processes", e))?;
        let wards = Wards(wards);
        match birth::split()? {
            None => filler::run(other, &wards, &lacking),
            child => {
                let mut guard = Self {
                    child,
                    talk: Some(talk),
                    wards,
                    lacking,
                };
                drop(other);
                guard.await_ready()?;
                Ok(guard)
            }
        }
    }

    /// Nobody runs yet who would be without it.
    fn await_ready(&mut self) -> Result<()> {
        let mut word = [0];
        let talk = self.talk.as_mut().expect("until it is told");
        let read = talk.read_exact(&mut word);
        read.map_err(|e| SysError::new("start", "a guard of new processes", e))
    }

    /// All of them are free. Those that lack no memory live without ksnap from here on; for the others, ksnap has to wait.
    ///
    /// # Errors
    /// The guard is gone, or cannot be told: they are ended.
    pub fn dismiss(mut self) -> Result<Option<Loading>> {
        let mut talk = self.talk.take().expect("until it is told");
        talk.write_all(&[DONE]).map_err(|e| {
            self.wards.end();
            SysError::new("write", "the guard of new processes, which are ended", e)
        })?;
        if self.lacking.is_empty() {
            return Ok(None);
        }
        let filler = self.child.take().expect("until it is dismissed");
        let wards = std::mem::take(&mut self.wards);
        let lacking = std::mem::take(&mut self.lacking);
        Ok(Some(Loading::new(filler, talk, wards, lacking)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Closed without a word, where it was not told before.
        drop(self.talk.take());
        if let Some(child) = self.child {
            bury(child);
        }
    }
}

/// Processes that are watched over.
#[derive(Debug, Default)]
pub(super) struct Wards(pub(super) Vec<(Tid, PidFd)>);

impl Wards {
    /// Ends them, and what they have begun since: who is stopped begins nothing more.
    pub(super) fn end(&self) {
        let mut more: Vec<(Tid, PidFd)> = Vec::new();
        for (_, pidfd) in &self.0 {
            // Here and below: one that has ended needs no more.
            let _ = pidfd_stop(pidfd);
        }
        loop {
            let all = || self.0.iter().chain(&more);
            let parents: Vec<Tid> = all().map(|(pid, _)| *pid).collect();
            let new: Vec<(Tid, PidFd)> = proc::children(&parents)
                .into_iter()
                .zip(all())
                .flat_map(|((_, children), (parent, pidfd))| {
                    let new = children.into_iter().filter(|pid| !parents.contains(pid));
                    new.filter_map(|pid| Some((pid, child_of(*parent, pidfd, pid)?)))
                })
                .collect();
            if new.is_empty() {
                break;
            }
            for (_, pidfd) in &new {
                let _ = pidfd_stop(pidfd);
            }
            more.extend(new);
        }
        for (_, pidfd) in self.0.iter().chain(&more) {
            let _ = pidfd_kill(pidfd);
        }
    }
}

/// Opens a process, if it is a child of this one: by now either id may be somebody else's.
fn child_of(parent: Tid, pidfd: &PidFd, pid: Tid) -> Option<PidFd> {
    let child = pidfd_open(pid).ok()?;
    let is_its = proc::stat(pid, None).is_ok_and(|stat| stat.ppid == parent);
    (is_its && pidfd_stop(pidfd).is_ok()).then_some(child)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    fn sleeper() -> (Child, PidFd) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(child.id() as i32).unwrap();
        (child, pidfd)
    }

    fn over((child, pidfd): &(Child, PidFd)) -> Guard {
        Guard::over(&[(child.id() as i32, pidfd)], Vec::new()).unwrap()
    }

    #[test]
    fn wards_are_ended_unless_the_guard_is_dismissed() {
        let (mut free, mut bound) = (sleeper(), sleeper());
        assert!(over(&free).dismiss().unwrap().is_none());
        drop(over(&bound));
        assert_eq!(bound.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(free.0.try_wait().unwrap().is_none());
        free.0.kill().unwrap();
        free.0.wait().unwrap();
    }

    #[test]
    fn what_wards_have_begun_is_ended_with_them() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 1000 & sleep 1000 & echo here; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap());
        said.read_line(&mut String::new()).unwrap();
        let pid = shell.id() as i32;
        let children = proc::children(&[pid])[0].1.clone();
        assert_eq!(children.len(), 2);
        let children: Vec<PidFd> = children
            .into_iter()
            .map(|c| pidfd_open(c).unwrap())
            .collect();
        let mut shell = (shell, pidfd_open(pid).unwrap());
        drop(over(&shell));
        assert_eq!(shell.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        for child in &children {
            // Readable when it has ended.
            let minute = Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            let ended = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&minute));
            assert_eq!(ended, Ok(1));
        }
    }

    #[test]
    fn wards_are_ended_when_the_guard_is_gone() {
        let mut ward = sleeper();
        let guard = over(&ward);
        let child = guard.child.unwrap();
        // SAFETY: a system call without pointers, on a child that has not been waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
        bury(child);
        let error = guard.dismiss().unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPIPE));
        assert_eq!(ward.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
