//! Marks of processes that a rollback has changed and not made whole yet.
//!
//! A mark is an empty file in the folder of the session, with all that it says in its name, so that making it is one
//! step that is done or not. It must outlive ksnap, killed at any moment, and nothing more: a process does not
//! outlive the kernel. So it is not synced, which would be time of the stop, and holds under its own boot only.

use super::directory::Store;
use super::error::StoreError;
use super::pruner::Pruner;
use crate::image::SessionId;
use std::io::ErrorKind;

/// Begins the names of marks.
const PREFIX: &str = "mixed-";

/// A process that may be as no moment had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixed {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// Where the kernel put its stack and its arguments: an exec lays both anew.
    pub program: (u64, u64),
}

impl Mixed {
    /// `mixed-<pid>-<start time>-<stack>-<arguments>-<boot>`.
    fn name(&self, boot: &str) -> String {
        let (stack, arguments) = self.program;
        format!(
            "{PREFIX}{}-{}-{stack:x}-{arguments:x}-{boot}",
            self.pid, self.start_time
        )
    }

    /// Of the same boot; `None` for any other name.
    fn parse(name: &str, boot: &str) -> Option<Self> {
        let mut words = name.strip_prefix(PREFIX)?.splitn(5, '-');
        let mixed = Self {
            pid: words.next()?.parse().ok()?,
            start_time: words.next()?.parse().ok()?,
            program: (hex(words.next()?)?, hex(words.next()?)?),
        };
        (mixed.name(boot) == name).then_some(mixed)
    }
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

impl Store {
    /// Marks a process of a session, until [`Store::unmark_mixed`]. Also when it is marked already.
    pub fn mark_mixed(&self, session: SessionId, mixed: &Mixed) -> Result<(), StoreError> {
        let path = self
            .session_path(session)
            .join(mixed.name(&self.boot_name()));
        match self.files.create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(StoreError::io("create", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes a mark away. Also when there is none.
    pub fn unmark_mixed(&self, session: SessionId, mixed: &Mixed) -> Result<(), StoreError> {
        let path = self
            .session_path(session)
            .join(mixed.name(&self.boot_name()));
        match self.files.remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Processes that are marked in a session, of this boot.
    pub fn mixed(&self, session: SessionId) -> Result<Vec<Mixed>, StoreError> {
        let (dir, boot) = (self.session_path(session), self.boot_name());
        let names = self.files.names(&dir);
        let names = names.map_err(StoreError::io("list", &dir))?;
        let marks = names.iter().filter_map(|name| Mixed::parse(name, &boot));
        Ok(marks.collect())
    }

    /// Takes all marks away but those of this boot that `stays` says yes to. As far as that goes: a mark of a process
    /// that is gone does no harm.
    pub fn sweep_mixed(&self, session: SessionId, stays: impl Fn(&Mixed) -> bool) {
        let (dir, boot) = (self.session_path(session), self.boot_name());
        for name in self.files.names(&dir).unwrap_or_default() {
            if name.starts_with(PREFIX)
                && !Mixed::parse(&name, &boot).is_some_and(|mixed| stays(&mixed))
            {
                let _ = self.files.remove_file(&dir.join(name));
            }
        }
    }

    fn boot_name(&self) -> String {
        self.files.boot().unwrap_or_default()
    }
}

impl Pruner {
    /// Processes that are marked in the session, of this boot.
    pub fn mixed(&self) -> Result<Vec<Mixed>, StoreError> {
        self.store.mixed(self.session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: Mixed = Mixed {
        pid: 7,
        start_time: 1234,
        program: (0x7ffc_0000_1000, 0x7ffc_0000_1fed),
    };

    #[test]
    fn names_of_marks_come_back_under_the_same_boot_alone() {
        let name = MIXED.name("aa-bb");
        assert_eq!(name, "mixed-7-1234-7ffc00001000-7ffc00001fed-aa-bb");
        assert_eq!(Mixed::parse(&name, "aa-bb"), Some(MIXED));
        for (name, boot) in [
            (name.as_str(), "aa-cc"),
            ("mixed-7-1234", "aa-bb"),
            ("mixed-+7-1234-7ffc00001000-7ffc00001fed-aa-bb", "aa-bb"),
            ("lock", "aa-bb"),
        ] {
            assert_eq!(Mixed::parse(name, boot), None, "{name} {boot}");
        }
    }

    #[test]
    fn a_mark_stays_for_whoever_opens_the_store_until_it_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(folder.path()).unwrap();
        let session = store.create_session(&Default::default()).unwrap();
        let id = session.id();
        assert_eq!(store.mixed(id).unwrap(), []);
        store.mark_mixed(id, &MIXED).unwrap();
        store.mark_mixed(id, &MIXED).unwrap();
        drop(session);
        let again = Store::open(folder.path()).unwrap();
        assert_eq!(again.mixed(id).unwrap(), [MIXED]);
        let other = Mixed { pid: 8, ..MIXED };
        store.mark_mixed(id, &other).unwrap();
        again.sweep_mixed(id, |mixed| mixed.pid == 7);
        assert_eq!(store.mixed(id).unwrap(), [MIXED]);
        store.unmark_mixed(id, &MIXED).unwrap();
        store.unmark_mixed(id, &MIXED).unwrap();
        assert_eq!(again.mixed(id).unwrap(), []);
        let names = std::fs::read_dir(folder.path().join(id.to_string())).unwrap();
        let mut left = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(left.all(|name| !name.starts_with(PREFIX)));
    }

    #[test]
    fn marks_of_an_earlier_boot_say_nothing_and_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(folder.path()).unwrap();
        let id = store.create_session(&Default::default()).unwrap().id();
        let old = folder
            .path()
            .join(id.to_string())
            .join(MIXED.name("another-boot"));
        std::fs::write(&old, "").unwrap();
        assert_eq!(store.mixed(id).unwrap(), []);
        store.sweep_mixed(id, |_| true);
        assert!(!old.exists());
    }
}
