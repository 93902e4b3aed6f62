//! Checks everything that is stored.

use super::cache::{ImageFile, PageFile};
use super::chain::SessionFiles;
use super::directory::Store;
use super::error::StoreError;
use super::names;
use super::pack::PackFile;
use super::snapshot::Snapshot;
use super::versions::read_decoded;
use crate::codec::Encoding;
use crate::image::{IndexEntry, Location, SessionId, decode_dropped, decode_span};
use crate::model::{PageTable, SnapshotId};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The snapshot that cannot be relied on; `None` for what belongs to no snapshot.
    pub id: Option<SnapshotId>,
    /// File where the fault lies, or whose reading failed.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Snapshots checked.
    pub snapshots: u64,
    /// Pages decoded and compared with their checksums.
    pub pages: u64,
    /// Snapshots of sealed sessions that cannot be read: of these only the lengths of the files were checked.
    pub unchecked: u64,
    /// What is worth knowing and does no harm, a sentence each.
    pub notes: Vec<String>,
    /// Everything that is wrong. Snapshots that it does not name are whole.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Nothing wrong was found.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Store {
    /// Checks one snapshot and the files it needs, or all snapshots: headers, indexes, page tables, manifests,
    /// every page, and that parents exist; of all snapshots also tags. Flat images that are not what their snapshots are, are removed. Damage is reported; only a store that cannot be listed is an error.
    pub fn verify(&self, only: Option<SnapshotId>) -> Result<Report, StoreError> {
        let mut report = Report::default();
        let mut found = false;
        for session in self.session_ids()? {
            let files = match self.session_files_if_there(session) {
                Ok(Some(files)) => files,
                Ok(None) => continue,
                Err(error) if error.is_sealed() || matches!(error, StoreError::Corrupt { .. }) => {
                    match only {
                        None => self.verify_closed(session, error, &mut report)?,
                        Some(id) if self.session_with(id)? == Some(session) => return Err(error),
                        Some(_) => {}
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let listing = files.listing();
            let wanted: Vec<(u32, SnapshotId)> = listing
                .by_seq
                .iter()
                .filter(|(_, id)| only.is_none_or(|only| **id == only))
                .map(|(seq, id)| (*seq, *id))
                .collect();
            if wanted.is_empty() && only.is_some() {
                continue;
            }
            found = true;
            if let Err(error) = self.session_info(session)
                && !self.is_session_gone(session)
            {
                report.problems.push(Problem {
                    id: None,
                    path: self.session_path(session),
                    what: format!("{error}; `ksnap verify --rebuild` makes it anew"),
                });
            }
            report.notes.extend(self.headers_damage(session));
            if let Some((path, what)) = &listing.pack_damage {
                report.problems.push(Problem {
                    id: None,
                    path: path.clone(),
                    what: what.clone(),
                });
            }
            Check::new(files, &mut report).run(&wanted);
        }
        self.verify_trees(only, &mut report)?;
        self.verify_flat(only, &mut report);
        if only.is_none() {
            self.verify_tags(&mut report)?;
        }
        match only {
            Some(id) if !found => Err(self.no_snapshot(id)),
            _ => Ok(report),
        }
    }

    /// What can be said of a session that cannot be opened: of a sealed one without its key, that its files have lengths
    /// that sealed files have; where the key is damaged, that. Of other sessions it says nothing.
    fn verify_closed(
        &self,
        session: SessionId,
        why: StoreError,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        if !why.is_sealed() {
            report.problems.push(Problem {
                id: None,
                path: self.session_path(session),
                what: why.to_string(),
            });
            return Ok(());
        }
        let dir = self.session_path(session);
        let names = self
            .files
            .names(&dir)
            .map_err(StoreError::io("list", &dir))?;
        let mut snapshots = 0;
        for name in &names {
            let id = match names::parse_snapshot_file(name) {
                Some((_, id)) => Some(id),
                None if names::parse_pack_file(name).is_some() => None,
                None => continue,
            };
            snapshots += u64::from(id.is_some());
            let path = dir.join(name);
            match self.sealing.has_shape(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    report.problems.push(Problem {
                        id,
                        what: StoreError::io("stat", &path)(error).to_string(),
                        path,
                    });
                }
                _ => {}
            }
        }
        report.unchecked += snapshots;
        report.notes.push(format!(
            "of {snapshots} snapshots only the lengths of the files were checked: {why}"
        ));
        Ok(())
    }

    /// Records of trees can be read, and name snapshots that are there.
    fn verify_trees(
        &self,
        only: Option<SnapshotId>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let roots = self.tree_roots()?;
        if roots.is_empty() {
            return Ok(());
        }
        let there = self.all_ids()?;
        let living = roots.into_iter().filter(|root| there.contains(root));
        for root in living.filter(|root| only.is_none_or(|only| only == *root)) {
            let what = match self.tree(root) {
                // Told with its session.
                Err(error) if error.is_sealed() => continue,
                Err(error) => error.to_string(),
                Ok(tree) => {
                    let members = tree.map(|tree| tree.members).unwrap_or_default();
                    let missing = members.iter().find(|member| !there.contains(&member.id));
                    let Some(member) = missing else { continue };
                    format!(
                        "of its tree, snapshot {} of process {} is missing",
                        member.id, member.pid
                    )
                }
            };
            report.problems.push(Problem {
                id: Some(root),
                path: self.tree_path(root),
                what,
            });
        }
        Ok(())
    }
}

/// One session under examination.
pub(super) struct Check<'a> {
    files: SessionFiles,
    report: &'a mut Report,
    /// What is wrong with each file itself, and how many entries and which references it has.
    checked: BTreeMap<u32, Own>,
    /// What is wrong with the pack, once that is known.
    pack: Option<Own>,
    /// Which pack was there when `checked` and `pack` were begun.
    generation: Option<u32>,
}

