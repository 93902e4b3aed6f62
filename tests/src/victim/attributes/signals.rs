//! Dispositions, and the alternate stack.

use super::{Item, call, prctl, same};
use anyhow::Result;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

const STACK: usize = 64 << 10;

/// Where the handler ran last.
static RAN_AT: AtomicU64 = AtomicU64::new(0);
/// How often each handler has run.
static RAN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

extern "C" fn one(_: i32) {
    note(0);
}

extern "C" fn other(_: i32) {
    note(1);
}

fn note(which: usize) {
    let here = 0u8;
    RAN_AT.store(&raw const here as u64, Ordering::SeqCst);
    RAN[which].fetch_add(1, Ordering::SeqCst);
    // Long enough to be stopped on this stack now and then.
    std::thread::sleep(std::time::Duration::from_micros(300));
}

/// `struct kernel_sigaction`.
type Action = [u64; 4];

fn action(signal: i32, new: Option<&Action>) -> Result<Action, String> {
    let mut old = Action::default();
    let new = new.map_or(std::ptr::null(), |new| new.as_ptr());
    // SAFETY: both are null or live structures of the kernel's layout.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            new,
            old.as_mut_ptr(),
            8usize,
        )
    };
    call("rt_sigaction", result)?;
    Ok(old)
}

fn wanted(signal: i32, round: u64, restorer: u64) -> Action {
    let handler = match (round + signal as u64) % 4 {
        0 => libc::SIG_DFL as u64,
        1 => libc::SIG_IGN as u64,
        2 => one as *const () as u64,
        _ => other as *const () as u64,
    };
    let restart = match round % 2 {
        0 => 0,
        _ => libc::SA_RESTART as u64,
    };
    const SA_RESTORER: u64 = 0x0400_0000;
    // SIGKILL and SIGSTOP cannot be blocked, and the kernel takes them out.
    let mask = round.wrapping_mul(0x9e37_79b9) & !(1 << 8 | 1 << 18);
    [handler, SA_RESTORER | restart, restorer, mask]
}

fn stack_of(round: u64, base: u64) -> (u64, u64) {
    let half = (STACK / 2) as u64;
    (base + round % 2 * half, half - round % 7 * 512)
}

fn alt_stack(new: Option<&libc::stack_t>) -> Result<libc::stack_t, String> {
    // SAFETY: zeroed, then filled by the call; `new` is null or live.
    unsafe {
        let mut old: libc::stack_t = zeroed();
        let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
        call("sigaltstack", libc::sigaltstack(new, &mut old).into())?;
        Ok(old)
    }
}

/// Where handlers return to, as the C library sets it.
fn restorer() -> Result<u64, String> {
    // SAFETY: the structure is zeroed, and the handler does nothing harmful.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = one as *const () as usize;
        call(
            "sigaction",
            libc::sigaction(libc::SIGUSR1, &action, null_mut()).into(),
        )?;
    }
    Ok(self::action(libc::SIGUSR1, None)?[2])
}

/// The items.
pub fn items(_: u64) -> Result<Vec<Item>> {
    let restorer = restorer().map_err(anyhow::Error::msg)?;
    let base = Box::leak(vec![0u8; STACK].into_boxed_slice()).as_ptr() as u64;
    let mut items = Vec::new();
    // Those that a signal means no harm with, and two that only exist for programs.
    for (name, signal) in [
        ("SIGUSR2", libc::SIGUSR2),
        ("SIGWINCH", libc::SIGWINCH),
        ("SIGURG", libc::SIGURG),
        ("SIGHUP", libc::SIGHUP),
        ("a real-time signal", 40),
        ("the last signal", 64),
    ] {
        items.push(Item::new(
            name,
            move |round| action(signal, Some(&wanted(signal, round, restorer))).map(drop),
            move |round| same(action(signal, None)?, wanted(signal, round, restorer)),
        ));
    }
    items.push(Item::new(
        "the alternate stack",
        move |round| {
            let (sp, size) = stack_of(round, base);
            let stack = libc::stack_t {
                ss_sp: std::ptr::with_exposed_provenance_mut(sp as usize),
                ss_flags: 0,
                ss_size: size as usize,
            };
            alt_stack(Some(&stack)).map(drop)
        },
        move |round| {
            let now = alt_stack(None)?;
            same(
                (now.ss_sp as u64, now.ss_size as u64),
                stack_of(round, base),
            )
        },
    ));
    items.push(Item::new(
        "a handler on the alternate stack",
        move |round| {
            let which = if round % 2 == 0 { one } else { other } as extern "C" fn(i32);
            let on_stack = 0x0400_0000 | libc::SA_ONSTACK as u64;
            let new = [which as *const () as u64, on_stack, restorer, 0];
            action(libc::SIGUSR1, Some(&new)).map(drop)
        },
        move |round| {
            let which = (round % 2) as usize;
            let before = RAN[which].load(Ordering::SeqCst);
            // SAFETY: a signal to this thread, with a handler.
            unsafe { libc::raise(libc::SIGUSR1) };
            let ran = RAN[which].load(Ordering::SeqCst);
            if ran <= before {
                return Err("its handler did not run".to_owned());
            }
            let (sp, size) = stack_of(round, base);
            match (sp..sp + size).contains(&RAN_AT.load(Ordering::SeqCst)) {
                true => Ok(()),
                false => Err("its handler ran elsewhere".to_owned()),
            }
        },
    ));
    // Two words: the C library joins by the one that the kernel clears, but this thread is never joined.
    let words: &'static [u32; 2] = Box::leak(Box::new([0; 2]));
    let address = move |round: u64| &raw const words[(round % 2) as usize] as u64;
    items.push(Item::new(
        "the word that is cleared at the end",
        move |round| {
            // SAFETY: the kernel writes the word when the thread ends; it is never freed.
            let result = unsafe { libc::syscall(libc::SYS_set_tid_address, address(round)) };
            call("set_tid_address", result).map(drop)
        },
        move |round| {
            let mut now = 0u64;
            prctl(libc::PR_GET_TID_ADDRESS, [&raw mut now as u64, 0, 0, 0])?;
            same(now, address(round))
        },
    ));
    Ok(items)
}
