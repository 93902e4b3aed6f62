//! Many objects at a time: what comes from the caller goes out, and the other way round, with a bound for what is
//! under way.

use super::error::WRITE;
use super::service::{AT_ONCE, Bucket, read};
use super::{BucketError, ChunkName, MAX_CHUNK, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutPayload};
use std::sync::Arc;
use tokio::task::{JoinError, JoinSet};

/// Chunks on their way out. Dropped, it ends what is under way.
pub struct Uploads<'a> {
    bucket: &'a Bucket,
    under_way: JoinSet<Result<Option<u64>>>,
    sent: u64,
    bytes: u64,
}

impl Bucket {
    /// Begins to send chunks.
    pub fn uploads(&self) -> Uploads<'_> {
        Uploads {
            bucket: self,
            under_way: JoinSet::new(),
            sent: 0,
            bytes: 0,
        }
    }

    /// Those of these chunks that are there with these lengths, in order; asks for several at a time.
    pub fn which_are_there(&self, chunks: &[(ChunkName, u64)]) -> Result<Vec<bool>> {
        self.runtime.block_on(async {
            let asked = stream::iter(chunks).map(|(name, len)| async move {
                let key = name.key();
                match self.objects.head(&self.path(&key)).await {
                    Ok(meta) => Ok(meta.size == *len),
                    Err(object_store::Error::NotFound { .. }) => Ok(false),
                    Err(error) => Err(BucketError::service("look at", &self.about(&key), &error)),
                }
            });
            asked.buffered(AT_ONCE).try_collect().await
        })
    }

    /// Reads chunks, several ahead, and hands them over in order, as bytes that nobody has looked at.
    pub fn download<E: From<BucketError>>(
        &self,
        chunks: &[ChunkName],
        each: &mut dyn FnMut(ChunkName, Vec<u8>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let coming = stream::iter(chunks.iter().copied()).map(|name| {
            let (objects, key) = (Arc::clone(&self.objects), name.key());
            let (path, about) = (self.path(&key), self.about(&key));
            let task = async move { read(&*objects, &path, &about, None, MAX_CHUNK).await };
            let task = self.runtime.spawn(task);
            async move {
                match task.await {
                    Ok(read) => read.map(|(bytes, _)| (name, bytes)),
                    Err(error) => Err(broken(&error)),
                }
            }
        });
        let mut coming = Box::pin(coming.buffered(AT_ONCE));
        while let Some(chunk) = self.runtime.block_on(coming.next()) {
            let (name, bytes) = chunk?;
            each(name, bytes)?;
        }
        Ok(())
    }
}

fn broken(error: &JoinError) -> BucketError {
    BucketError::Service {
        call: "wait for",
        object: "a transfer".into(),
        why: error.to_string(),
        denied: false,
    }
}

impl Uploads<'_> {
    /// Sends a chunk, unless it is there already. Waits while many are under way.
    pub fn send(&mut self, name: ChunkName, bytes: Vec<u8>) -> Result<()> {
        while self.under_way.len() >= AT_ONCE {
            self.wait()?;
        }
        let key = name.key();
        let objects = Arc::clone(&self.bucket.objects);
        let (path, about) = (self.bucket.path(&key), self.bucket.about(&key));
        let task = async move {
            let len = bytes.len() as u64;
            match objects.head(&path).await {
                // What has this name has this content; one that was cut is written anew.
                Ok(meta) if meta.size == len => return Ok(None),
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(BucketError::service("look at", &about, &error)),
            }
            match objects.put(&path, PutPayload::from(bytes)).await {
                Ok(_) => Ok(Some(len)),
                Err(error) => Err(BucketError::service(WRITE, &about, &error)),
            }
        };
        self.under_way.spawn_on(task, self.bucket.runtime.handle());
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let next = self.bucket.runtime.block_on(self.under_way.join_next());
        match next {
            None => {}
            Some(Ok(done)) => {
                if let Some(bytes) = done? {
                    self.sent += 1;
                    self.bytes += bytes;
                }
            }
            Some(Err(error)) => return Err(broken(&error)),
        }
        Ok(())
    }

    /// Chunks sent until now, and their bytes.
    pub fn sent(&self) -> (u64, u64) {
        (self.sent, self.bytes)
    }

    /// Waits for all.
    pub fn finish(mut self) -> Result<(u64, u64)> {
        while !self.under_way.is_empty() {
            self.wait()?;
        }
        Ok(self.sent())
    }
}
