//! What open files of each kind hold, read and set through a descriptor of this process.

mod control;
mod create;
mod pipe;
mod sock_diag;
pub mod socket;
mod terminal;

pub use control::{
    add_seals, content, drop_lease, flock_bytes, lock_flock, lock_ofd, owner, position_and_flags,
    seals, set_owner, set_position, set_status_flags, take_lease, unlock_ofd,
};
pub use create::{
    ask_timerfd, epoll, eventfd, inotify, inotify_watch, memfd, pipe, set_eventfd, set_memfd,
    set_timerfd, signalfd, timerfd,
};
pub use pipe::{capacity, fill, look_into, queued, set_capacity};
pub use sock_diag::{UnixSocket, unix_socket};
pub use terminal::{
    device_numbers, flush_terminal, master_of, master_with_number, open_other_side, set_terminal,
    terminal, terminal_device, unlock_master,
};

use super::{Result, SysError};
use std::os::fd::{AsFd, AsRawFd};

/// Names a descriptor of this process in an error.
fn name(fd: impl AsFd) -> String {
    let fd = fd.as_fd().as_raw_fd();
    match std::fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(link) => link.display().to_string(),
        Err(_) => format!("descriptor {fd}"),
    }
}

/// 0 or more, or the error of `call`.
fn check(call: &'static str, fd: impl AsFd, result: impl Into<i64>) -> Result<i64> {
    let result = result.into();
    match result {
        0.. => Ok(result),
        _ => {
            let source = std::io::Error::last_os_error();
            Err(SysError::new(call, name(fd), source))
        }
    }
}
