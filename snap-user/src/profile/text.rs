//! The cost table, for reading.

use super::report::{FaultSource, OverheadPart, Report, Size};
use super::times::Times;
use std::fmt::Write;

/// Rows of each list of culprits.
const TOP: usize = 3;

impl Report {
    /// The report as a table of at most about 30 lines of 80 columns, ended by a line break.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self
            .heading(&mut out)
            .and_then(|()| self.times(&mut out))
            .and_then(|()| self.amounts(&mut out))
            .and_then(|()| self.shares(&mut out))
            .and_then(|()| self.culprits(&mut out));
        out
    }

    fn heading(&self, out: &mut String) -> std::fmt::Result {
        write!(
            out,
            "{} in {}; the process used {} of CPU time",
            plural(self.snapshots, "snapshot"),
            duration(self.elapsed_ns),
            duration(self.target_cpu_ns)
        )?;
        if !self.tracker.is_empty() {
            write!(out, " (tracker: {})", self.tracker)?;
        }
        out.write_str("\n\n")
    }

    fn times(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:<32}{:>12}{:>12}{:>12}{:>12}",
            "Time per snapshot", "half under", "90 % under", "99 % under", "longest"
        )?;
        let p = &self.phases;
        let rows = [
            ("process stopped", Some(&self.stop)),
            ("  as the scheduler saw it", self.stop_seen.as_ref()),
            ("  of it: freeze", Some(&p.freeze)),
            ("         find written pages", Some(&p.scan)),
            ("         copy them", Some(&p.copy)),
            ("         registers and files", Some(&p.state)),
            ("         let it run again", Some(&p.thaw)),
            ("while it runs: copy", Some(&p.precopy)),
            ("         with pauses, in all", Some(&p.pauses)),
            ("               compress", Some(&p.encode)),
            ("               write", Some(&p.write)),
            ("               sync to disk", Some(&p.sync)),
        ];
        for (name, times) in rows {
            if let Some(times) = times {
                let Times {
                    p50_ns,
                    p90_ns,
                    p99_ns,
                    max_ns,
                    ..
                } = *times;
                writeln!(
                    out,
                    "{name:<32}{:>12}{:>12}{:>12}{:>12}",
                    duration(p50_ns),
                    duration(p90_ns),
                    duration(p99_ns),
                    duration(max_ns)
                )?;
            }
        }
        out.write_str("\n")
    }

    fn amounts(&self, out: &mut String) -> std::fmt::Result {
        let p = &self.pages;
        let columns: [(&str, Size); 6] = [
            ("in memory", p.resident),
            ("looked at", p.scanned),
            ("written", p.dirty),
            ("copied", p.copied),
            ("in stop", p.copied_stopped),
            ("changed", p.changed),
        ];
        write!(out, "{:<14}", "Pages")?;
        for (name, _) in columns {
            write!(out, "{name:>11}")?;
        }
        write!(out, "\n{:<14}", "  on average")?;
        for (_, size) in columns {
            write!(out, "{:>11}", count(size.mean.round() as u64))?;
        }
        write!(out, "\n{:<14}", "  at most")?;
        for (_, size) in columns {
            write!(out, "{:>11}", count(size.max))?;
        }
        write!(
            out,
            "\n{} of pages stored in {}",
            bytes(self.bytes_in),
            bytes(self.bytes_out)
        )?;
        if let Some(ratio) = self.ratio {
            write!(out, " ({ratio:.1} : 1)")?;
        }
        write!(
            out,
            "; {}, {}\n\n",
            plural(self.full_scans, "full scan"),
            plural(self.ring_drops, "lost event")
        )
    }

    fn shares(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:<44}{:>12}{:>12}{:>12}",
            "What snapshots took from the process", "time", "of elapsed", "of its CPU"
        )?;
        let about = match self.fault_source {
            FaultSource::None => "write faults (none)".to_owned(),
            FaultSource::Logged => format!(
                "write faults ({} × {})",
                grouped(self.faults),
                duration(self.fault_cost_ns)
            ),
            FaultSource::DirtyPages => format!(
                "write faults (about {} × {})",
                grouped(self.faults),
                duration(self.fault_cost_ns)
            ),
        };
        let probes = if self.probes.is_empty() {
            "probes (none)".to_owned()
        } else {
            "probes (at most: all processes together)".to_owned()
        };
        let o = &self.overhead;
        let rows: [(&str, &OverheadPart); 4] = [
            ("being stopped", &o.stop),
            (&about, &o.faults),
            (&probes, &o.probes),
            ("in all", &o.total),
        ];
        for (name, part) in rows {
            writeln!(
                out,
                "  {name:<42}{:>12}{:>12}{:>12}",
                duration(part.time_ns),
                per_cent(part.of_elapsed),
                share_of_cpu(part.of_cpu)
            )?;
        }
        Ok(())
    }

    fn culprits(&self, out: &mut String) -> std::fmt::Result {
        if self.mappings.is_empty() && self.instructions.is_empty() {
            return Ok(());
        }
        out.write_str("\nWho writes (share of write faults)\n")?;
        for mapping in self.mappings.iter().take(TOP) {
            let size = bytes(mapping.range.len());
            let name = tail(&mapping.name, 50);
            writeln!(
                out,
                "  {:>6}  memory  {name} ({size})",
                per_cent(Some(mapping.share))
            )?;
        }
        for hot in self.instructions.iter().take(TOP) {
            let name = match &hot.symbol {
                Some(symbol) => symbol.to_string(),
                None => format!("{:#x}", hot.ip),
            };
            writeln!(
                out,
                "  {:>6}  code    {}",
                per_cent(Some(hot.share)),
                head(&name, 62)
            )?;
        }
        Ok(())
    }
}

/// A duration with its unit, three digits.
fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")];
    match UNITS.into_iter().find(|(unit, _)| ns >= *unit) {
        Some((unit, name)) => format!("{} {name}", digits(ns as f64 / unit as f64)),
        None => format!("{ns} ns"),
    }
}

fn bytes(n: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.into_iter().find(|(shift, _)| n >> shift > 0) {
        Some((shift, name)) => format!("{} {name}", digits(n as f64 / (1u64 << shift) as f64)),
        None => plural(n, "byte"),
    }
}

/// Three digits, or all of them before the point.
fn digits(x: f64) -> String {
    match x {
        _ if x < 9.995 => format!("{x:.2}"),
        _ if x < 99.95 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}

fn per_cent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |s| format!("{:.1} %", s * 100.0))
}

/// Of a process that hardly runs, what it cost may be more than all of its own time.
fn share_of_cpu(share: Option<f64>) -> String {
    match share {
        Some(share) if share > 1.0 => "> 100 %".to_owned(),
        share => per_cent(share),
    }
}

fn plural(n: u64, noun: &str) -> String {
    match (n, noun) {
        (0, _) => format!("no {noun}s"),
        (1, _) => format!("1 {noun}"),
        _ => format!("{} {noun}s", grouped(n)),
    }
}

/// Thousands set apart by commas.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number in at most ten characters.
fn count(n: u64) -> String {
    match n {
        0..10_000_000 => grouped(n),
        _ => format!("{} M", grouped(n / 1_000_000)),
    }
}

/// The first `width` characters.
fn head(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width - 1)
        .chain(std::iter::once('…'))
        .collect()
}

/// The last `width` characters: of a path they tell most.
fn tail(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    std::iter::once('…')
        .chain(text.chars().skip(length - width + 1))
        .collect()
}

#[cfg(test)]
mod tests;
