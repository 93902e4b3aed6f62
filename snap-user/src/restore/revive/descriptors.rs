//! Open files of a new process: opened here before it is started, inherited, and put to their numbers.

use crate::model::{Resource, ResourceKind};
use crate::sys::StubCall;
use std::os::fd::{AsRawFd, OwnedFd};

/// An open file that is to become a descriptor of the new process.
#[derive(Debug)]
pub struct Prepared {
    /// The number it is to have.
    pub fd: i32,
    /// The open file, at a number beyond all that are to be given out.
    pub file: OwnedFd,
    /// Closed by an exec.
    pub cloexec: bool,
}

/// Opens what a path leads to; the standard streams, where they were a terminal or a pipe, become ksnap's
/// own. Returns a sentence for each descriptor that is not what it was.
pub fn prepare(resources: &[Resource]) -> (Vec<Prepared>, Vec<String>) {
    let beyond = resources.iter().map(|r| r.fd).max().unwrap_or(2) + 1;
    let mut prepared = Vec::new();
    let mut notes = Vec::new();
    for resource in resources {
        let what = format!("descriptor {} ({})", resource.fd, resource.link);
        match open(resource).and_then(|(file, note)| Ok((moved(&file, beyond)?, note))) {
            Ok((file, note)) => {
                notes.extend(note.map(|note| format!("{what} {note}")));
                prepared.push(Prepared {
                    fd: resource.fd,
                    file,
                    cloexec: resource.flags & libc::O_CLOEXEC as u32 != 0,
                });
            }
            Err(why) => notes.push(format!("{what} is not brought back: {why}")),
        }
    }
    (prepared, notes)
}

fn open(resource: &Resource) -> Result<(OwnedFd, Option<&'static str>), String> {
    let is_terminal = resource.link.starts_with("/dev/pts/")
        || resource.link.starts_with("/dev/tty")
        || resource.link == "/dev/console";
    let is_stream = is_terminal
        || matches!(
            resource.kind,
            ResourceKind::Pipe | ResourceKind::Fifo | ResourceKind::Socket
        );
    if (0..3).contains(&resource.fd) && is_stream {
        let own = duplicate(resource.fd)?;
        return Ok((own, Some("is ksnap's own now")));
    }
    let by_path = matches!(
        resource.kind,
        ResourceKind::Regular
            | ResourceKind::Directory
            | ResourceKind::CharDevice
            | ResourceKind::BlockDevice
    );
    if !by_path {
        return Err(format!(
            "this kind ({:?}) is not brought back",
            resource.kind
        ));
    }
    if resource.link.ends_with(" (deleted)") {
        return Err("its file has no name any more".into());
    }
    let keep = (libc::O_ACCMODE
        | libc::O_APPEND
        | libc::O_NONBLOCK
        | libc::O_DIRECT
        | libc::O_SYNC
        | libc::O_DIRECTORY
        | libc::O_PATH
        | libc::O_NOATIME) as u32;
    let flags = rustix::fs::OFlags::from_bits_retain(
        resource.flags & keep | (libc::O_NOCTTY | libc::O_CLOEXEC) as u32,
    );
    let file = rustix::fs::open(&resource.link, flags, rustix::fs::Mode::empty())
        .map_err(|e| e.to_string())?;
    let seekable = matches!(
        resource.kind,
        ResourceKind::Regular | ResourceKind::BlockDevice
    );
    if seekable && flags.bits() & libc::O_PATH as u32 == 0 {
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(resource.position))
            .map_err(|e| format!("its position: {e}"))?;
    }
    Ok((file, None))
}

/// A copy of one of ksnap's own standard streams.
fn duplicate(fd: i32) -> Result<OwnedFd, String> {
    let stream = match fd {
        0 => std::io::stdin().as_raw_fd(),
        1 => std::io::stdout().as_raw_fd(),
        _ => std::io::stderr().as_raw_fd(),
    };
    crate::sys::duplicate(stream, 3).map_err(|e| e.to_string())
}

fn moved(file: &OwnedFd, beyond: i32) -> Result<OwnedFd, String> {
    crate::sys::duplicate(file.as_raw_fd(), beyond).map_err(|e| e.to_string())
}

/// Calls that put inherited descriptors to their numbers and close all others.
pub(super) fn install(descriptors: &[Prepared]) -> Vec<StubCall> {
    let mut calls = Vec::with_capacity(2 * descriptors.len() + 1);
    let mut numbers = Vec::with_capacity(descriptors.len());
    for Prepared { fd, file, cloexec } in descriptors {
        let flags = if *cloexec { libc::O_CLOEXEC } else { 0 };
        let args = [file.as_raw_fd() as u64, *fd as u64, flags as u64, 0, 0, 0];
        calls.push(StubCall::new(
            "dup3",
            format!("descriptor {fd}"),
            libc::SYS_dup3,
            args,
        ));
        numbers.push(*fd as u64);
    }
    numbers.sort_unstable();
    let mut close = |from: u64, to: u64| {
        if from <= to {
            calls.push(StubCall::new(
                "close_range",
                format!("descriptors {from} and up"),
                libc::SYS_close_range,
                [from, to, 0, 0, 0, 0],
            ));
        }
    };
    let mut next = 0;
    for number in numbers {
        if number > next {
            close(next, number - 1);
        }
        next = number + 1;
    }
    close(next, u32::MAX.into());
    calls
}
