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

    /// Writes an object with a key, which is for so many recipients.
    ///
    /// # Errors
    /// Also when it is longer than what is read back.
    pub fn put_key(&self, bytes: Vec<u8>, recipients: usize) -> Result<KeyName> {
        if bytes.len() > MAX_KEY {
            return Err(BucketError::TooLarge(format!(
                "a key for {recipients} recipients has {} bytes, and may have {MAX_KEY}: seal for fewer (--encrypt-to)",
                bytes.len()
            )));
        }
        let name = KeyName(*blake3::hash(&bytes).as_bytes());
        self.put(&name.key(), bytes)?;
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_nobody_would_read_back_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let bucket = Bucket::open_or_create(&url).unwrap();
        let error = bucket.put_key(vec![7; MAX_KEY + 1], 5000).unwrap_err();
        assert!(matches!(error, BucketError::TooLarge(_)), "{error}");
        assert!(error.to_string().contains("5000 recipients"), "{error}");
        assert!(bucket.keys().unwrap().is_empty());
        let name = bucket.put_key(vec![7; MAX_KEY], 4000).unwrap();
        let read = bucket.read_keys(&[name]).remove(0);
        assert_eq!(read.unwrap().len(), MAX_KEY);
    }
}
