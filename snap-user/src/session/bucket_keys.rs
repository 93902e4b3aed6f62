//! The keys of a place with sealed snapshots, as far as the user's identities open them.

use super::bucket_list::what;
use super::{Result, SessionError};
use crate::bucket::{
    Bucket, BucketError, BucketKey, Head, KeyName, MAX_KEY, PlacedKey, SnapshotName,
};
use crate::store::{Keys, Recipients, StoreError};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Keys that are read at once when one is looked for: a place may have many, and the first may be the one.
const GROUP: usize = 8;

/// Opens keys, each once.
pub(super) struct Ring<'a> {
    bucket: &'a Bucket,
    keys: &'a Keys,
    opened: HashMap<KeyName, PlacedKey>,
    /// Those that none of the user's identities opens.
    closed: HashSet<KeyName>,
}

impl<'a> Ring<'a> {
    pub(super) fn new(bucket: &'a Bucket, keys: &'a Keys) -> Self {
        Self {
            bucket,
            keys,
            opened: HashMap::new(),
            closed: HashSet::new(),
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
        if let Some(key) = self.opened.get(&name) {
            return Ok(key.clone());
        }
        let about = || what.to_owned();
        if !self.keys.has_identity() {
            return Err(StoreError::Sealed { what: about() }.into());
        }
        if self.closed.contains(&name) {
            return Err(wrong_identity(what).into());
        }
        let read = self.bucket.read_keys(&[name]).remove(0);
        let bytes = read.map_err(|error| match error {
            BucketError::Missing { object } => BucketError::Corrupt {
                object: what.to_owned(),
                why: format!("its key, {object}, is not there, and nobody can read it without"),
            },
            other => other,
        })?;
        let opened = self.opened_key(name, what, &bytes);
        if matches!(&opened, Err(SessionError::Store(error)) if error.is_sealed()) {
            self.closed.insert(name);
        }
        let key = placed(name, opened?);
        self.opened.insert(name, key.clone());
        Ok(key)
    }

    fn opened_key(&self, name: KeyName, what: &str, bytes: &[u8]) -> Result<BucketKey> {
        let object = object(self.bucket, name);
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
        let read = there.chunks(GROUP).flat_map(|names| {
            let read = self.bucket.read_keys(names);
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
                    return Ok(placed(*name, key));
                }
                Ok(_) => {}
                // Of others, or damaged: then of no use for what is pushed now.
                Err(error) => tracing::debug!("{}: {error}", name.key()),
            }
        }
        let key = BucketKey::generate(&names, |of| self.keys.marks(of))?;
        let file = recipients.encrypt(key.encode().as_bytes());
        let file = file.map_err(SessionError::io("encrypt a key"))?;
        Ok(placed(self.bucket.put_key(file, names.len())?, key))
    }

    /// For whom what is sealed with this key is to be sealed in a store: for those for whom the key is, if the user has made it.
    /// What anybody else may have written into it is no reason to seal for them: then for the user alone, as far as it names
    /// him. The second is how many are left out.
    ///
    /// # Errors
    /// It names nobody for whom anything could be sealed.
    pub(super) fn trusted(&self, key: &PlacedKey) -> Result<(Recipients, usize)> {
        let object = || object(self.bucket, key.name);
        let damaged = |why: String| BucketError::Corrupt {
            object: object(),
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

fn wrong_identity(what: &str) -> StoreError {
    StoreError::WrongIdentity {
        what: what.to_owned(),
        stored: false,
    }
}

/// How a key is told in errors.
fn object(bucket: &Bucket, name: KeyName) -> String {
    format!("{}/{}", bucket.url().trim_end_matches('/'), name.key())
}

fn placed(name: KeyName, key: BucketKey) -> PlacedKey {
    PlacedKey {
        name,
        key: Arc::new(key),
    }
}
