//! A process that remembers places in the code of another kernel than the one that it is brought back under. Pure.
//!
//! A C library looks up the functions of the kernel's code (`vdso(7)`) once, and keeps their addresses. So the code that the
//! snapshot has stays where it was, as ordinary memory, and the beginning of each function is a jump to the same function
//! of this kernel, whose code lies elsewhere. The data that the old code read is zeroes. Nobody may be in the middle of it, but
//! for its system calls; a signal handler that has interrupted it comes back to a clock that cannot be read
//! (`VDSO_CLOCKMODE_NONE`), or to random numbers that are not ready, and the code falls back to the system call
//! (`lib/vdso`). Only where it was reading a coarse clock it gets 0 once.

use super::plan::{NewMapping, NewPlan, Origin};
use crate::model::{Backing, PAGE_SIZE, PageRange, ProcessState, Protection, ThreadState, Vma};
use crate::sys::arch::{JUMP, Registers, SYSCALL_INSN, USER_END, jump};
use object::{Object, ObjectSymbol};
use std::collections::BTreeMap;

/// Lowest address for what this kernel maps.
const LOWEST: u64 = 0x1_0000;
/// Room that is left where a heap or a stack grows.
const GROWTH: u64 = 64 << 20;

const NO_CODE: &str = "this kernel gives none to programs";

/// Functions that are as good without data, because then they issue the system call. The states that
/// `__vdso_getrandom` is given have been laid out by the other kernel.
const CALLS_INSTEAD: [&str; 1] = ["__vdso_getrandom"];
/// Functions that need no data at all: a kernel without them leaves them as they are.
const NEEDS_NO_DATA: [&str; 2] = ["__vdso_getcpu", "__vdso_sgx_enter_enclave"];

/// The kernel here, where it is another one than the one that a snapshot was taken under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherKernel {
    /// What it maps into every process, by name, as it is in this process; ascending.
    pub mappings: Vec<(String, PageRange)>,
    /// Its code.
    pub code: Vec<u8>,
    /// The code of the kernel that the snapshot was taken under.
    pub former: Vec<u8>,
}

/// Has the process go on under this kernel. What cannot be is added to the reasons against it.
pub(super) fn lead_over(
    plan: &mut NewPlan,
    target: &ProcessState,
    kernel: &OtherKernel,
    reasons: &mut Vec<String>,
) {
    let Some(vdso) = target.vmas.iter().find(|vma| vma.is_vdso()) else {
        return;
    };
    let at = vdso.range;
    let led = place(plan, kernel, at.start)
        .and_then(|mappings| Ok((lead(kernel, at.start, code_of(&mappings)?)?, mappings)));
    let (led, mappings) = match led {
        Ok(led) => led,
        Err(why) => {
            reasons.push(format!(
                "the snapshot was taken under another kernel, and the code of that at {at} cannot be led to this one's: {why}"
            ));
            return;
        }
    };
    for thread in target.threads.iter().filter(|t| !led.can_go_on(t, at)) {
        reasons.push(format!(
            "thread {} was reading a clock in code of the kernel that the snapshot was taken under, and this kernel has other code: a snapshot before or after it can be brought back",
            thread.tid
        ));
    }
    plan.notes.push(format!(
        "it was captured under another kernel: the functions of that one's code at {at} (vdso(7)) lead to this kernel's"
    ));
    plan.former = Some((at, led.code));
    plan.mappings.extend(mappings);
    plan.mappings.sort_by_key(|mapping| mapping.vma.range.start);
}

/// This kernel's mappings, as they lie to each other, as near as they fit to an address.
fn place(plan: &NewPlan, kernel: &OtherKernel, near: u64) -> Result<Vec<NewMapping>, String> {
    let (Some((_, first)), Some((_, last))) = (kernel.mappings.first(), kernel.mappings.last())
    else {
        return Err(NO_CODE.into());
    };
    let taken = plan.mappings.iter().map(|m| with_growth(&m.vma));
    let start = nearest_gap(taken.collect(), last.end - first.start, near)
        .ok_or("no address space is left for this kernel's")?;
    let moved = |range: &PageRange| {
        PageRange::new(
            range.start - first.start + start,
            range.end - first.start + start,
        )
    };
    let mappings = kernel.mappings.iter().map(|(name, range)| NewMapping {
        vma: Vma {
            range: moved(range),
            prot: Protection {
                read: true,
                write: false,
                exec: name == "vdso",
            },
            shared: false,
            backing: Backing::Special(name.clone()),
            flags: Vec::new(),
            build_id: None,
        },
        origin: Origin::Kernel(name.clone()),
    });
    Ok(mappings.collect())
}

