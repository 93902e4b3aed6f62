//! A snapshot being written, up to its publication.

use super::error::StoreError;
use super::files::WriteFile;
use super::head::Head;
use super::names::{self, TEMP_PREFIX};
use super::session::{Session, now_ns};
use crate::image::{
    Arch, Builder, EncodedBatch, HEADER_LEN, Identity, LATE_OFFSET, Location, PageSink, SpanKind,
    SpanPlan, encode_late,
};
use crate::model::{Costs, PageSet, PageTable, ProcessState, SnapshotId, SnapshotKind};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Page data is handed to the operating system in pieces of this size.
const BUFFER: usize = 1 << 20;

/// A snapshot being written. Dropped without [`PendingSnapshot::publish`] it leaves nothing behind.
///
/// In memory at any time: 1 MiB of page data and 40 bytes for each page appended.
pub struct PendingSnapshot<'a> {
    session: &'a mut Session,
    identity: Identity,
    builder: Builder,
    file: Option<Box<dyn WriteFile>>,
    temp: PathBuf,
    buffer: Vec<u8>,
    written: u64,
    write_ns: u64,
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
    /// Bytes of encoded pages in it.
    pub data_bytes: u64,
    /// Pages stored in it.
    pub stored_pages: u64,
    /// Pages of the snapshot, its ancestors' included.
    pub pages: u64,
    /// Time spent in writes, nanoseconds.
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
        // A number is used once, also by a snapshot that fails: half of it may have reached the disk.
        let seq = session.next_seq;
        session.next_seq = seq.checked_add(1).ok_or_else(|| StoreError::Misuse {
            why: "the session is full: begin another".into(),
        })?;
        let temp = session.dir.join(format!("{TEMP_PREFIX}{seq:08}"));
        let file = session
            .store
            .files
            .create(&temp)
            .map_err(StoreError::io("create", &temp))?;
        let identity = Identity {
            arch,
            kind,
            parent,
            session: session.id,
            seq,
            time_ns: now_ns(),
        };
        Ok(Self {
            session,
            identity,
            builder: Builder::new(),
            file: Some(file),
            temp,
            buffer: Vec::new(),
            written: HEADER_LEN as u64,
            write_ns: 0,
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

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Misuse {
                why: "an earlier write of it failed: drop it and begin anew".into(),
            });
        }
        let start = Instant::now();
        let Some(file) = self.file.as_mut() else {
            return Ok(());
        };
        let done = file.write_all_at(bytes, self.written);
        self.write_ns += ns(start);
        self.failed = done.is_err();
        done.map_err(StoreError::io("write", &self.temp))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let buffer = std::mem::take(&mut self.buffer);
        let done = if buffer.is_empty() {
            Ok(())
        } else {
            self.write(&buffer)
        };
        self.buffer = buffer;
        self.buffer.clear();
        done
    }

    /// Completes the snapshot and makes it visible and durable, in this order: pages, index and manifest,
    /// header, sync, rename, sync of the folder. A crash at any point leaves all of it or nothing.
    ///
    /// In the stored costs `bytes_out` and `phases.write_ns` are what was measured here, and `phases.sync_ns`
    /// is filled in at reading from the header's late field.
    ///
    /// After an error the session is as before [`Session::begin`], and the snapshot can be tried again.
    pub fn publish(mut self, state: &ProcessState, costs: &Costs) -> Result<Published, StoreError> {
        self.flush()?;
        let entries = self.builder.entries();
        let (table, span) = self.plan(&entries)?;
        let mut costs = costs.clone();
        costs.bytes_out = self.builder.data_len();
        costs.phases.write_ns = self.write_ns;
        costs.phases.sync_ns = 0;
        let pages = table.pages();
        let finished = self
            .builder
            .finish(&self.identity, &entries, &span, pages, state, &costs)
            .map_err(|error| StoreError::Misuse {
                why: error.to_string(),
            })?;
        self.write(&finished.tail)?;
        self.written = 0;
        self.write(&finished.head)?;

        let header = finished.header;
        let name = names::snapshot_file(header.seq, header.id);
        let path = self.session.dir.join(name);
        let sync_ns = self.make_durable(&path)?;
        match self.identity.kind {
            SnapshotKind::Base => {
                self.session.head = Some(Head::base(header.id, header.seq, table));
            }
            SnapshotKind::Delta => {
                if let Some(head) = &mut self.session.head {
                    head.advance(&header, table);
                }
            }
        }
        Ok(Published {
            id: header.id,
            seq: header.seq,
            bytes: header.file_len(),
            data_bytes: header.data.len,
            stored_pages: header.entries(),
            pages,
            write_ns: self.write_ns,
            sync_ns,
        })
    }

    /// The snapshot's page table and the span section it gets.
    fn plan(
        &mut self,
        entries: &[crate::image::IndexEntry],
    ) -> Result<(PageTable<Location>, SpanPlan), StoreError> {
        let seq = self.identity.seq;
        let mut table = self.parent_table().cloned().unwrap_or_default();
        for range in self.builder.dropped().ranges() {
            table.remove_range(*range);
        }
        super::chain::apply_entries(&mut table, entries, seq, &self.temp)?;
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

    fn make_durable(&mut self, path: &Path) -> Result<u64, StoreError> {
        let start = Instant::now();
        let Some(mut file) = self.file.take() else {
            return Ok(0);
        };
        file.sync().map_err(StoreError::io("sync", &self.temp))?;
        // Only for the record, and only known now: after a crash it may be missing.
        if let Err(error) = file.write_all_at(&encode_late(ns(start)), LATE_OFFSET) {
            tracing::debug!("sync time of {}: {error}", self.temp.display());
        }
        drop(file);
        let files = &*self.session.store.files;
        files
            .rename(&self.temp, path)
            .map_err(StoreError::io("publish", path))?;
        if let Err(error) = files.sync_dir(&self.session.dir) {
            // Not surely durable, so not published: it must not outlive the error that the caller gets.
            if files.remove_file(path).is_err() {
                tracing::warn!("{} was not published but stays", path.display());
            }
            return Err(StoreError::io("sync folder", &self.session.dir)(error));
        }
        // From here on the temporary name is gone.
        self.temp = PathBuf::new();
        Ok(ns(start))
    }
}

impl PageSink for PendingSnapshot<'_> {
    type Error = StoreError;

    fn append(&mut self, batch: &EncodedBatch) -> Result<(), StoreError> {
        let empty = PageTable::new();
        let parent = match self.identity.kind {
            SnapshotKind::Base => &empty,
            SnapshotKind::Delta => self.session.head_table().unwrap_or(&empty),
        };
        self.builder
            .append(batch, parent)
            .map_err(|addr| StoreError::Misuse {
                why: format!("its parent has no page {addr:#x} to refer to"),
            })?;
        if self.buffer.len() + batch.bytes().len() > BUFFER {
            self.flush()?;
        }
        if batch.bytes().len() >= BUFFER {
            return self.write(batch.bytes());
        }
        self.buffer.extend_from_slice(batch.bytes());
        Ok(())
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
        if self.temp.as_os_str().is_empty() {
            return;
        }
        self.file = None;
        if let Err(error) = self.session.store.files.remove_file(&self.temp)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            // The next writer of the session removes it.
            tracing::debug!("{} stays: {error}", self.temp.display());
        }
    }
}
