//! The network namespace of a stub.

use super::Stub;
use crate::sys::Result;

impl Stub {
    /// Brings the loopback device of its network namespace up (netdevice(7)). The stub does so itself: an ordinary user
    /// may not enter a namespace, but may have made one.
    pub fn bring_up_loopback(&mut self) -> Result<()> {
        // Name and flags of struct ifreq.
        let mut request = [0; size_of::<libc::ifreq>()];
        request[..2].copy_from_slice(b"lo");
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
        request[libc::IFNAMSIZ..][..2].copy_from_slice(&flags.to_ne_bytes());
        let request = self.put(&request)?;
        let mut remote = self.remote(0, self.insn())?;
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let args = [libc::AF_INET as u64, kind, 0, 0, 0, 0];
        let socket = remote.call("socket", libc::SYS_socket, args)?;
        let args = [socket, libc::SIOCSIFFLAGS, request, 0, 0, 0];
        let done = remote.call("ioctl(SIOCSIFFLAGS)", libc::SYS_ioctl, args);
        remote.call("close", libc::SYS_close, [socket, 0, 0, 0, 0, 0])?;
        drop(remote);
        self.forget();
        done.map(drop)
    }
}