/// How often a snapshot is looked at again because others were removed meanwhile.
const PATIENCE: u32 = 8;

/// What a file's own sections say.
struct Own {
    fault: Option<String>,
    /// For each slot, whether it holds a page rather than a reference.
    stored: Vec<bool>,
}

impl<'a> Check<'a> {
    pub(super) fn new(files: SessionFiles, report: &'a mut Report) -> Self {
        Self {
            generation: generation(&files),
            files,
            report,
            checked: BTreeMap::new(),
            pack: None,
        }
    }

    pub(super) fn run(&mut self, wanted: &[(u32, SnapshotId)]) {
        for &(seq, id) in wanted {
            let Some(whats) = self.settled(seq) else {
                continue;
            };
            self.report.snapshots += 1;
            let path = self.files.dir.join(names::snapshot_file(seq, id));
            self.report
                .problems
                .extend(whats.into_iter().map(|what| Problem {
                    id: Some(id),
                    path: path.clone(),
                    what,
                }));
        }
    }

    /// What is wrong with a snapshot, and not only because of what was removed while it was looked at; `None` if
    /// it was removed itself.
    fn settled(&mut self, seq: u32) -> Option<Vec<String>> {
        let mut whats = self.snapshot(seq);
        for _ in 0..PATIENCE {
            if whats.is_empty() {
                break;
            }
            match self.files.refresh() {
                Err(error) if error.is_missing() => return None,
                _ if self.files.listing().is_gone(seq) => return None,
                _ => {}
            }
            let now = generation(&self.files);
            if std::mem::replace(&mut self.generation, now) == now {
                break;
            }
            self.checked.retain(|_, own| own.fault.is_none());
            self.pack = None;
            whats = self.snapshot(seq);
        }
        Some(whats)
    }

    /// All that is wrong with one snapshot, and with the files that it needs.
    fn snapshot(&mut self, seq: u32) -> Vec<String> {
        self.check_file(seq);
        let mut whats: Vec<String> = self.checked[&seq].fault.iter().cloned().collect();
        let Ok(snapshot) = Snapshot::open(self.files.clone(), seq) else {
            return whats;
        };
        let header = snapshot.header();
        let listing = self.files.listing();
        if let Some(parent) = header.parent
            && listing.by_seq.get(&header.parent_seq) != Some(&parent)
            && !listing.is_gone(header.parent_seq)
        {
            whats.push(format!("its parent {} is missing", parent.short()));
        }
        match snapshot.page_table() {
            Ok(table) => whats.extend(self.check_table(seq, table)),
            Err(error) if whats.is_empty() => whats.push(format!("page table: {error}")),
            Err(_) => {}
        }
        whats
    }

