//! What differs between two snapshots.

use super::SessionError;
use super::descriptor::OpenDescriptor;
use super::log::{LogEntry, entry};
use super::show::{Mapping, is_native, name, perms};
use crate::model::{ProcessState, ThreadState, Vma};
use crate::store::{PageChange, PageDiff, Store};
use crate::sys::arch::Registers;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What differs between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The first.
    pub a: LogEntry,
    /// The second.
    pub b: LogEntry,
    /// Mappings that differ, ascending.
    pub mappings: Vec<MappingDiff>,
    /// Pages that differ.
    pub pages: PagesDiff,
    /// Threads that differ.
    pub threads: Vec<ThreadDiff>,
    /// Descriptors that differ.
    pub descriptors: Vec<DescriptorDiff>,
}

impl Comparison {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
            && self.pages.by_mapping.is_empty()
            && self.threads.is_empty()
            && self.descriptors.is_empty()
    }
}

/// Where a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only in the second snapshot.
    Added,
    /// Only in the first.
    Removed,
    /// In both, and not the same.
    Changed,
}

/// A mapping that differs. Mappings go together by their first byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MappingDiff {
    /// How.
    pub change: Change,
    /// First byte.
    pub start: u64,
    /// One past the last byte, in the first snapshot.
    pub end_a: Option<u64>,
    /// One past the last byte, in the second.
    pub end_b: Option<u64>,
    /// Protection in the first.
    pub perms_a: Option<String>,
    /// Protection in the second.
    pub perms_b: Option<String>,
    /// Name in the first.
    pub name_a: Option<String>,
    /// Name in the second.
    pub name_b: Option<String>,
}

/// Pages that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PagesDiff {
    /// Only in the second snapshot.
    pub added: u64,
    /// Only in the first.
    pub removed: u64,
    /// In both, with other content.
    pub changed: u64,
    /// By mapping, ascending; those without a difference are left out.
    pub by_mapping: Vec<MappingPages>,
}

/// Pages of one mapping that differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MappingPages {
    /// The mapping's first byte.
    pub start: u64,
    /// One past its last byte.
    pub end: u64,
    /// Its name.
    pub name: String,
    /// Only in the second snapshot.
    pub added: u64,
    /// Only in the first.
    pub removed: u64,
    /// In both, with other content.
    pub changed: u64,
    /// Address of the first page that differs.
    pub first: u64,
}

/// A thread that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadDiff {
    /// Thread id.
    pub tid: i32,
    /// Its name.
    pub comm: String,
    /// How.
    pub change: Change,
    /// General registers that differ, in the processor's order.
    pub registers: Vec<RegisterDiff>,
    /// Vector and floating-point state differs.
    pub extended_state: bool,
    /// The signal mask or the queued signals differ.
    pub signals: bool,
}

/// A register that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegisterDiff {
    /// The processor's name for it.
    pub name: &'static str,
    /// Its value in the first snapshot.
    pub a: u64,
    /// Its value in the second.
    pub b: u64,
}

/// A descriptor that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DescriptorDiff {
    /// Its number.
    pub fd: i32,
    /// How.
    pub change: Change,
    /// What it is in the first snapshot.
    pub a: Option<OpenDescriptor>,
    /// What it is in the second.
    pub b: Option<OpenDescriptor>,
}

/// Compares the snapshots that two references mean.
pub fn diff(store: &Path, a: &str, b: &str) -> Result<Comparison, SessionError> {
    let store = Store::open(store)?;
    let (a, b) = (entry(&store, a, None)?, entry(&store, b, None)?);
    let (left, right) = (store.snapshot(a.id)?, store.snapshot(b.id)?);
    let (old, new) = (left.manifest()?.state, right.manifest()?.state);
    let pages = store.diff(a.id, b.id)?;
    Ok(Comparison {
        mappings: mappings(&old.vmas, &new.vmas),
        pages: by_mapping(&pages, &old, &new),
        threads: threads(
            &old.threads,
            &new.threads,
            is_native(&left) && is_native(&right),
        ),
        descriptors: descriptors(&OpenDescriptor::all(&old), &OpenDescriptor::all(&new)),
        a,
        b,
    })
}

/// Pairs two lists by key, ascending.
fn paired<'a, K: Ord, T>(
    a: &'a [T],
    b: &'a [T],
    key: impl Fn(&T) -> K,
) -> impl Iterator<Item = (Option<&'a T>, Option<&'a T>)> {
    let mut pairs: BTreeMap<K, (Option<&T>, Option<&T>)> = BTreeMap::new();
    for item in a {
        pairs.entry(key(item)).or_default().0 = Some(item);
    }
    for item in b {
        pairs.entry(key(item)).or_default().1 = Some(item);
    }
    pairs.into_values()
}

