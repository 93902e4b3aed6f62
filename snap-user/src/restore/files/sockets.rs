//! Making sockets that are not one of a pair.

use crate::model::{Socket, SocketOption, SocketState};
use crate::sys::{self, SysError, fd::socket as made};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, openat, statat, unlinkat,
};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Makes a socket of process `pid` as it was; what could not be set is told, a sentence each.
///
/// # Errors
/// Also where its name in a file system would come to be in another folder than it has for the process.
pub(super) fn make(wanted: &Socket, pid: i32) -> sys::Result<(OwnedFd, Vec<String>)> {
    let mut notes = Vec::new();
    let stream = wanted.ty != libc::SOCK_DGRAM || wanted.domain == libc::AF_UNIX;
    let was_connected = matches!(wanted.state, SocketState::Connected | SocketState::Other);
    if was_connected && stream {
        return match wanted.domain {
            libc::AF_UNIX => {
                let socket = orphan(wanted)?;
                set_options(&socket, wanted, &mut notes);
                Ok((socket, notes))
            }
            _ => {
                let socket = made::dead_stream(wanted.domain)
                    .or_else(|_| made::socket(wanted.domain, wanted.ty, wanted.protocol))?;
                set_options(&socket, wanted, &mut notes);
                Ok((socket, notes))
            }
        };
    }
    let socket = made::socket(wanted.domain, wanted.ty, wanted.protocol)?;
    set_options(&socket, wanted, &mut notes);
    if !wanted.local.is_empty() {
        bind(&socket, wanted, pid, &mut notes)?;
    }
    match wanted.state {
        SocketState::Listening(backlog) => {
            // listen(2) looks at the port once more, where connections may be held by others (ksnap-tcp).
            let borrowed = borrows_reuse(wanted);
            if borrowed {
                made::set_option(&socket, &reuse(1))?;
            }
            made::listen(&socket, backlog)?;
            if borrowed {
                made::set_option(&socket, &reuse(0))?;
            }
        }
        SocketState::Connected => {
            let folder = match wanted.domain {
                libc::AF_UNIX => Folder::of(&wanted.peer, pid).map(drop),
                _ => Ok(()),
            };
            if let Err(e) = folder.and_then(|()| made::connect(&socket, &wanted.peer)) {
                notes.push(format!("it is not connected any more ({e})"));
            }
        }
        SocketState::Idle | SocketState::Other => {}
    }
    Ok((socket, notes))
}

/// A Unix socket whose other side has gone: what it had received is still there to be read, then the end.
fn orphan(wanted: &Socket) -> sys::Result<OwnedFd> {
    let (socket, other) = made::pair(wanted.ty)?;
    for message in &wanted.queue {
        send_all(&other, &message.data)?;
    }
    Ok(socket)
}

/// Sends a message into a queue that may be too small for it by its present settings.
pub(super) fn send_all(socket: impl AsFd, data: &[u8]) -> sys::Result<()> {
    match made::send(&socket, data) {
        Err(e) if matches!(e.errno(), Some(libc::EAGAIN | libc::EMSGSIZE)) => {
            let room = (data.len() as i32).saturating_mul(4);
            let value = room.to_ne_bytes().to_vec();
            let (level, name) = (libc::SOL_SOCKET, libc::SO_SNDBUF);
            made::set_option(&socket, &SocketOption { level, name, value })?;
            made::send(&socket, data)
        }
        done => done,
    }
}

/// Sets options; each one that cannot be set is told.
pub(super) fn set_options(socket: impl AsFd, wanted: &Socket, notes: &mut Vec<String>) {
    for option in &wanted.options {
        if let Err(e) = made::set_option(&socket, option) {
            notes.push(not_set(option, &e));
        }
    }
}

/// Tells of an option that could not be set.
pub(super) fn not_set(option: &SocketOption, e: &SysError) -> String {
    format!(
        "option {} of level {} could not be set ({})",
        option.name, option.level, e.source
    )
}

/// `SO_REUSEADDR`.
fn reuse(on: i32) -> SocketOption {
    SocketOption {
        level: libc::SOL_SOCKET,
        name: libc::SO_REUSEADDR,
        value: on.to_ne_bytes().to_vec(),
    }
}

