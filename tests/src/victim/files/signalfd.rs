//! What tells of signals: a signalfd, and a pipe with `F_SETSIG`.

use super::Held;
use super::calls::*;

struct Signals {
    fd: i32,
    closed: i32,
    /// A pipe that tells by a signal.
    telling: [i32; 2],
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: zeroed is a valid set, and the calls fill it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

fn signalfd(fd: i32, signals: &[i32]) -> Done<i32> {
    let set = set_of(signals);
    // SAFETY: the set is live.
    must("signalfd", unsafe {
        libc::signalfd(fd, &set, libc::SFD_NONBLOCK)
    })
}

fn raise(signal: i32) -> Done {
    // SAFETY: a signal to this thread, which is blocked.
    must("raise", unsafe { libc::raise(signal) }).map(drop)
}

fn telling_signal() -> i32 {
    libc::SIGRTMIN() + 3
}

pub fn signals() -> Done<Box<dyn Held>> {
    let all = set_of(&[libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, telling_signal()]);
    // SAFETY: the set is live; null for the old one. There are no other threads yet.
    must("sigprocmask", unsafe {
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut())
    })?;
    let mut telling = [0; 2];
    // SAFETY: the array has room for the two.
    must("pipe2", unsafe {
        libc::pipe2(telling.as_mut_ptr(), libc::O_NONBLOCK)
    })?;
    // SAFETY: calls without pointers.
    unsafe {
        must(
            "fcntl(F_SETOWN)",
            libc::fcntl(telling[0], libc::F_SETOWN, libc::getpid()),
        )?;
        must(
            "fcntl(F_SETSIG)",
            libc::fcntl(telling[0], 10, telling_signal()),
        )?;
    }
    set_flags(telling[0], libc::O_ASYNC | libc::O_NONBLOCK)?;
    Ok(Box::new(Signals {
        fd: signalfd(-1, &[libc::SIGUSR1])?,
        closed: moved(signalfd(-1, &[libc::SIGHUP, libc::SIGUSR2])?, 60, 0)?,
        telling,
    }))
}

impl Signals {
    /// Descriptor and number of the signal that tells of input.
    fn told(&self) -> Done<Option<i32>> {
        write(self.telling[1], b"x")?;
        read(self.telling[0], 10)?;
        let set = set_of(&[telling_signal()]);
        let mut told = None;
        let wait = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        loop {
            // SAFETY: zeroed is a valid siginfo; all three are live.
            let (got, info) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                (libc::sigtimedwait(&set, &mut info, &wait), info)
            };
            if got != telling_signal() {
                return Ok(told);
            }
            // `si_fd` lies behind the 64-bit `si_band`.
            // SAFETY: a siginfo of this kind has the number there.
            told = Some(unsafe { (&raw const info).cast::<u8>().add(24).cast::<i32>().read() });
        }
    }
}

impl Held for Signals {
    fn change(&mut self) -> Done {
        signalfd(self.fd, &[libc::SIGUSR2])?;
        close(self.closed)?;
        set_flags(self.telling[0], libc::O_NONBLOCK)
    }

    fn check(&mut self, changed: bool) -> Done {
        let (mine, not) = match changed {
            true => (libc::SIGUSR2, libc::SIGUSR1),
            false => (libc::SIGUSR1, libc::SIGUSR2),
        };
        raise(mine)?;
        let info = read(self.fd, 128)?;
        same(
            "the signal",
            i32::from_ne_bytes(info[..4].try_into().expect("four bytes")),
            mine,
        )?;
        raise(not)?;
        same("the other signal", ready(self.fd, libc::POLLIN)?, false)?;
        let set = set_of(&[not]);
        // SAFETY: the set is live; null for the information.
        must("sigwaitinfo", unsafe {
            libc::sigwaitinfo(&set, std::ptr::null_mut())
        })?;
        same("it is open", is_open(self.closed), !changed)?;
        let wanted = (!changed).then_some(self.telling[0]);
        same("what the pipe tells of", self.told()?, wanted)?;
        if !changed {
            raise(libc::SIGHUP)?;
            let info = read(self.closed, 128)?;
            same(
                "the third",
                i32::from_ne_bytes(info[..4].try_into().expect("four bytes")),
                libc::SIGHUP,
            )?;
        }
        Ok(())
    }
}
