//! File systems that lie in memory: tmpfs(5).

use super::{Result, SysError};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`, statfs(2).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Options that not every kernel takes, best first. `noswap` (Linux 6.4): what is in it is never written to a disk
/// because memory is short. `huge=within_size` (CONFIG_TRANSPARENT_HUGEPAGE): huge pages, never larger than the file.
const EXTRAS: [(&str, bool); 4] = [
    (",noswap,huge=within_size", true),
    (",noswap", true),
    (",huge=within_size", false),
    ("", false),
];

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub total: u64,
    /// Of that, what is left for this user.
    pub free: u64,
    /// It lies in memory.
    pub in_memory: bool,
}

/// How much room there is where a path is; statfs(2).
pub fn room(path: &Path) -> Result<Room> {
    let found = rustix::fs::statfs(path).map_err(|e| SysError::new("statfs", path.display(), e))?;
    let unit = found.f_bsize as u64;
    Ok(Room {
        total: (found.f_blocks as u64).saturating_mul(unit),
        free: (found.f_bavail as u64).saturating_mul(unit),
        // Sign-extended on some architectures.
        in_memory: IN_MEMORY.contains(&(found.f_type as u64 & 0xffff_ffff)),
    })
}

/// Whether a folder is the root of a mounted file system: it is on another device than the folder that it is in.
pub fn is_mount_point(dir: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
    match (device(dir), device(&dir.join(".."))) {
        (Ok(own), Ok(above)) => own != above,
        _ => false,
    }
}

/// Mounts a file system in memory on a folder, for its owner alone. Says whether it is safe from being swapped out.
/// Needs `CAP_SYS_ADMIN`.
pub fn mount_memory(dir: &Path, size: u64) -> Result<bool> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let mut last = Errno::INVAL;
    for (extra, unswapped) in EXTRAS {
        let data = CString::new(format!("size={size},mode=0700{extra}")).expect("no zero byte");
        match mount("ksnap", dir, "tmpfs", flags, data.as_c_str()) {
            Ok(()) => return Ok(unswapped),
            // Some option is not known here.
            Err(Errno::INVAL) => last = Errno::INVAL,
            Err(error) => return Err(SysError::new("mount", dir.display(), error)),
        }
    }
    Err(SysError::new("mount", dir.display(), last))
}

/// Gives a mounted file system in memory another size. Less than what is in it is refused (`EINVAL`).
pub fn resize_memory(dir: &Path, size: u64) -> Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_remount(dir, flags, format!("size={size}"))
        .map_err(|e| SysError::new("mount(MS_REMOUNT)", dir.display(), e))
}

/// How much memory there is to use, in bytes: the machine's, or what the control groups of this process allow
/// (`memory.max`, Documentation/admin-guide/cgroup-v2.rst). `None` where neither is said.
pub fn usable_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_of(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_of(&groups).and_then(|group| {
        let mut limits = Vec::new();
        let mut at = Path::new("/sys/fs/cgroup").join(group);
        while at.starts_with("/sys/fs/cgroup") {
            let text = std::fs::read_to_string(at.join("memory.max")).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>());
            at.pop();
        }
        limits.into_iter().min()
    });
    [machine, limit].into_iter().flatten().min()
}

/// `MemTotal` of /proc/meminfo.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// The control group of version 2, without the slash that it begins with.
fn group_of(cgroup: &str) -> Option<&str> {
    let path = cgroup.lines().find_map(|l| l.strip_prefix("0::/"))?;
    (!path.split('/').any(|part| part == "..")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_memory_is_read() {
        let text = "MemTotal:       24683656 kB\nMemFree:         1 kB\n";
        assert_eq!(total_of(text), Some(24_683_656 << 10));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert_eq!(group_of("3:cpu:/x\n0::/a/b\n"), Some("a/b"));
        assert_eq!(group_of("3:cpu:/x\n"), None);
        assert_eq!(group_of("0::/../../other\n"), None);
        let all = usable_memory().expect("this machine has memory");
        assert!(all > 64 << 20 && all < 1 << 50, "{all}");
    }

    #[test]
    fn a_file_system_in_memory_is_told_from_others() {
        assert!(!room(Path::new("/proc")).expect("mounted").in_memory);
        assert!(is_mount_point(Path::new("/proc")));
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(!is_mount_point(folder.path()));
        let missing = room(&folder.path().join("missing")).expect_err("not there");
        assert_eq!(missing.errno(), Some(libc::ENOENT));
    }
}
