//! A store in memory: where it is, and how large it may get.
//!
//! It is a file system in memory that ksnap mounts itself, so that it outlives every ksnap and every watched process,
//! and any verb can read it; where ksnap may not mount, a folder of the one that is there (`/dev/shm`).

use super::{Result, SessionError};
use crate::store::Store;
use crate::sys::{is_mount_point, mount_memory, resize_memory, room, usable_memory};
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where root's is.
const MOUNTED: &str = "/run/ksnap/ram";
/// Of the memory there is, the part that a store takes at most unless the user says otherwise: one in so many.
const SHARE: u64 = 4;
/// Names another place.
const VARIABLE: &str = "KSNAP_RAM";

/// A store in memory that is ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram {
    /// Its folder.
    pub dir: PathBuf,
    /// Most bytes in it.
    pub most: u64,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// The folder in `/dev/shm`, for who may not mount.
fn shared(uid: u32) -> PathBuf {
    PathBuf::from(format!("/dev/shm/ksnap-{uid}"))
}

/// Where a store in memory may be, in the order in which it is looked for.
fn places(variable: Option<OsString>, uid: u32) -> Vec<PathBuf> {
    match variable.filter(|value| !value.is_empty()) {
        Some(named) => vec![named.into()],
        None if uid == 0 => vec![MOUNTED.into(), shared(uid)],
        None => vec![shared(uid)],
    }
}

fn known_places() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    places(std::env::var_os(VARIABLE), uid)
}

/// Where the store in memory is, or would be: `KSNAP_RAM`, else `/run/ksnap/ram` for root and
/// `/dev/shm/ksnap-UID` for others. Makes nothing.
///
/// # Errors
/// Where there is none, and another user could put one.
pub fn ram_dir() -> Result<PathBuf> {
    find(known_places())
}

/// The first of these that is a store of this user's alone; without one the first that is to be made.
fn find(mut places: Vec<PathBuf>) -> Result<PathBuf> {
    let is_ours = |dir: &PathBuf| belongs_to_us(dir).is_ok() && Store::open(dir).is_ok();
    let there = places.iter().position(is_ours);
    let found = places.swap_remove(there.unwrap_or(0));
    if there.is_none() && found.symlink_metadata().is_ok() {
        belongs_to_us(&found)?;
    }
    Ok(found)
}

/// Makes the store in memory ready, or adopts the one that is there. `size`: most bytes in it; unless said otherwise a
/// quarter of the memory, or what it has already.
///
/// # Errors
/// Where there is no memory file system and none can be mounted, or another user was there first.
pub(super) fn open_ram(size: Option<u64>) -> Result<Ram> {
    let memory = usable_memory();
    if let (Some(size), Some(memory)) = (size, memory)
        && size > memory
    {
        return Err(SessionError::Usage(format!(
            "--ram={size}: more than the {memory} bytes of memory that there are; name a part of them, or leave the \
             size out for a quarter"
        )));
    }
    let usual = memory.map_or(1 << 30, |all| all / SHARE);
    let places = known_places();
    for dir in &places {
        if let Some(ram) = prepare(dir, size, usual)? {
            return Ok(ram);
        }
    }
    Err(SessionError::Usage(format!(
        "{} is on a disk, and mounting a file system in memory there is not permitted (CAP_SYS_ADMIN): name a folder \
         on one with {VARIABLE}, or run as root",
        places[0].display()
    )))
}

