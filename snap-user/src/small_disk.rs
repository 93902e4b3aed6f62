//! A disk as small as a test wants it, a tmpfs(5) of its own: whatever is one byte or one file too many fails, as often as it is
//! tried. Also a part of the test executables beside this crate.

use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::ffi::CString;
use std::path::Path;
use tempfile::TempDir;

/// Gone when dropped.
pub struct SmallDisk {
    folder: TempDir,
}

/// Room for whatever a test writes.
const ROOMY: Room = Room {
    pages: 16_384,
    files: 1000,
};

/// How much of it may be taken.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Pages of 4 KiB of files.
    pub pages: u64,
    /// Files and folders, and the disk itself.
    pub files: u64,
}

impl Room {
    fn options(self) -> String {
        format!("size={},nr_inodes={}", self.pages * 4096, self.files)
    }
}

/// What is mounted is not executed, and has no devices.
fn flags() -> MountFlags {
    MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC
}

impl SmallDisk {
    /// With room for everything. `None`, with a skip said: who runs the tests may not mount.
    pub fn new() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let options = CString::new(ROOMY.options()).expect("no zero byte");
        match mount(
            "ksnap-test",
            folder.path(),
            "tmpfs",
            flags(),
            options.as_c_str(),
        ) {
            Ok(()) => Some(Self { folder }),
            Err(error) => {
                crate::skip::without_root(&format!("a disk of its own ({error})"));
                None
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What is taken.
    pub fn taken(&self) -> Room {
        let found = statfs(self.path()).expect("mounted");
        Room {
            pages: (found.f_blocks - found.f_bfree) * found.f_bsize as u64 / 4096,
            files: found.f_files - found.f_ffree,
        }
    }

    /// There is room for so much beside what is taken.
    pub fn leave(&self, room: Room) {
        let taken = self.taken();
        self.resize(Room {
            pages: taken.pages + room.pages,
            files: taken.files + room.files,
        });
    }

    /// There is room for everything.
    pub fn leave_all(&self) {
        self.resize(ROOMY);
    }

    fn resize(&self, room: Room) {
        // A size of nothing means without a limit.
        assert!(room.pages > 0, "something is on it");
        mount_remount(self.path(), flags(), room.options()).expect("it can be resized");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also where a test that failed has a file of it open.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// Tries something on a disk that has room for 0, 1, 2, … files or pages more, until it has room enough: gives each that it
/// is to be tried with to `attempt`, which says whether that was enough. How often it was not.
pub fn each_shortage(mut attempt: impl FnMut(Room) -> bool) -> usize {
    let mut failures = 0;
    for by_files in [true, false] {
        for some in 0.. {
            let room = match by_files {
                true => Room {
                    files: some,
                    ..ROOMY
                },
                false => Room {
                    pages: some,
                    ..ROOMY
                },
            };
            if attempt(room) {
                break;
            }
            failures += 1;
        }
    }
    failures
}