fn change<T>(a: Option<&T>, b: Option<&T>) -> Change {
    match (a, b) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        _ => Change::Changed,
    }
}

fn mappings(a: &[Vma], b: &[Vma]) -> Vec<MappingDiff> {
    let same = |x: &Vma, y: &Vma| {
        (x.range, x.prot, x.shared, &x.backing) == (y.range, y.prot, y.shared, &y.backing)
    };
    paired(a, b, |vma| vma.range.start)
        .filter(|(a, b)| !matches!((a, b), (Some(a), Some(b)) if same(a, b)))
        .map(|(a, b)| MappingDiff {
            change: change(a, b),
            start: a.or(b).map_or(0, |vma| vma.range.start),
            end_a: a.map(|vma| vma.range.end),
            end_b: b.map(|vma| vma.range.end),
            perms_a: a.map(perms),
            perms_b: b.map(perms),
            name_a: a.map(name),
            name_b: b.map(name),
        })
        .collect()
}

/// Sorts pages by the mapping they are in: the second snapshot's, else the first's.
fn by_mapping(pages: &[PageDiff], old: &ProcessState, new: &ProcessState) -> PagesDiff {
    let find = |vmas: &[Vma], addr: u64| -> Option<Mapping> {
        let after = vmas.partition_point(|vma| vma.range.start <= addr);
        let vma = vmas.get(after.checked_sub(1)?)?;
        vma.range.contains(addr).then(|| Mapping::new(vma))
    };
    let mut diff = PagesDiff::default();
    for page in pages {
        let known = diff
            .by_mapping
            .last()
            .is_some_and(|m| m.start <= page.addr && page.addr < m.end);
        if !known {
            let (first, second) = match page.change {
                PageChange::Removed => (old, new),
                _ => (new, old),
            };
            let mapping = find(&first.vmas, page.addr).or_else(|| find(&second.vmas, page.addr));
            let (start, end, name) = match mapping {
                Some(m) => (m.start, m.end, m.name),
                None => (
                    page.addr,
                    page.addr + crate::model::PAGE_SIZE,
                    "no mapping".into(),
                ),
            };
            diff.by_mapping.push(MappingPages {
                start,
                end,
                name,
                added: 0,
                removed: 0,
                changed: 0,
                first: page.addr,
            });
        }
        let Some(mapping) = diff.by_mapping.last_mut() else {
            continue;
        };
        let (all, here) = match page.change {
            PageChange::Added => (&mut diff.added, &mut mapping.added),
            PageChange::Removed => (&mut diff.removed, &mut mapping.removed),
            PageChange::Changed => (&mut diff.changed, &mut mapping.changed),
        };
        *all += 1;
        *here += 1;
    }
    diff
}

fn threads(a: &[ThreadState], b: &[ThreadState], native: bool) -> Vec<ThreadDiff> {
    paired(a, b, |thread| thread.tid)
        .filter_map(|(a, b)| {
            let known = a.or(b)?;
            let mut diff = ThreadDiff {
                tid: known.tid,
                comm: known.comm.clone(),
                change: change(a, b),
                registers: Vec::new(),
                extended_state: false,
                signals: false,
            };
            let (Some(a), Some(b)) = (a, b) else {
                return Some(diff);
            };
            if native {
                diff.registers = registers(&a.gp, &b.gp);
            }
            diff.extended_state = a.fp != b.fp;
            diff.signals = (a.sigmask, &a.pending) != (b.sigmask, &b.pending);
            (a != b).then_some(diff)
        })
        .collect()
}

fn registers(a: &[u8], b: &[u8]) -> Vec<RegisterDiff> {
    let (Some(a), Some(b)) = (Registers::from_prstatus(a), Registers::from_prstatus(b)) else {
        return Vec::new();
    };
    a.named()
        .into_iter()
        .zip(b.named())
        .filter(|((_, a), (_, b))| a != b)
        .map(|((name, a), (_, b))| RegisterDiff { name, a, b })
        .collect()
}

fn descriptors(a: &[OpenDescriptor], b: &[OpenDescriptor]) -> Vec<DescriptorDiff> {
    // Numbers of open files are a snapshot's own: another order is no difference.
    let same = |a: &OpenDescriptor, b: &OpenDescriptor| {
        let file = a.file;
        *a == OpenDescriptor { file, ..b.clone() }
    };
    paired(a, b, |resource| resource.fd)
        .filter(|(a, b)| !matches!((a, b), (Some(a), Some(b)) if same(a, b)))
        .map(|(a, b)| DescriptorDiff {
            fd: a.or(b).map_or(-1, |resource| resource.fd),
            change: change(a, b),
            a: a.cloned(),
            b: b.cloned(),
        })
        .collect()
}
