//! Removes files that nobody needs any more.

use super::chain::SessionFiles;
use super::error::StoreError;
use super::names;
use super::pruner::Pruner;
use std::collections::BTreeSet;

impl Pruner {
    /// Removes files that nobody needs, newest first: what an interrupted removal has left.
    pub(super) fn sweep(&self, files: &SessionFiles) -> Result<(), StoreError> {
        let listing = files.listing();
        let mut names = listing.leftovers.clone();
        // What is borrowed from goes behind what borrows.
        let is_loan = |name: &String| name.ends_with(names::LOAN_SUFFIX);
        names.sort_unstable_by(|a, b| (is_loan(a), b).cmp(&(is_loan(b), a)));
        let mut swept = false;
        let needed = needed_after_all(files, &names)?;
        for name in names.into_iter().filter(|name| !needed.contains(name)) {
            let path = files.dir.join(name);
            match files.files.remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &path)(error));
                }
                _ => swept = true,
            }
        }
        self.store
            .cache
            .forget(self.session, |seq| listing.is_gone(seq));
        match swept {
            true => files
                .files
                .sync_dir(&files.dir)
                .map_err(StoreError::io("sync folder", &files.dir)),
            false => Ok(()),
        }
    }
}

/// What the snapshots borrow from whose files the listing has missed.
///
/// A folder that changes while it is listed may be listed without what was there all the time. By now, whatever was named
/// before a snapshot that the listing has is found.
fn needed_after_all(
    files: &SessionFiles,
    leftovers: &[String],
) -> Result<BTreeSet<String>, StoreError> {
    let listing = files.listing();
    let of = |name: &String| names::parse_loan_file(name).map(|(seq, _)| seq);
    let is_in_doubt = |name: &&String| of(name).is_some_and(|seq| !listing.is_gone(seq));
    let in_doubt: Vec<&String> = leftovers.iter().filter(is_in_doubt).collect();
    if in_doubt.is_empty() {
        return Ok(BTreeSet::new());
    }
    let there = files.files.names(&files.dir);
    let there = there.map_err(StoreError::io("list", &files.dir))?;
    let snapshots = there
        .iter()
        .filter_map(|name| names::parse_snapshot_file(name));
    let snapshots: BTreeSet<u32> = snapshots.map(|(seq, _)| seq).collect();
    let is_needed = |name: &&String| of(name).is_some_and(|seq| snapshots.contains(&seq));
    Ok(in_doubt.into_iter().filter(is_needed).cloned().collect())
}
