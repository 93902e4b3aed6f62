//! Reads what there is of snapshots: heads, which tell what each is and needs, and indexes, of one process or of all of a
//! tree, sealed or not.

use super::sealed::is_sealed;
use super::service::{AT_ONCE, Bucket, read};
use super::tree::is_tree;
use super::{
    BucketError, ChunkName, ChunkRef, Envelope, Front, INDEX_HEADER_LEN, Index, IndexHeader,
    KeyName, MAX_PAGES, PlacedKey, Result, SnapshotName, TreeHead, TreeHeader, decode_chunks,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{GetRange, ObjectStoreExt};
use std::collections::HashSet;
use std::iter;
use std::ops::Range;

/// Read with the header of an index: the table of chunks of most.
const HEAD: u64 = 64 << 10;
/// How often a tree is read that is written anew meanwhile.
const ATTEMPTS: usize = 3;

/// What the first bytes of a snapshot say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// It is of one process, which needs these chunks.
    Process(IndexHeader, Vec<ChunkRef>),
    /// It is of a tree of processes.
    Tree(TreeHead),
    /// Which of the two is sealed with a key, and so is all else.
    Sealed(Box<Envelope>),
}

impl Head {
    /// The key that it is sealed with.
    pub fn key(&self) -> Option<KeyName> {
        match self {
            Self::Sealed(envelope) => Some(envelope.key),
            Self::Process(..) | Self::Tree(_) => None,
        }
    }

    fn name(&self) -> SnapshotName {
        match self {
            Self::Process(header, _) => header.common.name(),
            Self::Tree(tree) => tree.header.common.name(),
            Self::Sealed(envelope) => envelope.name,
        }
    }

    fn pages(&self) -> u64 {
        match self {
            Self::Process(header, _) => header.common.pages,
            Self::Tree(tree) => tree.header.common.pages,
            Self::Sealed(envelope) => envelope.pages,
        }
    }
}

/// A snapshot, but for its pages.
#[derive(Debug)]
pub struct Whole {
    /// Of a tree what its processes have in common.
    pub tree: Option<TreeHead>,
    /// The index of each process, the first one first.
    pub indexes: Vec<Index>,
}

fn bounded(range: Range<u64>) -> Option<GetRange> {
    Some(GetRange::Bounded(range))
}

impl Bucket {
    /// Reads the heads of snapshots, several at a time. Those that are gone meanwhile are left out.
    pub fn heads(&self, names: &[SnapshotName]) -> Result<Vec<Head>> {
        self.runtime.block_on(async {
            let heads = stream::iter(names).map(|name| async {
                match self.head(name).await {
                    Ok(head) => Ok(Some(head)),
                    Err(error) if error.is_missing() => Ok(None),
                    Err(error) => Err(error),
                }
            });
            let heads: Vec<Option<_>> = heads.buffered(AT_ONCE).try_collect().await?;
            Ok(heads.into_iter().flatten().collect())
        })
    }

    /// Reads the head of a snapshot.
    pub fn head_of(&self, name: &SnapshotName) -> Result<Head> {
        self.runtime.block_on(self.head(name))
    }

    /// Whether a snapshot with this head is of a tree. `key` is the one that it is sealed with, if it is.
    pub fn is_tree(&self, head: &Head, key: Option<&PlacedKey>) -> Result<bool> {
        match head {
            Head::Process(..) => Ok(false),
            Head::Tree(_) => Ok(true),
            Head::Sealed(envelope) => {
                let front = self.front(envelope, key)?;
                Ok(matches!(front, Front::Tree(_)))
            }
        }
    }

    /// Opens the header of a sealed snapshot.
    pub fn front(&self, envelope: &Envelope, key: Option<&PlacedKey>) -> Result<Front> {
        let about = self.about(&envelope.name.key());
        envelope.front(&about, &right(key, envelope, &about)?.key)
    }