/// A stream socket without `SO_REUSEADDR`, which it has for the time in which it gets its address.
fn borrows_reuse(wanted: &Socket) -> bool {
    let reuse = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    let was_on = wanted.options.iter().any(|o| (o.level, o.name) == reuse);
    let inet = matches!(wanted.domain, libc::AF_INET | libc::AF_INET6);
    inet && wanted.ty == libc::SOCK_STREAM && !was_on
}

fn bind(socket: impl AsFd, wanted: &Socket, pid: i32, notes: &mut Vec<String>) -> sys::Result<()> {
    match wanted.domain {
        libc::AF_UNIX => bind_unix(socket, &wanted.local, pid, notes),
        libc::AF_INET | libc::AF_INET6 => {
            // Connections of the one before may still be closing.
            if borrows_reuse(wanted) {
                made::set_option(&socket, &reuse(1))?;
                made::bind(&socket, &wanted.local)?;
                return made::set_option(&socket, &reuse(0));
            }
            made::bind(socket, &wanted.local)
        }
        libc::AF_NETLINK => made::bind(&socket, &wanted.local).or_else(|e| {
            // Its number may be another one's now; the kernel chooses a free one for 0.
            let mut any = wanted.local.clone();
            match any.get_mut(4..8) {
                Some(number) => number.fill(0),
                None => return Err(e),
            }
            notes.push("its number among the netlink sockets is another one now".into());
            made::bind(&socket, &any)
        }),
        // The kernel tells less of it than it wants to be told.
        libc::AF_PACKET => {
            let mut address = wanted.local.clone();
            address.resize(address.len().max(PACKET_ADDRESS), 0);
            made::bind(socket, &address)
        }
        _ => made::bind(socket, &wanted.local),
    }
}

/// Bytes of `struct sockaddr_ll`.
const PACKET_ADDRESS: usize = 20;

/// Where a name of a Unix socket is.
struct Folder<'a> {
    path: &'a Path,
    folder: OwnedFd,
    name: &'a OsStr,
}

impl<'a> Folder<'a> {
    /// Of an address of process `pid`; `None` where that is no path from the root.
    ///
    /// # Errors
    /// The folder is another one for the process than for ksnap, by whose root the kernel looks the address up.
    fn of(address: &'a [u8], pid: i32) -> sys::Result<Option<Self>> {
        let name = address.get(2..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = Path::new(OsStr::from_bytes(name));
        let (Some(parent), Some(name), true) =
            (path.parent(), path.file_name(), path.is_absolute())
        else {
            return Ok(None);
        };
        let failed = |call| move |e: rustix::io::Errno| SysError::new(call, path.display(), e);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed("open"))?;
        let theirs = sys::open_in_root(pid, parent, (libc::O_PATH | libc::O_DIRECTORY) as u32)?;
        let [ours, theirs] = [&folder, &theirs].map(|folder| {
            let stat = fstat(folder).map_err(failed("stat"))?;
            Ok::<_, SysError>((stat.st_dev, stat.st_ino))
        });
        match ours? == theirs? {
            true => Ok(Some(Self { path, folder, name })),
            false => Err(SysError::new(
                "bind or connect",
                path.display(),
                std::io::Error::other(format!(
                    "process {pid} has another root or mount namespace, and another folder there"
                )),
            )),
        }
    }
}

/// A socket that nobody serves any more leaves its name behind, which is replaced: owner and permissions of the name, which
/// say who may connect, stay. All of it in the folder as it was opened once, whatever others make of its path.
fn bind_unix(
    socket: impl AsFd,
    address: &[u8],
    pid: i32,
    notes: &mut Vec<String>,
) -> sys::Result<()> {
    let place = Folder::of(address, pid)?;
    let Err(e) = made::bind(&socket, address) else {
        return Ok(());
    };
    let (Some(Folder { path, folder, name }), Some(libc::EADDRINUSE)) = (place, e.errno()) else {
        return Err(e);
    };
    let failed = |call| move |e: rustix::io::Errno| SysError::new(call, path.display(), e);
    let stale = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
    if !is_socket(&stale) || is_served(address)? {
        return Err(e);
    }
    unlinkat(&folder, name, AtFlags::empty()).map_err(failed("unlink"))?;
    made::bind(socket, address)?;
    if let Err(e) = give(&folder, name, &stale) {
        notes.push(format!(
            "{} has other permissions than before, which say who may connect ({e})",
            path.display()
        ));
    }
    Ok(())
}

