//! Working inside another process's namespaces.

use super::{Result, SysError};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `NS_GET_USERNS` (ioctl_ns(2)).
const GET_OWNER: libc::c_ulong = 0xb701;

/// The user namespace that owns the PID namespace of a process, by its inode number: privileges over the ids there are
/// those in it. EPERM where it is outside of ours.
pub fn owner_of_pid_namespace(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/pid");
    let failed = |call, e: std::io::Error| SysError::new(call, &path, e);
    let namespace = std::fs::File::open(&path).map_err(|e| failed("open", e))?;
    // SAFETY: a request without an argument, on an open file.
    let owner = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_OWNER) };
    if owner < 0 {
        return Err(failed(
            "ioctl(NS_GET_USERNS)",
            std::io::Error::last_os_error(),
        ));
    }
    // SAFETY: a new descriptor, which nobody else has.
    let owner = unsafe { OwnedFd::from_raw_fd(owner) };
    let meta = rustix::fs::fstat(&owner).map_err(|e| failed("fstat", e.into()))?;
    Ok(meta.st_ino)
}

/// Runs `work` in the network namespace of process `pid`: on this thread where it is the same, else on a thread that
/// enters it (`setns(2)`; needs `CAP_SYS_ADMIN`).
pub fn in_network_of<T: Send>(pid: i32, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = format!("/proc/{pid}/ns/net");
    let failed = |call, e: std::io::Error| SysError::new(call, &path, e);
    let theirs = std::fs::read_link(&path).map_err(|e| failed("readlink", e))?;
    let ours = std::fs::read_link("/proc/thread-self/ns/net").map_err(|e| failed("readlink", e))?;
    if theirs == ours {
        return Ok(work());
    }
    let namespace = std::fs::File::open(&path).map_err(|e| failed("open", e))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(kind),
            )?;
            Ok(work())
        });
        match inside.join() {
            Ok(done) => done.map_err(|e: rustix::io::Errno| failed("setns", e.into())),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Brings the loopback device of a process's network namespace up (netdevice(7)).
pub fn bring_up_loopback(pid: i32) -> Result<()> {
    in_network_of(pid, || {
        let failed = |call| SysError::last(call, format_args!("network of process {pid}"));
        // SAFETY: system calls; zeroed, the request is valid, its name is filled in, and it is live.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if socket < 0 {
                return Err(failed("socket"));
            }
            let mut request: libc::ifreq = std::mem::zeroed();
            request.ifr_name[0] = b'l' as libc::c_char;
            request.ifr_name[1] = b'o' as libc::c_char;
            request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
            let done = libc::ioctl(socket, libc::SIOCSIFFLAGS, &request);
            let result = match done {
                0 => Ok(()),
                _ => Err(failed("ioctl(SIOCSIFFLAGS)")),
            };
            libc::close(socket);
            result
        }
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::proc;

    #[test]
    fn a_pid_namespace_is_owned_by_a_user_namespace() {
        let own = std::process::id() as i32;
        let all = proc::namespaces(own).unwrap();
        let (_, user) = all.into_iter().find(|(name, _)| name == "user").unwrap();
        match owner_of_pid_namespace(own) {
            Ok(owner) => assert_eq!(owner, user),
            // It was there before the user namespace of whoever tests.
            Err(e) => assert!(e.is_denied(), "{e}"),
        }
    }
}
