//! A snapshot being written, up to its publication.

use super::chain::SessionFiles;
use super::durability::Durability;
use super::earlier;
use super::error::StoreError;
use super::head::Head;
use super::headers;
use super::lender::Lender;
use super::loans::Loans;
use super::names::{self, TEMP_PREFIX};
use super::repeats::Repeats;
use super::session::{Session, now_ns};
use super::temp::TempFile;
use crate::image::{
    Arch, Builder, EncodedBatch, Found, HEADER_LEN, Identity, IndexEntry, LATE_OFFSET, Late,
    Location, PageSink, SpanKind, SpanPlan,
};
use crate::model::{Costs, PageSet, PageTable, ProcessState, SnapshotId, SnapshotKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A snapshot being written. Dropped without [`PendingSnapshot::publish`] it leaves nothing behind.
///
/// In memory at any time: 2 MiB of page data, 40 bytes for each page appended, and as much again for the first million of them.
pub struct PendingSnapshot<'a> {
    session: &'a mut Session,
    identity: Identity,
    builder: Builder,
    out: TempFile,
    /// Where sessions share pages: the files that it borrows from.
    loans: Option<Loans>,
    /// And its own, where they are written side by side.
    lender: Option<Arc<Lender>>,
    /// Pages that its file has already.
    repeats: Repeats,
    /// Its file may be among the published ones.
    tried: bool,
    /// Its publication was begun, and has not succeeded.
    failed: bool,
}

/// What came of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The snapshot's name.
    pub id: SnapshotId,
    /// Its sequence number in the session.
    pub seq: u32,
    /// Length of its file.
    pub bytes: u64,
    /// Its share of the files that it borrows pages from: what each takes, divided by all who have it.
    pub borrowed: u64,
    /// Bytes of encoded pages in it.
    pub data_bytes: u64,
    /// Pages stored in it.
    pub stored_pages: u64,
    /// Pages of the snapshot, its ancestors' included.
    pub pages: u64,
    /// Time spent in writes, or in waiting for them, nanoseconds.
    pub write_ns: u64,
    /// Time spent in making it durable: file, rename and folder, nanoseconds.
    pub sync_ns: u64,
}

