//! Working inside another process's namespaces.

use super::handle::unescaped;
use super::{Result, SysError, own_time_offsets, proc};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// `NS_GET_USERNS` (ioctl_ns(2)).
const GET_OWNER: libc::c_ulong = 0xb701;
/// `NS_GET_ID` (linux/nsfs.h; Linux 6.18).
const GET_ID: libc::c_ulong = 0x8008_b70d;

/// The user namespace that owns the PID namespace of a process, by its inode number: privileges over the ids there are
/// those in it. EPERM where it is outside of ours.
pub fn owner_of_pid_namespace(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/pid");
    let failed = |call, e: std::io::Error| SysError::new(call, &path, e);
    let namespace = File::open(&path).map_err(|e| failed("open", e))?;
    owner_of(&namespace).map_err(|e| failed("ioctl(NS_GET_USERNS)", e))
}

fn owner_of(namespace: &File) -> std::io::Result<u64> {
    // SAFETY: a request without an argument, on an open file.
    let owner = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_OWNER) };
    if owner < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which nobody else has.
    let owner = unsafe { OwnedFd::from_raw_fd(owner) };
    Ok(rustix::fs::fstat(&owner)?.st_ino)
}

/// The user namespace of this process, by its inode number.
pub fn own_users() -> Option<u64> {
    let meta = std::fs::metadata("/proc/self/ns/user").ok()?;
    Some(meta.ino())
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
    in_namespace(namespace.as_fd(), work)
}

/// Runs `work` on a thread that enters a namespace, which is neither of users nor of mounts.
pub fn in_namespace<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(namespace, None).map_err(|e| {
                SysError::new("setns", "a namespace of a process", std::io::Error::from(e))
            })?;
            Ok(work())
        });
        match inside.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Kinds of namespaces that a new process can enter, as their files in `/proc/PID/ns` are named.
const ENTERED: [&str; 4] = ["net", "ipc", "uts", "cgroup"];

/// What the kernel numbers a process's namespaces of these kinds with. Unlike an inode number, no other gets it while the
/// machine runs. None before Linux 6.18.
pub fn namespace_ids(pid: i32) -> Vec<(&'static str, u64)> {
    let id = |kind: &str| id_of(&File::open(format!("/proc/{pid}/ns/{kind}")).ok()?);
    let all = ENTERED.into_iter();
    all.filter_map(|kind| Some((kind, id(kind)?))).collect()
}

fn id_of(namespace: &File) -> Option<u64> {
    let mut id = 0u64;
    // SAFETY: the request fills the number, a live local.
    let done = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_ID, &raw mut id) };
    (done == 0).then_some(id)
}

/// Which namespace is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    /// As its file in `/proc/PID/ns` is named.
    pub kind: &'a str,
    /// Its inode number.
    pub inode: u64,
    /// What [`namespace_ids`] said.
    pub id: Option<u64>,
    /// When it had this number, in nanoseconds since the machine's start.
    pub at_ns: u64,
}

/// Opens a namespace, if it is still there: with a process in it, or mounted as `ip netns` does. Without an id it is taken
/// for the same if a process is in it that began before, and it belongs to this process's user namespace: whoever may make
/// one there, and so one with the same number, is trusted.
pub fn find_namespace(sought: Sought<'_>) -> Option<OwnedFd> {
    let link = format!("{}:[{}]", sought.kind, sought.inode);
    let is_it = |file: &File| match sought.id {
        Some(id) => id_of(file) == Some(id),
        None => {
            let is_found = file.metadata().is_ok_and(|meta| meta.ino() == sought.inode);
            is_found && owner_of(file).is_ok_and(|owner| own_users() == Some(owner))
        }
    };
    let of_processes = proc::processes().into_iter().filter_map(|pid| {
        let path = format!("/proc/{pid}/ns/{}", sought.kind);
        let found = std::fs::read_link(&path).ok()?;
        if found.as_os_str() != link.as_str() {
            return None;
        }
        let old = || proc::stat(pid, None).is_ok_and(|stat| began_ns(&stat) <= sought.at_ns);
        (sought.id.is_some() || old()).then_some(path.into())
    });
    let mounted = || -> Vec<PathBuf> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let of_line = |line: &str| {
            let mut words = line.split(' ').skip(3);
            let (root, at) = (words.next()?, words.next()?);
            (root == link).then(|| unescaped(at).into())
        };
        text.lines().filter_map(of_line).collect()
    };
    let by_mount = sought.id.map(|_| mounted()).unwrap_or_default();
    let mut open = of_processes
        .chain(by_mount)
        .filter_map(|path: PathBuf| File::open(path).ok());
    open.find(is_it).map(OwnedFd::from)
}

