//! What can be brought back of a process.

use super::human::{clean, count};
use super::{Align, Style, Table};
use crate::session::{Inspection, Verdict};
use std::io::{self, Write};

/// Descriptors, mappings that are not whole, and what would be lost.
pub fn write(out: &mut dyn Write, style: Style, found: &Inspection) -> io::Result<()> {
    let title = format!("process {} ({})", found.pid, clean(&found.comm));
    writeln!(out, "{}", style.bold(&title))?;
    if !found.descriptors.is_empty() {
        writeln!(out, "\n{}", style.bold("Descriptors"))?;
        let mut table = Table::new([
            ("fd", Align::Right),
            ("kind", Align::Left),
            ("comes back", Align::Left),
            ("link", Align::Left),
            ("what it holds", Align::Left),
        ]);
        for one in &found.descriptors {
            table.row([
                one.what.fd.to_string(),
                format!("{:?}", one.what.kind).to_lowercase(),
                words(&one.verdict).0.into(),
                one.what.link.clone(),
                one.what.detail.clone(),
            ]);
        }
        table.write(out, style, "  ")?;
        for one in &found.descriptors {
            if let (word, Some(why)) = words(&one.verdict) {
                let line = format!("  {} {word}: {}", one.what.fd, clean(why));
                writeln!(out, "{}", style.yellow(&line))?;
            }
        }
    }
    writeln!(out, "\n{}", style.bold("Mappings"))?;
    let whole = found.mapped - found.mappings.len();
    writeln!(
        out,
        "  {} of {} come back whole",
        whole,
        count(found.mapped as u64, "mapping")
    )?;
    for one in &found.mappings {
        let (word, why) = words(&one.verdict);
        let place = &one.what;
        let line = format!(
            "  {:x}-{:x} {} {} {word}: {}",
            place.start,
            place.end,
            place.perms,
            clean(&place.name),
            why.unwrap_or_default()
        );
        writeln!(out, "{}", style.yellow(&line))?;
    }
    if let Some(terminal) = &found.terminal {
        writeln!(out, "\n{}", style.bold("Controlling terminal"))?;
        let name = clean(&terminal.what.name);
        match words(&terminal.verdict) {
            (word, Some(why)) => {
                let line = format!("  {name} {word}: {}", clean(why));
                writeln!(out, "{}", style.yellow(&line))?;
            }
            (word, None) => writeln!(out, "  {name} comes back {word}")?,
        }
    }
    writeln!(out, "\n{}", style.bold("Threads"))?;
    writeln!(out, "  {}", count(found.threads as u64, "thread"))?;
    if !found.unsupported.is_empty() {
        writeln!(out, "\n{}", style.bold("A snapshot could not save"))?;
        for what in &found.unsupported {
            writeln!(out, "  {}", style.yellow(&clean(what)))?;
        }
    }
    Ok(())
}

fn words(verdict: &Verdict) -> (&'static str, Option<&str>) {
    match verdict {
        Verdict::Whole => ("whole", None),
        Verdict::Partly(why) => ("partly", Some(why)),
        Verdict::Not(why) => ("not", Some(why)),
    }
}
