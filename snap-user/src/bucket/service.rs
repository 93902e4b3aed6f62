//! Objects in and out, one at a time.

use super::error::WRITE;
use super::name::{CLOCK, DOOMED, DoomedName, MARKER, SNAPSHOTS, SWEPT, SnapshotName};
use super::place::{Opened, Place};
use super::{BucketError, ChunkName, Result, decode_doomed, doomed, index, name};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::runtime::Runtime;

const VERSION: u32 = 1;
/// Longest format marker.
const MAX_MARKER: u64 = 64;
/// Requests under way at a time.
pub(super) const AT_ONCE: usize = 8;
/// Objects longer than this are sent in parts, each of so many bytes; S3 takes no smaller ones than 5 MiB.
const PART: usize = 8 << 20;

/// An object as a listing has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name, below the prefix of the bucket.
    pub key: String,
    /// Its length in bytes.
    pub len: u64,
    /// When it was written by the clock of the service, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// A place in object storage with snapshots in it.
#[derive(Debug)]
pub struct Bucket {
    pub(super) objects: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    pub(super) runtime: Runtime,
}

impl Bucket {
    /// Opens a place that snapshots have been pushed to.
    ///
    /// # Errors
    /// [`BucketError::Empty`] when none have.
    pub fn open(url: &str) -> Result<Self> {
        let bucket = Self::connect(url, false)?;
        match bucket.marker()? {
            true => Ok(bucket),
            false => Err(BucketError::Empty { url: bucket.url }),
        }
    }

    /// Opens a place to push to; one that is new is marked as ksnap's.
    pub fn open_or_create(url: &str) -> Result<Self> {
        let bucket = Self::connect(url, true)?;
        if !bucket.marker()? {
            bucket.put(MARKER, format!("ksnap bucket {VERSION}\n").into_bytes())?;
        }
        Ok(bucket)
    }

    fn connect(url: &str, create: bool) -> Result<Self> {
        let place = Place::parse(url)?;
        // Connections may be made while a client is built.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("ksnap-bucket")
            .enable_all()
            .build()
            .map_err(|error| BucketError::Service {
                call: "start threads for",
                object: place.url(),
                why: error.to_string(),
                denied: false,
            })?;
        let Opened { objects, prefix } = place.open(create)?;
        Ok(Self {
            objects,
            prefix,
            url: place.url(),
            runtime,
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How an object is named in messages.
    pub fn about(&self, key: &str) -> String {
        format!("{}/{key}", self.url.trim_end_matches('/'))
    }

    pub(super) fn path(&self, key: &str) -> Path {
        let mut path = self.prefix.clone();
        for part in key.split('/') {
            path = path.join(part);
        }
        path
    }

    /// Whether the format marker is there; an error if it is not one of this format.
    fn marker(&self) -> Result<bool> {
        let text = match self.get(MARKER, MAX_MARKER) {
            Ok(text) => text,
            Err(error) if error.is_missing() => return Ok(false),
            Err(error) => return Err(error),
        };
        let version = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.strip_prefix("ksnap bucket "))
            .and_then(|version| version.trim_end().parse::<u32>().ok());
        match version {
            Some(VERSION) => Ok(true),
            Some(found) if found > VERSION => Err(BucketError::NewerVersion {
                object: self.about(MARKER),
                found,
                supported: VERSION,
            }),
            _ => Err(BucketError::corrupt(
                &self.about(MARKER),
                "it is not the marker of a place of ksnap's",
            )),
        }
    }

    /// Reads an object of at most so many bytes.
    pub(super) fn get(&self, key: &str, most: u64) -> Result<Vec<u8>> {
        let about = self.about(key);
        self.runtime
            .block_on(read(&*self.objects, &self.path(key), &about, None, most))
            .map(|(bytes, _)| bytes)
    }

    pub(super) fn put(&self, key: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.path(key);
        let put = self.objects.put(&path, PutPayload::from(bytes));
        let put = self.runtime.block_on(put);
        put.map(drop)
            .map_err(|error| BucketError::service(WRITE, &self.about(key), &error))
    }

    /// Writes an index, or a tree, given in parts one behind the other, in one request or in several. It is there as a
    /// whole or not at all.
    pub fn put_index(&self, name: &SnapshotName, parts: Vec<Vec<u8>>) -> Result<()> {
        let key = name.key();
        let (path, about) = (self.path(&key), self.about(&key));
        let failed = |error| BucketError::service(WRITE, &about, &error);
        let total: usize = parts.iter().map(Vec::len).sum();
        let parts: Vec<Bytes> = parts.into_iter().map(Bytes::from).collect();
        self.runtime.block_on(async {
            if total <= PART {
                let put = self.objects.put(&path, parts.into_iter().collect()).await;
                return put.map(drop).map_err(failed);
            }
            let upload = self.objects.put_multipart(&path).await.map_err(failed)?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
            for part in parts {
                for at in (0..part.len()).step_by(PART) {
                    upload.put(part.slice(at..part.len().min(at + PART)));
                    if let Err(error) = upload.wait_for_capacity(AT_ONCE).await {
                        // What was sent would have to be paid for.
                        let _ = upload.abort().await;
                        return Err(failed(error));
                    }
                }
            }
            upload.finish().await.map(drop).map_err(failed)
        })
    }

    /// All objects in a folder.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<Object>> {
        let prefix = self.path(folder);
        let about = self.about(folder);
        let skip = match self.prefix.as_ref().len() {
            0 => 0,
            len => len + 1,
        };
        self.runtime.block_on(async {
            let mut list = self.objects.list(Some(&prefix));
            let mut found = Vec::new();
            while let Some(meta) = list
                .try_next()
                .await
                .map_err(|error| BucketError::service("list", &about, &error))?
            {
                found.push(Object {
                    key: meta.location.as_ref().get(skip..).unwrap_or("").to_owned(),
                    len: meta.size,
                    modified_ms: meta.last_modified.timestamp_millis(),
                });
            }
            Ok(found)
        })
    }

    /// Deletes objects; one that is gone already is no error.
    pub fn delete(&self, keys: &[String]) -> Result<()> {
        self.runtime.block_on(async {
            let deletions = stream::iter(keys).map(|key| async move {
                match self.objects.delete(&self.path(key)).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(BucketError::service("delete", &self.about(key), &error)),
                }
            });
            deletions
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await
        })
    }

