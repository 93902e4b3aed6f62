//! What was measured, for people and for machines.

use super::load::{Fared, VALUE};
use super::others::Other;
use super::stop::{EVERY, phases};
use crate::host;
use crate::table::{Sorted, Table, bytes, heading, nanos, thousands};
use serde_json::{Value, json};

/// Phases of the floor: nothing to find, nothing to copy.
const FLOOR: [&str; 3] = ["freeze_ns", "state_ns", "thaw_ns"];
const PHASES: [(&str, &str); 5] = [
    ("freeze_ns", "freeze"),
    ("scan_ns", "scan"),
    ("copy_ns", "copy"),
    ("state_ns", "state"),
    ("thaw_ns", "thaw"),
];

/// Figures of one run.
pub struct Report {
    /// What the server holds.
    pub mib: u64,
    /// Its keys.
    pub keys: u64,
    /// Costs of snapshots of the idle server.
    pub idle: Vec<Value>,
    /// Time to copy one page within a process, in nanoseconds.
    pub page_ns: f64,
    /// Windows without snapshots.
    pub without: Vec<Fared>,
    /// Windows with snapshots.
    pub with: Vec<Fared>,
    /// Costs of the snapshots in the windows.
    pub taken: Vec<Value>,
    /// Costs of the first snapshot of each watch.
    pub first: Vec<Value>,
    /// The same by gcore.
    pub gcore: Other,
    /// The same by criu.
    pub criu: Other,
}

fn mean(windows: &[Fared]) -> f64 {
    windows.iter().map(|window| window.rate).sum::<f64>() / windows.len() as f64
}

impl Report {
    fn stop(&self) -> Sorted {
        phases(&self.taken, &["stop_ns"])
    }

    fn seen(&self) -> Sorted {
        Sorted::new(
            self.taken
                .iter()
                .filter_map(|cost| cost["stop_seen_ns"].as_u64()),
        )
    }

    fn pages(&self, name: &str) -> Sorted {
        Sorted::new(
            self.taken
                .iter()
                .filter_map(|cost| cost["pages"][name].as_u64()),
        )
    }

    /// For each snapshot, the idle server's median freeze, registers and thaw, and a copy of as many
    /// pages as were copied inside the stop.
    fn floor(&self) -> Sorted {
        let empty = phases(&self.idle, &FLOOR).at(0.5);
        let copied = |cost: &Value| cost["pages"]["copied_stopped"].as_u64().unwrap_or(0);
        Sorted::new(
            self.taken
                .iter()
                .map(|cost| empty + (copied(cost) as f64 * self.page_ns) as u64),
        )
    }

    fn ratio(&self) -> f64 {
        self.stop().at(0.5) as f64 / self.floor().at(0.5).max(1) as f64
    }

    /// One object.
    pub fn json(&self) -> Value {
        let times = |times: &Sorted| json!({ "p50_ns": times.at(0.5), "p90_ns": times.at(0.9), "p99_ns": times.at(0.99), "max_ns": times.at(1.0) });
        let counts = |name: &str| {
            let pages = self.pages(name);
            json!({ "p50": pages.at(0.5), "p99": pages.at(0.99), "max": pages.at(1.0) })
        };
        let windows = |windows: &[Fared]| {
            let all: Vec<Value> = windows
                .iter()
                .map(|window| json!({ "requests_per_second": window.rate, "ping": times(&window.pings) }))
                .collect();
            json!({ "requests_per_second": mean(windows), "windows": all })
        };
        let other = |other: &Other| match other {
            Other::Done {
                took,
                silent_ns,
                bytes,
            } => {
                json!({ "took_ns": took.as_nanos() as u64, "silent_ns": silent_ns, "bytes": bytes })
            }
            Other::Skipped { missing, how } => {
                json!({ "skipped": { "missing": missing, "how": how } })
            }
        };
        let by_phase: serde_json::Map<String, Value> = PHASES
            .iter()
            .map(|(name, short)| ((*short).to_owned(), times(&phases(&self.taken, &[name]))))
            .collect();
        json!({
            "bench": "stop",
            "kernel": host::kernel(),
            "mib": self.mib,
            "keys": self.keys,
            "value_bytes": VALUE,
            "snapshots": self.taken.len(),
            "stop": times(&self.stop()),
            "stop_seen": times(&self.seen()),
            "phases": by_phase,
            "pages": { "resident": counts("resident"), "dirty": counts("dirty"), "copied_stopped": counts("copied_stopped"), "changed": counts("changed") },
            "floor": { "empty_ns": phases(&self.idle, &FLOOR).at(0.5), "page_copy_ns": self.page_ns, "p50_ns": self.floor().at(0.5), "p99_ns": self.floor().at(0.99) },
            "stop_to_floor": self.ratio(),
            "first_stop": times(&phases(&self.first, &["stop_ns"])),
            "without": windows(&self.without),
            "with": windows(&self.with),
            "with_to_without": mean(&self.with) / mean(&self.without),
            "gcore": other(&self.gcore),
            "criu": other(&self.criu),
        })
    }

