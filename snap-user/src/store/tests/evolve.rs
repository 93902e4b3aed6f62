//! Sessions that grow by chance, and what each of their snapshots should hold.

use super::support::*;
use crate::codec::Scratch;
use crate::image::{Location, MOST_VERSIONS, Previous};
use crate::model::{Costs, PAGE_SIZE, SnapshotId, SnapshotKind};
use crate::store::{EncodedBatch, PageSink, Pruner, Session, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};

/// A small generator, seeded: failures can be repeated.
pub(super) struct Dice {
    state: u64,
    /// How many versions are below each page that was stored as changes.
    pub(super) depths: BTreeMap<Location, usize>,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            depths: BTreeMap::new(),
        }
    }

    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % sides
    }
}

/// What each snapshot should hold.
pub(super) type History = BTreeMap<u32, (SnapshotId, Memory)>;

/// Takes a snapshot on some earlier one: pages that change, go, move, or have come from elsewhere.
pub(super) fn grow(
    session: &mut Session,
    history: &mut History,
    parent: Option<u32>,
    dice: &mut Dice,
) {
    let before = parent.map(|seq| history[&seq].clone());
    let mut memory = before.as_ref().map_or(Memory::new(), |p| p.1.clone());
    let pid = session.info().pid;
    let kind = before
        .as_ref()
        .map_or(SnapshotKind::Base, |_| SnapshotKind::Delta);
    let mut pending = session
        .begin(kind, before.as_ref().map(|p| p.0))
        .expect("begun");
    let mut dropped = BTreeSet::new();
    for _ in 0..dice.roll(3) {
        let page = dice.roll(40);
        dropped.insert(page);
        memory.remove(&page);
    }
    pending.drop_ranges(&set(dropped.iter().copied()));
    let mut same = EncodedBatch::new(0);
    if let Some((_, old)) = &before {
        for _ in 0..dice.roll(3) {
            let to = 40 + dice.roll(20);
            let from = dice.roll(40);
            if let Some(seed) = old.get(&from) {
                same.push_same(to * PAGE_SIZE, from * PAGE_SIZE);
                memory.insert(to, *seed);
            }
        }
    }
    pending.append(&same).expect("references");
    let mut pages = BTreeMap::new();
    let count = if kind == SnapshotKind::Base {
        30
    } else {
        dice.roll(6)
    };
    for _ in 0..count {
        pages.insert(dice.roll(40), dice.roll(1 << 30) as u32);
    }
    memory.extend(&pages);
    pending.append(&batch(1, pages)).expect("pages");
    // A few pages change all the time, in few words.
    let table = pending.parent_table().cloned().unwrap_or_default();
    let mut changes = EncodedBatch::new(2);
    let mut depths = BTreeMap::new();
    for _ in 0..dice.roll(8) {
        let number = dice.roll(8);
        let addr = number * PAGE_SIZE;
        if depths.contains_key(&addr) {
            continue;
        }
        let seed = FAMILIES | (dice.roll(64) << 4 | number) as u32;
        let old = before.as_ref().and_then(|(_, old)| old.get(&number));
        let was = old.map(|old| page(*old)).zip(table.get(addr));
        let depth = |at: &Location| dice.depths.get(at).map_or(1, |depth| depth + 1);
        let was = was.filter(|(_, at)| depth(at) < MOST_VERSIONS);
        let below = was.as_ref().map_or(0, |(_, at)| depth(at));
        let previous = was.as_ref().map(|(page, at)| Previous { page, at: *at });
        let encoding = changes.push_against(addr, &page(seed), previous, &mut Scratch::default());
        depths.insert(addr, if encoding.needs_previous() { below } else { 0 });
        memory.insert(number, seed);
    }
    pending.append(&changes).expect("changes");
    let done = pending
        .publish(&state(pid), &Costs::default())
        .expect("published");
    let table = session.head_table().expect("of the one just published");
    for (addr, depth) in depths {
        let at = table.get(addr).expect("just published");
        match at.seq.get() == done.seq {
            true => _ = dice.depths.insert(at, depth),
            // An earlier one has it, by itself.
            false => assert_eq!((depth, dice.depths.get(&at).unwrap_or(&0)), (0, &0)),
        }
    }
    history.insert(done.seq, (done.id, memory));
}

/// A store has these snapshots and no others, all of them whole.
pub(super) fn assert_all(store: &Store, history: &History) {
    let list: Vec<u32> = store
        .list()
        .expect("a listing")
        .iter()
        .map(|m| m.seq)
        .collect();
    assert_eq!(
        list.iter().collect::<BTreeSet<_>>(),
        history.keys().collect()
    );
    for (id, memory) in history.values() {
        assert_holds(&store.snapshot(*id).expect("kept"), memory);
    }
    let report = store.verify(None).expect("listable");
    assert!(report.is_clean(), "{report:?}");
}

/// Removes these snapshots.
pub(super) fn remove(
    pruner: &Pruner,
    seqs: impl IntoIterator<Item = u32>,
) -> Result<(), StoreError> {
    let gone: BTreeSet<u32> = seqs.into_iter().collect();
    let plan = pruner.plan_removal(&gone)?;
    pruner.carry_out(&plan).map(drop)
}

/// Fifteen snapshots: a chain with a branch.
pub(super) fn sample(store: &Store) -> (Session, History) {
    let mut session = store.create_session(&info(7)).expect("a session");
    let mut history = History::new();
    let mut dice = Dice::new(42);
    grow(&mut session, &mut history, None, &mut dice);
    for seq in 1..12 {
        grow(&mut session, &mut history, Some(seq), &mut dice);
    }
    for parent in [6, 13, 14] {
        grow(&mut session, &mut history, Some(parent), &mut dice);
    }
    (session, history)
}
