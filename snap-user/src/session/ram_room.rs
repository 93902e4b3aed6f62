//! Room in a store in memory: by which rules what is put there stays within its bound, and who makes room for it.

use super::ram::{Ram, open_ram, ram_dir};
use super::{Result, Rules, mixed};
use crate::image::SessionId;
use crate::store::{Pruned, Store, StoreError};
use crate::sys::proc;

/// Whose snapshots are about to be put into a store.
#[derive(Clone, Copy, Debug)]
pub enum Filling<'a> {
    /// Of these processes.
    Processes(&'a [i32]),
    /// Of a process that is about to go on from this snapshot, which is named by a reference.
    From(&'a str),
}

impl Filling<'_> {
    /// The sessions that they go into, as far as there are any yet.
    fn sessions(self, store: &Store) -> Result<Vec<SessionId>> {
        match self {
            Self::Processes(pids) => {
                let live = |&pid: &i32| Some((pid, proc::stat(pid, None).ok()?.start_time));
                let live: Vec<(i32, u64)> = pids.iter().filter_map(live).collect();
                let mut own = Vec::new();
                for (id, info) in store.sessions()? {
                    own.extend(
                        live.iter()
                            .any(|one| info.is_of(one.0, one.1))
                            .then_some(id),
                    );
                }
                Ok(own)
            }
            Self::From(reference) => {
                let id = store.resolve(reference, None)?;
                Ok(vec![store.snapshot(id)?.header().session])
            }
        }
    }

    fn count(self) -> u64 {
        match self {
            Self::Processes(pids) => pids.len().max(1) as u64,
            Self::From(_) => 1,
        }
    }
}

/// The store in memory, made ready for these snapshots, and the rules by which all of them stay within its bound.
///
/// # Errors
/// Where there is no memory file system and none can be mounted, or another user was there first; where the snapshot
/// that is to be gone on from is not there.
pub fn fill_ram(size: Option<u64>, rules: Rules, filling: Filling<'_>) -> Result<(Ram, Rules)> {
    if let Filling::From(_) = filling {
        filling.sessions(&Store::open(&ram_dir()?)?)?;
    }
    let mut ram = open_ram(size)?;
    let rules = ram.rules(rules, filling)?;
    Ok((ram, rules))
}

