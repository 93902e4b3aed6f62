//! Events and saved pages that wait for the watcher of their process.

use super::event::Event;
use super::saver::Saved;
use crate::model::Page;
use std::collections::BTreeMap;

/// Events that wait for one watcher, at most; what is more counts as lost, as when the ring buffer is full.
const LONGEST_QUEUE: usize = 1 << 16;
/// Saved pages that wait for one watcher, at most.
const MOST_SAVED: usize = 8192;

#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    lost: u64,
    saved: Vec<Kept>,
}

/// A saved page that another watcher came upon.
struct Kept {
    window: u64,
    order: u64,
    page: u64,
    bytes: Box<Page>,
}

/// Whose event is it?
#[derive(Default)]
pub(super) struct Queues {
    queues: BTreeMap<u32, Queue>,
    /// Watched process that a tracked child descends from.
    children: BTreeMap<u32, u32>,
    /// Saved pages that no queue had room for.
    pub(super) lost_saved: u64,
}

impl Queues {
    pub(super) fn open(&mut self, tgid: u32) {
        self.queues.entry(tgid).or_default();
    }

    /// Gives the processes that nobody watches any more.
    pub(super) fn close(&mut self, tgid: u32) -> Vec<u32> {
        self.queues.remove(&tgid);
        let of_others = &self.queues;
        let mut gone = vec![tgid];
        self.children.retain(|child, owner| {
            if *owner == tgid && !of_others.contains_key(child) {
                gone.push(*child);
            }
            *owner != tgid
        });
        gone
    }

    /// Forgets a child. `false` for one that has a watcher of its own.
    pub(super) fn forget(&mut self, child: u32) -> bool {
        self.children.remove(&child);
        !self.queues.contains_key(&child)
    }

    pub(super) fn sort_in(&mut self, event: &Event) {
        let Some(tgid) = event.tgid() else {
            return self.queues.values_mut().for_each(|queue| queue.push(event));
        };
        let owner = match self.queues.contains_key(&tgid) {
            true => Some(tgid),
            false => self.children.get(&tgid).copied(),
        };
        match *event {
            Event::Fork { child, .. } => {
                if let Some(owner) = owner {
                    self.children.insert(child, owner);
                }
            }
            Event::Exit { last: true, .. } => {
                self.children.remove(&tgid);
            }
            _ => {}
        }
        match owner.and_then(|owner| self.queues.get_mut(&owner)) {
            Some(queue) => queue.push(event),
            // Its fork was among the lost events: everyone looks at it.
            None => self.queues.values_mut().for_each(|queue| queue.push(event)),
        }
    }

    pub(super) fn keep_saved(&mut self, saved: Saved<'_>) {
        let Some(queue) = self.queues.get_mut(&saved.tgid) else {
            return;
        };
        if queue.saved.len() >= MOST_SAVED {
            self.lost_saved += 1;
            return;
        }
        queue.saved.push(Kept {
            window: saved.window,
            order: saved.order,
            page: saved.page,
            bytes: Box::new(*saved.bytes),
        });
    }

