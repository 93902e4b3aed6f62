//! `ksnap log`, as a table for people.

use super::watched::Watched;
use crate::table::{Table, bytes, nanos, thousands};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::Ksnap;

/// Fewer snapshots than this, whatever the demo's time, and something is wrong.
const FEWEST: usize = 6;

/// One snapshot.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub id: String,
    /// Its number.
    pub seq: u64,
    /// When it was taken, in nanoseconds since 1970.
    pub time_ns: u64,
    /// How long the process stood still.
    pub stop_ns: u64,
    kind: String,
    stored_pages: u64,
    file_bytes: u64,
}

/// Every snapshot of a process, oldest first.
pub struct History(Vec<Entry>);

impl History {
    /// Reads `ksnap log --json`.
    pub fn read(ksnap: &Ksnap, pid: i32) -> Result<Self> {
        let log = ksnap.json(&["log", "--pid", &pid.to_string()])?;
        Ok(Self(log.iter().map(Entry::read).collect::<Result<_>>()?))
    }

    /// There are as many as the demo needs.
    pub fn is_enough(&self) -> bool {
        self.0.len() >= FEWEST
    }

    /// A delta half-way between the first and the last snapshot.
    pub fn middle(&self) -> Result<&Entry> {
        ensure!(
            self.is_enough(),
            "only {} snapshots were taken",
            self.0.len()
        );
        let middle = &self.0[self.0.len() / 2];
        ensure!(
            middle.kind == "delta",
            "snapshot @{} is a {}",
            middle.seq,
            middle.kind
        );
        Ok(middle)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Size of all their files.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|entry| entry.file_bytes).sum()
    }

    /// The first, the last, and those around one of interest.
    pub fn table(&self, interest: u64, watched: &Watched) -> String {
        let mut table = Table::new([
            "",
            "snapshot",
            "after",
            "kind",
            "pages",
            "stored",
            "stop",
            "program's counter",
        ]);
        let start = self.0.first().map_or(0, |entry| entry.time_ns);
        let count = self.0.len();
        let shown = |n: usize| n < 3 || n + 3 >= count || self.0[n].seq.abs_diff(interest) <= 1;
        for (n, entry) in self.0.iter().enumerate() {
            if !shown(n) {
                if n > 0 && shown(n - 1) {
                    table.row(["", "…", "", "", "", "", "", ""].map(str::to_owned));
                }
                continue;
            }
            let counter = watched
                .counter_at(entry.time_ns, entry.stop_ns)
                .map_or_else(
                    |_| String::new(),
                    |(least, most)| format!("about {}", thousands((least + most) / 2)),
                );
            table.row([
                if entry.seq == interest { "→" } else { "" }.into(),
                format!("@{}", entry.seq),
                format!("{:.1} s", (entry.time_ns - start) as f64 / 1e9),
                entry.kind.clone(),
                thousands(entry.stored_pages),
                bytes(entry.file_bytes),
                nanos(entry.stop_ns),
                counter,
            ]);
        }
        table.lines()
    }
}

impl Entry {
    fn read(value: &Value) -> Result<Self> {
        let number = |name: &str| {
            value[name]
                .as_u64()
                .with_context(|| format!("ksnap log without {name}: {value}"))
        };
        let text = |name: &str| {
            value[name]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("ksnap log without {name}: {value}"))
        };
        Ok(Self {
            id: text("id")?,
            seq: number("seq")?,
            time_ns: number("time_ns")?,
            stop_ns: number("stop_ns")?,
            kind: text("kind")?,
            stored_pages: number("stored_pages")?,
            file_bytes: number("file_bytes")?,
        })
    }
}
