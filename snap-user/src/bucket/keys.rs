//! Objects with the keys of sealed snapshots, in and out. What is in them is for those who have an identity.

use super::key::MAX_KEY;
use super::name::{KEYS, KeyName};
use super::service::{AT_ONCE, read};
use super::{Bucket, BucketError, Object, Result};
use futures_util::{StreamExt, stream};

impl Bucket {
    /// The keys that are there, the oldest first.
    pub fn keys(&self) -> Result<Vec<KeyName>> {
        let list = self.list(KEYS)?.into_iter();
        let mut named: Vec<(KeyName, Object)> = list
            .filter_map(|object| Some((KeyName::parse(&object.key)?, object)))
            .collect();
        named.sort_by_key(|(name, object)| (object.modified_ms, *name));
        Ok(named.into_iter().map(|(name, _)| name).collect())
    }

    /// Reads objects with keys, several at a time: each is what its name says, or an error.
    pub fn read_keys(&self, names: &[KeyName]) -> Vec<Result<Vec<u8>>> {
        let objects = stream::iter(names).map(|name| async {
            let key = name.key();
            let (path, about) = (self.path(&key), self.about(&key));
            let (bytes, _) = read(&*self.objects, &path, &about, None, MAX_KEY as u64).await?;
            match blake3::hash(&bytes) == name.0 {
                true => Ok(bytes),
                false => Err(BucketError::corrupt(
                    &about,
                    "its content is not what its name says",
                )),
            }
        });
        self.runtime.block_on(objects.buffered(AT_ONCE).collect())
    }

    /// Writes an object with a key.
    pub fn put_key(&self, bytes: Vec<u8>) -> Result<KeyName> {
        let name = KeyName(*blake3::hash(&bytes).as_bytes());
        self.put(&name.key(), bytes)?;
        Ok(name)
    }
}
