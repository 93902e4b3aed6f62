//! What each thread has of its own.

use super::{Item, call, prctl, same};
use anyhow::Result;

fn tid() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

/// The processors that the process began with.
fn processors() -> Vec<usize> {
    let mut set = 0u64;
    // SAFETY: fills a live word; more processors than it has room for are an error, and then one will do.
    let got = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, 8, &raw mut set) };
    match got {
        0.. => (0..64).filter(|n| set >> n & 1 != 0).collect(),
        _ => vec![],
    }
}

/// The items of thread `number`.
pub fn items(number: u64) -> Result<Vec<Item>> {
    let there = processors();
    let mut items = vec![
        Item::number(
            "its timer slack",
            move |round| 1000 * (1 + round % 40) + number,
            |to| prctl(libc::PR_SET_TIMERSLACK, [to, 0, 0, 0]).map(drop),
            || prctl(libc::PR_GET_TIMERSLACK, [0; 4]),
        ),
        Item::number(
            "its niceness",
            move |round| round % 5 + number,
            |to| {
                // SAFETY: takes integers.
                let result =
                    // SAFETY: takes integers, or words that live.
                    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid() as u32, to as i32) };
                call("setpriority", result.into()).map(drop)
            },
            // The system call itself counts from 40 down.
            || {
                let result =
                    // SAFETY: takes integers, or words that live.
                    unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid()) };
                Ok(20 - call("getpriority", result)?)
            },
        ),
        Item::number(
            "its policy",
            move |round| match (round + number) % 2 {
                0 => libc::SCHED_OTHER as u64,
                _ => libc::SCHED_BATCH as u64,
            },
            |to| {
                let param = libc::sched_param { sched_priority: 0 };
                // SAFETY: a live structure.
                let result = unsafe { libc::sched_setscheduler(tid(), to as i32, &param) };
                call("sched_setscheduler", result.into()).map(drop)
            },
            || {
                call(
                    "sched_getscheduler",
                    // SAFETY: takes integers, or words that live.
                    unsafe { libc::sched_getscheduler(tid()) }.into(),
                )
            },
        ),
        Item::number(
            "its I/O priority",
            move |round| (2 << 13) | ((round + number) % 8),
            |to| {
                // SAFETY: takes integers, or words that live.
                call("ioprio_set", unsafe {
                    libc::syscall(libc::SYS_ioprio_set, 1, 0, to)
                })
                .map(drop)
            },
            || {
                // SAFETY: takes integers, or words that live.
                call("ioprio_get", unsafe {
                    libc::syscall(libc::SYS_ioprio_get, 1, 0)
                })
            },
        ),
        Item::number(
            "the signal at its parent's end",
            move |round| [0, 10, 12, 17][(round % 4) as usize],
            |to| prctl(libc::PR_SET_PDEATHSIG, [to, 0, 0, 0]).map(drop),
            || {
                let mut now = 0i32;
                prctl(libc::PR_GET_PDEATHSIG, [&raw mut now as u64, 0, 0, 0])?;
                Ok(now as u64)
            },
        ),
        Item::number(
            "its personality",
            move |round| match (round + number) % 2 {
                0 => 0,
                _ => libc::ADDR_NO_RANDOMIZE as u64,
            },
            // SAFETY: takes integers, or words that live.
            |to| call("personality", unsafe { libc::personality(to) }.into()).map(drop),
            || {
                call(
                    "personality",
                    // SAFETY: takes integers, or words that live.
                    unsafe { libc::personality(0xffff_ffff) }.into(),
                )
            },
        ),
        Item::new(
            "its name",
            move |round| {
                let name = format!("round-{round}\0");
                prctl(libc::PR_SET_NAME, [name.as_ptr() as u64, 0, 0, 0]).map(drop)
            },
            move |round| {
                let mut name = [0u8; 16];
                prctl(libc::PR_GET_NAME, [name.as_mut_ptr() as u64, 0, 0, 0])?;
                let want = format!("round-{round}");
                let end = name.iter().position(|b| *b == 0).unwrap_or(16);
                same(&name[..end], &want.as_bytes()[..want.len().min(15)])
            },
        ),
        Item::number(
            "what a memory error does",
            |round| round % 3,
            |to| prctl(libc::PR_MCE_KILL, [1, to, 0, 0]).map(drop),
            || prctl(libc::PR_MCE_KILL_GET, [0; 4]),
        ),
    ];
    if !there.is_empty() {
        let want = move |there: &[usize], round: u64| -> u64 {
            // One of them, or all.
            match (round + number) as usize % (there.len() + 1) {
                0 => there.iter().fold(0, |set, n| set | 1 << n),
                n => 1 << there[n - 1],
            }
        };
        let known = there.clone();
        items.push(Item::new(
            "its processors",
            move |round| {
                let set = want(&there, round);
                // SAFETY: reads a live word.
                let result =
                    // SAFETY: takes integers, or words that live.
                    unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 8, &raw const set) };
                call("sched_setaffinity", result).map(drop)
            },
            move |round| {
                let mut set = 0u64;
                // SAFETY: fills a live word.
                let result =
                    // SAFETY: takes integers, or words that live.
                    unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, 8, &raw mut set) };
                call("sched_getaffinity", result)?;
                same(set, want(&known, round))
            },
        ));
    }
    Ok(items)
}