fn code_of(mappings: &[NewMapping]) -> Result<u64, String> {
    let code = mappings.iter().find(|m| m.vma.is_vdso());
    let code = code.ok_or(NO_CODE)?;
    Ok(code.vma.range.start)
}

fn with_growth(vma: &Vma) -> PageRange {
    let PageRange { mut start, mut end } = vma.range;
    match &vma.backing {
        Backing::Stack => start = start.saturating_sub(GROWTH),
        Backing::Heap => end = end.saturating_add(GROWTH),
        _ => {}
    }
    PageRange { start, end }
}

/// Where `len` bytes fit between ranges, as near as can be to an address.
fn nearest_gap(mut taken: Vec<PageRange>, len: u64, near: u64) -> Option<u64> {
    taken.push(PageRange::new(USER_END, USER_END + PAGE_SIZE));
    taken.sort_unstable();
    let mut best: Option<u64> = None;
    let mut at = LOWEST;
    for range in taken {
        if range.start >= at.saturating_add(len) {
            let fits = near.clamp(at, range.start - len);
            best = match best {
                Some(other) if other.abs_diff(near) <= fits.abs_diff(near) => best,
                _ => Some(fits),
            };
        }
        at = at.max(range.end);
    }
    best
}

/// Code whose functions jump to those of another kernel.
struct Led {
    code: Vec<u8>,
    /// Offsets of the jumps.
    jumps: Vec<u64>,
}

impl Led {
    /// Whether a thread goes on, with this code at `at`, as it would have: it is elsewhere, at the beginning of a function, or
    /// at a system call.
    fn can_go_on(&self, thread: &ThreadState, at: PageRange) -> bool {
        let Some(regs) = Registers::from_prstatus(&thread.gp) else {
            return true;
        };
        if !at.contains(regs.ip()) {
            return true;
        }
        let offset = regs.ip() - at.start;
        let call = offset.saturating_sub(SYSCALL_INSN.len() as u64);
        let is_call = self.code.get(call as usize..offset as usize) == Some(&SYSCALL_INSN[..]);
        let is_replaced = |from: u64| {
            let jumps = self.jumps.iter();
            jumps
                .clone()
                .any(|jump| (*jump..jump + JUMP as u64).contains(&from))
        };
        self.jumps.contains(&offset) || is_call && !is_replaced(call) && !is_replaced(offset)
    }
}

/// The former code, which lies at `at`, its functions led to this kernel's code at `to`.
fn lead(kernel: &OtherKernel, at: u64, to: u64) -> Result<Led, String> {
    let here = functions(&kernel.code)?;
    let mut code = kernel.former.clone();
    let mut jumps = Vec::new();
    for (name, (offset, len)) in functions(&kernel.former)? {
        if CALLS_INSTEAD.contains(&&*name) {
            continue;
        }
        let Some((target, _)) = here.get(&name) else {
            if NEEDS_NO_DATA.contains(&&*name) {
                continue;
            }
            return Err(format!("this kernel has no {name}"));
        };
        let place = code
            .get_mut(offset as usize..)
            .and_then(|c| c.get_mut(..JUMP));
        let (Some(place), true) = (place, len >= JUMP as u64) else {
            return Err(format!("its {name} is not whole"));
        };
        let jump = jump(at + offset, to + target);
        place.copy_from_slice(&jump.ok_or_else(|| "this kernel's is too far away".to_owned())?);
        jumps.push(offset);
    }
    Ok(Led { code, jumps })
}