    /// The snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<SnapshotName>> {
        let list = self.list(SNAPSHOTS)?;
        let mut names: Vec<SnapshotName> = list
            .iter()
            .filter_map(|object| SnapshotName::parse(&object.key))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The chunks.
    pub fn chunks(&self) -> Result<Vec<(ChunkName, Object)>> {
        let list = self.list(name::CHUNKS)?;
        let named = list
            .into_iter()
            .filter_map(|object| Some((ChunkName::parse(&object.key)?, object)));
        Ok(named.collect())
    }

    /// The chunks that nobody may refer to any more.
    pub fn forbidden(&self) -> Result<HashSet<ChunkName>> {
        let mut forbidden = HashSet::new();
        // In this order: a list goes from the first folder to the second.
        for folder in [DOOMED, SWEPT] {
            for (name, object) in self.lists(folder)? {
                match self.doomed(name, &object.key) {
                    Ok(chunks) => forbidden.extend(chunks),
                    // Gone on to the second folder, or over.
                    Err(error) if error.is_missing() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(forbidden)
    }

    /// The lists of chunks that are going to be deleted.
    pub fn doomed_lists(&self) -> Result<Vec<(DoomedName, Object)>> {
        self.lists(DOOMED)
    }

    /// The lists of chunks that have been deleted.
    pub fn swept_lists(&self) -> Result<Vec<(DoomedName, Object)>> {
        self.lists(SWEPT)
    }

    fn lists(&self, folder: &str) -> Result<Vec<(DoomedName, Object)>> {
        let list = self.list(folder)?;
        let named = list
            .into_iter()
            .filter_map(|object| Some((DoomedName::parse(&object.key)?, object)));
        Ok(named.collect())
    }

    /// Reads such a list.
    pub fn doomed(&self, name: DoomedName, key: &str) -> Result<Vec<ChunkName>> {
        decode_doomed(name, &self.get(key, doomed::MAX_LIST)?)
    }

    /// Says that chunks, which are ascending, are going to be deleted.
    pub fn doom(&self, chunks: &[ChunkName]) -> Result<()> {
        let (name, bytes) = super::encode_doomed(chunks);
        self.put(&name.key(), bytes)
    }

    /// Says that the chunks of a list have been deleted.
    pub fn swept(&self, name: DoomedName) -> Result<()> {
        let bytes = match self.get(&name.key(), doomed::MAX_LIST) {
            // Somebody else has just said so.
            Err(error) if error.is_missing() => return Ok(()),
            read => read?,
        };
        self.put(&name.swept_key(), bytes)?;
        self.delete(&[name.key()])
    }

    /// What time it is for the service, in milliseconds since 1970.
    pub fn now_ms(&self) -> Result<i64> {
        self.put(CLOCK, b"see docs/bucket.md\n".to_vec())?;
        let path = self.path(CLOCK);
        let head = self.runtime.block_on(self.objects.head(&path));
        head.map(|meta| meta.last_modified.timestamp_millis())
            .map_err(|error| BucketError::service("look at", &self.about(CLOCK), &error))
    }
}

/// Reads an object, or a range of it, and tells how long all of it is. More than `most` bytes are not taken, whatever
/// the service says.
pub(super) async fn read(
    objects: &dyn ObjectStore,
    path: &Path,
    about: &str,
    range: Option<GetRange>,
    most: u64,
) -> Result<(Vec<u8>, u64)> {
    let failed = |error| BucketError::service("read", about, &error);
    let options = GetOptions {
        range,
        ..GetOptions::default()
    };
    let got = objects.get_opts(path, options).await.map_err(failed)?;
    let (len, size) = (got.range.end - got.range.start, got.meta.size);
    let too_long = || BucketError::corrupt(about, format!("more than the {most} bytes expected"));
    if len > most.min(index::MAX_INDEX) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    // A service that lies about the length gets no memory for it in advance.
    bytes.reserve_exact(len.min(1 << 20) as usize);
    let mut stream = got.into_stream();
    while let Some(piece) = stream.try_next().await.map_err(failed)? {
        if bytes.len() as u64 + piece.len() as u64 > len {
            return Err(too_long());
        }
        bytes.extend_from_slice(&piece);
    }
    match bytes.len() as u64 == len {
        true => Ok((bytes, size)),
        false => Err(BucketError::corrupt(
            about,
            format!("{} of {len} bytes came", bytes.len()),
        )),
    }
}
