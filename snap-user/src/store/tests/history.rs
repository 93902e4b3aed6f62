//! Random histories: every page of every snapshot reads back right, whatever branches there are.

use super::files::{Plan, TestFiles};
use super::support::*;
use crate::image::SpanKind;
use crate::model::{Costs, PAGE_SIZE, SnapshotKind};
use crate::store::{EncodedBatch, PageSink, PageSource, Store};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Step {
    /// Which earlier snapshot is the parent: 0 the last, else this many before it.
    back: usize,
    base: bool,
    reopen: bool,
    dropped: (u64, u64),
    writes: Vec<(u64, u32)>,
    /// Pages that get the content of another page of the parent.
    moves: Vec<(u64, u64)>,
}

const PAGES: u64 = 1300;

fn step() -> impl Strategy<Value = Step> {
    let back = prop_oneof![6 => Just(0usize), 1 => 0usize..20];
    let dropped =
        prop_oneof![2 => Just((0, 0)), 1 => (0..PAGES, 0..20u64), 1 => (0..PAGES, 0..600u64)];
    (
        (
            back,
            proptest::bool::weighted(0.05),
            proptest::bool::weighted(0.1),
        ),
        dropped,
        proptest::collection::vec((0..PAGES, any::<u32>().prop_map(|s| s / 2)), 0..12),
        proptest::collection::vec((0..PAGES, 0..PAGES), 0..3),
    )
        .prop_map(|((back, base, reopen), dropped, writes, moves)| Step {
            back,
            base,
            reopen,
            dropped,
            writes,
            moves,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_page_of_every_snapshot_reads_back(
        first in proptest::collection::btree_map(0..PAGES, 0u32..1000, 0..200),
        steps in proptest::collection::vec(step(), 1..50),
    ) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = TestFiles::new(Plan::Nothing);
        let store = Store::open_or_create_with(files.shared(), &folder.path().join("store")).expect("a store");
        let mut session = store.create_session(&info(7)).expect("a session");
        let base = publish(&mut session, None, [], first.clone()).expect("a base");
        let mut history = vec![(base.id, first)];
        for step in steps {
            if step.reopen {
                let id = session.id();
                drop(session);
                session = store.open_session(id).expect("the session again");
            }
            let (parent, before) = history[history.len() - 1 - step.back % history.len()].clone();
            let mut memory = if step.base { Memory::new() } else { before.clone() };
            let kind = if step.base { SnapshotKind::Base } else { SnapshotKind::Delta };
            let dropped = step.dropped.0..step.dropped.0 + step.dropped.1;
            memory.retain(|page, _| !dropped.contains(page));
            let mut moves = EncodedBatch::new(0);
            for (to, from) in &step.moves {
                if let Some(seed) = before.get(from).filter(|_| !step.base) {
                    moves.push_same(to * PAGE_SIZE, from * PAGE_SIZE);
                    memory.insert(*to, *seed);
                }
            }
            memory.extend(step.writes.iter().copied());
            let mut pending = session.begin(kind, Some(parent)).expect("a snapshot");
            pending.drop_ranges(&set(dropped));
            pending.append(&moves).expect("references");
            pending.append(&batch(0, step.writes)).expect("pages");
            let done = pending.publish(&state(7), &Costs::default()).expect("published");
            prop_assert_eq!(done.pages, memory.len() as u64);
            history.push((done.id, memory));
        }
        let report = store.verify(None).expect("a listable store");
        prop_assert!(report.is_clean(), "{:?}", report);
        let fresh = Store::open(store.dir()).expect("the store");
        for (id, memory) in &history {
            assert_holds(&fresh.snapshot(*id).expect("the snapshot"), memory);
        }
        for pair in history.windows(2) {
            let found: Vec<u64> = fresh.diff(pair[0].0, pair[1].0).expect("a diff")
                .iter().map(|page| page.addr / PAGE_SIZE).collect();
            let want: Vec<u64> = (0..PAGES)
                .filter(|n| pair[0].1.get(n).map(|s| page(*s)) != pair[1].1.get(n).map(|s| page(*s)))
                .collect();
            prop_assert_eq!(found, want);
        }
    }
}

#[test]
fn a_page_costs_the_same_to_read_after_1000_deltas() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = TestFiles::new(Plan::Nothing);
    let dir = folder.path().join("store");
    let store = Store::open_or_create_with(files.shared(), &dir).expect("a store");
    let mut session = store.create_session(&info(7)).expect("a session");
    // Every second page: no two of them make a run, so that listing all is as dear as it can be.
    let mut memory: Memory = (0..8000).map(|n| (n * 2, 5 + n as u32)).collect();
    let mut ids = vec![
        publish(&mut session, None, [], memory.clone())
            .expect("a base")
            .id,
    ];
    let mut index_bytes = Vec::new();
    let mut deepest = 0;
    for n in 1..=1000u32 {
        let writes: Vec<(u64, u32)> = (0..3)
            .map(|k| (u64::from(n * 37 + k * 991) % 16_000, n * 10 + k))
            .collect();
        let gone = u64::from(n * 53) % 16_000;
        memory.remove(&gone);
        memory.extend(writes.iter().copied());
        let parent = ids.last().copied();
        let done = publish(&mut session, parent, [gone], writes).expect("a delta");
        let header = store.snapshot(done.id).expect("the delta").header().clone();
        index_bytes.push((header.index.len + header.span.len, header.span_kind));
        deepest = deepest.max(header.depth);
        ids.push(done.id);
    }
    drop(session);
    assert!(
        deepest > 256,
        "the chain is long enough to need the second level: {deepest}"
    );

    // Written: each level of spans lists each change once more, and lists of everything are paid for.
    let total: u64 = index_bytes.iter().map(|bytes| bytes.0).sum();
    assert!(
        total < 1000 * 5 * 24 * 5,
        "{total} bytes of index for 1000 deltas of 3 pages"
    );
    let small = index_bytes
        .iter()
        .filter(|bytes| bytes.1 == SpanKind::None)
        .count();
    assert!(
        small >= 900,
        "{small} deltas have nothing but their own index"
    );

    let cost = |n: usize| {
        let store = Store::open_with(files.shared(), &dir).expect("the store");
        let snapshot = store.snapshot(ids[n]).expect("the snapshot");
        files.take_reads();
        let table = snapshot.page_table().expect("a page table");
        let (opens, _, bytes) = files.take_reads();
        let addrs: Vec<u64> = table.iter().map(|page| page.0).step_by(97).collect();
        let mut most = (0, 0);
        let mut content = page(0);
        for addr in addrs {
            assert!(snapshot.read_page(addr, &mut content).expect("a page"));
            let (opens, reads, _) = files.take_reads();
            most = (most.0.max(opens), most.1.max(reads));
        }
        (opens, bytes, most)
    };
    let (_, bytes_at_1, page_at_1) = cost(1);
    for n in [100, 511, 767, 999, 1000] {
        let (opens, bytes, page) = cost(n);
        assert!(
            opens <= 1 + 15 * 3,
            "{opens} files for the page table of delta {n}"
        );
        assert!(
            bytes < bytes_at_1 * 2,
            "{bytes} bytes, {bytes_at_1} at delta 1"
        );
        // A page: its file's header if that is not open yet, its index entry, its bytes.
        assert!(
            page.0 <= 1 && page.1 <= 3,
            "{page:?} at delta {n}, {page_at_1:?} at delta 1"
        );
    }
    assert_holds(&store.snapshot(ids[1000]).expect("the last"), &memory);
}
