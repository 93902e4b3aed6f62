//! What one process of the session sees and hears.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::victim::fault::{broken, os_error};

/// Signals that nobody asks for here.
const STRAYS: [i32; 6] = [
    libc::SIGHUP,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
];

/// What one process sees, in shared memory.
#[repr(C)]
pub struct Seen {
    /// Process, parent, session, group, session of the terminal, group in its foreground.
    view: [AtomicU64; 6],
    /// Bit n for signal n that nobody asked for.
    pub strays: AtomicU64,
    /// How often it heard of Ctrl-C.
    pub interrupts: AtomicU64,
}

impl Seen {
    /// Looks at the session, its terminal (`side`) and the foreground there.
    pub fn look(&self, side: RawFd) {
        // SAFETY: calls without pointers.
        let view = unsafe {
            [
                libc::getpid(),
                libc::getppid(),
                libc::getsid(0),
                libc::getpgid(0),
                libc::tcgetsid(side),
                libc::tcgetpgrp(side),
            ]
        };
        for (place, now) in self.view.iter().zip(view) {
            place.store(now as u64, Ordering::SeqCst);
        }
        // SAFETY: a constant path; the descriptor is closed at once.
        unsafe {
            match libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR | libc::O_NOCTTY) {
                -1 => broken(os_error("open of /dev/tty")),
                fd => libc::close(fd),
            };
        }
    }

    /// The last look.
    pub fn view(&self) -> [i32; 6] {
        std::array::from_fn(|n| self.view[n].load(Ordering::SeqCst) as i32)
    }

    /// Has the handlers of this process count here. A rollback ends with SIGCONT, which then is no stray.
    pub fn watch_signals(&'static self, interrupts: bool, rollbacks: bool) {
        OWN.store(std::ptr::from_ref(self).cast_mut(), Ordering::SeqCst);
        let interrupt = match interrupts {
            true => count_interrupt as extern "C" fn(i32),
            false => count_stray,
        };
        let strays = STRAYS.into_iter();
        let strays = strays.filter(|signal| !(rollbacks && *signal == libc::SIGCONT));
        let handlers = strays.map(|signal| (signal, count_stray as extern "C" fn(i32)));
        for (signal, handler) in handlers.chain([(libc::SIGINT, interrupt)]) {
            // SAFETY: zeroed, a sigaction is valid; the handlers touch atomics alone.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as usize;
                action.sa_flags = libc::SA_RESTART;
                if libc::sigaction(signal, &action, std::ptr::null_mut()) != 0 {
                    broken(os_error("sigaction"));
                }
            }
        }
    }
}

/// Where the handlers of this process count.
static OWN: AtomicPtr<Seen> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn count_stray(signal: i32) {
    // SAFETY: set before the handler was, to memory that lives as long as the process.
    let own = unsafe { &*OWN.load(Ordering::SeqCst) };
    own.strays.fetch_or(1 << signal, Ordering::SeqCst);
}

extern "C" fn count_interrupt(_: i32) {
    // SAFETY: as above.
    let own = unsafe { &*OWN.load(Ordering::SeqCst) };
    own.interrupts.fetch_add(1, Ordering::SeqCst);
}
