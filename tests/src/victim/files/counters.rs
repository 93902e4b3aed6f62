//! Eventfds, timers and memfds.

use super::Held;
use super::calls::*;

struct Counters {
    event: i32,
    twin: i32,
    semaphore: i32,
    /// Closed by the change.
    closed: i32,
    /// Every ten minutes, with three expirations that were not read.
    every: i32,
    /// Once, in an hour.
    once: i32,
    /// At a moment of the wall clock, closed by the change.
    moment: i32,
    idle: i32,
    deadline: i64,
}

fn eventfd(count: u32, flags: i32) -> Done<i32> {
    // SAFETY: a call without pointers.
    must("eventfd", unsafe { libc::eventfd(count, flags) })
}

fn timer(clock: i32) -> Done<i32> {
    // SAFETY: a call without pointers.
    must("timerfd_create", unsafe {
        libc::timerfd_create(clock, libc::TFD_NONBLOCK)
    })
}

fn time(s: i64, ns: i64) -> libc::timespec {
    libc::timespec {
        tv_sec: s,
        tv_nsec: ns,
    }
}

fn set(fd: i32, flags: i32, value: libc::timespec, every: libc::timespec) -> Done {
    let spec = libc::itimerspec {
        it_value: value,
        it_interval: every,
    };
    // SAFETY: `spec` is live; null for the old value.
    must("timerfd_settime", unsafe {
        libc::timerfd_settime(fd, flags, &spec, std::ptr::null_mut())
    })
    .map(drop)
}

/// Seconds left, and of the interval.
fn left(fd: i32) -> Done<(i64, i64)> {
    let mut spec = libc::itimerspec {
        it_value: time(0, 0),
        it_interval: time(0, 0),
    };
    // SAFETY: `spec` is live.
    must("timerfd_gettime", unsafe {
        libc::timerfd_gettime(fd, &mut spec)
    })?;
    Ok((spec.it_value.tv_sec, spec.it_interval.tv_sec))
}

fn count(fd: i32) -> Done<u64> {
    let bytes = read(fd, 8)?;
    Ok(u64::from_le_bytes(
        bytes.try_into().map_err(|_| "a counter has eight bytes")?,
    ))
}

fn ticks(fd: i32) -> Done<u64> {
    let text =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|e| e.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("ticks: "));
    line.and_then(|n| n.trim().parse().ok())
        .ok_or_else(|| "no ticks".into())
}

pub fn counters() -> Done<Box<dyn Held>> {
    let event = eventfd(5, libc::EFD_NONBLOCK)?;
    let every = timer(libc::CLOCK_MONOTONIC)?;
    set(every, 0, time(0, 1_000_000), time(0, 1_000_000))?;
    // Counted only when somebody asks.
    while left(every).and(ticks(every))? < 3 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let once = timer(libc::CLOCK_BOOTTIME)?;
    set(once, 0, time(3600, 0), time(0, 0))?;
    let mut now = time(0, 0);
    // SAFETY: `now` is live.
    must("clock_gettime", unsafe {
        libc::clock_gettime(libc::CLOCK_REALTIME, &mut now)
    })?;
    let deadline = now.tv_sec + 7200;
    let moment = moved(timer(libc::CLOCK_REALTIME)?, 60, 0)?;
    set(
        moment,
        libc::TFD_TIMER_ABSTIME,
        time(deadline, 0),
        time(60, 0),
    )?;
    Ok(Box::new(Counters {
        event,
        twin: dup(event)?,
        semaphore: eventfd(3, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK)?,
        closed: moved(eventfd(0, libc::EFD_NONBLOCK)?, 61, libc::O_CLOEXEC)?,
        every,
        once,
        moment,
        idle: timer(libc::CLOCK_MONOTONIC)?,
        deadline,
    }))
}

impl Held for Counters {
    fn change(&mut self) -> Done {
        write(self.event, &37u64.to_le_bytes())?;
        count(self.semaphore)?;
        close(self.closed)?;
        // From every millisecond, with expirations to read, to none.
        set(self.every, 0, time(0, 0), time(0, 0))?;
        set(self.once, 0, time(60, 0), time(7, 0))?;
        close(self.moment)?;
        set(self.idle, 0, time(500, 0), time(0, 0))
    }

