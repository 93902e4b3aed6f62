//! Attributes of memory: advice, locks, names, policies, guard pages. Each on a mapping of its own.

use super::{Item, call, prctl, same};
use anyhow::{Context, Result};
use std::ffi::CString;

const PAGE: usize = 4096;
const PAGES: usize = 16;
const GUARD_INSTALL: i32 = 102;
const GUARD_REMOVE: i32 = 103;
const PR_SET_VMA: i32 = 0x5356_4d41;

/// A mapping that no other touches.
fn mapping() -> Result<usize> {
    let len = (PAGES + 2) * PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory at an address of the kernel's choice; it is never unmapped.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    anyhow::ensure!(
        at != libc::MAP_FAILED,
        super::super::fault::os_error("mmap")
    );
    let at = at as usize + PAGE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: inside the mapping made above.
    let done = unsafe { libc::mprotect(address(at), PAGES * PAGE, access) };
    anyhow::ensure!(done == 0, super::super::fault::os_error("mprotect"));
    for page in 0..PAGES {
        // SAFETY: the mapping is writable.
        unsafe { std::ptr::write_volatile(address(at + page * PAGE).cast::<u8>(), 1) };
    }
    Ok(at)
}

fn address(at: usize) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(at)
}

fn madvise(at: usize, pages: usize, advice: i32) -> Result<(), String> {
    // SAFETY: on a mapping that only this module uses, through system calls and volatile accesses.
    call(
        "madvise",
        unsafe { libc::madvise(address(at), pages * PAGE, advice) }.into(),
    )
    .map(drop)
}

/// First and last line of smaps for the mapping at an address: its range and name, and its flags.
fn smaps(at: usize) -> Result<(String, String), String> {
    let text = std::fs::read_to_string("/proc/self/smaps").map_err(|e| e.to_string())?;
    let mut head = String::new();
    let mut inside = false;
    for line in text.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| {
            let (start, end) = range.split_once('-')?;
            let hex = |text| usize::from_str_radix(text, 16).ok();
            Some(hex(start)?..hex(end)?)
        });
        if let Some(range) = range {
            inside = range.contains(&at);
            head = line.to_owned();
        } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            return Ok((head, format!("{flags} ")));
        }
    }
    Err("no such mapping".to_owned())
}

/// Advice that a flag shows, given and taken back.
fn advice(name: &'static str, flag: &'static str, give: i32, take: i32) -> Result<Item> {
    let at = mapping()?;
    Ok(Item::new(
        name,
        move |round| madvise(at, PAGES, if round % 2 == 0 { give } else { take }),
        move |round| {
            let (_, flags) = smaps(at)?;
            same(flags.contains(&format!(" {flag} ")), round % 2 == 0)
        },
    ))
}

/// The items.
pub fn items(_: u64) -> Result<Vec<Item>> {
    let mut items = vec![
        advice("dontfork", "dc", libc::MADV_DONTFORK, libc::MADV_DOFORK)?,
        advice("dontdump", "dd", libc::MADV_DONTDUMP, libc::MADV_DODUMP)?,
        advice(
            "wipeonfork",
            "wf",
            libc::MADV_WIPEONFORK,
            libc::MADV_KEEPONFORK,
        )?,
        advice("sequential", "sr", libc::MADV_SEQUENTIAL, libc::MADV_NORMAL)?,
        advice("random", "rr", libc::MADV_RANDOM, libc::MADV_NORMAL)?,
    ];
    let locked = mapping()?;
    items.push(Item::new(
        "a lock in memory",
        move |round| {
            let at = address(locked);
            // SAFETY: changes no content.
            let result = unsafe {
                match round % 3 {
                    0 => libc::munlock(at, PAGES * PAGE),
                    1 => libc::mlock(at, PAGES * PAGE),
                    // Half of it.
                    _ => {
                        libc::munlock(at, PAGES / 2 * PAGE)
                            | libc::mlock(address(locked + PAGES / 2 * PAGE), PAGES / 2 * PAGE)
                    }
                }
            };
            call("mlock or munlock", result.into()).map(drop)
        },
        move |round| {
            let is = |at| Ok::<_, String>(smaps(at)?.1.contains(" lo "));
            let now = (is(locked)?, is(locked + (PAGES - 1) * PAGE)?);
            same(
                now,
                [(false, false), (true, true), (false, true)][(round % 3) as usize],
            )
        },
    ));
    let guarded = mapping()?;
    if madvise(guarded, 1, GUARD_INSTALL).is_ok() {
        let page = move |round: u64| guarded + (round as usize % PAGES) * PAGE;
        items.push(Item::new(
            "a guard page",
            move |round| {
                madvise(guarded, PAGES, GUARD_REMOVE)?;
                madvise(page(round), 1, GUARD_INSTALL)
            },
            move |round| {
                // The kernel fails where the program would fault.
                let (mut byte, pid) = (0u8, std::process::id());
                for at in (guarded..guarded + PAGES * PAGE).step_by(PAGE) {
                    let here = libc::iovec {
                        iov_base: (&raw mut byte).cast(),
                        iov_len: 1,
                    };
                    let there = libc::iovec {
                        iov_base: address(at),
                        iov_len: 1,
                    };
                    // SAFETY: reads a byte of this process into a live one.
                    let read =
                        unsafe { libc::process_vm_readv(pid as i32, &here, 1, &there, 1, 0) };
                    same((at, read == 1), (at, at != page(round)))?;
                }
                Ok(())
            },
        ));
    }
    let named = mapping()?;
    let set_name = move |name: &str| {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        let args = [0, named as u64, (PAGES * PAGE) as u64, name.as_ptr() as u64];
        prctl(PR_SET_VMA, args).map(drop)
    };
    if set_name("x").is_ok() {
        items.push(Item::new(
            "a name",
            move |round| set_name(&format!("round {round}")),
            move |round| {
                let (head, _) = smaps(named)?;
                match head.ends_with(&format!("[anon:round {round}]")) {
                    true => Ok(()),
                    false => Err(head),
                }
            },
        ));
    }
    let bound = mapping()?;
    let bind = move |round: u64| {
        // MPOL_DEFAULT, MPOL_BIND, MPOL_INTERLEAVE: to the first node.
        let mode = [0, 2, 3][(round % 3) as usize];
        let node = 1u64;
        let (nodes, bits) = match mode {
            0 => (std::ptr::null(), 0u64),
            _ => (&raw const node, 64),
        };
        // SAFETY: reads a live word, or nothing.
        let result =
            unsafe { libc::syscall(libc::SYS_mbind, bound, PAGES * PAGE, mode, nodes, bits, 0) };
        call("mbind", result).map(|_| mode)
    };
    if bind(1).is_ok() {
        items.push(Item::new(
            "a memory policy",
            move |round| bind(round).map(drop),
            move |round| {
                let mut mode = 0i32;
                const MPOL_F_ADDR: u64 = 2;
                // SAFETY: fills a live word; asks for no nodes.
                let result = unsafe {
                    libc::syscall(
                        libc::SYS_get_mempolicy,
                        &raw mut mode,
                        std::ptr::null::<u64>(),
                        0,
                        bound,
                        MPOL_F_ADDR,
                    )
                };
                call("get_mempolicy", result)?;
                same(mode, [0, 2, 3][(round % 3) as usize])
            },
        ));
    }
    items.first().context("no item")?;
    Ok(items)
}
