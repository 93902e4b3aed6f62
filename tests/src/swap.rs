//! Memory of processes on the disk: a swap file of a test's own, and putting out what a process has.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A file that memory is swapped to while this lives (`swapon(8)`). Turned off on drop, which reads back what is there.
pub struct Swap {
    folder: TempDir,
}

impl Swap {
    /// One of so many MiB.
    pub fn on(mib: u32) -> Result<Self> {
        let swap = Self {
            folder: tempfile::Builder::new().prefix("ksnap-swap-").tempdir()?,
        };
        let file = swap.file();
        // Without holes, which the kernel refuses.
        std::fs::write(&file, vec![0; (mib as usize) << 20])?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        for program in ["mkswap", "swapon"] {
            let done = Command::new(program).arg(&file).output();
            let done = done.with_context(|| format!("cannot start {program}"))?;
            let said = String::from_utf8_lossy(&done.stderr);
            ensure!(done.status.success(), "{program}: {}", said.trim());
        }
        Ok(swap)
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("swap")
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let done = Command::new("swapoff").arg(self.file()).output();
        if !done.as_ref().is_ok_and(|done| done.status.success()) {
            eprintln!("swapoff {}: {done:?}", self.file().display());
        }
    }
}

/// Puts private memory of a process that no file has out to where memory is swapped to (`process_madvise(2)`). Gives how many
/// bytes of it are there.
pub fn page_out(pid: i32) -> Result<u64> {
    // SAFETY: a system call without pointers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    ensure!(
        opened >= 0,
        "pidfd of {pid}: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: a descriptor that was just made, and is nobody else's.
    let process = unsafe { OwnedFd::from_raw_fd(opened as i32) };
    for line in std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, "rw-p", _, _, "0", ..] = fields[..] else {
            continue;
        };
        let (start, end) = range.split_once('-').context("no range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        let piece = libc::iovec {
            iov_base: start as *mut libc::c_void,
            iov_len: (end - start) as usize,
        };
        // What may not be put out stays: it is a hint. Nor is a mapping there any more that has gone since.
        // SAFETY: one live structure, which names memory of the other process.
        unsafe {
            let (process, piece) = (process.as_raw_fd(), &raw const piece);
            libc::syscall(
                libc::SYS_process_madvise,
                process,
                piece,
                1,
                libc::MADV_PAGEOUT,
                0,
            );
        }
    }
    swapped(pid)
}

/// Bytes of a process that are swapped out, by `VmSwap` of proc_pid_status(5).
pub fn swapped(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no VmSwap")?.parse::<u64>()? << 10)
}
