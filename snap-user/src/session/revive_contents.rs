//! Contents of saved files, for processes that are brought back.

use super::Result;
use crate::image::PageSource;
use crate::model::{OpenFile, Page, PageSet, ProcessState, SavedFile};
use crate::restore::Content;
use crate::restore::files::{self, FilesPlan, SavedContents, Source};
use crate::store::Snapshot;

/// Leaves only those saved files that every new process gets of its own, because they have no name: the
/// process that was snapshotted, and other copies, may have the rest.
pub(super) fn only_own(state: &mut ProcessState) {
    let ProcessState { saved, files, .. } = state;
    saved.retain(|one| {
        files
            .iter()
            .any(|file| file.deleted && file.identity == one.identity)
    });
}

/// Reads the pages that a snapshot has of some ranges.
pub(super) trait ReadPages {
    /// Calls `each` with every one of them.
    fn read_ranges(&self, ranges: &PageSet, each: &mut dyn FnMut(u64, &Page)) -> Result<()>;
}

impl ReadPages for Snapshot {
    fn read_ranges(&self, ranges: &PageSet, each: &mut dyn FnMut(u64, &Page)) -> Result<()> {
        let table = self.page_table()?;
        let pages = ranges.ranges().iter().flat_map(|range| table.range(*range));
        let pages: Vec<u64> = pages.map(|(addr, _)| addr).collect();
        Ok(self.read_pages(&pages, each)?)
    }
}

/// Loads what has to be written: the contents of saved files that are not as they were. A file that the user
/// gives in place of the recorded one keeps its own.
pub(super) fn contents_to_write(
    snapshot: &dyn ReadPages,
    state: &ProcessState,
    planned: &FilesPlan,
    options: &files::Options,
) -> Result<SavedContents> {
    let mut all = SavedContents::default();
    for saved in &state.saved {
        let own = || {
            let files = state.files.iter().zip(&planned.sources);
            files.filter(|(file, _)| file.identity == saved.identity)
        };
        let recorded = |file: &OpenFile, source: &Source| match source {
            Source::Path(path) => *path == options.mapped(&file.link),
            Source::Create(..) | Source::Unnamed(..) => true,
            _ => false,
        };
        if own().all(|(file, source)| recorded(file, source))
            && own().any(|(_, source)| differs(saved, source))
        {
            load(snapshot, saved, &mut all.content)?;
            all.changed.push(saved.clone());
        }
    }
    Ok(all)
}

/// By size or time of change.
fn differs(saved: &SavedFile, source: &Source) -> bool {
    let Source::Path(path) = source else {
        return true;
    };
    let there = SavedFile {
        path: path.clone(),
        ..saved.clone()
    };
    let here = std::process::id() as i32;
    files::look_at(here, &ProcessState::default(), &there)
        .is_none_or(|now| (now.size, now.mtime_ns) != (saved.content.size, saved.content.mtime_ns))
}

fn load(snapshot: &dyn ReadPages, saved: &SavedFile, content: &mut Content) -> Result<()> {
    let ranges = crate::capture::saved_ranges(std::slice::from_ref(saved));
    snapshot.read_ranges(&ranges, &mut |addr, page| content.insert(addr, page))
}
