//! Ids and capabilities of a thread that keeps the right to change them. By raw system calls: the C library
//! would change those of all threads.

use super::{Item, call, prctl, same};
use anyhow::Result;

const NOBODY: u64 = 65534;
/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION: u32 = 0x2008_0522;

fn three(get: i64) -> Result<[u64; 3], String> {
    let mut ids = [0u32; 3];
    let [a, b, c] = &mut ids;
    // SAFETY: fills three live words.
    let result = unsafe { libc::syscall(get, a, b, c) };
    call("getresuid or getresgid", result)?;
    Ok(ids.map(u64::from))
}

/// Effective, permitted, inheritable: the lower and the upper half of each.
fn capabilities() -> Result<[u32; 6], String> {
    let head = [VERSION, 0];
    let mut data = [0u32; 6];
    // SAFETY: live structures of the kernel's layout.
    let result = unsafe { libc::syscall(libc::SYS_capget, head.as_ptr(), data.as_mut_ptr()) };
    call("capget", result)?;
    Ok(data)
}

fn set_capabilities(data: &[u32; 6]) -> Result<(), String> {
    let head = [VERSION, 0];
    // SAFETY: live structures of the kernel's layout.
    let result = unsafe { libc::syscall(libc::SYS_capset, head.as_ptr(), data.as_ptr()) };
    call("capset", result).map(drop)
}

/// Raises everything that is permitted.
fn raise() -> Result<(), String> {
    let mut data = capabilities()?;
    (data[0], data[3]) = (data[1], data[4]);
    set_capabilities(&data)
}

fn groups_of(round: u64) -> Vec<u32> {
    (0..round % 6)
        .map(|n| (100 + round % 40 + n) as u32)
        .collect()
}

fn uids(round: u64) -> [u64; 3] {
    match round % 3 {
        0 => [0, 0, 0],
        1 => [0, NOBODY, 0],
        _ => [NOBODY, 1000 + round % 10, 0],
    }
}

fn gids(round: u64) -> [u64; 3] {
    [round % 4, 50 + round % 7, 0]
}

/// The items. Ids first, and with all capabilities raised, since a change of ids lowers them.
pub fn items(number: u64) -> Result<Vec<Item>> {
    Ok(vec![
        Item::new(
            "its supplementary groups",
            move |round| {
                raise()?;
                let groups = groups_of(round + number);
                // SAFETY: reads a live list.
                let result =
                    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
                call("setgroups", result).map(drop)
            },
            move |round| {
                let mut groups = [0u32; 64];
                // SAFETY: fills a live list.
                let result = unsafe { libc::syscall(libc::SYS_getgroups, 64, groups.as_mut_ptr()) };
                let count = call("getgroups", result)? as usize;
                same(&groups[..count], &groups_of(round + number))
            },
        ),
        Item::new(
            "its group ids",
            move |round| {
                let [real, effective, saved] = gids(round + number);
                // SAFETY: takes integers.
                let result = unsafe { libc::syscall(libc::SYS_setresgid, real, effective, saved) };
                call("setresgid", result).map(drop)
            },
            move |round| same(three(libc::SYS_getresgid)?, gids(round + number)),
        ),
        Item::new(
            "its user ids",
            move |round| {
                let [real, effective, saved] = uids(round + number);
                // SAFETY: takes integers.
                let result = unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) };
                call("setresuid", result).map(drop)
            },
            move |round| same(three(libc::SYS_getresuid)?, uids(round + number)),
        ),
        Item::new(
            "its capabilities",
            move |round| {
                let mut data = capabilities()?;
                // Inheritable: some of what is permitted. Effective: enough to go on, and a few more.
                data[2] = data[1] & (round as u32).wrapping_mul(0x9e37);
                data[0] = data[1] & (1 << 6 | 1 << 7 | 1 << 8 | 1 << (round % 6) as u32);
                data[3] = 0;
                set_capabilities(&data)
            },
            move |round| {
                let data = capabilities()?;
                same(data[2], data[1] & (round as u32).wrapping_mul(0x9e37))?;
                let few = 1 << 6 | 1 << 7 | 1 << 8 | 1 << (round % 6) as u32;
                same((data[0], data[3]), (data[1] & few, 0))
            },
        ),
        Item::number(
            "its securebits",
            |round| round % 2 * 16,
            |to| prctl(libc::PR_SET_SECUREBITS, [to, 0, 0, 0]).map(drop),
            || prctl(libc::PR_GET_SECUREBITS, [0; 4]),
        ),
    ])
}
