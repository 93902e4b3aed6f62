//! The page table of any snapshot, by jumps over its ancestors.

use super::cache::{FileCache, ImageFile, PageFile};
use super::durability::suspect_after;
use super::error::StoreError;
use super::files::Files;
use super::head::{Anchor, Head};
use super::names;
use super::pack::PackFile;
use crate::image::{
    IndexEntry, Location, SessionId, SpanKind, apply_runs, decode_dropped, decode_span,
};
use crate::model::{PageTable, SnapshotId, SnapshotKind};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// What a session's folder has.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    /// Its snapshots by sequence number; not those that a pack stands for, though their files may still be there.
    pub(super) by_seq: BTreeMap<u32, SnapshotId>,
    /// Numbers of the files that they borrow pages from; also of snapshots that are not there, or not yet.
    pub(super) loans: BTreeMap<u32, Vec<u8>>,
    /// The pack that counts.
    pub(super) pack: Option<Arc<PackFile>>,
    /// Numbers of the files that it borrows pages from.
    pub(super) pack_loans: Vec<u8>,
    /// Why the pack that should count cannot be read.
    pub(super) pack_damage: Option<(PathBuf, String)>,
    /// Files that packs were to borrow from that are not there, or not yet.
    pub(super) unfinished: Vec<String>,
    /// Files that nobody needs: what an interrupted removal has left.
    pub(super) leftovers: Vec<String>,
}

impl Listing {
    fn read(files: &dyn Files, session: SessionId, dir: &Path) -> Result<Self, StoreError> {
        let mut listing = Self::read_all(files, session, dir)?;
        if let Some(durable) = suspect_after(files, dir)? {
            listing.by_seq.retain(|seq, _| *seq <= durable);
        }
        Ok(listing)
    }

    /// Also what a power failure may have torn.
    fn read_all(files: &dyn Files, session: SessionId, dir: &Path) -> Result<Self, StoreError> {
        let names = files.names(dir).map_err(StoreError::io("list", dir))?;
        let mut listing = Self::default();
        let newest = names.iter().filter_map(|n| names::parse_pack_file(n)).max();
        if let Some(generation) = newest {
            let path = dir.join(names::pack_file(generation));
            match PackFile::open(files, &path, session) {
                Ok(pack) => listing.pack = Some(Arc::new(pack)),
                // Replaced since the names were read.
                Err(error) if error.is_missing() => return Err(error),
                Err(error) => listing.pack_damage = Some((path, error.to_string())),
            }
        }
        for name in names {
            if let Some((seq, id)) = names::parse_snapshot_file(&name) {
                match &listing.pack {
                    Some(pack) if pack.absorbs(seq) => listing.leftovers.push(name),
                    _ => _ = listing.by_seq.insert(seq, id),
                }
            } else if let Some((seq, number)) = names::parse_loan_file(&name) {
                listing.loans.entry(seq).or_default().push(number);
            } else if let Some((generation, number)) = names::parse_pack_loan_file(&name) {
                match Some(generation).cmp(&newest) {
                    Ordering::Less => listing.leftovers.push(name),
                    Ordering::Equal => listing.pack_loans.push(number),
                    Ordering::Greater => listing.unfinished.push(name),
                }
            } else if names::parse_pack_file(&name).is_some_and(|n| Some(n) < newest) {
                listing.leftovers.push(name);
            }
        }
        // Those of a snapshot that is just being published have their names before it.
        let published = listing.by_seq.last_key_value().map_or(0, |(seq, _)| *seq);
        for (seq, numbers) in &listing.loans {
            let is_over = *seq < published || listing.is_gone(*seq);
            if is_over && !listing.by_seq.contains_key(seq) {
                let names = numbers.iter().map(|number| names::loan_file(*seq, *number));
                listing.leftovers.extend(names);
            }
        }
        Ok(listing)
    }

    /// Whether a snapshot was here and is gone on purpose.
    pub(super) fn is_gone(&self, seq: u32) -> bool {
        self.pack.as_ref().is_some_and(|pack| pack.absorbs(seq))
    }
}

/// The file that has a page.
#[derive(Debug)]
pub(super) enum Holder {
    Snapshot(Arc<ImageFile>),
    Pack(Arc<PackFile>),
}