fn ns(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

impl<'a> PendingSnapshot<'a> {
    pub(super) fn begin(
        session: &'a mut Session,
        kind: SnapshotKind,
        parent: Option<(SnapshotId, u32)>,
    ) -> Result<Self, StoreError> {
        let arch = Arch::native().ok_or_else(|| StoreError::Misuse {
            why: format!("no format for {}", std::env::consts::ARCH),
        })?;
        // A number is used once, also by a snapshot that fails to be published: its file may have reached the disk.
        let seq = session.next_seq;
        session.next_seq = seq.checked_add(1).ok_or_else(StoreError::session_full)?;
        let temp = session.dir.join(format!("{TEMP_PREFIX}{seq:08}"));
        let buffer = std::mem::take(&mut session.buffer);
        // Room for the header, which is known last.
        let mut out = TempFile::create(&session.store.files, temp.clone(), buffer, HEADER_LEN)?;
        let shares = session.common.is_some() || session.earlier.is_some();
        let loans = shares.then(|| Loans::new(&session.store.files, &session.dir, seq));
        let common = session.common.as_ref();
        let lender = common.map(|common| common.lender(temp));
        if let Some(lender) = &lender {
            out.lend(Arc::clone(lender));
        }
        let identity = Identity {
            arch,
            kind,
            parent,
            session: session.id,
            seq,
            time_ns: now_ns(),
            found: None,
        };
        Ok(Self {
            session,
            identity,
            builder: Builder::new(),
            out,
            loans,
            lender,
            repeats: Repeats::default(),
            tried: false,
            failed: false,
        })
    }

    /// Sequence number that the snapshot will have.
    pub fn seq(&self) -> u32 {
        self.identity.seq
    }

    /// Sets the snapshot's wall-clock time, nanoseconds since 1970, instead of when it was begun.
    pub fn set_time_ns(&mut self, time_ns: u64) {
        self.identity.time_ns = time_ns;
    }

    /// Page table of the parent; `None` for a base.
    pub fn parent_table(&self) -> Option<&PageTable<Location>> {
        match self.identity.kind {
            SnapshotKind::Base => None,
            SnapshotKind::Delta => self.session.head_table(),
        }
    }

    /// Encoded bytes taken so far.
    pub fn data_bytes(&self) -> u64 {
        self.builder.data_len()
    }

    /// Completes the snapshot and makes it visible and durable, in this order: pages, index and manifest,
    /// header, sync, rename, sync of the folder. A crash at any point leaves all of it or nothing.
    ///
    /// In the stored costs `bytes_out` is what was measured here. `phases.write_ns` and `phases.sync_ns` are
    /// known only afterwards: they go into the header's late field, from where reading fills them in.
    ///
    /// After an error the session is as before [`Session::begin`], and the snapshot can be tried again.
    pub fn publish(mut self, state: &ProcessState, costs: &Costs) -> Result<Published, StoreError> {
        self.failed = true;
        // Nothing more comes, and the table takes room.
        self.repeats = Repeats::default();
        let mut entries = self.builder.entries();
        self.choose_loans(&mut entries)?;
        let (table, span) = self.plan(&entries)?;
        let mut costs = costs.clone();
        costs.bytes_out = self.builder.data_len();
        costs.phases.write_ns = 0;
        costs.phases.sync_ns = 0;
        self.identity.found = Some(Found {
            dirty: costs.pages.dirty,
            changed: costs.pages.changed,
        });
        let pages = table.pages();
        let finished = self
            .builder
            .finish(&self.identity, &entries, &span, pages, state, &costs)
            .map_err(|error| StoreError::Misuse {
                why: error.to_string(),
            })?;
        self.out.extend(&finished.tail)?;
        self.out.flush()?;
        self.out.rewrite(&finished.head, 0)?;
        if let Some(loans) = &mut self.loans {
            // Behind the flush: others may wait for it in the same way.
            loans.settle(&entries, self.session.unsynced.mode != Durability::None)?;
        }

        let header = finished.header;
        let name = names::snapshot_file(header.seq, header.id);
        let path = self.session.dir.join(name);
        self.tried = true;
        let (sync_ns, borrowed) = self.make_durable(&path)?;
        match self.identity.kind {
            SnapshotKind::Base => {
                self.session.head = Some(Head::base(header.id, header.seq, table));
                self.session.stored.clear();
            }
            SnapshotKind::Delta => {
                if let Some(head) = &mut self.session.head {
                    head.advance(&header, table);
                }
            }
        }
        let stored = &mut self.session.stored;
        stored.published((header.seq, header.id), pages, &entries);
        if let (Some(earlier), None) = (&self.session.earlier, &self.session.common) {
            earlier::lock(earlier).published(pages, stored);
        }
        self.failed = false;
        self.session.shared.published(header.seq);
        let files = &*self.session.store.files;
        headers::note(files, &self.session.dir, &path, &self.head_bytes());
        Ok(Published {
            id: header.id,
            seq: header.seq,
            bytes: header.file_len(),
            borrowed,
            data_bytes: header.data.len,
            stored_pages: header.entries(),
            pages,
            write_ns: self.out.write_ns(),
            sync_ns,
        })
    }

    /// Stores what is borrowed of files that are not worth keeping for it.
    fn choose_loans(&mut self, entries: &mut [IndexEntry]) -> Result<(), StoreError> {
        let Some(loans) = &mut self.loans else {
            return Ok(());
        };
        let unwanted = loans.unwanted(entries);
        if !unwanted.is_empty() {
            // First: others may wait for it in the same way.
            self.out.flush()?;
            let (out, builder) = (&mut self.out, &mut self.builder);
            loans.take_over(&unwanted, entries, &mut |bytes| {
                out.extend(bytes)?;
                Ok(builder.add_data(bytes.len()))
            })?;
        }
        loans.number_anew(entries);
        Ok(())
    }

    /// The snapshot's page table and the span section it gets.
    fn plan(
        &mut self,
        entries: &[IndexEntry],
    ) -> Result<(PageTable<Location>, SpanPlan), StoreError> {
        let seq = self.identity.seq;
        let mut table = self.parent_table().cloned().unwrap_or_default();
        for range in self.builder.dropped().ranges() {
            table.remove_range(*range);
        }
        super::chain::apply_entries(&mut table, entries, seq, self.out.path())?;
        let span = match (self.identity.kind, &mut self.session.head) {
            (SnapshotKind::Delta, Some(head)) => head.plan(&table, entries.len()),
            _ => SpanPlan {
                kind: SpanKind::None,
                runs: Vec::new(),
                depth: 0,
            },
        };
        Ok((table, span))
    }

    /// The header as it is in the file by now.
    fn head_bytes(&self) -> [u8; HEADER_LEN] {
        let mut head = [0; HEADER_LEN];
        head.copy_from_slice(&self.out.first()[..HEADER_LEN]);
        head
    }

    /// Time that it took in nanoseconds, and the share of what is borrowed.
    fn make_durable(&mut self, path: &Path) -> Result<(u64, u64), StoreError> {
        let start = Instant::now();
        let each = self.session.unsynced.mode == Durability::Each;
        if each {
            self.out.sync()?;
        }
        let late = Late {
            write_ns: self.out.write_ns(),
            sync_ns: ns(start),
        };
        // Only for the record, and only known now: after a crash it may be missing, and a sealed file that is synced does
        // not change any more.
        if let Err(error) = self.out.rewrite(&late.encode(), LATE_OFFSET as usize) {
            tracing::debug!("costs of writing: {error}");
        }
        let file = self.out.take_file()?;
        let seq = self.identity.seq;
        let files = Arc::clone(&self.session.store.files);
        let files = &*files;
        if !each {
            let (unsynced, dir) = (&mut self.session.unsynced, &self.session.dir);
            unsynced.mark(files, dir, seq - 1)?;
        }
        let borrowed = match &mut self.loans {
            Some(loans) => loans.publish()?,
            None => 0,
        };
        self.out.rename(path)?;
        if !each {
            self.keep_loans();
        }
        if let Some(file) = file.filter(|_| !each) {
            self.session.unsynced.add(file, seq);
            // One that cannot be synced now is published all the same, and tried again with the next.
            if let Err(error) = self.session.sync_if_due() {
                tracing::warn!("the last snapshots are not durable yet: {error}");
            }
            return Ok((ns(start), borrowed));
        }
        if let Err(error) = files.sync_dir(&self.session.dir) {
            // Not surely durable, so not published: it must not outlive the error that the caller gets.
            if files.remove_file(path).is_err() {
                tracing::warn!("{} was not published but stays", path.display());
                self.keep_loans();
            }
            return Err(StoreError::io("sync folder", &self.session.dir)(error));
        }
        self.keep_loans();
        Ok((ns(start), borrowed))
    }

    /// What is borrowed stays with the snapshot.
    fn keep_loans(&mut self) {
        if let Some(loans) = &mut self.loans {
            loans.keep();
        }
    }
}

impl PageSink for PendingSnapshot<'_> {
    type Error = StoreError;

    fn append(&mut self, batch: &EncodedBatch) -> Result<(), StoreError> {
        let empty = PageTable::new();
        let mut elsewhere = vec![None; batch.pages().len()];
        let (id, store) = (self.session.id, &self.session.store);
        if self.identity.kind == SnapshotKind::Delta {
            let dir = &self.session.dir;
            let list = || {
                let store = store.apart();
                SessionFiles::list_with_suspects(&store.files, &store.cache, id, dir)
            };
            let (stored, shared) = (&mut self.session.stored, &self.session.shared);
            stored.find(batch, &list, shared, &mut elsewhere);
        }
        if let (Some(earlier), Some(loans)) = (&self.session.earlier, &mut self.loans) {
            let own = (store, id, &self.session.info);
            earlier::lock(earlier).find(own, batch, loans, &mut elsewhere);
        }
        let from = HEADER_LEN as u64 + self.builder.data_len();
        match (&self.session.common, &self.lender, &mut self.loans) {
            (Some(common), Some(own), Some(loans)) => {
                common.shelve(batch, (own, from), loans, &mut elsewhere);
            }
            _ => self.repeats.find(batch, from, &mut elsewhere),
        }
        let parent = match self.identity.kind {
            SnapshotKind::Base => &empty,
            SnapshotKind::Delta => self.session.head_table().unwrap_or(&empty),
        };
        self.builder
            .append(batch, &elsewhere, parent)
            .map_err(|addr| StoreError::Misuse {
                why: format!("its parent has no page {addr:#x} to refer to"),
            })?;
        // What is elsewhere is not written again.
        let mut from = 0;
        for (page, _) in batch
            .pages()
            .iter()
            .zip(&elsewhere)
            .filter(|(_, place)| place.is_some())
        {
            self.out.extend(&batch.bytes()[from..page.at as usize])?;
            from = page.at as usize + usize::from(page.len);
        }
        self.out.extend(&batch.bytes()[from..])
    }

    fn drop_ranges(&mut self, pages: &PageSet) {
        self.builder.drop_ranges(pages);
    }

    fn remove_pages(&mut self, pages: &PageSet, before: u32) {
        self.builder.remove_pages(pages, before);
    }
}

impl Drop for PendingSnapshot<'_> {
    fn drop(&mut self) {
        self.out.end_lending();
        self.session.buffer = self.out.take_buffer();
        if self.failed {
            // Another attempt is not to fail by what it borrows.
            self.session.earlier = None;
        }
        self.session.shared.written();
        if !self.tried {
            self.session.next_seq = self.identity.seq;
        }
    }
}
