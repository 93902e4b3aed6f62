//! Finds what snapshots that stay need of those that go.

use super::chain::SessionFiles;
use super::common::looks;
use super::encoded::{entries_of, read_wanted};
use super::error::StoreError;
use super::loan_file::share;
use super::loans::LEAST_BYTES;
use super::meta::SnapshotMeta;
use super::repeats::MOST_PAGES;
use crate::image::{
    IndexEntry, Location, PACK_ENTRY_LEN, PACK_HEADER_LEN, RUN_LEN, SpanKind, runs_of,
};
use crate::model::{PageTable, SnapshotKind};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Bytes that a page table in a pack takes besides its runs.
const GHOST_LEN: u64 = 32;

/// Files that a pack borrows from, at most: whoever reads the session has them open.
const MOST_BORROWED: usize = 16;

/// What a pack has to hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    /// Pages, ascending: with each that holds changes also the versions that it takes to read it. They keep their
    /// places and their bytes, so that whoever reads one while it moves finds it, and reading never takes more
    /// than it did.
    pub(super) places: Vec<Location>,
    /// Page tables that others build on, by sequence number.
    pub(super) ghosts: BTreeMap<u32, PageTable<Location>>,
    /// Files that others have as well, and of which the pack needs so much that it borrows it.
    pub(super) borrowed: BTreeSet<PathBuf>,
    /// Length of the pack with its share of what it borrows, but for the numbers of the snapshots that it stands for.
    pub(super) bytes: u64,
}

/// What is needed of a file.
struct InFile {
    len: u64,
    /// Lengths and looks of the pages by their places: entries may share bytes.
    used: FxHashMap<u64, (u16, Option<u64>)>,
}

/// What becomes of a snapshot, as seen from those that others may build on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its file is there, and stays.
    Stays,
    /// Its file goes, or has gone into a pack before.
    Goes,
    /// Its file is not there, and nobody has removed it by a rule.
    Missing,
}

impl Needs {
    /// What the kept snapshots need of those that go, or have gone into a pack before.
    ///
    /// A page table holds its own file's pages, the parent's, and those that its references name. So the pages
    /// are in the tables of the kept snapshots whose parent goes, and in the references of all of them. A page
    /// that holds changes holds those to the parent's: where the parent stays, its table has what it takes, and
    /// where it goes, the places are behind the bytes. From there it goes on to the versions below.
    pub(super) fn find(
        files: &SessionFiles,
        kept: &[SnapshotMeta],
        fate: &dyn Fn(u32) -> Fate,
    ) -> Result<Self, StoreError> {
        let mut found: BTreeSet<Location> = BTreeSet::new();
        let mut ghosts = BTreeMap::new();
        let goes = |seq: u32| fate(seq) == Fate::Goes;
        for meta in kept {
            let file = files.open(meta.seq)?;
            let header = &file.header;
            let entries = file.index()?;
            let targets = entries.iter().filter_map(IndexEntry::target);
            found.extend(targets.filter(|target| goes(target.seq.get())));
            let parent = match meta.parent_seq {
                0 => None,
                seq => Some(fate(seq)),
            };
            if parent == Some(Fate::Stays) {
                continue;
            }
            // Nobody has its table, so what is kept must not need it.
            let missing = parent == Some(Fate::Missing);
            let needs_parent = match header.span_kind {
                SpanKind::Full => false,
                SpanKind::Since(ancestor) => fate(ancestor) != Fate::Stays,
                SpanKind::None => header.kind == SnapshotKind::Delta,
            };
            if missing && needs_parent {
                return Err(builds_on_missing(meta));
            }
            let own = entries.iter().zip(0..);
            let changes: Vec<Location> = own
                .filter(|(entry, _)| entry.encoding.needs_previous())
                .filter_map(|(_, slot)| Location::new(meta.seq, slot))
                .collect();
            let below = versions_below(files, &changes)?;
            let table = files.head(meta.seq)?.table;
            let places = table.iter().map(|(_, place)| place).chain(below);
            found.extend(places.filter(|place| goes(place.seq.get())));
            let builds = header.kind == SnapshotKind::Delta && header.span_kind != SpanKind::Full;
            if builds && !missing && !ghosts.contains_key(&header.parent_seq) {
                let parent = table_of(files, header.parent_seq)?;
                ghosts.insert(header.parent_seq, parent);
            }
        }
        // Places get lower from version to version, so this ends.
        let mut round: Vec<Location> = found.iter().copied().collect();
        while !round.is_empty() {
            let below: BTreeSet<Location> = changes_among(files, &round)
                .and_then(|changes| versions_below(files, &changes))?
                .into_iter()
                .filter(|place| goes(place.seq.get()) && !found.contains(place))
                .collect();
            found.extend(&below);
            round = below.into_iter().collect();
        }
        let mut needs = Self {
            places: found.into_iter().collect(),
            ghosts,
            borrowed: BTreeSet::new(),
            bytes: 0,
        };
        needs.measure(files)?;
        Ok(needs)
    }