    /// The chunks that snapshots need. Those that are gone meanwhile need none.
    ///
    /// # Errors
    /// When one cannot be read: then it is not known what it needs.
    pub fn needed(&self, names: &[SnapshotName]) -> Result<HashSet<ChunkName>> {
        self.runtime.block_on(async {
            let needed = stream::iter(names).map(|name| async {
                match self.chunks_of(name).await {
                    Ok(chunks) => Ok(chunks),
                    Err(error) if error.is_missing() => Ok(Vec::new()),
                    Err(error) => Err(error),
                }
            });
            let mut needed = Box::pin(needed.buffered(AT_ONCE));
            let mut all = HashSet::new();
            while let Some(chunks) = needed.try_next().await? {
                all.extend(chunks);
            }
            Ok(all)
        })
    }

    /// Reads the snapshot that has this head. `key` is the one that it is sealed with, if it is.
    pub fn whole(&self, name: &SnapshotName, head: Head, key: Option<&PlacedKey>) -> Result<Whole> {
        let too_large = || BucketError::TooLarge(format!("more than {MAX_PAGES} pages"));
        let whole = self.whole_within(name, head, key, MAX_PAGES)?;
        whole.ok_or_else(too_large)
    }

    /// Reads a snapshot, unless it has more pages than this.
    pub fn whole_within(
        &self,
        name: &SnapshotName,
        mut head: Head,
        key: Option<&PlacedKey>,
        pages: u64,
    ) -> Result<Option<Whole>> {
        self.runtime.block_on(async {
            for _ in 1..ATTEMPTS {
                let error = match self.behind(name, &head, key, pages).await {
                    Err(error) if is_of_another(&error) => error,
                    read => return read,
                };
                // Somebody has pushed the same again meanwhile: nothing of the old one fits.
                let now = self.head(name).await?;
                if now == head {
                    return Err(error);
                }
                head = now;
            }
            self.behind(name, &head, key, pages).await
        })
    }

    /// What is behind a head, which says how much memory that takes.
    async fn behind(
        &self,
        name: &SnapshotName,
        head: &Head,
        key: Option<&PlacedKey>,
        pages: u64,
    ) -> Result<Option<Whole>> {
        if head.pages() > pages {
            return Ok(None);
        }
        let (tree, ranges): (_, Vec<Range<u64>>) = match head {
            Head::Process(header, _) => (None, iter::once(0..header.index_len()).collect()),
            Head::Tree(tree) => {
                let ranges = tree.members.iter().map(|member| member.range());
                (Some(tree.clone()), ranges.collect())
            }
            Head::Sealed(envelope) => return self.unsealed(name, envelope, key).await.map(Some),
        };
        let key = name.key();
        let (path, about) = (self.path(&key), self.about(&key));
        let indexes = stream::iter(ranges).map(|range: Range<u64>| async {
            let len = range.end - range.start;
            // Of one process it is the whole object.
            let range = tree.as_ref().and_then(|_| bounded(range));
            let (bytes, _) = read(&*self.objects, &path, &about, range, len).await?;
            Index::decode(&about, bytes)
        });
        let indexes: Vec<Index> = indexes.buffered(AT_ONCE).try_collect().await?;
        whole(name, &about, tree, indexes).map(Some)
    }

    /// Opens a sealed snapshot, of which this has been read.
    async fn unsealed(
        &self,
        name: &SnapshotName,
        envelope: &Envelope,
        key: Option<&PlacedKey>,
    ) -> Result<Whole> {
        let object = name.key();
        let (path, about) = (self.path(&object), self.about(&object));
        let key = right(key, envelope, &about)?;
        // What says how much there is to read is the work of a holder of the key.
        envelope.front(&about, &key.key)?;
        let rest = envelope.rest();
        let len = rest.end - rest.start;
        let (bytes, _) = read(&*self.objects, &path, &about, bounded(rest), len).await?;
        let (tree, indexes) = envelope.open(&about, &key.key, bytes)?;
        // What it has sealed was compared with its own name, which is that of another kin.
        let plain = indexes[0].header.common.name();
        whole(&plain, &about, tree, indexes)
    }

