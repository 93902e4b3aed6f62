//! Which files of a store are sealed: in the folder of a session that has a key, all that say anything of the process.

use super::blocks::{Blocks, sizes};
use super::keys::{Keys, SessionKey, random};
use super::reader::SealedReader;
use super::writer::SealedWriter;
use crate::image::SessionId;
use crate::store::files::{Files, Locking, ReadFile, Stamp, WriteFile};
use crate::store::names::{COPIED, LOCK_FILE, TEMP_PREFIX};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The key of a session, encrypted. A session that has one is sealed.
pub(in crate::store) const KEY_FILE: &str = "key.age";
/// Longest that is read.
const LONGEST_KEY: u64 = 1 << 20;

/// Files of which those of sealed sessions are opened and sealed on their way.
#[derive(Debug)]
pub(in crate::store) struct Sealing {
    inner: Arc<dyn Files>,
    keys: Arc<Keys>,
}

/// What a file in a session's folder is for: the same under its temporary name and under its own, and never that of
/// another file. `None`: it says nothing of the process, and is never sealed.
fn purpose(name: &str) -> Option<String> {
    let name = match name.strip_prefix(TEMP_PREFIX) {
        None => name,
        Some(rest) => {
            if let Some(generation) = rest.strip_prefix("pack-") {
                return Some(format!("pack {generation}"));
            }
            match rest.split_once('-') {
                Some((pid, name)) if is_number(pid) => name,
                None if is_number(rest) => return Some(format!("snapshot {rest}")),
                _ => rest,
            }
        }
    };
    // Under which boot which number is durable; that a process is mixed: docs/format.md says what these tell.
    let clear = [KEY_FILE, LOCK_FILE, COPIED, "volatile"].contains(&name);
    if clear || name.starts_with("mixed-") {
        return None;
    }
    if let Some(stem) = name.strip_suffix(".ksnap") {
        let number = stem.split('-').next().unwrap_or_default();
        return Some(format!("snapshot {number}"));
    }
    Some(match name.strip_suffix(".kpack") {
        Some(generation) => format!("pack {generation}"),
        None => name.to_owned(),
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The session in whose folder a file is, also before that has its name.
fn session_of(dir: &Path) -> Option<SessionId> {
    let name = dir.file_name()?.to_str()?;
    SessionId::from_hex(name.strip_prefix(TEMP_PREFIX).unwrap_or(name))
}

impl Sealing {
    pub(in crate::store) fn new(inner: Arc<dyn Files>, keys: Arc<Keys>) -> Self {
        Self { inner, keys }
    }

    /// Where they are, sealed.
    pub(in crate::store) fn inner(&self) -> Arc<dyn Files> {
        Arc::clone(&self.inner)
    }

    /// The key of the session in a folder; `None` where it is not sealed.
    pub(in crate::store) fn session_key(&self, dir: &Path) -> io::Result<Option<Arc<SessionKey>>> {
        let Some(session) = session_of(dir) else {
            return Ok(None);
        };
        // Also when the key's file is gone: nothing is stored in plain because of that.
        if let Some(key) = self.keys.known(session) {
            return Ok(Some(key));
        }
        if !self.has_key(dir)? {
            return Ok(None);
        }
        let path = dir.join(KEY_FILE);
        let open = self.keys.open(session, &path, || self.wrapped_key(dir));
        open.map(Some)
    }

    /// Whether the session in a folder is sealed, also one that cannot be read.
    pub(in crate::store) fn has_key(&self, dir: &Path) -> io::Result<bool> {
        match self.inner.stat(&dir.join(KEY_FILE)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The encrypted key of a session.
    pub(in crate::store) fn wrapped_key(&self, dir: &Path) -> io::Result<Vec<u8>> {
        let file = self.inner.open(&dir.join(KEY_FILE))?;
        let mut bytes = vec![0; file.len()?.min(LONGEST_KEY) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Length in the file system and modification time of a file, sealed or not.
    pub(in crate::store) fn raw_stamp(&self, path: &Path) -> io::Result<Stamp> {
        self.inner.stat(path)
    }

    /// Whether a file has a length that one of a sealed session can have: all that can be said without a key.
    pub(in crate::store) fn has_shape(&self, path: &Path) -> io::Result<()> {
        Ok(sizes(self.inner.stat(path)?.len).map(drop)?)
    }

    /// The key for a file, and what it is for; `None` where it is not sealed.
    fn seal_of(&self, path: &Path) -> io::Result<Option<(Arc<SessionKey>, String)>> {
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(dir), Some(purpose)) = (path.parent(), name.and_then(purpose)) else {
            return Ok(None);
        };
        Ok(self.session_key(dir)?.map(|key| (key, purpose)))
    }
}

impl Files for Sealing {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let seal = self.seal_of(path)?;
        let file = self.inner.create(path)?;
        let Some((key, purpose)) = seal else {
            return Ok(file);
        };
        let blocks = Blocks::new(&key, &purpose, random()?);
        Ok(Box::new(SealedWriter::new(file, blocks)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let seal = self.seal_of(path)?;
        let file = self.inner.open(path)?;
        Ok(match seal {
            None => file,
            Some((key, purpose)) => Box::new(SealedReader::open(file, &key, &purpose)?),
        })
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.names(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let of = |path: &Path| path.file_name().and_then(|name| purpose(name.to_str()?));
        if of(from) != of(to) && self.seal_of(from)?.or(self.seal_of(to)?).is_some() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a sealed file keeps the purpose that it was sealed for",
            ));
        }
        self.inner.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        // Under another name, let alone in another session, nobody could read it.
        match self.seal_of(from)?.or(self.seal_of(to)?) {
            None => self.inner.link(from, to),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a sealed file has one name",
            )),
        }
    }

    fn names_of(&self, path: &Path) -> io::Result<u64> {
        self.inner.names_of(path)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_file(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn stat(&self, path: &Path) -> io::Result<Stamp> {
        let stamp = self.inner.stat(path)?;
        Ok(match self.seal_of(path)? {
            None => stamp,
            Some(_) => Stamp {
                len: sizes(stamp.len)?.1,
                ..stamp
            },
        })
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.seal_of(path)? {
            None => self.inner.append(path, bytes),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a sealed file does not grow",
            )),
        }
    }

    fn can_append(&self, path: &Path) -> bool {
        matches!(self.seal_of(path), Ok(None))
    }

    fn boot(&self) -> Option<String> {
        self.inner.boot()
    }

    fn is_in_memory(&self, dir: &Path) -> bool {
        self.inner.is_in_memory(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Locking> {
        self.inner.lock(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_purpose_under_all_of_its_names() {
        let id = "0123456789abcdef0123456789abcdef";
        let of = |name: &str| purpose(name).unwrap_or_else(|| "none".into());
        for (name, want) in [
            (format!("00000007-{id}.ksnap"), "snapshot 00000007"),
            (".tmp-00000007".into(), "snapshot 00000007"),
            ("00000002.kpack".into(), "pack 00000002"),
            (".tmp-pack-00000002".into(), "pack 00000002"),
            ("session.json".into(), "session.json"),
            (".tmp-4711-session.json".into(), "session.json"),
            ("headers".into(), "headers"),
            (".tmp-headers".into(), "headers"),
            ("whatever".into(), "whatever"),
            ("lock".into(), "none"),
            (".tmp-4711-copied".into(), "none"),
            (".tmp-4711-volatile".into(), "none"),
            (".tmp-4711-key.age".into(), "none"),
            ("mixed-1-2-3-4-5".into(), "none"),
        ] {
            assert_eq!(of(&name), want, "{name}");
        }
    }
}
