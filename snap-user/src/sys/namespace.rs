//! Working inside another process's namespaces.

use super::{Result, SysError};

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