    async fn chunks_of(&self, name: &SnapshotName) -> Result<Vec<ChunkName>> {
        let mut head = self.head(name).await?;
        loop {
            let tree = match &head {
                Head::Process(_, chunks) => return Ok(names_of(chunks)),
                Head::Sealed(envelope) => {
                    return Ok(envelope.chunks.iter().map(|(name, _)| *name).collect());
                }
                Head::Tree(tree) => tree,
            };
            let members = stream::iter(tree.members.iter().map(|member| member.range()));
            let chunks = members
                .map(|range| async { self.header(name, range).await })
                .buffered(AT_ONCE)
                .map_ok(|(_, chunks)| names_of(&chunks))
                .try_concat()
                .await;
            match chunks {
                Err(error) if is_of_another(&error) => {
                    // As above.
                    let now = self.head(name).await?;
                    if now == head {
                        return Err(error);
                    }
                    head = now;
                }
                chunks => return chunks,
            }
        }
    }

    async fn head(&self, name: &SnapshotName) -> Result<Head> {
        let key = name.key();
        let (path, about) = (self.path(&key), self.about(&key));
        let begun = read(&*self.objects, &path, &about, bounded(0..HEAD), HEAD).await;
        let (mut bytes, len) = match begun {
            // Of an object without a byte there is no range.
            Err(error @ BucketError::Service { .. }) => {
                return match self.objects.head(&path).await {
                    Ok(meta) if meta.size == 0 => {
                        Err(BucketError::corrupt(&about, "it has no content"))
                    }
                    _ => Err(error),
                };
            }
            begun => begun?,
        };
        let sealed = is_sealed(&bytes);
        if !sealed && !is_tree(&bytes) {
            let (header, chunks) = self.rest(name, bytes, 0..len).await?;
            return Ok(Head::Process(header, chunks));
        }
        let end = match sealed {
            true => Envelope::head_len(&about, &bytes, len)?,
            false => TreeHeader::decode(&about, &bytes)?.head_len(),
        };
        let from = bytes.len() as u64;
        if end > from {
            let range = bounded(from..end);
            let more = read(&*self.objects, &path, &about, range, end - from).await?;
            bytes.extend(more.0);
        }
        let head = match sealed {
            true => Head::Sealed(Box::new(Envelope::decode(&about, &bytes, len)?)),
            false => Head::Tree(TreeHead::decode(&about, &bytes, len)?),
        };
        match head.name() == *name {
            true => Ok(head),
            false => Err(BucketError::corrupt(&about, "it is about another snapshot")),
        }
    }

    /// Reads the header of an index and its chunks.
    async fn header(
        &self,
        name: &SnapshotName,
        range: Range<u64>,
    ) -> Result<(IndexHeader, Vec<ChunkRef>)> {
        let key = name.key();
        let (path, about) = (self.path(&key), self.about(&key));
        let end = range.end.min(range.start + HEAD);
        let begun = bounded(range.start..end);
        let (bytes, _) = read(&*self.objects, &path, &about, begun, HEAD).await?;
        self.rest(name, bytes, range).await
    }

    /// Of an index at this place in its object, whose first bytes are these.
    async fn rest(
        &self,
        name: &SnapshotName,
        mut bytes: Vec<u8>,
        place: Range<u64>,
    ) -> Result<(IndexHeader, Vec<ChunkRef>)> {
        let key = name.key();
        let (path, about) = (self.path(&key), self.about(&key));
        let header = IndexHeader::decode(&about, &bytes, place.end - place.start)?;
        let end = INDEX_HEADER_LEN as u64 + header.table_len();
        let from = bytes.len() as u64;
        if end > from {
            let range = bounded(place.start + from..place.start + end);
            let more = read(&*self.objects, &path, &about, range, end - from).await?;
            bytes.extend(more.0);
        }
        let table = bytes.get(INDEX_HEADER_LEN..end as usize).unwrap_or(&[]);
        let chunks = decode_chunks(&about, &header, table)?;
        Ok((header, chunks))
    }
}

/// The indexes of a snapshot of this name, if that is what they are.
fn whole(
    name: &SnapshotName,
    about: &str,
    tree: Option<TreeHead>,
    indexes: Vec<Index>,
) -> Result<Whole> {
    let is_it = match &tree {
        None => indexes[0].header.common.name() == *name,
        Some(tree) => tree.members.iter().zip(&indexes).all(|(member, index)| {
            member.id == index.header.common.id && member.pages == index.header.common.pages
        }),
    };
    match is_it {
        true => Ok(Whole { tree, indexes }),
        false => Err(BucketError::corrupt(about, "it is about another snapshot")),
    }
}

