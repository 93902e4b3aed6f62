//! userfaultfd(2), for asynchronous write protection alone.

use super::{Result, SysError};
use crate::model::PageRange;
use linux_raw_sys::general as raw;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const FEATURES: u64 = (raw::UFFD_FEATURE_WP_ASYNC
    | raw::UFFD_FEATURE_WP_UNPOPULATED
    | raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM) as u64;

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, raw::uffdio_api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, raw::uffdio_register);

/// Flags of the system call: close-on-exec, non-blocking, and user mode only. The last needs no
/// privilege, and takes nothing away: with asynchronous protection the kernel's own writes into a
/// protected page are let through and recorded as well.
pub const CREATION_FLAGS: u64 =
    libc::O_CLOEXEC as u64 | libc::O_NONBLOCK as u64 | raw::UFFD_USER_MODE_ONLY as u64;

/// Outcome of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WpRegister {
    /// Writes into the range are recorded from now on.
    Done,
    /// They are, for each huge page of hugetlbfs as a whole: its first write lets all of it be written.
    WholeHugePages,
    /// The mapping cannot be: kernel-provided (EINVAL), read-only shared (EPERM), or taken by the
    /// program's own userfaultfd (EBUSY).
    Refused,
    /// The range is not mapped any more.
    Gone,
}

/// A userfaultfd of some process, which writes into registered ranges never block on.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// Creates one for this process itself.
    pub fn create() -> Result<Self> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, CREATION_FLAGS) };
        if fd == -1 {
            return Err(SysError::last("userfaultfd", "this process"));
        }
        // SAFETY: the call returned a new descriptor that nothing else owns.
        Self::adopt(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Takes over a descriptor fresh from userfaultfd(2) and asks for asynchronous write protection.
    /// EINVAL: the kernel lacks it (before Linux 6.7).
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        let mut api = raw::uffdio_api {
            api: raw::UFFD_API as u64,
            features: FEATURES,
            ioctls: 0,
        };
        // SAFETY: `api` is a live structure of the kernel's layout.
        unsafe { uffdio_api(fd.as_raw_fd(), &mut api) }
            .map_err(|e| SysError::new("UFFDIO_API", "userfaultfd", e))?;
        Ok(Self { fd })
    }

    /// Starts recording writes into `range`, which must lie within mappings. Repeating it does no harm.
    pub fn register(&self, range: PageRange) -> Result<WpRegister> {
        let mut arg = raw::uffdio_register {
            range: raw::uffdio_range {
                start: range.start,
                len: range.len(),
            },
            mode: raw::UFFDIO_REGISTER_MODE_WP as u64,
            ioctls: 0,
        };
        // SAFETY: `arg` is a live structure of the kernel's layout.
        match unsafe { uffdio_register(self.fd.as_raw_fd(), &mut arg) } {
            // hugetlbfs has no page of zeroes, and is the only one without (fs/userfaultfd.c).
            Ok(_) if arg.ioctls & (1 << raw::_UFFDIO_ZEROPAGE) == 0 => {
                Ok(WpRegister::WholeHugePages)
            }
            Ok(_) => Ok(WpRegister::Done),
            Err(nix::Error::EINVAL | nix::Error::EPERM | nix::Error::EBUSY) => {
                Ok(WpRegister::Refused)
            }
            Err(nix::Error::ENOMEM) => Ok(WpRegister::Gone),
            Err(e) => Err(SysError::new("UFFDIO_REGISTER", range, e)),
        }
    }
}
