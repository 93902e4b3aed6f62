//! Room in memory for what is received: what other processes have left makes it, what is being received does not.

use super::Result;
use super::ram::Ram;
use crate::image::SessionId;
use crate::store::Store;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The room of a server's store.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The store in memory, if it is one.
    ram: Option<Ram>,
    /// Sessions of connections that are open.
    taken: Mutex<Vec<SessionId>>,
}

/// Keeps a session from making room, until it is dropped.
#[derive(Debug)]
pub(super) struct Occupied {
    room: Arc<Room>,
    id: SessionId,
}

impl Room {
    pub(super) fn new(ram: Option<Ram>) -> Self {
        Self {
            ram,
            ..Self::default()
        }
    }

    /// Makes room for one more session. Gives what the user should know, a sentence each.
    pub(super) fn make(&self, store: &Store) -> Result<Vec<String>> {
        let Some(ram) = &self.ram else {
            return Ok(Vec::new());
        };
        // One after the other, and none meanwhile that is not known.
        let taken = self.taken();
        let mut ram = Ram {
            notes: Vec::new(),
            ..ram.clone()
        };
        ram.make_room(store, &taken)?;
        Ok(ram.notes)
    }

    /// A session begins that stays as long as this is held.
    pub(super) fn take(self: &Arc<Self>, id: SessionId) -> Occupied {
        self.taken().push(id);
        Occupied {
            room: Arc::clone(self),
            id,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<SessionId>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        // Others may have taken the same.
        let mut taken = self.room.taken();
        if let Some(at) = taken.iter().position(|id| *id == self.id) {
            taken.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::support::{info, new_store, publish};

    #[test]
    fn what_was_received_makes_room_and_what_is_being_brought_back_does_not() {
        let (_folder, store) = new_store();
        let ids = [10, 11].map(|pid| {
            let mut session = store.create_session(&info(pid)).expect("a session");
            publish(&mut session, None, [], [(1, 7)]).expect("published");
            session.id()
        });
        let ram = Ram {
            dir: store.dir().to_owned(),
            most: 0,
            notes: Vec::new(),
        };
        let on_a_disk = Room::new(None).make(&store);
        assert_eq!(on_a_disk.expect("nothing to do"), [""; 0]);
        let room = Arc::new(Room::new(Some(ram)));
        let taken = room.take(ids[0]);
        let notes = room.make(&store).expect("room");
        assert!(!store.is_session_gone(ids[0]) && store.is_session_gone(ids[1]));
        assert_eq!(notes.len(), 1, "{notes:?}");
        let again = room.take(ids[0]);
        drop(taken);
        room.make(&store).expect("room");
        assert!(!store.is_session_gone(ids[0]));
        drop(again);
        room.make(&store).expect("room");
        assert!(store.is_session_gone(ids[0]));
    }
}