/// The key, if it is that of a sealed snapshot.
fn right<'a>(
    key: Option<&'a PlacedKey>,
    envelope: &Envelope,
    about: &str,
) -> Result<&'a PlacedKey> {
    let key = key.filter(|key| key.name == envelope.key);
    key.ok_or_else(|| BucketError::corrupt(about, "it is sealed with another key"))
}

/// Whether that may come of a place in an object which has another content by now: other bytes are there, or none.
fn is_of_another(error: &BucketError) -> bool {
    matches!(
        error,
        BucketError::Corrupt { .. } | BucketError::Service { denied: false, .. }
    )
}

fn names_of(chunks: &[ChunkRef]) -> Vec<ChunkName> {
    chunks.iter().map(|chunk| chunk.name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::*;

    #[test]
    fn nothing_is_read_behind_a_sealed_header_that_was_altered() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let bucket = Bucket::open_or_create(&url).unwrap();
        let (name, bytes) = golden::sealed(false);
        bucket.put_index(&name, vec![bytes.clone()]).unwrap();
        let object = folder.path().join(name.key());
        let key = golden::placed_key();
        let behind = |head: &Head| {
            let read = bucket.behind(&name, head, Some(&key), MAX_PAGES);
            bucket.runtime.block_on(read)
        };
        let head = bucket.head_of(&name).unwrap();
        assert!(behind(&head).unwrap().is_some());
        // Of no pages, and with much more behind the header than there was.
        let rest: u64 = 1 << 30;
        let mut forged = bytes;
        forged[64..72].fill(0);
        forged[80..88].copy_from_slice(&rest.to_le_bytes());
        let (summed, sum) = forged[..INDEX_HEADER_LEN].split_at_mut(INDEX_HEADER_LEN - 4);
        sum.copy_from_slice(&crc32c::crc32c(summed).to_le_bytes());
        std::fs::write(&object, &forged).unwrap();
        let Head::Sealed(envelope) = &head else {
            panic!("it is sealed");
        };
        let file = std::fs::File::options().write(true).open(&object).unwrap();
        file.set_len(envelope.rest().start + rest).unwrap();
        let altered = bucket.head_of(&name).unwrap();
        // Whoever reads on finds nothing there.
        std::fs::remove_file(&object).unwrap();
        assert!(behind(&head).unwrap_err().is_missing());
        let error = behind(&altered).unwrap_err();
        assert!(matches!(error, BucketError::Corrupt { .. }), "{error}");
    }

    /// Pushed anew, the indexes of a tree may lie elsewhere in its object.
    #[test]
    fn a_tree_that_is_pushed_again_while_it_is_read_is_not_taken_for_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let bucket = Bucket::open_or_create(&url).unwrap();
        let (name, parts) = golden::tree_with(b"");
        bucket.put_index(&name, parts).unwrap();
        let (again, asked) = std::sync::mpsc::sync_channel::<usize>(0);
        let done = std::thread::scope(|scope| {
            scope.spawn(move || {
                let writer = Bucket::open(&url).unwrap();
                // Longer, then shorter again, and never as before; once while each read goes on.
                for n in asked {
                    let record = vec![b'x'; n + n % 2 * 1000];
                    writer
                        .put_index(&name, golden::tree_with(&record).1)
                        .unwrap();
                }
            });
            let read = || -> Result<HashSet<usize>> {
                let mut lengths = HashSet::new();
                for n in 1..100 {
                    again.send(n).unwrap();
                    let whole = bucket.whole(&name, bucket.head_of(&name)?, None)?;
                    assert_eq!(whole.indexes.len(), 2);
                    lengths.extend(whole.tree.map(|tree| tree.record.len()));
                    assert_eq!(bucket.needed(&[name])?.len(), 1);
                }
                Ok(lengths)
            };
            let done = read();
            drop(again);
            done
        });
        // It has been seen in several forms.
        assert!(done.unwrap().len() > 1);
    }
}
