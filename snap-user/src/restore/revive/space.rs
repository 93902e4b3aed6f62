//! Mappings as system calls of the new process.

use super::plan::{NewMapping, NewPlan, Origin};
use crate::model::{Backing, PageRange, Vma};
use crate::restore::apply::bits;
use crate::sys::StubCall;

/// Descriptors of the new process for what the plan's mappings need.
pub(super) struct Sources {
    /// For each of [`NewPlan::files_to_open`].
    pub(super) files: Vec<i32>,
    /// For each of [`NewPlan::objects`]; `None` where the kernel makes it.
    pub(super) objects: Vec<Option<i32>>,
}

const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;

fn call(name: &'static str, range: PageRange, nr: i64, rest: [u64; 4]) -> StubCall {
    let [c, d, e, f] = rest;
    StubCall::new(
        name,
        range.to_string(),
        nr,
        [range.start, range.len(), c, d, e, f],
    )
}

/// Calls that make the mappings, in this order. Shared memory is writable until [`finish`].
pub(super) fn make(
    plan: &NewPlan,
    sources: &Sources,
    kernel: &[(String, PageRange)],
) -> Vec<StubCall> {
    let mut calls = Vec::with_capacity(plan.mappings.len());
    let fixed = libc::MAP_FIXED_NOREPLACE;
    for (object, fd) in plan.objects.iter().zip(&sources.objects) {
        if fd.is_none() {
            let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS | fixed) as u64;
            let rest = [READ_WRITE, flags, u64::MAX, 0];
            calls.push(call("mmap", object.scratch, libc::SYS_mmap, rest));
        }
    }
    for NewMapping { vma, origin } in &plan.mappings {
        let range = vma.range;
        let extra = extra_flags(vma);
        calls.push(match origin {
            Origin::Anonymous | Origin::Former => {
                let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed | extra) as u64;
                call(
                    "mmap",
                    range,
                    libc::SYS_mmap,
                    [bits(vma.prot), flags, u64::MAX, 0],
                )
            }
            Origin::File(n) => {
                let kind = match vma.shared {
                    true => libc::MAP_SHARED,
                    false => libc::MAP_PRIVATE,
                };
                let flags = (kind | fixed | extra) as u64;
                let offset = match &vma.backing {
                    Backing::File { offset, .. } => *offset,
                    _ => 0,
                };
                let rest = [bits(vma.prot), flags, sources.files[*n] as u64, offset];
                call("mmap", range, libc::SYS_mmap, rest)
            }
            Origin::Shared(n, offset) => match sources.objects[*n] {
                Some(fd) => {
                    let flags = (libc::MAP_SHARED | fixed | extra) as u64;
                    call(
                        "mmap",
                        range,
                        libc::SYS_mmap,
                        [READ_WRITE, flags, fd as u64, *offset],
                    )
                }
                // A length of nothing leaves the old mapping and makes a second one of the same memory
                // (mremap(2)).
                None => {
                    let from = plan.objects[*n].scratch.start + offset;
                    moved(PageRange::new(from, from), range)
                }
            },
            Origin::Segment(id) => {
                let flag = |on: bool, flag: i32| if on { flag as u64 } else { 0 };
                let flags =
                    flag(!vma.prot.write, libc::SHM_RDONLY) | flag(vma.prot.exec, libc::SHM_EXEC);
                let args = [*id as u64, range.start, flags, 0, 0, 0];
                StubCall::new("shmat", range.to_string(), libc::SYS_shmat, args)
            }
            Origin::Kernel(name) => {
                let from = kernel.iter().find(|(have, _)| have == name);
                let from = from.expect("checked by the plan").1;
                moved(from, range)
            }
        });
    }
    let own = plan.objects.iter().zip(&sources.objects);
    for (object, _) in own.filter(|(_, fd)| fd.is_none()) {
        calls.push(call("munmap", object.scratch, libc::SYS_munmap, [0; 4]));
    }
    calls
}

fn moved(from: PageRange, to: PageRange) -> StubCall {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    StubCall::new(
        "mremap",
        to.to_string(),
        libc::SYS_mremap,
        [from.start, from.len(), to.len(), flags, to.start, 0],
    )
}

fn has(vma: &Vma, flag: &str) -> bool {
    vma.flags.iter().any(|f| f == flag)
}

fn extra_flags(vma: &Vma) -> i32 {
    let mut flags = 0;
    if vma.backing == Backing::Stack || has(vma, "gd") {
        flags |= libc::MAP_GROWSDOWN;
    }
    if has(vma, "nr") {
        flags |= libc::MAP_NORESERVE;
    }
    if has(vma, "ht") {
        flags |= libc::MAP_HUGETLB;
    }
    flags
}

/// Calls for what mappings have besides an address, before they are filled: advice that decides how.
pub(super) fn advise(plan: &NewPlan) -> Vec<StubCall> {
    // `VmFlags` in proc_pid_smaps(5), and the advice that sets each (madvise(2)).
    const ADVICE: [(&str, i32); 8] = [
        ("hg", libc::MADV_HUGEPAGE),
        ("nh", libc::MADV_NOHUGEPAGE),
        ("dc", libc::MADV_DONTFORK),
        ("dd", libc::MADV_DONTDUMP),
        ("wf", libc::MADV_WIPEONFORK),
        ("mg", libc::MADV_MERGEABLE),
        ("sr", libc::MADV_SEQUENTIAL),
        ("rr", libc::MADV_RANDOM),
    ];
    let mut calls = Vec::new();
    for NewMapping { vma, origin } in &plan.mappings {
        if matches!(origin, Origin::Kernel(_)) {
            continue;
        }
        for (flag, advice) in ADVICE {
            if has(vma, flag) {
                let rest = [advice as u64, 0, 0, 0];
                calls.push(call("madvise", vma.range, libc::SYS_madvise, rest).or_not());
            }
        }
    }
    calls
}

/// Calls for what mappings have once they are filled: protection, locks.
pub(super) fn finish(plan: &NewPlan) -> Vec<StubCall> {
    let mut calls = Vec::new();
    for NewMapping { vma, origin } in &plan.mappings {
        if matches!(origin, Origin::Shared(..)) && bits(vma.prot) != READ_WRITE {
            let rest = [bits(vma.prot), 0, 0, 0];
            calls.push(call("mprotect", vma.range, libc::SYS_mprotect, rest));
        }
        if has(vma, "lo") && !matches!(origin, Origin::Kernel(_)) {
            calls.push(call("mlock", vma.range, libc::SYS_mlock, [0; 4]).or_not());
        }
    }
    calls
}

/// Mappings with a name, as `PR_SET_VMA_ANON_NAME` gives it.
pub(super) fn names(plan: &NewPlan) -> impl Iterator<Item = (PageRange, &str)> {
    plan.mappings.iter().filter_map(|m| match &m.vma.backing {
        Backing::Anonymous { name: Some(name) } => Some((m.vma.range, name.as_str())),
        _ => None,
    })
}
