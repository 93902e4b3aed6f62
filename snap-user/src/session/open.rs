//! Finding the session of a process, or beginning one.

use super::pipeline::Hashes;
use super::{Result, mixed};
use crate::capture::Target;
use crate::image::PageSource;
use crate::model::SnapshotId;
use crate::store::{Session, SessionInfo, Store};
use xxhash_rust::xxh3::xxh3_128;

/// The session that the process has in the store, with its latest snapshot and the hashes of its
/// pages; or a new one. Of several the one that has `snapshot`, or else the last.
pub(super) fn open_session(
    store: &Store,
    target: &Target,
    snapshot: Option<SnapshotId>,
) -> Result<(Session, Option<SnapshotId>, Hashes)> {
    let with = match snapshot {
        Some(snapshot) => Some(store.snapshot(snapshot)?.header().session),
        None => None,
    };
    let mut own = store.sessions()?;
    own.retain(|(_, info)| info.is_of(target.pid, target.start_time));
    // One that is not sealed for the same keys is left as it is.
    let last = || own.iter().rfind(|(_, info)| info.fits(store));
    let mine = own.iter().find(|(id, _)| Some(*id) == with).or_else(last);
    let Some((id, info)) = mine.cloned() else {
        let mut session = store.create_session(&SessionInfo {
            pid: target.pid,
            start_time: target.start_time,
            comm: target.comm.clone(),
            exe: target.exe.clone(),
            cmdline: target
                .cmdline
                .iter()
                .map(|a| String::from_utf8_lossy(a).into_owned())
                .collect(),
            ..SessionInfo::default()
        })?;
        session.look_for_earlier();
        return Ok((session, None, Hashes::new()));
    };
    let mut session = store.open_session(id)?;
    session.look_for_earlier();
    store.sweep_mixed(id, mixed::holds);
    let mut list = store.list()?;
    list.retain(|snapshot| snapshot.session == id);
    let latest = match info.continuation(target.pid, target.start_time) {
        // Its own, else the one that it was brought back from, if that has not been pruned.
        Some(from) => list
            .iter()
            .filter(|snapshot| snapshot.seq >= from.since)
            .max_by_key(|snapshot| snapshot.seq)
            .or_else(|| list.iter().find(|one| one.id.to_string() == from.from)),
        None => list.iter().max_by_key(|snapshot| snapshot.seq),
    };
    let mut hashes = Hashes::new();
    if let Some(latest) = latest {
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