/// `None`: it is not in memory, and may not be mounted.
fn prepare(dir: &Path, size: Option<u64>, usual: u64) -> Result<Option<Ram>> {
    let io = |what: &str| SessionError::io(format!("{what} {}", dir.display()));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io("create the folder of the store in memory,"))?;
    // Two that start at once must not mount one over the other; the lock is of the folder below both.
    let folder = File::open(dir).map_err(io("open"))?;
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| io("lock")(e.into()))?;
    let mut notes = Vec::new();
    let mut mounted = is_mount_point(dir);
    if !mounted {
        match mount_memory(dir, size.unwrap_or(usual)) {
            Ok(unswapped) => {
                mounted = true;
                if !unswapped && has_swap() {
                    notes.push(
                        "the kernel may write the store in memory to its swap space (before Linux 6.4 it cannot be \
                         kept from it): without swap nothing touches a disk"
                            .into(),
                    );
                }
            }
            Err(error) if error.is_denied() && room(dir)?.in_memory => {}
            Err(error) if error.is_denied() => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    let found = room(dir)?;
    if !found.in_memory {
        return Err(SessionError::Usage(format!(
            "{} is a mounted file system on a disk: name another folder with {VARIABLE}",
            dir.display()
        )));
    }
    belongs_to_us(dir)?;
    let most = match (mounted, size) {
        (true, Some(size)) if size.abs_diff(found.total) >= 1 << 20 => {
            resize_memory(dir, size).map_err(|error| match error.errno() {
                Some(libc::EINVAL) => SessionError::Usage(format!(
                    "--ram={size}: there is more than that in {} already: make room with `ksnap prune --ram`",
                    dir.display()
                )),
                _ => error.into(),
            })?;
            size
        }
        (true, _) => found.total,
        // The file system is not ours to bound: the rules alone do it.
        (false, size) => {
            notes.push(format!(
                "{} is a folder of a file system that others use too: its size is kept by removing snapshots",
                dir.display()
            ));
            size.unwrap_or(usual).min(found.total)
        }
    };
    Ok(Some(Ram {
        dir: dir.to_owned(),
        most,
        notes,
    }))
}

/// In a folder for everyone, such as `/dev/shm`, another user may have made it first, to read what is put there.
fn belongs_to_us(dir: &Path) -> Result<()> {
    let found = std::fs::symlink_metadata(dir)
        .map_err(SessionError::io(format!("look at {}", dir.display())))?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    match found.is_dir() && own && found.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(SessionError::Usage(format!(
            "{} is no folder of yours alone: name another one with {VARIABLE}",
            dir.display()
        ))),
    }
}

fn has_swap() -> bool {
    // The first line is a heading: proc_swaps(5).
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

/// A folder that is not there yet is no store in memory.
pub(super) fn lies_in_memory(dir: &Path) -> bool {
    match std::fs::metadata(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        _ => room(dir).is_ok_and(|room| room.in_memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_comes_before_the_usual_places() {
        let text = |places: Vec<PathBuf>| -> Vec<String> {
            places.iter().map(|p| p.display().to_string()).collect()
        };
        assert_eq!(text(places(Some("/x".into()), 0)), ["/x"]);
        assert_eq!(
            text(places(Some("".into()), 0)),
            ["/run/ksnap/ram", "/dev/shm/ksnap-0"]
        );
        assert_eq!(text(places(None, 1000)), ["/dev/shm/ksnap-1000"]);
    }

    #[test]
    fn a_store_that_others_may_have_put_there_is_passed_over() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let store = |name: &str, mode| {
            Store::open_or_create(&at(name)).expect("a store");
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(at(name), permissions).expect("mine");
        };
        store("open to all", 0o777);
        store("own", 0o700);
        let find = |names: &[&str]| find(names.iter().map(|name| at(name)).collect());
        assert_eq!(find(&["open to all", "own"]).expect("one"), at("own"));
        assert_eq!(find(&["none", "open to all"]).expect("to make"), at("none"));
        assert_eq!(find(&["none", "own"]).expect("one"), at("own"));
        let refused = find(&["open to all", "none"]).expect_err("not mine alone");
        assert!(
            refused.to_string().contains("no folder of yours alone"),
            "{refused}"
        );
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mode = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path(), permissions).expect("mine");
        };
        mode(0o700);
        assert!(belongs_to_us(folder.path()).is_ok());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("a link");
        assert!(belongs_to_us(&link).is_err());
        mode(0o755);
        let error = belongs_to_us(folder.path()).expect_err("others may look");
        assert!(
            error.to_string().contains("no folder of yours alone"),
            "{error}"
        );
    }
}
