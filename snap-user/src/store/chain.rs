//! The page table of any snapshot, by jumps over its ancestors.

use super::cache::{FileCache, ImageFile};
use super::error::StoreError;
use super::files::Files;
use super::head::{Anchor, Head};
use super::names;
use crate::image::{
    IndexEntry, Location, SessionId, SpanKind, apply_runs, decode_dropped, decode_span,
};
use crate::model::{PageTable, SnapshotId, SnapshotKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The snapshot files of one session, by sequence number.
#[derive(Clone, Debug)]
pub(super) struct SessionFiles {
    pub(super) session: SessionId,
    pub(super) dir: PathBuf,
    pub(super) by_seq: BTreeMap<u32, SnapshotId>,
    pub(super) files: Arc<dyn Files>,
    pub(super) cache: Arc<FileCache>,
}

impl SessionFiles {
    /// Lists a session's folder.
    pub(super) fn list(
        files: &Arc<dyn Files>,
        cache: &Arc<FileCache>,
        session: SessionId,
        dir: &Path,
    ) -> Result<Self, StoreError> {
        let by_seq = files
            .names(dir)
            .map_err(StoreError::io("list", dir))?
            .iter()
            .filter_map(|name| names::parse_snapshot_file(name))
            .collect();
        Ok(Self {
            session,
            dir: dir.to_owned(),
            by_seq,
            files: Arc::clone(files),
            cache: Arc::clone(cache),
        })
    }

    /// Path of the snapshot with this sequence number.
    pub(super) fn path(&self, seq: u32) -> Result<PathBuf, StoreError> {
        let id = self.by_seq.get(&seq).ok_or_else(|| StoreError::NotFound {
            what: format!("snapshot @{seq} of the session in {}", self.dir.display()),
        })?;
        Ok(self.dir.join(names::snapshot_file(seq, *id)))
    }

    /// The open file of the snapshot with this sequence number.
    pub(super) fn open(&self, seq: u32) -> Result<Arc<ImageFile>, StoreError> {
        let path = self.path(seq)?;
        self.cache.get(self.session, seq, || {
            let file = ImageFile::open(&*self.files, &path)?;
            let named = self.by_seq.get(&seq) == Some(&file.header.id);
            if file.header.seq != seq || file.header.session != self.session || !named {
                return Err(StoreError::corrupt(
                    &path,
                    "header",
                    "belongs under another name: the file was renamed or copied",
                ));
            }
            Ok(file)
        })
    }

    /// Builds what the next delta after `seq` needs: the page table and the anchors of its spans.
    ///
    /// Each jump goes to an earlier snapshot, so it ends; there are at most 15 for each hexadecimal digit of the
    /// snapshot's depth, and one for the file that lists everything.
    pub(super) fn head(&self, seq: u32) -> Result<Head, StoreError> {
        let mut hops = vec![self.open(seq)?];
        loop {
            let header = &hops[hops.len() - 1].header;
            if header.kind == SnapshotKind::Base || header.span_kind == SpanKind::Full {
                break;
            }
            let next = match header.span_kind {
                SpanKind::Since(ancestor) => ancestor,
                _ => header.parent_seq,
            };
            hops.push(self.open(next)?);
        }
        let mut table = PageTable::new();
        let mut anchors = Vec::new();
        let mut index_bytes = 0;
        let last = Arc::clone(&hops[0]);
        for file in hops.into_iter().rev() {
            let header = &file.header;
            if header.span_kind == SpanKind::None {
                let entries = file.index()?;
                if header.kind == SnapshotKind::Delta {
                    let dropped = file.section(&header.dropped)?;
                    let dropped =
                        decode_dropped(&dropped, header).map_err(StoreError::image(&file.path))?;
                    for range in dropped.ranges() {
                        table.remove_range(*range);
                    }
                }
                apply_entries(&mut table, &entries, header.seq, &file.path)?;
            } else {
                let bytes = file.section(&header.span)?;
                let runs = decode_span(&bytes, header).map_err(StoreError::image(&file.path))?;
                apply_runs(&mut table, &runs);
            }
            if header.depth > 0 {
                index_bytes += header.index.len + header.span.len;
            }
            if Anchor::is_needed(header.depth, last.header.depth) {
                anchors.push(Anchor {
                    depth: header.depth,
                    seq: header.seq,
                    table: table.clone(),
                });
            }
        }
        let pages = table.pages();
        if pages != last.header.pages {
            return Err(StoreError::corrupt(
                &last.path,
                "page table",
                format!("{pages} pages, {} expected", last.header.pages),
            ));
        }
        Ok(Head::resume(&last.header, table, anchors, index_bytes))
    }
}

/// Adds the pages of an index to a table.
pub(super) fn apply_entries(
    table: &mut PageTable<Location>,
    entries: &[IndexEntry],
    seq: u32,
    path: &Path,
) -> Result<(), StoreError> {
    for (entry, slot) in entries.iter().zip(0u32..) {
        let location = entry.target().or(Location::new(seq, slot));
        let location =
            location.ok_or_else(|| StoreError::corrupt(path, "header", "sequence number 0"))?;
        table.insert(entry.addr, location);
    }
    Ok(())
}
