//! Which snapshots are kept: rules without any I/O.

use super::meta::SnapshotMeta;
use crate::model::SnapshotId;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::time::Duration;

/// What to keep. Without any rule everything is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The newest so many of each session.
    pub keep_last: Option<u64>,
    /// Those of the last so long.
    pub keep_within: Option<Duration>,
    /// Most bytes on the disk: beyond it the oldest go, also those that the other rules keep.
    pub max_size: Option<u64>,
}

impl Rules {
    /// Nothing is ever removed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The snapshots of one session that no rule keeps, size aside. `list` is ascending by sequence number, `now_ns`
/// is wall-clock time since 1970; `protected` ones are kept whatever the rules say.
///
/// A clock that went backwards makes snapshots look younger than they are, those from the future as young as can
/// be: they stay longer, never shorter.
pub(super) fn removable<'a>(
    list: &'a [SnapshotMeta],
    rules: &Rules,
    now_ns: u64,
    protected: &HashSet<SnapshotId>,
) -> Vec<&'a SnapshotMeta> {
    if rules.keep_last.is_none() && rules.keep_within.is_none() {
        return Vec::new();
    }
    let is_last = |at: usize| {
        rules
            .keep_last
            .is_some_and(|last| (list.len() - at) as u64 <= last)
    };
    let is_young = |meta: &SnapshotMeta| {
        rules
            .keep_within
            .is_some_and(|within| now_ns.saturating_sub(meta.time_ns) as u128 <= within.as_nanos())
    };
    list.iter()
        .enumerate()
        .filter(|(at, meta)| !is_last(*at) && !is_young(meta) && !protected.contains(&meta.id))
        .map(|(_, meta)| meta)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::SessionId;
    use crate::model::SnapshotKind;

    const SECOND: u64 = 1_000_000_000;

    /// Snapshots 1, 2, … taken at these seconds.
    fn taken(at: &[u64]) -> Vec<SnapshotMeta> {
        let meta = |(n, second): (usize, &u64)| SnapshotMeta {
            id: SnapshotId([n as u8 + 1; 16]),
            session: SessionId([0; 16]),
            seq: n as u32 + 1,
            kind: SnapshotKind::Delta,
            parent: None,
            parent_seq: 0,
            time_ns: second * SECOND,
            pid: 1,
            comm: String::new(),
            pages: 0,
            stored_pages: 0,
            found: None,
            data_bytes: 0,
            file_bytes: 100,
            stop_ns: 0,
            late: None,
            path: "/x".into(),
        };
        at.iter().enumerate().map(meta).collect()
    }

    fn gone(at: &[u64], rules: Rules, now: u64, tagged: &[u8]) -> Vec<u32> {
        let protected = tagged.iter().map(|n| SnapshotId([*n; 16])).collect();
        removable(&taken(at), &rules, now * SECOND, &protected)
            .iter()
            .map(|meta| meta.seq)
            .collect()
    }

    #[test]
    fn what_any_rule_keeps_is_kept() {
        let at = [10, 20, 30, 40, 50];
        let last = |n| Rules {
            keep_last: Some(n),
            ..Rules::default()
        };
        let within = |seconds| Rules {
            keep_within: Some(Duration::from_secs(seconds)),
            ..Rules::default()
        };
        assert_eq!(gone(&at, Rules::default(), 99, &[]), [0; 0]);
        assert_eq!(gone(&at, last(2), 50, &[]), [1, 2, 3]);
        assert_eq!(gone(&at, last(9), 50, &[]), [0; 0]);
        assert_eq!(gone(&at, within(20), 50, &[]), [1, 2]);
        assert_eq!(gone(&at, within(5), 99, &[]), [1, 2, 3, 4, 5]);
        let both = Rules {
            keep_last: Some(1),
            ..within(20)
        };
        assert_eq!(gone(&at, both, 65, &[]), [1, 2, 3, 4]);
        assert_eq!(gone(&at, both, 65, &[2]), [1, 3, 4]);
        let only_size = Rules {
            max_size: Some(1),
            ..Rules::default()
        };
        assert_eq!(gone(&at, only_size, 50, &[]), [0; 0]);
    }

    #[test]
    fn a_clock_that_goes_backwards_removes_nothing_early() {
        let within = Rules {
            keep_within: Some(Duration::from_secs(20)),
            ..Rules::default()
        };
        // Set back by an hour after the third.
        assert_eq!(gone(&[4000, 4010, 4020, 430], within, 440, &[]), [0; 0]);
        // Set forward for a moment: the others do not age by it.
        assert_eq!(gone(&[400, 410, 9000, 420], within, 425, &[]), [1]);
    }
}
