//! What the user that runs the tests may do, each tried out.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::{Ksnap, paths};

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub fn build_is_open() -> bool {
    let open = |folder: &std::path::Path| {
        folder
            .metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 1 == 1)
    };
    paths::binaries().is_ok_and(|folder| folder.ancestors().all(open))
}

/// Tried out in this mount namespace: whoever may make one of its own may not be allowed to mount in the one that it has.
pub fn can_mount() -> bool {
    let Ok(folder) = tempfile::Builder::new().prefix("ksnap-mount-").tempdir() else {
        return false;
    };
    let works =
        |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "ksnap-test"]).arg(folder.path());
    works(&mut mount) && works(Command::new("umount").arg(folder.path()))
}

/// Whether a user has an id in this user namespace (user_namespaces(7)).
pub fn is_mapped(user: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => user.wrapping_sub(first) < count,
            _ => false,
        }
    })
}

/// Tried out with an id that is taken, of which nothing is made: the kernel looks at the right first (alloc_pid in
/// kernel/pid.c).
pub fn may_choose_ids() -> bool {
    let taken = std::process::id() as libc::pid_t;
    // SAFETY: all zero is a valid value of it.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = (&raw const taken) as u64;
    args.set_tid_size = 1;
    // SAFETY: the arguments and the id are live, and no child shares memory with this process.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if child == 0 {
        // SAFETY: ends a child that there cannot be.
        unsafe { libc::_exit(0) };
    }
    child > 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST)
}

pub fn can_unshare_users() -> bool {
    Command::new("unshare")
        .args(["-U", "-r", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// As `ksnap doctor` finds.
pub fn can_load_probes() -> bool {
    Ksnap::new().is_ok_and(|ksnap| ksnap.has_probes().unwrap_or(false))
}

/// Tried out with the folder of temporary files.
pub fn can_open_by_handle() -> bool {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    /// `struct file_handle` in open_by_handle_at(2), with as much room as a handle may take.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        ty: i32,
        handle: [u8; 128],
    }
    let Ok(folder) = tempfile::tempdir() else {
        return false;
    };
    let Ok(opened) = std::fs::File::open(folder.path()) else {
        return false;
    };
    let mut handle = Handle {
        bytes: 128,
        ty: 0,
        handle: [0; 128],
    };
    let mut mount = 0i32;
    // SAFETY: an empty path, for the descriptor itself; the handle has the room that it says, and all are live. What is
    // opened is new, and nobody else's.
    unsafe {
        let named = libc::syscall(
            libc::SYS_name_to_handle_at,
            opened.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        );
        if named != 0 {
            return false;
        }
        let fd = libc::syscall(
            libc::SYS_open_by_handle_at,
            opened.as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_CLOEXEC,
        );
        if fd >= 0 {
            drop(OwnedFd::from_raw_fd(fd as i32));
        }
        fd >= 0
    }
}

pub fn can_open_raw_sockets() -> bool {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: what is opened is new, and nobody else's.
    unsafe {
        let fd = libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_ICMP,
        );
        if fd >= 0 {
            drop(OwnedFd::from_raw_fd(fd));
        }
        fd >= 0
    }
}

/// Tried out in a thread that ends with it.
pub fn can_raise_priority() -> bool {
    let raised = std::thread::spawn(|| {
        // SAFETY: takes integers; 0 is this thread alone.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -1) == 0 }
    });
    raised.join().is_ok_and(|raised| raised)
}

/// Tried out (time_namespaces(7)).
pub fn may_shift_clocks() -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args(["-T", "--monotonic", "1", "true"]);
    unshare.output().is_ok_and(|output| output.status.success())
}