    /// Every place that a page table names must hold a page, in a file without a fault.
    fn check_table(&mut self, own: u32, table: &PageTable<Location>) -> Vec<String> {
        let mut bad: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let listing = self.files.listing();
        let mut lost = (0u64, 0);
        for (addr, location) in table.iter() {
            let seq = location.seq.get();
            if let Some(pack) = listing.pack.as_ref().filter(|pack| pack.absorbs(seq)) {
                if self.check_pack(pack).fault.is_some() || pack.entry(location).is_err() {
                    lost = (lost.0 + 1, if lost.0 == 0 { addr } else { lost.1 });
                }
                continue;
            }
            self.check_file(seq);
            let file = &self.checked[&seq];
            let sound = file.fault.is_none()
                && file.stored.get(location.slot as usize).copied() == Some(true);
            // Its own faults are named already.
            if !sound && (seq != own || file.fault.is_none()) {
                bad.entry(seq).or_insert((0, addr)).0 += 1;
            }
        }
        let fault = self.pack.as_ref().and_then(|pack| pack.fault.as_deref());
        let in_pack = (lost.0 > 0).then(|| {
            let why = fault.unwrap_or("it has no such page");
            format!(
                "{} of its pages, {:#x} first, are in the pack: {why}",
                lost.0, lost.1
            )
        });
        bad.into_iter()
            .map(|(seq, (pages, first))| {
                let fault = self.checked[&seq].fault.as_deref();
                let why = fault.unwrap_or("it has no such page");
                format!("{pages} of its pages, {first:#x} first, are in snapshot @{seq}: {why}")
            })
            .chain(in_pack)
            .collect()
    }

    /// Checks the pack by itself, once.
    fn check_pack(&mut self, pack: &PackFile) -> &Own {
        if self.pack.is_none() {
            let checked = pack.ghosts().and_then(|_| {
                let entries = pack.entries()?.iter();
                let wanted: Vec<_> = entries.map(|entry| (entry.name, entry.addr)).collect();
                read_decoded(&self.files, &wanted, &mut |_, _| self.report.pages += 1)
            });
            let fault = checked.err().map(|error| error.to_string());
            let counts = || {
                let known = self.files.refresh().is_ok();
                known && generation(&self.files) == Some(pack.header.generation)
            };
            if let Some(what) = fault.as_ref().filter(|_| counts()) {
                self.report.problems.push(Problem {
                    id: None,
                    path: pack.path().to_owned(),
                    what: what.clone(),
                });
            }
            self.pack = Some(Own {
                fault,
                stored: Vec::new(),
            });
        }
        self.pack.as_ref().expect("set above")
    }

    /// Checks a file by itself, once.
    fn check_file(&mut self, seq: u32) {
        if self.checked.contains_key(&seq) {
            return;
        }
        let mut stored = Vec::new();
        let fault = self
            .files
            .open(seq)
            .and_then(|file| {
                let entries = file.index()?;
                stored = entries
                    .iter()
                    .map(|entry| entry.encoding != Encoding::Reference)
                    .collect();
                self.report.pages += check_pages(&self.files, &file, &entries)?;
                check_sections(&file)
            })
            .err()
            .map(|error| error.to_string());
        self.checked.insert(seq, Own { fault, stored });
    }
}

fn generation(files: &SessionFiles) -> Option<u32> {
    let listing = files.listing();
    listing.pack.as_ref().map(|pack| pack.header.generation)
}

/// Reads and checks all of a file, and what its pages hold the changes to.
pub(super) fn check_file(
    files: &SessionFiles,
    file: &ImageFile,
) -> Result<Vec<IndexEntry>, StoreError> {
    let entries = file.index()?;
    check_pages(files, file, &entries)?;
    check_sections(file)?;
    Ok(entries)
}

fn check_sections(file: &ImageFile) -> Result<(), StoreError> {
    let header = &file.header;
    let dropped = file.section(&header.dropped)?;
    decode_dropped(&dropped, header).map_err(StoreError::image(&file.path))?;
    let span = file.section(&header.span)?;
    decode_span(&span, header).map_err(StoreError::image(&file.path))?;
    let manifest = file.section(&header.manifest)?;
    crate::image::Manifest::decode(&manifest, header).map_err(StoreError::image(&file.path))?;
    Ok(())
}

fn check_pages(
    files: &SessionFiles,
    file: &ImageFile,
    entries: &[IndexEntry],
) -> Result<u64, StoreError> {
    let wanted: Vec<(Location, u64)> = entries
        .iter()
        .zip(0u32..)
        .filter(|(entry, _)| entry.encoding != Encoding::Reference)
        .filter_map(|(entry, slot)| Some((Location::new(file.header.seq, slot)?, entry.addr)))
        .collect();
    let mut pages = 0;
    read_decoded(files, &wanted, &mut |_, _| pages += 1)?;
    Ok(pages)
}