impl Ram {
    /// The rules under which these snapshots stay within the bound; makes room for them first.
    ///
    /// What other processes have left takes half of the room at most: of it the oldest go first. An eighth is left for
    /// what is written while snapshots are being merged.
    fn rules(&mut self, rules: Rules, filling: Filling<'_>) -> Result<Rules> {
        let used = match Store::open(&self.dir) {
            Ok(store) => {
                let own = filling.sessions(&store)?;
                self.make_room(&store, &own)?
            }
            Err(StoreError::NoStore { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        let left = (self.most / 8 * 7).saturating_sub(used);
        let each = (left / filling.count()).max(1 << 20);
        Ok(Rules {
            max_size: Some(rules.max_size.map_or(each, |most| most.min(each))),
            ..rules
        })
    }

    /// Keeps all sessions but these within half of the room. Gives what they take then. One that is damaged is no
    /// reason to take no snapshots.
    pub(super) fn make_room(&mut self, store: &Store, own: &[SessionId]) -> Result<u64> {
        let mut others: Vec<(SessionId, i32)> = Vec::new();
        let mut used = 0;
        for (id, info) in store.sessions()? {
            if own.contains(&id) {
                continue;
            }
            match store.session_bytes(id) {
                Ok(bytes) => {
                    used += bytes;
                    others.push((id, info.pid));
                }
                Err(error) => self.left_alone(store, id, info.pid, &error),
            }
        }
        for whole in [false, true] {
            for &(id, pid) in &others {
                let excess = used.saturating_sub(self.most / 2);
                if excess == 0 {
                    return Ok(used);
                }
                match shrink(store, id, excess, whole) {
                    Ok(None) => {}
                    Ok(Some(done)) => {
                        // What it shared with others is theirs alone now.
                        let takes =
                            |(id, _): &(SessionId, i32)| store.session_bytes(*id).unwrap_or(0);
                        used = others.iter().map(takes).sum();
                        self.notes.push(format!(
                            "{} snapshots of process {pid} made room in memory for new ones",
                            done.snapshots
                        ));
                    }
                    Err(error) => self.left_alone(store, id, pid, &error),
                }
            }
        }
        Ok(used)
    }

    fn left_alone(&mut self, store: &Store, id: SessionId, pid: i32, error: &StoreError) {
        if store.is_session_gone(id) {
            return;
        }
        let note = format!(
            "session {id} of process {pid} takes up room in memory and is left alone: {error}"
        );
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Removes so many bytes of a session, the oldest snapshots first, or all of it. `None`: it stays as it is.
fn shrink(
    store: &Store,
    id: SessionId,
    excess: u64,
    whole: bool,
) -> std::result::Result<Option<Pruned>, StoreError> {
    let pruner = match store.pruner(id) {
        // Its watcher keeps it within bounds.
        Err(StoreError::Locked { .. }) => return Ok(None),
        found => found?,
    };
    let plan = match whole {
        false => pruner.plan(&Rules {
            max_size: Some(store.session_bytes(id)?.saturating_sub(excess)),
            ..Rules::default()
        })?,
        true => {
            let all = pruner.snapshots()?.iter().map(|meta| meta.seq).collect();
            pruner.plan_removal(&all)?
        }
    };
    if plan.removed.is_empty() || mixed::in_the_way(&pruner, &plan)?.is_some() {
        return Ok(None);
    }
    match pruner.carry_out(&plan) {
        Ok(done) => Ok(Some(done)),
        // Tagged: it stays.
        Err(StoreError::NotRemoved { .. }) => Ok(None),
        // No room to merge what others need: whole sessions take none.
        Err(StoreError::Full { .. }) if !whole => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::support::{info, new_store, publish};

    /// A store with two sessions, and how much both take.
    fn two_sessions() -> (tempfile::TempDir, Store, [SessionId; 2], u64) {
        let (folder, store) = new_store();
        let ids = [10, 11].map(|pid| {
            let mut session = store.create_session(&info(pid)).expect("a session");
            let mut parent = None;
            for n in 0..8 {
                let pages = (0..20).map(|page| (page, (n * 20 + page as u32) * 5 + 2));
                let done = publish(&mut session, parent, [], pages).expect("published");
                parent = Some(done.id);
            }
            session.id()
        });
        let bytes = |id: &SessionId| store.session_bytes(*id).expect("readable");
        let used = ids.iter().map(bytes).sum();
        (folder, store, ids, used)
    }

    fn ram(store: &Store, most: u64) -> Ram {
        Ram {
            dir: store.dir().to_owned(),
            most,
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_damaged_session_of_another_process_does_not_keep_a_new_one_from_its_room() {
        let (_folder, store, [damaged, whole], used) = two_sessions();
        let list = store.list_session(damaged).expect("a listing");
        std::fs::write(&list[3].path, "").expect("written");
        let mut ram = ram(&store, used / 8 * 9);
        ram.rules(Rules::default(), Filling::Processes(&[]))
            .expect("room for others");
        let left = store.session_bytes(whole).expect("there");
        assert!(left < used / 4, "{left} of {used}");
        let text = ram.notes.join("\n");
        assert!(
            text.contains(&format!("session {damaged} of process 10 takes up room")),
            "{text}"
        );
    }

    #[test]
    fn what_a_mixed_process_has_to_go_back_to_makes_no_room() {
        let (_folder, store) = new_store();
        let pid = std::process::id() as i32;
        let mark = mixed::now(pid).expect("this process");
        let told = crate::store::SessionInfo {
            start_time: mark.start_time,
            ..info(pid)
        };
        let mut session = store.create_session(&told).expect("a session");
        publish(&mut session, None, [], [(1, 7)]).expect("published");
        let id = session.id();
        drop(session);
        store.mark_mixed(id, &mark).expect("marked");
        let stays = shrink(&store, id, u64::MAX, true).expect("asked");
        assert!(stays.is_none() && !store.is_session_gone(id));
        store.unmark_mixed(id, &mark).expect("unmarked");
        assert!(shrink(&store, id, u64::MAX, true).expect("asked").is_some());
        assert!(store.is_session_gone(id));
    }

    #[test]
    fn what_is_to_be_gone_on_from_makes_no_room_nor_does_a_process_that_runs() {
        let (_folder, store, ids, _) = two_sessions();
        let newest = store.list_session(ids[0]).expect("a listing")[7].id;
        let mut from = ram(&store, 0);
        from.rules(Rules::default(), Filling::From(&newest.to_string()))
            .expect("room");
        assert_eq!(store.list_session(ids[0]).expect("there").len(), 8);
        assert!(store.is_session_gone(ids[1]));
        // Its id is that of a process that runs, but it is not that process.
        let me = std::process::id() as i32;
        let mut session = store.create_session(&info(me)).expect("a session");
        publish(&mut session, None, [], [(1, 7)]).expect("published");
        let later = session.id();
        drop(session);
        let mut pids = ram(&store, 0);
        pids.rules(Rules::default(), Filling::Processes(&[me]))
            .expect("room");
        assert!(store.is_session_gone(later));
    }
}