/// When a process began, at the latest, in nanoseconds since the machine's start. The file counts from that of this process's
/// time namespace, in ticks.
fn began_ns(stat: &proc::Stat) -> u64 {
    let ticks = rustix::param::clock_ticks_per_second();
    let since = (stat.start_time + 1).saturating_mul(1_000_000_000 / ticks);
    since.saturating_add_signed(-own_time_offsets()[1])
}

/// Either lets a process choose ids in a PID namespace (capabilities(7)).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

/// Whether a process may choose the ids of its threads and children itself, in the PID namespace that is also ours.
pub fn chooses_ids(pid: i32) -> bool {
    let (Ok(theirs), Ok(ours)) = (
        proc::namespaces(pid),
        proc::namespaces(std::process::id() as i32),
    ) else {
        return false;
    };
    let of = |all: &[(String, u64)], name| all.iter().find(|one| one.0 == name).map(|one| one.1);
    let same = |name| of(&theirs, name).is_some_and(|namespace| of(&ours, name) == Some(namespace));
    // A user namespace alone has no say in the ids of a PID namespace that was there before.
    let owns_ids = || of(&theirs, "user") == owner_of_pid_namespace(pid).ok();
    same("pid")
        && same("user")
        && owns_ids()
        && has_one_of(pid, CAP_SYS_ADMIN | CAP_CHECKPOINT_RESTORE)
}

/// Whether this process may make namespaces without a user namespace around them (`CAP_SYS_ADMIN` in namespaces(7)).
pub fn makes_namespaces() -> bool {
    has_one_of(std::process::id() as i32, CAP_SYS_ADMIN)
}

/// Every capability that this kernel has: what the first process of a user namespace holds there.
pub fn all_capabilities() -> Result<u64> {
    const LAST: &str = "/proc/sys/kernel/cap_last_cap";
    let failed = |e| SysError::new("read", LAST, e);
    let text = std::fs::read_to_string(LAST).map_err(failed)?;
    let last = text.trim().parse().ok().filter(|last: &u32| *last < 64);
    let last = last.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
    Ok(u64::MAX >> (63 - last))
}

fn has_one_of(pid: i32, capabilities: u64) -> bool {
    const EFFECTIVE: usize = 2;
    let status = proc::task_status(pid, pid);
    status.is_ok_and(|status| status.credentials.capabilities[EFFECTIVE] & capabilities != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Birth, Stub};

    #[test]
    fn a_namespace_is_found_while_it_is_there_and_taken_for_no_other() {
        let birth = Birth {
            namespace: true,
            network: true,
            ..Birth::default()
        };
        let stub = match Stub::start(birth, &[], &[]) {
            Err(e) if e.is_denied() => {
                return crate::skip::without_root("the right to make namespaces");
            }
            started => started.unwrap(),
        };
        let all = proc::namespaces(stub.pid()).unwrap();
        let inode = all.iter().find(|(kind, _)| kind == "net").unwrap().1;
        let ids = namespace_ids(stub.pid());
        let id = ids.iter().find(|(kind, _)| *kind == "net").map(|one| one.1);
        let sought = |id, at_ns| {
            find_namespace(Sought {
                kind: "net",
                inode,
                id,
                at_ns,
            })
        };
        // Without an id, by a process that was in it at that time.
        assert!(sought(None, u64::MAX).is_some());
        assert!(sought(None, 0).is_none());
        let found = sought(id, u64::MAX).unwrap();
        assert_eq!(rustix::fs::fstat(&found).unwrap().st_ino, inode);
        if let Some(id) = id {
            assert!(sought(Some(id), 0).is_some());
            assert!(sought(Some(id + 1000), u64::MAX).is_none());
        }
        let inside = in_namespace(found.as_fd(), || {
            std::fs::read_link("/proc/thread-self/ns/net")
        });
        let link = inside.unwrap().unwrap();
        assert_eq!(link.to_string_lossy(), format!("net:[{inode}]"));
        drop((found, stub));
        assert!(sought(id, u64::MAX).is_none());
    }

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
