//! The page table that the next delta builds on, and when a delta gets a span section.

use crate::image::{
    ENTRY_LEN, Header, Location, RUN_LEN, SpanKind, SpanPlan, runs_between, runs_of,
};
use crate::model::{PageTable, SnapshotId, SnapshotKind};

/// Each delta whose depth is a multiple of this has a span; each multiple of its square a longer one; and so on.
const RADIX: u32 = 16;

/// An ancestor that a later span will reach back to.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) depth: u32,
    pub(super) seq: u32,
    pub(super) table: PageTable<Location>,
}

/// How far the span at `depth` reaches back: the largest power of the radix that divides it.
fn reach(depth: u32) -> u32 {
    let mut reach = 1u32;
    while let Some(next) = reach.checked_mul(RADIX)
        && depth.is_multiple_of(next)
    {
        reach = next;
    }
    reach
}

impl Anchor {
    /// Whether a span of a delta deeper than `depth` will reach back to the snapshot at depth `own`.
    pub(super) fn is_needed(own: u32, depth: u32) -> bool {
        own == 0 || own.saturating_add(reach(own)) > depth
    }
}

/// A snapshot that can be a parent, with all that its children need of it in memory.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: SnapshotId,
    pub(super) seq: u32,
    pub(super) table: PageTable<Location>,
    depth: u32,
    anchors: Vec<Anchor>,
    /// Bytes of indexes and spans written since the last file that lists everything.
    index_bytes: u64,
    /// What listing everything took or would have taken when it was last worked out.
    full_bytes: u64,
}

impl Head {
    /// Takes over a snapshot read back from disk. `anchors` are its jumps, oldest first.
    pub(super) fn resume(
        header: &Header,
        table: PageTable<Location>,
        anchors: Vec<Anchor>,
        index_bytes: u64,
    ) -> Self {
        Self {
            id: header.id,
            seq: header.seq,
            depth: header.depth,
            // Not known from the files; worked out at the first chance.
            full_bytes: 0,
            index_bytes,
            table,
            anchors,
        }
    }

    /// A base that was just published.
    pub(super) fn base(id: SnapshotId, seq: u32, table: PageTable<Location>) -> Self {
        let full_bytes = table.pages() * ENTRY_LEN as u64;
        let anchors = vec![Anchor {
            depth: 0,
            seq,
            table: table.clone(),
        }];
        Self {
            id,
            seq,
            table,
            depth: 0,
            anchors,
            index_bytes: 0,
            full_bytes,
        }
    }

    /// Decides what span the child with this table gets. `entries` is the length of its own index.
    ///
    /// A list of everything is due when the indexes since the last one have grown to its size: the work is
    /// then paid for by what was written, however small each delta is.
    pub(super) fn plan(&mut self, table: &PageTable<Location>, entries: usize) -> SpanPlan {
        let written = self.index_bytes + (entries * ENTRY_LEN) as u64;
        if written >= self.full_bytes {
            let runs = runs_of(table);
            self.full_bytes = (runs.len() * RUN_LEN) as u64;
            if written >= self.full_bytes {
                return SpanPlan {
                    kind: SpanKind::Full,
                    runs,
                    depth: 0,
                };
            }
        }
        let depth = self.depth + 1;
        let reach = reach(depth);
        let anchor = (reach > 1)
            .then(|| self.anchors.iter().find(|a| a.depth == depth - reach))
            .flatten();
        match anchor {
            Some(anchor) => SpanPlan {
                kind: SpanKind::Since(anchor.seq),
                runs: runs_between(&anchor.table, table),
                depth,
            },
            None => SpanPlan {
                kind: SpanKind::None,
                runs: Vec::new(),
                depth,
            },
        }
    }

    /// The child becomes the head, once it is published.
    pub(super) fn advance(&mut self, header: &Header, table: PageTable<Location>) {
        debug_assert_eq!(header.kind, SnapshotKind::Delta);
        self.id = header.id;
        self.seq = header.seq;
        self.depth = header.depth;
        self.table = table;
        if header.span_kind == SpanKind::Full {
            self.anchors.clear();
            self.index_bytes = 0;
            self.full_bytes = header.span.len;
        } else {
            self.index_bytes += header.index.len + header.span.len;
        }
        if header.span_kind != SpanKind::None {
            self.anchors.push(Anchor {
                depth: self.depth,
                seq: self.seq,
                table: self.table.clone(),
            });
            let depth = self.depth;
            self.anchors
                .retain(|anchor| Anchor::is_needed(anchor.depth, depth));
        }
    }
}
