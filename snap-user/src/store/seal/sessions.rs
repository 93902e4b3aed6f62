//! What a store says of sealed sessions, and the small files outside their folders that are sealed as well.

use super::SessionKey;
use super::blocks::{Blocks, VERSION};
use super::error::SealError;
use super::keys::{Keys, Recipients, random};
use super::reader::SealedReader;
use super::writer::SealedWriter;
use crate::image::SessionId;
use crate::model::SnapshotId;
use crate::store::directory::Store;
use crate::store::error::StoreError;
use crate::store::files::{ReadFile, WriteFile};
use crate::store::names;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A sealed session that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSession {
    /// Its name.
    pub id: SessionId,
    /// Snapshots in it, by the names of their files.
    pub snapshots: Vec<SnapshotId>,
    /// When the newest of their files was written, nanoseconds since 1970.
    pub newest_ns: u64,
    /// A key was named, and is not the one.
    pub wrong_key: bool,
}

impl SealedSession {
    /// Why it cannot be read, as an error about `what`.
    pub fn error(&self, what: impl Into<String>) -> StoreError {
        let what = what.into();
        match self.wrong_key {
            true => StoreError::WrongIdentity { what, stored: true },
            false => StoreError::Sealed { what },
        }
    }
}

impl Store {
    /// What it opens and seals with.
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The same store, where what is begun is sealed for these recipients.
    pub fn sealing_for(&self, recipients: Recipients) -> Result<Self, StoreError> {
        let files = self.sealing.inner();
        Self::open_with_keys(files, self.keys.sealing_for(recipients), &self.dir)
    }

    /// What this process stores is sealed.
    pub fn seals(&self) -> bool {
        self.keys.recipients().is_some()
    }

    /// The public keys for which this process seals, as text.
    pub fn recipients(&self) -> Vec<String> {
        self.keys.recipients().names()
    }

    /// Whether a session is sealed, also one that cannot be read.
    pub fn is_sealed(&self, session: SessionId) -> Result<bool, StoreError> {
        if self.keys.known(session).is_some() {
            return Ok(true);
        }
        let dir = self.session_path(session);
        self.sealing
            .has_key(&dir)
            .map_err(StoreError::io("stat the key of", &dir))
    }

    /// The key of a session, `None` where it is not sealed.
    ///
    /// # Errors
    /// It is sealed and cannot be read.
    pub(in crate::store) fn session_key(
        &self,
        session: SessionId,
    ) -> Result<Option<Arc<SessionKey>>, StoreError> {
        let dir = self.session_path(session);
        self.sealing
            .session_key(&dir)
            .map_err(StoreError::io("open the key of", &dir))
    }

    /// Sealed sessions that cannot be read with the keys that were named.
    pub fn sealed_sessions(&self) -> Result<Vec<SealedSession>, StoreError> {
        let mut found = Vec::new();
        for id in self.session_ids()? {
            let wrong_key = match self.session_key(id) {
                Err(StoreError::Sealed { .. }) => false,
                Err(StoreError::WrongIdentity { .. }) => true,
                _ => continue,
            };
            let dir = self.session_path(id);
            // Removed since it was listed.
            let Some(names) = self.names_if_there(id)? else {
                continue;
            };
            let mut snapshots = Vec::new();
            let mut newest_ns = 0;
            for name in names {
                if let Some((_, id)) = names::parse_snapshot_file(&name) {
                    snapshots.push(id);
                    let stamp = self.sealing.raw_stamp(&dir.join(name));
                    newest_ns = stamp.map_or(newest_ns, |s| newest_ns.max(s.modified_ns));
                }
            }
            found.push(SealedSession {
                id,
                snapshots,
                newest_ns,
                wrong_key,
            });
        }
        Ok(found)
    }

    /// The session that has a snapshot, by the name of its file.
    pub(in crate::store) fn session_with(
        &self,
        snapshot: SnapshotId,
    ) -> Result<Option<SessionId>, StoreError> {
        for id in self.session_ids()? {
            let names = self.names_if_there(id)?.unwrap_or_default();
            let mut parsed = names.iter().filter_map(|n| names::parse_snapshot_file(n));
            if parsed.any(|(_, other)| other == snapshot) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The names in the folder of a session that was listed; `None` if it has been removed since.
    fn names_if_there(&self, session: SessionId) -> Result<Option<Vec<String>>, StoreError> {
        let dir = self.session_path(session);
        match self.files.names(&dir) {
            Ok(names) => Ok(Some(names)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("list", &dir)(error)),
        }
    }
}

/// A file in memory.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteFile for Memory {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (at, mut all) = (offset as usize, self.bytes());
        let len = all.len().max(at + bytes.len());
        all.resize(len, 0);
        all[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ReadFile for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let (at, all) = (offset as usize, self.bytes());
        let part = all.get(at..at + bytes.len());
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl SessionKey {
    /// Seals what becomes one file.
    pub(in crate::store) fn seal(&self, purpose: &str, plain: &[u8]) -> io::Result<Vec<u8>> {
        self.seal_with(purpose, plain, random()?)
    }

    pub(in crate::store) fn seal_with(
        &self,
        purpose: &str,
        plain: &[u8],
        salt: [u8; 32],
    ) -> io::Result<Vec<u8>> {
        let sealed = Memory::default();
        let blocks = Blocks::new(self, purpose, salt);
        let mut writer = SealedWriter::new(Box::new(sealed.clone()), blocks);
        writer.write_all_at(plain, 0)?;
        writer.finish()?;
        Ok(std::mem::take(&mut sealed.bytes()))
    }

    /// Opens what one file holds.
    pub(in crate::store) fn unseal(&self, purpose: &str, sealed: Vec<u8>) -> io::Result<Vec<u8>> {
        let reader = self.reader(purpose, sealed)?;
        let mut plain = vec![0; reader.len()? as usize];
        reader.read_exact_at(&mut plain, 0)?;
        Ok(plain)
    }

    /// Opens a file that lies in memory.
    pub(in crate::store) fn reader(
        &self,
        purpose: &str,
        sealed: Vec<u8>,
    ) -> io::Result<Box<dyn ReadFile>> {
        let file = Memory(Arc::new(Mutex::new(sealed)));
        let reader = SealedReader::open(Box::new(file), self, purpose)?;
        Ok(Box::new(reader))
    }
}

/// Turns the cause inside an error of files into what the store says of it.
pub(in crate::store) fn told(path: &std::path::Path, cause: &SealError) -> StoreError {
    let folder = |key: &std::path::Path| key.parent().unwrap_or(key).display().to_string();
    match cause {
        SealError::NoIdentity { path } => StoreError::Sealed {
            what: format!("the session in {}", folder(path)),
        },
        SealError::WrongIdentity { path } => StoreError::WrongIdentity {
            what: format!("the session in {}", folder(path)),
            stored: true,
        },
        SealError::Damaged { part, why } => StoreError::corrupt(path, part, why.clone()),
        SealError::Newer { found } => StoreError::NewerVersion {
            path: path.to_owned(),
            found: *found,
            supported: VERSION.into(),
        },
    }
}