    pub(super) fn take_saved(&mut self, tgid: u32, handle: &mut impl FnMut(Saved<'_>)) {
        let Some(queue) = self.queues.get_mut(&tgid) else {
            return;
        };
        for kept in queue.saved.drain(..) {
            handle(Saved {
                window: kept.window,
                order: kept.order,
                tgid,
                page: kept.page,
                bytes: &kept.bytes,
            });
        }
    }

    pub(super) fn drop_saved(&mut self, tgid: u32) {
        if let Some(queue) = self.queues.get_mut(&tgid) {
            queue.saved = Vec::new();
        }
    }

    /// Moves what waits for a watcher into `batch`. Returns how much was lost for it so far.
    pub(super) fn take(&mut self, tgid: u32, batch: &mut Vec<Event>) -> u64 {
        let Some(queue) = self.queues.get_mut(&tgid) else {
            return 0;
        };
        std::mem::swap(&mut queue.events, batch);
        queue.lost
    }
}

impl Queue {
    fn push(&mut self, event: &Event) {
        if self.events.len() >= LONGEST_QUEUE {
            self.lost += self.events.len() as u64;
            self.events.clear();
        }
        self.events.push(*event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(tgid: u32, page: u64) -> Event {
        Event::Fault {
            tgid,
            tid: tgid,
            page,
            ip: 0,
            time_ns: 0,
            user: true,
            remote: false,
        }
    }

    fn fork(parent: u32, child: u32) -> Event {
        Event::Fork {
            parent,
            parent_tid: parent,
            child,
            shares_memory: true,
            time_ns: 0,
        }
    }

    fn taken(queues: &mut Queues, tgid: u32) -> Vec<Event> {
        let mut batch = Vec::new();
        queues.take(tgid, &mut batch);
        batch
    }

    fn two() -> Queues {
        let mut queues = Queues::default();
        queues.open(1);
        queues.open(2);
        queues
    }

    #[test]
    fn each_watcher_gets_the_events_of_its_process_and_of_that_ones_children() {
        let mut queues = two();
        let events = [
            fork(1, 11),
            fault(2, 5),
            fault(11, 6),
            fork(11, 12),
            fault(12, 7),
        ];
        events.iter().for_each(|event| queues.sort_in(event));
        assert_eq!(taken(&mut queues, 2), [fault(2, 5)]);
        assert_eq!(
            taken(&mut queues, 1),
            [fork(1, 11), fault(11, 6), fork(11, 12), fault(12, 7)]
        );
        assert_eq!(taken(&mut queues, 1), []);
    }

    #[test]
    fn what_concerns_nobody_in_particular_everyone_gets() {
        let mut queues = two();
        queues.sort_in(&fault(99, 1));
        assert_eq!(taken(&mut queues, 1), [fault(99, 1)]);
        assert_eq!(taken(&mut queues, 2), [fault(99, 1)]);
    }

    #[test]
    fn a_child_with_a_watcher_of_its_own_stays_tracked() {
        let mut queues = two();
        queues.sort_in(&fork(1, 2));
        queues.sort_in(&fork(1, 3));
        assert!(!queues.forget(2), "watched itself");
        assert_eq!(queues.close(1), [1, 3]);
        queues.sort_in(&fault(2, 9));
        assert_eq!(taken(&mut queues, 2), [fault(2, 9)]);
    }

    fn save(queues: &mut Queues, tgid: u32, page: u64) {
        queues.keep_saved(Saved {
            window: 1,
            order: page,
            tgid,
            page,
            bytes: &[page as u8; _],
        });
    }

    fn saved(queues: &mut Queues, tgid: u32) -> Vec<(u64, u8)> {
        let mut pages = Vec::new();
        queues.take_saved(tgid, &mut |s: Saved<'_>| pages.push((s.page, s.bytes[0])));
        pages
    }

    #[test]
    fn a_saved_page_that_another_watcher_came_upon_waits_for_its_own() {
        let mut queues = two();
        for (tgid, page) in [(1, 5), (2, 6), (1, 7)] {
            save(&mut queues, tgid, page);
        }
        assert_eq!(saved(&mut queues, 1), [(5, 5), (7, 7)]);
        assert_eq!(saved(&mut queues, 1), []);
        queues.drop_saved(2);
        assert_eq!(saved(&mut queues, 2), []);
    }

    #[test]
    fn saved_pages_that_find_no_room_count_as_lost() {
        let mut queues = two();
        (0..=MOST_SAVED as u64).for_each(|page| save(&mut queues, 1, page));
        save(&mut queues, 99, 1);
        assert_eq!(queues.lost_saved, 1);
        assert_eq!(saved(&mut queues, 1).len(), MOST_SAVED);
    }

    #[test]
    fn a_queue_that_nobody_takes_from_is_bounded_and_its_loss_is_told() {
        let mut queues = two();
        for page in 0..=LONGEST_QUEUE as u64 {
            queues.sort_in(&fault(1, page));
        }
        let mut batch = Vec::new();
        assert_eq!(queues.take(1, &mut batch), LONGEST_QUEUE as u64);
        assert_eq!(batch.len(), 1);
        assert_eq!(queues.take(2, &mut batch), 0, "not for the other one");
    }
}
