//! The keys of a place with sealed snapshots, as far as the user's identities open them.

use super::bucket_list::what;
use super::{Result, SessionError};
use crate::bucket::{
    Bucket, BucketError, BucketKey, Head, KeyName, MAX_KEY, PlacedKey, SnapshotName,
};
use crate::store::{Keys, Recipients, StoreError};
use std::collections::HashMap;
use std::sync::Arc;

/// Keys that are read at once when one is looked for: a place may have many, and the first may be the one.
const GROUP: usize = 8;

/// Opens keys, each once.
pub(super) struct Ring<'a> {
    bucket: &'a Bucket,
    keys: &'a Keys,
    /// What was tried; `None`: none of the user's identities opens it.
    tried: HashMap<KeyName, Option<PlacedKey>>,
}

impl<'a> Ring<'a> {
    pub(super) fn new(bucket: &'a Bucket, keys: &'a Keys) -> Self {
        Self {
            bucket,
            keys,
            tried: HashMap::new(),
        }
    }

    /// The key that a snapshot with this head is sealed with; `None` where it is plain.
    ///
    /// # Errors
    /// It is sealed and cannot be read.
    pub(super) fn key_of(&mut self, name: &SnapshotName, head: &Head) -> Result<Option<PlacedKey>> {
        let Some(key) = head.key() else {
            return Ok(None);
        };
        self.open(key, &what(name, self.bucket)).map(Some)
    }

    /// Opens a key. `what` it is needed for is told in errors.
    pub(super) fn open(&mut self, name: KeyName, what: &str) -> Result<PlacedKey> {
        let about = || what.to_owned();
        match self.tried.get(&name) {
            Some(Some(key)) => return Ok(key.clone()),
            _ if !self.keys.has_identity() => {
                return Err(StoreError::Sealed { what: about() }.into());
            }
            Some(None) => {
                return Err(StoreError::WrongIdentity {
                    what: about(),
                    stored: false,
                }
                .into());
            }
            None => {}
        }
        let read = self.bucket.read_keys(&[name]).remove(0);
        let bytes = read.map_err(|error| match error {
            BucketError::Missing { object } => BucketError::Corrupt {
                object: about(),
                why: format!("its key, {object}, is not there, and nobody can read it without"),
            },
            other => other,
        })?;
        let opened = self.opened_key(name, what, &bytes);
        if matches!(&opened, Err(SessionError::Store(error)) if error.is_sealed()) {
            self.tried.insert(name, None);
        }
        Ok(self.learn(name, opened?))
    }

    /// Remembers a key that is open.
    fn learn(&mut self, name: KeyName, key: BucketKey) -> PlacedKey {
        let key = PlacedKey {
            name,
            key: Arc::new(key),
        };
        self.tried.insert(name, Some(key.clone()));
        key
    }

    fn opened_key(&self, name: KeyName, what: &str, bytes: &[u8]) -> Result<BucketKey> {
        let object = self.bucket.about(&name.key());
        let plain = self.keys.open_age_file(what, bytes, MAX_KEY);
        let plain = plain.map_err(|error| match error {
            StoreError::Corrupt { source, .. } => BucketError::Corrupt {
                object: object.clone(),
                why: source.to_string(),
            }
            .into(),
            other => SessionError::from(other),
        })?;
        Ok(BucketKey::decode(&object, &plain)?)
    }

    /// The key that snapshots for these recipients are sealed with: the oldest that is there and was made with one of the
    /// user's identities, else a new one.
    pub(super) fn for_recipients(&mut self, recipients: &Recipients) -> Result<PlacedKey> {
        let names = recipients.names();
        let there = match self.keys.has_identity() {
            true => self.bucket.keys()?,
            // Nobody can tell which of them are his own.
            false => Vec::new(),
        };
        let bucket = self.bucket;
        let read = there.chunks(GROUP).flat_map(|names| {
            let read = bucket.read_keys(names);
            names.iter().zip(read)
        });
        for (name, read) in read {
            let opened = match read {
                Ok(bytes) => self.opened_key(*name, "a key", &bytes),
                Err(error @ (BucketError::Corrupt { .. } | BucketError::Missing { .. })) => {
                    Err(error.into())
                }
                Err(error) => return Err(error.into()),
            };
            match opened {
                Ok(key) if key.is_own(&names, &self.keys.marks(&key.marked())) => {
                    return Ok(self.learn(*name, key));
                }
                Ok(_) => {}
                // Of others, or damaged: then of no use for what is pushed now.
                Err(error) => tracing::debug!("{}: {error}", name.key()),
            }
        }
        let key = BucketKey::generate(&names, |of| self.keys.marks(of))?;
        let file = recipients.encrypt(key.encode().as_bytes());
        let file = file.map_err(SessionError::io("encrypt a key"))?;
        let name = self.bucket.put_key(file, names.len())?;
        Ok(self.learn(name, key))
    }

    /// For whom what is sealed with this key is to be sealed in a store: for those for whom the key is, if the user has made it.
    /// What anybody else may have written into it is no reason to seal for them: then for the user alone, as far as it names
    /// him. The second is how many are left out.
    ///
    /// # Errors
    /// It names nobody for whom anything could be sealed.
    pub(super) fn trusted(&self, key: &PlacedKey) -> Result<(Recipients, usize)> {
        let damaged = |why: String| BucketError::Corrupt {
            object: self.bucket.about(&key.name.key()),
            why,
        };
        let named = key.key.recipients();
        let all = Recipients::from_names(&named)
            .map_err(|error| damaged(format!("a line of it names nobody: {error}")))?;
        if key.key.is_own(&named, &self.keys.marks(&key.key.marked())) {
            return Ok((all, 0));
        }
        let own = self.keys.own_names();
        let kept: Vec<String> = named
            .iter()
            .filter(|name| own.contains(name))
            .cloned()
            .collect();
        match kept.is_empty() {
            true => Err(damaged("it does not name the one who can open it".into()).into()),
            false => Ok((Recipients::from_names(&kept)?, named.len() - kept.len())),
        }
    }
}