/// How often a folder is listed again that changes while it is read.
const PATIENCE: u32 = 8;

/// The files of one session. Clones share what is known of the folder, and what is learned when files have been
/// merged meanwhile.
#[derive(Clone, Debug)]
pub(super) struct SessionFiles {
    pub(super) session: SessionId,
    pub(super) dir: PathBuf,
    pub(super) files: Arc<dyn Files>,
    cache: Arc<FileCache>,
    listing: Arc<RwLock<Arc<Listing>>>,
    /// Whoever made this holds the session's lock: the folder changes by them alone, and is not listed again.
    held: bool,
}

impl SessionFiles {
    /// Lists a session's folder.
    pub(super) fn list(
        files: &Arc<dyn Files>,
        cache: &Arc<FileCache>,
        session: SessionId,
        dir: &Path,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            session,
            dir: dir.to_owned(),
            files: Arc::clone(files),
            cache: Arc::clone(cache),
            listing: Arc::new(RwLock::new(patiently(|| {
                Listing::read(&**files, session, dir)
            })?)),
            held: false,
        })
    }

    /// As [`SessionFiles::list`], also with what a power failure may have torn; it stays as it is listed. To read from
    /// it the caller holds the session's lock.
    pub(super) fn list_with_suspects(
        files: &Arc<dyn Files>,
        cache: &Arc<FileCache>,
        session: SessionId,
        dir: &Path,
    ) -> Result<Self, StoreError> {
        let all = patiently(|| Listing::read_all(&**files, session, dir))?;
        Ok(Self {
            session,
            dir: dir.to_owned(),
            files: Arc::clone(files),
            cache: Arc::clone(cache),
            listing: Arc::new(RwLock::new(all)),
            held: true,
        })
    }

    /// What the folder has, as far as is known.
    pub(super) fn listing(&self) -> Arc<Listing> {
        let listing = self.listing.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&listing)
    }

    /// From here on as if this snapshot were not there.
    pub(super) fn leave_out(&self, seq: u32) {
        let mut listing = self.listing.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut listing).by_seq.remove(&seq);
    }

    /// From here on with this snapshot, which has been published.
    pub(super) fn take_in(&self, seq: u32, id: SnapshotId) {
        let mut listing = self.listing.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut listing).by_seq.insert(seq, id);
    }

    /// From here on without a pack, and so without pages of snapshots that are gone.
    pub(super) fn leave_out_pack(&self) {
        let mut listing = self.listing.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut listing).pack = None;
    }

    /// Closes all files that are not in use: they may be removed.
    pub(super) fn close(&self) {
        self.cache.forget(self.session, |_| true);
    }

    /// Lists the folder again, unless nobody else can have changed it.
    pub(super) fn refresh(&self) -> Result<(), StoreError> {
        if self.held {
            return Ok(());
        }
        let fresh = patiently(|| Listing::read(&*self.files, self.session, &self.dir))?;
        *self.listing.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Whether a snapshot that was here is gone by now.
    pub(super) fn is_pruned(&self, seq: u32) -> bool {
        let known = self.refresh().map(|()| self.listing());
        known.is_ok_and(|listing| !listing.by_seq.contains_key(&seq))
    }

    /// Path of the snapshot with this sequence number.
    pub(super) fn path(&self, seq: u32) -> Result<PathBuf, StoreError> {
        let listing = self.listing();
        let id = listing.by_seq.get(&seq).ok_or_else(|| {
            let why = match (listing.is_gone(seq), &listing.pack_damage) {
                (true, _) => ": it was pruned",
                (false, Some(_)) => ": it may have been pruned, and the pack is damaged",
                _ => "",
            };
            StoreError::NotFound {
                what: format!(
                    "snapshot @{seq} of the session in {}{why}",
                    self.dir.display()
                ),
            }
        })?;
        Ok(self.dir.join(names::snapshot_file(seq, *id)))
    }

    /// The open file of the snapshot with this sequence number.
    pub(super) fn open(&self, seq: u32) -> Result<Arc<ImageFile>, StoreError> {
        let path = self.path(seq)?;
        self.cache.get(self.session, seq, || {
            let file = ImageFile::open(&*self.files, &path)?;
            let listing = self.listing();
            let named = listing.by_seq.get(&seq) == Some(&file.header.id);
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

    /// The file that has the pages named after a snapshot: its own, or the pack that stands for it. When neither
    /// is there, the folder has changed, and is listed again.
    pub(super) fn holder(&self, seq: u32) -> Result<Holder, StoreError> {
        let find = || match self.listing().pack.as_ref().filter(|p| p.absorbs(seq)) {
            Some(pack) => Ok(Holder::Pack(Arc::clone(pack))),
            None => self.open(seq).map(Holder::Snapshot),
        };
        match find() {
            Err(error) if error.is_missing() => {
                self.refresh()?;
                find()
            }
            found => found,
        }
    }

    /// Builds what the next delta after `seq` needs: the page table and the anchors of its spans.
    ///
    /// Each jump goes to an earlier snapshot, so it ends. There are at most 15 for each hexadecimal digit of the
    /// snapshot's depth, and one for the file that lists everything; where a jump leads to a snapshot that is
    /// gone, the parent is next, which is at most as many again.
    pub(super) fn head(&self, seq: u32) -> Result<Head, StoreError> {
        match self.try_head(seq) {
            Err(error) if error.is_missing() => {
                self.refresh()?;
                self.try_head(seq)
            }
            done => done,
        }
    }

    fn try_head(&self, seq: u32) -> Result<Head, StoreError> {
        let listing = self.listing();
        let last = self.open(seq)?;
        // Each file with whether its span counts, rather than its own index.
        let mut hops: Vec<(Arc<ImageFile>, bool)> = Vec::new();
        let mut table = PageTable::new();
        let mut next = Arc::clone(&last);
        loop {
            let header = &next.header;
            let ancestor = match header.span_kind {
                SpanKind::Since(ancestor) if listing.by_seq.contains_key(&ancestor) => {
                    Some(ancestor)
                }
                _ => None,
            };
            let whole = header.kind == SnapshotKind::Base || header.span_kind == SpanKind::Full;
            let parent = header.parent_seq;
            let spanned = ancestor.is_some() || header.span_kind == SpanKind::Full;
            hops.push((next, spanned));
            if whole {
                break;
            }
            let seq = ancestor.unwrap_or(parent);
            if let Some(pack) = listing.pack.as_ref().filter(|pack| pack.absorbs(seq)) {
                table = pack.ghost(seq)?.ok_or_else(|| {
                    StoreError::corrupt(pack.path(), "ghosts", format!("no snapshot @{seq}"))
                })?;
                break;
            }
            next = self.open(seq)?;
        }
        let mut anchors = Vec::new();
        let mut index_bytes = 0;
        for (file, spanned) in hops.into_iter().rev() {
            apply_file(&mut table, &file, spanned)?;
            let header = &file.header;
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

/// A pack may be replaced between the names and its opening: the next try sees the new one.
fn patiently(read: impl Fn() -> Result<Listing, StoreError>) -> Result<Arc<Listing>, StoreError> {
    let mut tries = 1;
    loop {
        match read() {
            Err(error) if error.is_missing() && tries < PATIENCE => tries += 1,
            done => return done.map(Arc::new),
        }
    }
}

/// Turns the table that a file builds on into the file's own.
fn apply_file(
    table: &mut PageTable<Location>,
    file: &ImageFile,
    spanned: bool,
) -> Result<(), StoreError> {
    let header = &file.header;
    if spanned {
        let bytes = file.section(&header.span)?;
        let runs = decode_span(&bytes, header).map_err(StoreError::image(&file.path))?;
        if header.span_kind == SpanKind::Full {
            *table = PageTable::new();
        }
        apply_runs(table, &runs);
        return Ok(());
    }
    let entries = file.index()?;
    if header.kind == SnapshotKind::Delta {
        let dropped = file.section(&header.dropped)?;
        let dropped = decode_dropped(&dropped, header).map_err(StoreError::image(&file.path))?;
        for range in dropped.ranges() {
            table.remove_range(*range);
        }
    }
    apply_entries(table, &entries, header.seq, &file.path)
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
