//! What was measured, for people and for machines.

use super::load::{Fared, VALUE};
use super::others::Other;
use super::stop::{EVERY, Measured, phases};
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
    /// Windows without and with snapshots, for each pace.
    pub measured: Vec<Measured>,
    /// The same by gcore.
    pub gcore: Other,
    /// The same by criu.
    pub criu: Other,
}

fn mean(windows: &[Fared]) -> f64 {
    windows.iter().map(|window| window.rate).sum::<f64>() / windows.len() as f64
}

impl Measured {
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

    fn interval_ns(&self) -> u64 {
        self.lasted.as_nanos() as u64 / self.taken.len().max(1) as u64
    }
}

const PAGES: [(&str, &str); 4] = [
    ("resident", "resident"),
    ("dirty", "found dirty"),
    ("changed", "changed"),
    ("copied_stopped", "copied in the stop"),
];

impl Report {
    fn empty_ns(&self) -> u64 {
        phases(&self.idle, &FLOOR).at(0.5)
    }

    /// For each snapshot, the idle server's median freeze, registers and thaw, and a copy of as many
    /// pages as were copied inside the stop.
    fn floor(&self, measured: &Measured) -> Sorted {
        let empty = self.empty_ns();
        let copied = |cost: &Value| cost["pages"]["copied_stopped"].as_u64().unwrap_or(0);
        Sorted::new(
            measured
                .taken
                .iter()
                .map(|cost| empty + (copied(cost) as f64 * self.page_ns) as u64),
        )
    }

    fn ratio(&self, measured: &Measured) -> f64 {
        measured.stop().at(0.5) as f64 / self.floor(measured).at(0.5).max(1) as f64
    }

    /// One object.
    pub fn json(&self) -> Value {
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
        let paces: Vec<Value> = self.measured.iter().map(|m| self.pace_json(m)).collect();
        json!({
            "bench": "stop",
            "kernel": host::kernel(),
            "mib": self.mib,
            "keys": self.keys,
            "value_bytes": VALUE,
            "floor": { "empty_ns": self.empty_ns(), "page_copy_ns": self.page_ns },
            "paces": paces,
            "gcore": other(&self.gcore),
            "criu": other(&self.criu),
        })
    }

    fn pace_json(&self, measured: &Measured) -> Value {
        let times = |times: &Sorted| json!({ "p50_ns": times.at(0.5), "p90_ns": times.at(0.9), "p99_ns": times.at(0.99), "max_ns": times.at(1.0) });
        let pages: serde_json::Map<String, Value> = PAGES
            .iter()
            .map(|(name, _)| {
                let pages = measured.pages(name);
                let value =
                    json!({ "p50": pages.at(0.5), "p99": pages.at(0.99), "max": pages.at(1.0) });
                ((*name).to_owned(), value)
            })
            .collect();
        let windows = |windows: &[Fared]| {
            let all: Vec<Value> = windows
                .iter()
                .map(|window| json!({ "requests_per_second": window.rate, "ping": times(&window.pings) }))
                .collect();
            json!({ "requests_per_second": mean(windows), "windows": all })
        };
        let by_phase: serde_json::Map<String, Value> = PHASES
            .iter()
            .map(|(name, short)| {
                let value = times(&phases(&measured.taken, &[name]));
                ((*short).to_owned(), value)
            })
            .collect();
        let floor = self.floor(measured);
        json!({
            "pace": measured.pace.name(),
            "snapshots": measured.taken.len(),
            "interval_ns": measured.interval_ns(),
            "stop": times(&measured.stop()),
            "stop_seen": times(&measured.seen()),
            "longest_pause": times(&phases(&measured.taken, &["longest_pause_ns"])),
            "pauses": times(&phases(&measured.taken, &["pauses_ns"])),
            "phases": by_phase,
            "pages": pages,
            "floor": { "p50_ns": floor.at(0.5), "p99_ns": floor.at(0.99) },
            "stop_to_floor": self.ratio(measured),
            "first_stop": times(&phases(&measured.first, &["stop_ns"])),
            "without": windows(&measured.without),
            "with": windows(&measured.with),
            "with_to_without": mean(&measured.with) / mean(&measured.without),
        })
    }

    /// A few tables.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}\nredis-server with {} values of {VALUE} bytes, redis-benchmark -t set -r {} -d {VALUE} -P 8 beside it,\n\
             a snapshot asked for each {EVERY}. Linux {}.\n\
             The floor of a stop: freeze, registers and thaw of the same process while idle ({}), and a memcpy\n\
             of as many pages ({:.0} ns a page).\n\n",
            heading("bench stop"),
            thousands(self.keys),
            self.keys,
            host::kernel(),
            nanos(self.empty_ns()),
            self.page_ns
        );
        for measured in &self.measured {
            text += &self.pace_text(measured);
        }
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

    fn pace_text(&self, measured: &Measured) -> String {
        let mut text = format!(
            "{}: {} snapshots in {} windows, one each {}\n\n",
            measured.pace.name(),
            measured.taken.len(),
            measured.with.len(),
            nanos(measured.interval_ns())
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
        row("in all", &measured.stop());
        for (name, short) in PHASES {
            row(&format!("  {short}"), &phases(&measured.taken, &[name]));
        }
        row("as the scheduler saw it", &measured.seen());
        row("floor", &self.floor(measured));
        let pauses = |name| phases(&measured.taken, &[name]);
        row("longest pause before it", &pauses("longest_pause_ns"));
        row("all pauses before it", &pauses("pauses_ns"));
        row(
            "first of each watch",
            &phases(&measured.first, &["stop_ns"]),
        );
        text += &table.lines();
        text += &format!("  p50 to floor: {:.2}\n\n", self.ratio(measured));
        let mut table = Table::new(["pages", "p50", "p99", "max"]);
        for (name, title) in PAGES {
            let pages = measured.pages(name);
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
        for (n, (without, with)) in measured.without.iter().zip(&measured.with).enumerate() {
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
            mean(&measured.with) / mean(&measured.without)
        );
        text
    }
}