    fn check(&mut self, changed: bool) -> Done {
        let wanted = if changed { 42 } else { 5 };
        let found = count(self.twin)?;
        write(self.event, &found.to_le_bytes())?;
        same("counter", found, wanted)?;
        let mut taken = 0;
        while ready(self.semaphore, libc::POLLIN)? {
            taken += count(self.semaphore)?;
        }
        write(self.semaphore, &taken.to_le_bytes())?;
        same("semaphore", taken, if changed { 2 } else { 3 })?;
        for fd in [self.closed, self.moment] {
            same(&format!("descriptor {fd} is open"), is_open(fd), !changed)?;
        }
        if changed {
            same(
                "the timer is silent",
                ready(self.every, libc::POLLIN)?,
                false,
            )?;
            let (value, interval) = left(self.once)?;
            same(
                "reset timer",
                (value > 10 && value <= 60, interval),
                (true, 7),
            )?;
            return same("the idle timer is set", left(self.idle)?.0 > 100, true);
        }
        same("expirations not read", ticks(self.every)? >= 3, true)?;
        let before = ticks(self.every)?;
        std::thread::sleep(std::time::Duration::from_millis(20));
        left(self.every)?;
        same("the timer goes on", ticks(self.every)? > before, true)?;
        let (value, interval) = left(self.once)?;
        same(
            "one hour",
            (value > 3000 && value < 3600, interval),
            (true, 0),
        )?;
        let (value, interval) = left(self.moment)?;
        let mut now = time(0, 0);
        // SAFETY: `now` is live.
        must("clock_gettime", unsafe {
            libc::clock_gettime(libc::CLOCK_REALTIME, &mut now)
        })?;
        let off = (now.tv_sec + value - self.deadline).abs();
        same("the moment", (off <= 1, interval), (true, 60))?;
        same("the idle timer", left(self.idle)?, (0, 0))?;
        same("close on exec", cloexec(self.closed)?, true)?;
        same("an empty counter", ready(self.closed, libc::POLLIN)?, false)
    }
}

struct Memfd {
    memory: i32,
    /// Closed by the change.
    closed: i32,
    sealed: i32,
}

fn new_memfd(name: &str) -> Done<i32> {
    let name = format!("{name}\0");
    // SAFETY: the name is live and ends with a zero.
    must("memfd_create", unsafe {
        libc::memfd_create(name.as_ptr().cast(), libc::MFD_ALLOW_SEALING)
    })
}

fn seal(fd: i32, seals: i32) -> Done {
    // SAFETY: a call without pointers.
    must("fcntl(F_ADD_SEALS)", unsafe {
        libc::fcntl(fd, libc::F_ADD_SEALS, seals)
    })
    .map(drop)
}

fn pread(fd: i32, at: i64, len: usize) -> Done<Vec<u8>> {
    let mut data = vec![0; len];
    // SAFETY: the buffer is live and as long as said.
    let got = unsafe { libc::pread(fd, data.as_mut_ptr().cast(), len, at) };
    data.truncate(must("pread", got as i64)? as usize);
    Ok(data)
}

const SIZE: i64 = 3 << 20;

pub fn memfd() -> Done<Box<dyn Held>> {
    let held = Memfd {
        memory: new_memfd("ordinary")?,
        closed: moved(new_memfd("closed later")?, 60, 0)?,
        sealed: new_memfd("sealed")?,
    };
    write(held.memory, b"0123456789")?;
    seek(held.memory, 4, libc::SEEK_SET)?;
    // SAFETY: a call without pointers.
    must("ftruncate", unsafe { libc::ftruncate(held.closed, SIZE) })?;
    write(held.closed, &[0xab; 5000])?;
    seal(held.closed, libc::F_SEAL_GROW)?;
    write(held.sealed, b"for ever")?;
    seal(
        held.sealed,
        libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL,
    )?;
    Ok(Box::new(held))
}

impl Held for Memfd {
    fn change(&mut self) -> Done {
        write(self.memory, b"ABCDEFGHIJKLMNOP")?;
        close(self.closed)?;
        close(self.sealed)
    }

    fn check(&mut self, changed: bool) -> Done {
        let (text, at): (&[u8], i64) = match changed {
            true => (b"0123ABCDEFGHIJKLMNOP", 20),
            false => (b"0123456789", 4),
        };
        same("content", pread(self.memory, 0, 100)?, text.to_vec())?;
        same("position", position(self.memory)?, at)?;
        for fd in [self.closed, self.sealed] {
            same(&format!("descriptor {fd} is open"), is_open(fd), !changed)?;
        }
        if changed {
            return Ok(());
        }
        same(
            "content made again",
            pread(self.closed, 4990, 20)?,
            [[0xab; 10], [0; 10]].concat(),
        )?;
        same("size", seek(self.closed, 0, libc::SEEK_END)?, SIZE)?;
        seek(self.closed, 5000, libc::SEEK_SET)?;
        same(
            "sealed content",
            pread(self.sealed, 0, 100)?,
            b"for ever".to_vec(),
        )?;
        let seals = |fd: i32| {
            // SAFETY: a call without pointers.
            must("fcntl(F_GET_SEALS)", unsafe {
                libc::fcntl(fd, libc::F_GET_SEALS)
            })
        };
        same("seals", seals(self.closed)?, libc::F_SEAL_GROW)?;
        let all = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        same("all seals", seals(self.sealed)?, all)?;
        same(
            "name",
            std::fs::read_link(format!("/proc/self/fd/{}", self.sealed))
                .is_ok_and(|link| link.starts_with("/memfd:sealed (deleted)")),
            true,
        )
    }
}
