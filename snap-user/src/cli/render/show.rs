//! A snapshot in full.

use super::human::{bytes, clean, count, nanos, utc};
use super::log::kind;
use super::{Align, Style, Table};
use crate::model::{Costs, PAGE_SIZE};
use crate::session::{Description, Mapping, StoredContent, Thread};
use std::io::{self, Write};

/// Everything, under headings.
pub fn write(out: &mut dyn Write, style: Style, shown: &Description) -> io::Result<()> {
    head(out, style, shown)?;
    section(out, style, "Process")?;
    process(out, shown)?;
    section(out, style, "Threads")?;
    threads(&shown.threads).write(out, style, "  ")?;
    section(out, style, "Mappings")?;
    mappings(&shown.mappings).write(out, style, "  ")?;
    if !shown.descriptors.is_empty() {
        section(out, style, "Descriptors")?;
        descriptors(shown).write(out, style, "  ")?;
    }
    section(out, style, "Costs")?;
    costs(out, &shown.costs, &shown.content)?;
    if !shown.unsupported.is_empty() {
        section(out, style, "Could not be saved")?;
        for what in &shown.unsupported {
            writeln!(out, "  {}", style.yellow(&clean(what)))?;
        }
    }
    Ok(())
}

fn section(out: &mut dyn Write, style: Style, title: &str) -> io::Result<()> {
    writeln!(out, "\n{}", style.bold(title))
}

fn field(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  {name:<11}{}", clean(value))
}

fn head(out: &mut dyn Write, style: Style, shown: &Description) -> io::Result<()> {
    let entry = &shown.snapshot;
    let title = format!("{} {}", kind(entry.kind), entry.id);
    writeln!(out, "{}", style.bold(&title))?;
    field(out, "number", &format!("@{}", entry.seq))?;
    field(out, "session", &entry.session)?;
    if let Some(parent) = entry.parent {
        let text = format!("{} (@{})", parent.short(), entry.parent_seq);
        field(out, "parent", &text)?;
    }
    field(out, "when", &format!("{} UTC", utc(entry.time_ns)))?;
    field(out, "stop", &nanos(entry.stop_ns))?;
    let stored = format!(
        "{} of {}, {} in {}",
        entry.stored_pages,
        count(entry.pages, "page"),
        bytes(entry.file_bytes),
        entry.path.display()
    );
    field(out, "stored", &stored)
}

fn process(out: &mut dyn Write, shown: &Description) -> io::Result<()> {
    let process = &shown.process;
    field(out, "pid", &process.pid.to_string())?;
    field(out, "parent", &process.ppid.to_string())?;
    field(out, "name", &process.comm)?;
    field(out, "executable", &process.exe)?;
    field(out, "arguments", &process.cmdline.join(" "))?;
    field(out, "folder", &process.cwd)?;
    let heap = process.brk.saturating_sub(process.start_brk);
    let heap = format!("{:#x}, heap of {}", process.brk, bytes(heap));
    field(out, "break", &heap)
}

fn threads(threads: &[Thread]) -> Table {
    let mut table = Table::new([
        ("tid", Align::Right),
        ("name", Align::Left),
        ("ip", Align::Left),
        ("sp", Align::Left),
        ("in system call", Align::Left),
        ("blocked signals", Align::Left),
        ("queued signals", Align::Left),
    ]);
    let address = |value: Option<u64>| value.map_or("?".into(), |value| format!("{value:#x}"));
    for thread in threads {
        let call = match (thread.blocked_syscall, thread.blocked_syscall_name) {
            (None, _) => "-".into(),
            (Some(_), Some(name)) => name.into(),
            (Some(number), None) => number.to_string(),
        };
        let queued: Vec<String> = thread.pending_signals.iter().map(i32::to_string).collect();
        table.row([
            thread.tid.to_string(),
            thread.comm.clone(),
            address(thread.ip),
            address(thread.sp),
            call,
            format!("{:016x}", thread.sigmask),
            queued.join(" "),
        ]);
    }
    table
}