    /// A few tables.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}\nredis-server with {} values of {VALUE} bytes, redis-benchmark -t set -r {} -d {VALUE} -P 8 beside it,\n\
             a snapshot each {EVERY}: {} snapshots in {} windows. Linux {}.\n\n",
            heading("bench stop"),
            thousands(self.keys),
            self.keys,
            self.taken.len(),
            self.with.len(),
            host::kernel()
        );
        let mut table = Table::new(["stop", "p50", "p90", "p99", "max"]);
        let mut row = |title: &str, times: &Sorted| {
            if !times.is_empty() {
                table.row([
                    title.to_owned(),
                    nanos(times.at(0.5)),
                    nanos(times.at(0.9)),
                    nanos(times.at(0.99)),
                    nanos(times.at(1.0)),
                ]);
            }
        };
        row("in all", &self.stop());
        for (name, short) in PHASES {
            row(&format!("  {short}"), &phases(&self.taken, &[name]));
        }
        row("as the scheduler saw it", &self.seen());
        row("floor", &self.floor());
        row("first of each watch", &phases(&self.first, &["stop_ns"]));
        text += &table.lines();
        let empty = phases(&self.idle, &FLOOR).at(0.5);
        text += &format!(
            "  p50 to floor: {:.2}. The floor of a snapshot: freeze, registers and thaw of the same process\n  \
             while idle ({}), and a memcpy of as many pages ({:.0} ns a page).\n\n",
            self.ratio(),
            nanos(empty),
            self.page_ns
        );
        let mut table = Table::new(["pages", "p50", "p99", "max"]);
        for (name, title) in [
            ("resident", "resident"),
            ("dirty", "found dirty"),
            ("changed", "changed"),
            ("copied_stopped", "copied in the stop"),
        ] {
            let pages = self.pages(name);
            table.row([
                title.to_owned(),
                thousands(pages.at(0.5)),
                thousands(pages.at(0.99)),
                thousands(pages.at(1.0)),
            ]);
        }
        text += &table.lines();
        text.push('\n');
        let mut table = Table::new([
            "window",
            "requests/s without",
            "with",
            "ping p99 without",
            "with",
            "longest without",
            "with",
        ]);
        for (n, (without, with)) in self.without.iter().zip(&self.with).enumerate() {
            table.row([
                (n + 1).to_string(),
                thousands(without.rate as u64),
                thousands(with.rate as u64),
                nanos(without.pings.at(0.99)),
                nanos(with.pings.at(0.99)),
                nanos(without.pings.at(1.0)),
                nanos(with.pings.at(1.0)),
            ]);
        }
        text += &table.lines();
        text += &format!(
            "  requests/s with snapshots: {:.3} of those without\n\n",
            mean(&self.with) / mean(&self.without)
        );
        for (name, other) in [("gcore", &self.gcore), ("criu", &self.criu)] {
            text += &match other {
                Other::Done {
                    took,
                    silent_ns,
                    bytes: size,
                } => format!(
                    "  {name} of the same server, idle: {}, {}; it did not answer for {}\n",
                    nanos(took.as_nanos() as u64),
                    bytes(*size),
                    nanos(*silent_ns)
                ),
                Other::Skipped { missing, how } => {
                    format!("  SKIP {name}: missing {missing}; {how}\n")
                }
            };
        }
        text
    }
}
