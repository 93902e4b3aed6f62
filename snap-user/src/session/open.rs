//! Finding the session of a process, or beginning one.

use super::Result;
use super::pipeline::Hashes;
use crate::capture::Target;
use crate::image::PageSource;
use crate::model::SnapshotId;
use crate::store::{Session, SessionInfo, Store};
use xxhash_rust::xxh3::xxh3_128;

/// The session that the process has in the store, with its latest snapshot and the hashes of its
/// pages; or a new one.
pub(super) fn open_session(
    store: &Store,
    target: &Target,
) -> Result<(Session, Option<SnapshotId>, Hashes)> {
    let mine = store
        .sessions()?
        .into_iter()
        .rev()
        .find(|(_, info)| (info.pid, info.start_time) == (target.pid, target.start_time));
    let Some((id, _)) = mine else {
        let session = store.create_session(&SessionInfo {
            pid: target.pid,
            start_time: target.start_time,
            comm: target.comm.clone(),
            exe: target.exe.clone(),
            cmdline: target
                .cmdline
                .iter()
                .map(|a| String::from_utf8_lossy(a).into_owned())
                .collect(),
            created_ns: 0,
        })?;
        return Ok((session, None, Hashes::new()));
    };
    let session = store.open_session(id)?;
    let latest = store
        .list()?
        .into_iter()
        .filter(|s| s.session == id)
        .max_by_key(|s| s.seq);
    let mut hashes = Hashes::new();
    if let Some(latest) = &latest {
        let snapshot = store.snapshot(latest.id)?;
        let pages: Vec<u64> = snapshot
            .page_table()?
            .iter()
            .map(|(addr, _)| addr)
            .collect();
        snapshot.read_pages(&pages, &mut |addr, page| {
            hashes.insert(addr, xxh3_128(page))
        })?;
    }
    Ok((session, latest.map(|l| l.id), hashes))
}