/// Functions for programs: offset and length of each.
fn functions(code: &[u8]) -> Result<BTreeMap<String, (u64, u64)>, String> {
    let parsed = object::File::parse(code).map_err(|e| e.to_string())?;
    let named = parsed.dynamic_symbols().filter_map(|symbol| {
        let name = symbol
            .name()
            .ok()
            .filter(|name| name.starts_with("__vdso_"))?;
        Some((name.to_owned(), (symbol.address(), symbol.size())))
    });
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::proc;
    use zerocopy::IntoBytes;

    const OLD: u64 = 0x7f00_0000_0000;

    fn kernel() -> OtherKernel {
        let (code, _) = proc::own_vdso().expect("a vdso").clone();
        let maps = proc::maps(std::process::id() as i32).expect("own mappings");
        OtherKernel {
            mappings: proc::kernel_mappings(&maps),
            former: code.clone(),
            code,
        }
    }

    fn target(kernel: &OtherKernel, ip: u64) -> ProcessState {
        let regs = Registers {
            rip: ip,
            ..Default::default()
        };
        ProcessState {
            threads: vec![ThreadState {
                tid: 7,
                gp: regs.as_bytes().to_vec(),
                ..Default::default()
            }],
            vmas: vec![Vma {
                range: PageRange::new(OLD, OLD + kernel.former.len() as u64),
                prot: Protection::default(),
                shared: false,
                backing: Backing::Special("vdso".into()),
                flags: Vec::new(),
                build_id: None,
            }],
            ..Default::default()
        }
    }

    fn led(kernel: &OtherKernel, ip: u64) -> (NewPlan, Vec<String>) {
        let target = target(kernel, ip);
        let mut plan = NewPlan::default();
        plan.mappings.push(NewMapping {
            vma: target.vmas[0].clone(),
            origin: Origin::Former,
        });
        let mut reasons = Vec::new();
        lead_over(&mut plan, &target, kernel, &mut reasons);
        (plan, reasons)
    }

    #[test]
    fn each_function_jumps_to_the_one_of_this_kernel() {
        let kernel = kernel();
        let (plan, reasons) = led(&kernel, 0);
        assert!(reasons.is_empty(), "{reasons:?}");
        let (at, code) = plan.former.expect("code");
        let here = plan
            .mappings
            .iter()
            .find(|m| m.origin == Origin::Kernel("vdso".into()));
        let here = here.expect("this kernel's").vma.range;
        assert!(here.intersect(&at).is_none());
        let all = functions(&kernel.code).unwrap();
        assert!(all.len() >= 4, "{all:?}");
        for (name, (offset, _)) in all {
            let first = &code[offset as usize..][..JUMP];
            if name == "__vdso_getrandom" {
                assert_eq!(first, &kernel.code[offset as usize..][..JUMP]);
                continue;
            }
            assert_eq!(first[0], 0xe9, "{name}");
            let by = i32::from_le_bytes(first[1..5].try_into().unwrap());
            let to = (OLD + offset + JUMP as u64).wrapping_add_signed(by.into());
            assert_eq!(to, here.start + offset, "{name}");
        }
    }

    #[test]
    fn this_kernels_mappings_lie_to_each_other_as_they_do_here() {
        let kernel = kernel();
        let (plan, _) = led(&kernel, 0);
        let made = plan.mappings.iter().filter(|m| m.origin != Origin::Former);
        let made: Vec<PageRange> = made.map(|m| m.vma.range).collect();
        let by = made[0].start.wrapping_sub(kernel.mappings[0].1.start);
        for ((_, was), is) in kernel.mappings.iter().zip(&made) {
            assert_eq!(
                (was.start.wrapping_add(by), was.len()),
                (is.start, is.len())
            );
        }
    }

    #[test]
    fn a_thread_goes_on_from_a_system_call_or_a_beginning_and_not_from_between() {
        let kernel = kernel();
        let all = functions(&kernel.code).unwrap();
        let (offset, len) = all["__vdso_clock_gettime"];
        let body = &kernel.code[offset as usize..(offset + len) as usize];
        let call = body.windows(2).position(|w| w == SYSCALL_INSN).unwrap() as u64;
        let is_fine = |ip: u64| led(&kernel, ip).1.is_empty();
        assert!(is_fine(OLD - 1));
        assert!(is_fine(OLD + offset), "about to begin");
        assert!(is_fine(OLD + offset + call + 2), "behind a system call");
        assert!(!is_fine(OLD + offset + 2), "what was there is a jump now");
        assert!(!is_fine(OLD + offset + call + 1));
        assert!(!is_fine(OLD + offset + 16));
    }

    #[test]
    fn code_that_lacks_a_function_or_is_none_is_refused() {
        let mut other = kernel();
        other.code = b"no code".to_vec();
        assert!(led(&other, 0).1[0].contains("cannot be led"));
        let mut other = kernel();
        let name = b"__vdso_time\0";
        let at = other
            .code
            .windows(name.len())
            .position(|w| w == name)
            .unwrap();
        other.code[at] = b'X';
        assert!(led(&other, 0).1[0].contains("no __vdso_time"));
    }

    #[test]
    fn the_gap_is_the_nearest_and_leaves_room_for_a_stack() {
        let range = |start: u64, end: u64| PageRange::new(start << 20, end << 20);
        let near = |taken: &[PageRange], len: u64, near: u64| {
            nearest_gap(taken.to_vec(), len << 20, near << 20).map(|at| at >> 20)
        };
        assert_eq!(near(&[range(10, 12)], 2, 10), Some(8));
        assert_eq!(near(&[range(10, 12), range(7, 10)], 2, 10), Some(12));
        assert_eq!(near(&[], 2, 10), Some(10));
        let stack = Vma {
            range: range(100, 101),
            backing: Backing::Stack,
            ..target(&kernel(), 0).vmas[0].clone()
        };
        assert_eq!(with_growth(&stack), range(36, 101));
    }
}