    fn measure(&mut self, files: &SessionFiles) -> Result<(), StoreError> {
        let mut bytes = PACK_HEADER_LEN as u64;
        // By snapshot and number first: there are many more places than files.
        let mut by_number: FxHashMap<(u32, u8), (PathBuf, InFile)> = FxHashMap::default();
        entries_of(files, &self.places, &mut |place, entry, file| {
            bytes += PACK_ENTRY_LEN as u64;
            if entry.encoding.needs_previous() {
                bytes += u64::from(entry.len);
                return;
            }
            let (_, in_file) = by_number
                .entry((place.seq.get(), entry.loan))
                .or_insert_with(|| {
                    let len = file.file_len();
                    let used = FxHashMap::default();
                    (file.path().to_owned(), InFile { len, used })
                });
            // What takes nothing is where the next one begins.
            if entry.len > 0 {
                let of = (entry.len, looks(entry.crc, entry.len, entry.encoding));
                in_file.used.insert(entry.at, of);
            }
        })?;
        let mut of_files: BTreeMap<PathBuf, InFile> = BTreeMap::new();
        for (path, in_file) in by_number.into_values() {
            match of_files.entry(path) {
                Entry::Occupied(mut known) => known.get_mut().used.extend(in_file.used),
                Entry::Vacant(new) => _ = new.insert(in_file),
            }
        }
        // If all who have a file need as much of it, they take more room apart.
        let is_worth_it = |path: &Path, used: u64, len: u64| {
            let names = files.files.names_of(path).unwrap_or(1);
            names > 1 && used >= LEAST_BYTES && used.saturating_mul(names) > len
        };
        let mut worth: Vec<(u64, PathBuf)> = Vec::new();
        for (path, in_file) in &of_files {
            let used = in_file.used.values().map(|(len, _)| u64::from(*len)).sum();
            if is_worth_it(path, used, in_file.len) {
                worth.push((used, path.clone()));
            }
        }
        worth.sort_unstable_by(|a, b| b.cmp(a));
        for (_, path) in worth.into_iter().take(MOST_BORROWED) {
            bytes += share(&*files.files, &path);
            of_files.remove(&path);
            self.borrowed.insert(path);
        }
        // What is copied is in the pack once.
        let mut seen: FxHashSet<u64> = FxHashSet::default();
        let copied = of_files
            .into_values()
            .flat_map(|in_file| in_file.used.into_values());
        for (len, looks) in copied {
            let is_new = looks.is_none_or(|looks| match seen.len() < MOST_PAGES {
                true => seen.insert(looks),
                false => !seen.contains(&looks),
            });
            bytes += if is_new { u64::from(len) } else { 0 };
        }
        for table in self.ghosts.values() {
            bytes += GHOST_LEN + (runs_of(table).len() * RUN_LEN) as u64;
        }
        self.bytes = bytes;
        Ok(())
    }
}

fn builds_on_missing(meta: &SnapshotMeta) -> StoreError {
    StoreError::NotRemoved {
        why: format!(
            "snapshot @{} builds on @{}, whose file is missing, so what it needs of others is not known; first \
             remove its file too: {}",
            meta.seq,
            meta.parent_seq,
            meta.path.display()
        ),
    }
}

/// Those of these pages that hold changes.
fn changes_among(files: &SessionFiles, places: &[Location]) -> Result<Vec<Location>, StoreError> {
    let mut changes = Vec::new();
    entries_of(files, places, &mut |place, entry, _| {
        if entry.encoding.needs_previous() {
            changes.push(place);
        }
    })?;
    Ok(changes)
}

/// The versions that these pages hold the changes to.
fn versions_below(files: &SessionFiles, changes: &[Location]) -> Result<Vec<Location>, StoreError> {
    let wanted: Vec<(Location, u64)> = changes.iter().map(|place| (*place, 0)).collect();
    let mut below = Vec::with_capacity(changes.len());
    read_wanted(files, &wanted, &mut |page, _| {
        below.extend(page.previous()?);
        Ok(())
    })?;
    Ok(below)
}

/// The page table of a snapshot that is there, or of one whose ghost is.
fn table_of(files: &SessionFiles, seq: u32) -> Result<PageTable<Location>, StoreError> {
    let listing = files.listing();
    if let Some(pack) = listing.pack.as_ref().filter(|pack| pack.absorbs(seq)) {
        return pack.ghost(seq)?.ok_or_else(|| StoreError::NotFound {
            what: format!("page table of snapshot @{seq}, which was pruned"),
        });
    }
    Ok(files.head(seq)?.table)
}
