//! Two snapshots, compared.

use super::human::{clean, count};
use super::{Align, Style, Table};
use crate::session::{
    Change, Comparison, DescriptorDiff, LogEntry, MappingDiff, OpenDescriptor, PagesDiff,
    ThreadDiff,
};
use std::io::{self, Write};

/// What differs, under headings; what does not is left out.
pub fn write(out: &mut dyn Write, style: Style, diff: &Comparison) -> io::Result<()> {
    let side = |entry: &LogEntry| format!("{} (@{})", entry.id.short(), entry.seq);
    let title = format!("{} → {}", side(&diff.a), side(&diff.b));
    writeln!(out, "{}", style.bold(&title))?;
    if diff.is_empty() {
        return writeln!(out, "no difference");
    }
    if !diff.mappings.is_empty() {
        writeln!(out, "\n{}", style.bold("Mappings"))?;
        for mapping in &diff.mappings {
            line(out, style, mapping.change, &mapping_text(mapping))?;
        }
    }
    if !diff.pages.by_mapping.is_empty() {
        pages(out, style, &diff.pages)?;
    }
    if !diff.threads.is_empty() {
        writeln!(out, "\n{}", style.bold("Threads"))?;
        for thread in &diff.threads {
            line(out, style, thread.change, &thread_text(thread))?;
            for register in &thread.registers {
                let name = register.name;
                writeln!(out, "      {name:<9}{:#x} → {:#x}", register.a, register.b)?;
            }
        }
    }
    if !diff.descriptors.is_empty() {
        writeln!(out, "\n{}", style.bold("Descriptors"))?;
        for descriptor in &diff.descriptors {
            line(out, style, descriptor.change, &descriptor_text(descriptor))?;
        }
    }
    Ok(())
}

fn line(out: &mut dyn Write, style: Style, change: Change, text: &str) -> io::Result<()> {
    let text = clean(text);
    let text = match change {
        Change::Added => style.green(&format!("+ {text}")),
        Change::Removed => style.red(&format!("- {text}")),
        Change::Changed => format!("~ {text}"),
    };
    writeln!(out, "  {text}")
}

/// `old → new`, or the one when they are the same or one is missing.
fn arrow(a: Option<String>, b: Option<String>) -> String {
    match (a, b) {
        (Some(a), Some(b)) if a != b => format!("{a} → {b}"),
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => String::new(),
    }
}

fn mapping_text(mapping: &MappingDiff) -> String {
    let hex = |end: Option<u64>| end.map(|end| format!("{end:x}"));
    let name = |name: &Option<String>| {
        name.clone().map(|name| match name.is_empty() {
            true => "[anonymous]".into(),
            false => name,
        })
    };
    format!(
        "{:x}-{} {} {}",
        mapping.start,
        arrow(hex(mapping.end_a), hex(mapping.end_b)),
        arrow(mapping.perms_a.clone(), mapping.perms_b.clone()),
        arrow(name(&mapping.name_a), name(&mapping.name_b))
    )
}

fn pages(out: &mut dyn Write, style: Style, diff: &PagesDiff) -> io::Result<()> {
    let total = count(diff.added + diff.removed + diff.changed, "page");
    writeln!(out, "\n{}: {total}", style.bold("Pages that differ"))?;
    let mut table = Table::new([
        ("changed", Align::Right),
        ("added", Align::Right),
        ("removed", Align::Right),
        ("first", Align::Right),
        ("mapping", Align::Left),
    ]);
    for mapping in &diff.by_mapping {
        table.row([
            mapping.changed.to_string(),
            mapping.added.to_string(),
            mapping.removed.to_string(),
            format!("{:x}", mapping.first),
            format!("{:x}-{:x} {}", mapping.start, mapping.end, mapping.name),
        ]);
    }
    table.write(out, style, "  ")
}

fn thread_text(thread: &ThreadDiff) -> String {
    let mut text = format!("{} {}", thread.tid, thread.comm);
    if thread.extended_state {
        text.push_str(", vector state differs");
    }
    if thread.signals {
        text.push_str(", signals differ");
    }
    text
}

fn descriptor_text(descriptor: &DescriptorDiff) -> String {
    let (a, b) = (descriptor.a.as_ref(), descriptor.b.as_ref());
    let mut text = format!(
        "{} {}",
        descriptor.fd,
        arrow(a.map(|a| a.link.clone()), b.map(|b| b.link.clone()))
    );
    if let (Some(a), Some(b)) = (a, b) {
        let mut note = |differs: bool, words: String| {
            if differs {
                text.push_str(&words);
            }
        };
        let at = |resource: &OpenDescriptor| resource.position.to_string();
        let flags = |resource: &OpenDescriptor| format!("{:#o}", resource.flags);
        note(
            a.position != b.position,
            format!(", position {}", arrow(Some(at(a)), Some(at(b)))),
        );
        note(
            a.flags != b.flags,
            format!(", flags {}", arrow(Some(flags(a)), Some(flags(b)))),
        );
        note(
            a.link == b.link && (a.identity, a.kind) != (b.identity, b.kind),
            ", another file".into(),
        );
        note(
            a.detail != b.detail,
            format!(
                ", {}",
                arrow(Some(a.detail.clone()), Some(b.detail.clone()))
            ),
        );
    }
    text
}