fn mappings(mappings: &[Mapping]) -> Table {
    let mut table = Table::new([
        ("start", Align::Right),
        ("end", Align::Right),
        ("perms", Align::Left),
        ("size", Align::Right),
        ("pages", Align::Right),
        ("stored here", Align::Right),
        ("name", Align::Left),
    ]);
    for mapping in mappings {
        table.row([
            format!("{:x}", mapping.start),
            format!("{:x}", mapping.end),
            mapping.perms.clone(),
            bytes(mapping.end - mapping.start),
            mapping.pages.to_string(),
            mapping.stored_pages.to_string(),
            match mapping.deleted {
                true => format!("{} (deleted)", mapping.name),
                false => mapping.name.clone(),
            },
        ]);
    }
    table
}

fn descriptors(shown: &Description) -> Table {
    let mut table = Table::new([
        ("fd", Align::Right),
        ("kind", Align::Left),
        ("position", Align::Right),
        ("flags", Align::Right),
        ("link", Align::Left),
        ("what it holds", Align::Left),
    ]);
    for resource in &shown.descriptors {
        table.row([
            resource.fd.to_string(),
            format!("{:?}", resource.kind).to_lowercase(),
            resource.position.to_string(),
            format!("{:#o}", resource.flags),
            match resource.deleted {
                true => format!("{} (deleted)", resource.link),
                false => resource.link.clone(),
            },
            resource.detail.clone(),
        ]);
    }
    table
}

fn costs(out: &mut dyn Write, costs: &Costs, content: &StoredContent) -> io::Result<()> {
    let phases = &costs.phases;
    let stop = format!(
        "{} = freeze {} + scan {} + copy {} + state {} + thaw {}",
        nanos(phases.stop_ns),
        nanos(phases.freeze_ns),
        nanos(phases.scan_ns),
        nanos(phases.copy_ns),
        nanos(phases.state_ns),
        nanos(phases.thaw_ns)
    );
    field(out, "stop", &stop)?;
    if let Some(seen) = costs.stop_seen_ns {
        field(out, "", &format!("{} as the process saw it", nanos(seen)))?;
    }
    let outside = format!(
        "live copy {}, encode {}, write {}, sync {}",
        nanos(phases.precopy_ns),
        nanos(phases.encode_ns),
        nanos(phases.write_ns),
        nanos(phases.sync_ns)
    );
    field(out, "meanwhile", &outside)?;
    if phases.pauses_ns > 0 {
        let text = format!(
            "{} in all to protect pages again, {} the longest",
            nanos(phases.pauses_ns),
            nanos(phases.longest_pause_ns)
        );
        field(out, "pauses", &text)?;
    }
    let pages = &costs.pages;
    let text = format!(
        "{} resident ({}), {} scanned, {} dirty, {} copied ({} in the stop), {} changed",
        pages.resident,
        bytes(pages.resident * PAGE_SIZE),
        pages.scanned,
        pages.dirty,
        pages.copied,
        pages.copied_stopped,
        pages.changed
    );
    field(out, "pages", &text)?;
    let all = content.known + content.repeated + content.unique;
    let text = format!(
        "{} stored = {} unique + {} like another of them + {} as an earlier snapshot has it",
        count(all, "page"),
        content.unique,
        content.repeated,
        content.known
    );
    field(out, "content", &text)?;
    if content.borrowed > 0 {
        let text = format!(
            "{} of the unique ones, {} in files of other snapshots",
            content.borrowed,
            bytes(content.borrowed_bytes)
        );
        field(out, "borrowed", &text)?;
    }
    let text = format!(
        "{} of pages became {}",
        bytes(content.written * PAGE_SIZE),
        bytes(content.written_bytes)
    );
    field(out, "encoded", &text)?;
    let scan = match costs.full_scan {
        true => "a scan of everything",
        false => "a scan by the fault log",
    };
    let text = format!(
        "{}, {scan}, {}, {} lost",
        costs.tracker,
        count(costs.faults, "write fault"),
        count(costs.ring_drops, "event")
    );
    field(out, "tracker", &text)?;
    field(
        out,
        "CPU time",
        &format!(
            "{} of the process since the snapshot before",
            nanos(costs.target_cpu_ns)
        ),
    )
}