/// Gives the name of a socket the owner and the permissions of another one.
fn give(folder: &OwnedFd, name: &OsStr, as_of: &Stat) -> std::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(folder, name, flags, Mode::empty())?;
    if !is_socket(&fstat(&made)?) {
        return Err(std::io::Error::other("another file has that name by now"));
    }
    // The owner first: changing it may take permissions away.
    let (uid, gid) = (Uid::from_raw(as_of.st_uid), Gid::from_raw(as_of.st_gid));
    chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    let permissions = fs::Permissions::from_mode(as_of.st_mode & 0o7777);
    fs::set_permissions(format!("/proc/self/fd/{}", made.as_raw_fd()), permissions)
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}

/// Somebody has the address, rather than only its name in a file system.
fn is_served(address: &[u8]) -> sys::Result<bool> {
    let probe = made::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let refused = made::connect(&probe, address).err();
    Ok(refused.is_none_or(|e| e.errno() != Some(libc::ECONNREFUSED)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, chown};
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    fn listening(path: &Path) -> Socket {
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        Socket {
            domain: libc::AF_UNIX,
            ty: libc::SOCK_STREAM,
            state: SocketState::Listening(5),
            local: [&family[..], path.as_os_str().as_bytes(), &[0]].concat(),
            ..Socket::default()
        }
    }

    fn make_here(wanted: &Socket) -> sys::Result<(OwnedFd, Vec<String>)> {
        make(wanted, std::process::id() as i32)
    }

    /// It has another folder at this path than all others.
    fn elsewhere(folder: &Path) -> Option<Child> {
        let script = format!("mount -t tmpfs none '{}' && exec cat", folder.display());
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .spawn()
            .ok()?;
        let comm = format!("/proc/{}/comm", child.id());
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if fs::read(&comm).is_ok_and(|comm| comm == b"cat\n") {
                return Some(child);
            }
            std::thread::yield_now();
        }
        None
    }

    #[test]
    fn a_name_in_a_folder_that_is_another_one_for_the_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let Some(mut other) = elsewhere(folder.path()) else {
            return crate::skip::without_root("the right to mount");
        };
        let pid = other.id() as i32;
        let (path, new) = (folder.path().join("socket"), folder.path().join("new"));
        drop(UnixListener::bind(&path));
        let before = fs::symlink_metadata(&path).unwrap().ino();
        let refused = [&path, &new].map(|path| make(&listening(path), pid));
        // Nobody else's: such names belong to the whole machine.
        let name = format!("\0ksnap-test-{}", std::process::id());
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        let abstracted = Socket {
            local: [&family[..], name.as_bytes()].concat(),
            ..listening(&path)
        };
        let has_no_folder = make(&abstracted, pid);
        other.kill().unwrap();
        other.wait().unwrap();
        for refused in refused {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("another folder"), "{error}");
        }
        has_no_folder.unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), before);
        assert!(!new.exists());
    }

    #[test]
    fn the_name_of_a_socket_that_nobody_serves_keeps_its_owner() {
        if !rustix::process::geteuid().is_root() {
            return crate::skip::without_root("the right to give files away");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path));
        if let Err(e) = chown(&path, Some(65_534), Some(7)) {
            return crate::skip::without_root(&format!("the right to give files away ({e})"));
        }
        let (_made, notes) = make_here(&listening(&path)).unwrap();
        assert!(notes.is_empty(), "{notes:?}");
        let now = fs::symlink_metadata(&path).unwrap();
        assert_eq!((now.uid(), now.gid()), (65_534, 7));
    }

    #[test]
    fn the_name_of_a_socket_that_nobody_serves_keeps_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for mode in [0o600, 0o777] {
            // Its name stays behind.
            drop(UnixListener::bind(&path));
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let (made, notes) = make_here(&listening(&path)).unwrap();
            assert!(notes.is_empty(), "{notes:?}");
            let now = fs::symlink_metadata(&path).unwrap();
            assert_eq!(now.mode() & 0o7777, mode);
            std::os::unix::net::UnixStream::connect(&path).unwrap();
            let served = make_here(&listening(&path)).unwrap_err();
            assert_eq!(served.errno(), Some(libc::EADDRINUSE));
            drop(made);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_file_that_has_the_name_of_a_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        fs::write(&path, "somebody's").unwrap();
        let taken = make_here(&listening(&path)).unwrap_err();
        assert_eq!(taken.errno(), Some(libc::EADDRINUSE));
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }
}
