//! Which snapshot follows which, drawn beside a list of them.

use crate::model::SnapshotId;
use std::collections::HashMap;

/// What is drawn of one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Beside its line.
    pub own: String,
    /// On a line below, where several snapshots follow it.
    pub below: Option<String>,
}

/// Lines of descent, one column each: the snapshot whose next child goes on in it.
type Lanes = Vec<Option<SnapshotId>>;

/// Draws snapshots, parents before their children, each with its parent. One whose parent is not among them
/// begins a line of its own.
pub fn rows(snapshots: impl Iterator<Item = (SnapshotId, Option<SnapshotId>)> + Clone) -> Vec<Row> {
    let mut children: HashMap<SnapshotId, usize> = HashMap::new();
    for parent in snapshots.clone().filter_map(|(_, parent)| parent) {
        *children.entry(parent).or_default() += 1;
    }
    let mut lanes = Lanes::new();
    snapshots
        .map(|(id, parent)| {
            let at = lanes
                .iter()
                .position(|lane| parent.is_some() && *lane == parent)
                .unwrap_or_else(|| free(&mut lanes, 0));
            let expected = children.get(&id).copied().unwrap_or(0);
            lanes[at] = Some(id);
            let own = line(&lanes, |column| (column == at).then_some('*'));
            if expected == 0 {
                lanes[at] = None;
            }
            let before = lanes.clone();
            let new: Vec<usize> = (1..expected)
                .map(|_| {
                    let column = free(&mut lanes, at + 1);
                    lanes[column] = Some(id);
                    column
                })
                .collect();
            let below = new.last().map(|last| branching(&before, at, &new, *last));
            while lanes.last() == Some(&None) {
                lanes.pop();
            }
            Row { own, below }
        })
        .collect()
}

/// The first free column from one on.
fn free(lanes: &mut Lanes, from: usize) -> usize {
    let found = (from..lanes.len()).find(|column| lanes[*column].is_none());
    found.unwrap_or_else(|| {
        lanes.push(None);
        lanes.len() - 1
    })
}

fn line(lanes: &Lanes, special: impl Fn(usize) -> Option<char>) -> String {
    let mark = |column: usize| match (special(column), lanes[column]) {
        (Some(mark), _) => mark,
        (None, Some(_)) => '|',
        (None, None) => ' ',
    };
    let marks: Vec<String> = (0..lanes.len()).map(|n| mark(n).to_string()).collect();
    marks.join(" ").trim_end().to_owned()
}

/// From one column to the new ones on its right, across those in between.
fn branching(before: &Lanes, at: usize, new: &[usize], last: usize) -> String {
    let width = before.len().max(last + 1);
    let mut text = String::new();
    for column in 0..width {
        let is_open = before.get(column).is_some_and(Option::is_some);
        text.push(match column {
            _ if new.contains(&column) => '.',
            _ if column > at && column < last && is_open => '+',
            _ if column > at && column < last => '-',
            _ if is_open => '|',
            _ => ' ',
        });
        text.push(if column >= at && column < last {
            '-'
        } else {
            ' '
        });
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws snapshots by their numbers and those of their parents, 0 for none.
    fn drawn(snapshots: &[(u8, u8)]) -> Vec<String> {
        let id = |n: u8| SnapshotId([n; 16]);
        let all = snapshots
            .iter()
            .map(|(own, parent)| (id(*own), (*parent != 0).then(|| id(*parent))));
        rows(all)
            .into_iter()
            .flat_map(|row| std::iter::once(row.own).chain(row.below))
            .collect()
    }

    #[test]
    fn a_chain_is_a_line() {
        assert_eq!(drawn(&[(1, 0), (2, 1), (3, 2)]), ["*", "*", "*"]);
    }

    #[test]
    fn what_follows_an_earlier_one_branches_there() {
        assert_eq!(
            drawn(&[(1, 0), (2, 1), (3, 2), (4, 3), (5, 2), (6, 5)]),
            ["*", "*", "|-.", "* |", "* |", "  *", "  *"]
        );
    }

    #[test]
    fn branches_cross_others_and_take_free_columns() {
        assert_eq!(
            drawn(&[(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 1), (7, 5)]),
            [
                "*", "|-.-.", "* | |", "|-+-+-.", "| * | |", "*   | |", "    | *", "    * |",
                "      *"
            ]
        );
    }

    #[test]
    fn one_without_its_parent_begins_a_line() {
        assert_eq!(
            drawn(&[(3, 2), (4, 3), (9, 0), (5, 4)]),
            ["*", "*", "| *", "*"]
        );
    }
}
