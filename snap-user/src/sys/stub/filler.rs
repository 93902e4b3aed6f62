//! What the guard of new processes does: a copy of ksnap that fills their memory, and ends them should ksnap end.

use super::guard::{DAMAGED, DONE, READY, Wards};
use super::init::close_all_but;
use super::lazy::Lacking;
use super::{AT_ONCE, SOON};
use crate::sys::file_map::Image;
use crate::sys::pager::Pager;
use crate::sys::proc;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// Its name in the list of processes.
const NAME: &std::ffi::CStr = c"ksnap-fill";

/// What has become of those whose memory it fills.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// ksnap holds some of them.
    Held,
    /// ksnap has let go of all of them.
    Free,
    /// They have been ended, as ksnap was.
    Ended,
}

/// Serves until all is over. `talk` ends with ksnap, which alone has its other end.
pub(super) fn run(mut talk: UnixStream, wards: &Wards, lacking: &[Lacking]) -> ! {
    /// Nothing of what this is a copy of may be unwound.
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    let _abort = Abort;
    stand_apart();
    let mut pager = Pager::keeping();
    for Lacking { uffd, lazy } in lacking {
        match (uffd.try_clone(), Image::new(&lazy.image, &lazy.sums, None)) {
            (Ok(uffd), Ok(image)) => pager.adopt(uffd, image, &lazy.pieces, &lazy.first),
            _ => exit(1),
        }
    }
    let own = pager.descriptors().map(|fd| fd.as_raw_fd());
    let mut keep: Vec<RawFd> = own.chain(pager.images()).collect();
    keep.extend(wards.0.iter().map(|(_, pidfd)| pidfd.as_raw_fd()));
    keep.push(talk.as_raw_fd());
    keep.sort_unstable();
    close_all_but(&keep);
    if talk.write_all(&[READY]).is_err() || talk.set_nonblocking(true).is_err() {
        exit(1);
    }
    let mut fate = Fate::Held;
    while fate == Fate::Held || !pager.is_done() {
        wait(&talk, &pager, fate);
        match hear(&mut talk, fate) {
            Fate::Ended if fate != Fate::Ended => {
                // What they have begun and nobody finds goes on, and gets all of its memory first.
                wards.end();
                fate = Fate::Ended;
            }
            next => fate = next,
        }
        pager.serve();
        if fate != Fate::Held {
            linger();
            pager.fill_some();
        }
        if pager.is_damaged() {
            // Rather than with memory of something else.
            wards.end();
            let _ = talk.write(&[DAMAGED]);
            exit(0);
        }
    }
    // ksnap may be gone: what it let go of is whole all the same.
    let _ = talk.write(&[DONE]);
    exit(0)
}

/// Whoever ends ksnap's whole session does not mean this one, which has its work to do first.
fn stand_apart() {
    // SAFETY: a system call without arguments, and one that reads a constant that ends with a zero.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
    }
}

/// Waits until there is something to do. Before all of them are free, what nobody has touched waits: they come first.
fn wait(talk: &UnixStream, pager: &Pager, fate: Fate) {
    let timeout = match fate {
        Fate::Held if pager.is_to_be_tried_again() => Some(&SOON),
        Fate::Held => None,
        Fate::Free | Fate::Ended => Some(&AT_ONCE),
    };
    let own: Vec<_> = pager.descriptors().collect();
    let mut fds: Vec<PollFd<'_>> = own
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .chain([PollFd::new(talk, PollFlags::IN)])
        .collect();
    let _ = poll(&mut fds, timeout);
}

/// For a moment, where a test has memory come slowly (`KSNAP_FILL_DELAY_MS`).
#[cfg(debug_assertions)]
fn linger() {
    let delay = std::env::var("KSNAP_FILL_DELAY_MS").ok();
    if let Some(ms) = delay.and_then(|text| text.parse().ok()) {
        std::thread::sleep(std::time::Duration::from_millis(ms));
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
fn linger() {}

/// What ksnap has said, or that it is gone.
fn hear(talk: &mut UnixStream, fate: Fate) -> Fate {
    let mut word = [0];
    match talk.read(&mut word) {
        Ok(1) => Fate::Free,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => fate,
        _ => Fate::Ended,
    }
}

/// A process is one that fills memory for ksnap.
pub fn is_filler(pid: i32) -> bool {
    proc::text(pid, "comm").is_ok_and(|comm| comm.trim_end().as_bytes() == NAME.to_bytes())
}

fn exit(code: i32) -> ! {
    // SAFETY: ends this process without running anything of the program that it is a copy of.
    unsafe { libc::_exit(code) }
}
