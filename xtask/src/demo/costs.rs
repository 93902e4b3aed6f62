//! The cost table.

use super::history::History;
use crate::table::{Sorted, Table, nanos};
use anyhow::{Context, Result};
use serde_json::Value;
use tests::Ksnap;

/// What the program pays for with standing still, in order.
const STOPPED: [(&str, &str); 5] = [
    ("freeze_ns", "stop all threads"),
    ("scan_ns", "find what changed last"),
    ("copy_ns", "copy it"),
    ("state_ns", "registers, descriptors"),
    ("thaw_ns", "let them go"),
];
/// What happens while it runs.
const RUNNING: [(&str, &str); 4] = [
    ("precopy_ns", "copy ahead"),
    ("encode_ns", "compress"),
    ("write_ns", "write"),
    ("sync_ns", "sync"),
];

/// Prints percentiles of the stop and of each phase over all deltas.
pub fn show(ksnap: &Ksnap, history: &History) -> Result<()> {
    let costs: Vec<Value> = history
        .iter()
        .skip(1)
        .map(|entry| {
            let shown = ksnap.json(&["show", &entry.id])?;
            Ok(shown
                .into_iter()
                .next()
                .context("ksnap show printed nothing")?["costs"]
                .take())
        })
        .collect::<Result<_>>()?;
    let phase = |name: &str| {
        Sorted::new(
            costs
                .iter()
                .filter_map(|cost| cost["phases"][name].as_u64()),
        )
    };
    let mut table = Table::new(["", "half of them", "99 of 100", "longest"]);
    let mut row = |title: String, times: &Sorted| {
        if !times.is_empty() {
            table.row([
                title,
                nanos(times.at(0.5)),
                nanos(times.at(0.99)),
                nanos(times.at(1.0)),
            ]);
        }
    };
    row("program stands still".into(), &phase("stop_ns"));
    for (name, title) in STOPPED {
        row(format!("  {title}"), &phase(name));
    }
    row(
        "  by the scheduler's account".into(),
        &Sorted::new(
            costs
                .iter()
                .filter_map(|cost| cost["stop_seen_ns"].as_u64()),
        ),
    );
    for (name, title) in RUNNING {
        row(format!("while it runs: {title}"), &phase(name));
    }
    println!(
        "  {} deltas; the times not exceeded by so many of them:",
        costs.len()
    );
    print!("{}", table.lines());
    Ok(())
}
