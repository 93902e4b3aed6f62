//! What waits for something: epoll, inotify, pidfds, signals, terminals.

use super::Held;
use super::calls::*;

struct Epoll {
    poll: i32,
    /// Closed by the change.
    closed: i32,
    events: [i32; 4],
}

fn new_poll() -> Done<i32> {
    // SAFETY: a call without pointers.
    must("epoll_create1", unsafe { libc::epoll_create1(0) })
}

fn control(poll: i32, how: i32, fd: i32, events: i32, data: u64) -> Done {
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: data,
    };
    // SAFETY: the event is live.
    must("epoll_ctl", unsafe {
        libc::epoll_ctl(poll, how, fd, &mut event)
    })
    .map(drop)
}

/// What is ready now, as data, ascending.
fn fired(poll: i32) -> Done<Vec<u64>> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    // SAFETY: the array has room for as many as said.
    let n = must("epoll_wait", unsafe {
        libc::epoll_wait(poll, events.as_mut_ptr(), 16, 0)
    })?;
    let mut found: Vec<u64> = events[..n as usize].iter().map(|event| event.u64).collect();
    found.sort_unstable();
    Ok(found)
}

const ADD: i32 = libc::EPOLL_CTL_ADD;
const MOD: i32 = libc::EPOLL_CTL_MOD;
const DEL: i32 = libc::EPOLL_CTL_DEL;
const IN: i32 = libc::EPOLLIN;

pub fn epoll() -> Done<Box<dyn Held>> {
    let mut events = [0; 4];
    for (n, fd) in events.iter_mut().enumerate() {
        // SAFETY: a call without pointers.
        let made = must("eventfd", unsafe { libc::eventfd(1, libc::EFD_NONBLOCK) })?;
        *fd = moved(made, 60 + n as i32, 0)?;
    }
    let held = Epoll {
        poll: moved(new_poll()?, 70, libc::O_CLOEXEC)?,
        closed: moved(new_poll()?, 71, 0)?,
        events,
    };
    control(held.poll, ADD, events[0], IN, 1000)?;
    control(held.poll, ADD, events[1], IN, u64::MAX - 1)?;
    control(held.poll, ADD, events[2], IN, 1002)?;
    control(held.closed, ADD, events[0], IN, 7)?;
    control(held.closed, ADD, events[3], IN | libc::EPOLLEXCLUSIVE, 8)?;
    // Instances watch each other.
    control(held.closed, ADD, held.poll, IN, 9)?;
    Ok(Box::new(held))
}

impl Held for Epoll {
    fn change(&mut self) -> Done {
        let events = self.events;
        control(self.poll, DEL, events[0], 0, 0)?;
        control(self.poll, MOD, events[1], IN, 2001)?;
        // Watched no more, because it is gone; then another one is.
        close(events[2])?;
        control(self.poll, ADD, events[3], IN, 2003)?;
        close(self.closed)
    }

    fn check(&mut self, changed: bool) -> Done {
        let wanted = match changed {
            true => vec![2001, 2003],
            false => vec![1000, 1002, u64::MAX - 1],
        };
        same("what is ready", fired(self.poll)?, wanted)?;
        same("the instance is open", is_open(self.closed), !changed)?;
        same("a watched one is open", is_open(self.events[2]), !changed)?;
        same("close on exec", cloexec(self.poll)?, true)?;
        if changed {
            return Ok(());
        }
        same(
            "what is ready in the other",
            fired(self.closed)?,
            vec![7, 8, 9],
        )?;
        // The numbers are the ones that the kernel knows them by.
        control(self.poll, MOD, self.events[0], IN, 3000)?;
        same(
            "ready after a change",
            fired(self.poll)?.contains(&3000),
            true,
        )?;
        control(self.poll, MOD, self.events[0], IN, 1000)?;
        control(self.closed, DEL, self.events[3], 0, 0)?;
        same("ready without one", fired(self.closed)?, vec![7, 9])?;
        control(
            self.closed,
            ADD,
            self.events[3],
            IN | libc::EPOLLEXCLUSIVE,
            8,
        )
    }
}

struct Inotify {
    instance: i32,
    /// Closed by the change.
    closed: i32,
    folder: String,
    other: String,
    watch: i32,
}

fn watch(instance: i32, path: &str, mask: u32) -> Done<i32> {
    let path = format!("{path}\0");
    // SAFETY: the path is live and ends with a zero.
    must("inotify_add_watch", unsafe {
        libc::inotify_add_watch(instance, path.as_ptr().cast(), mask)
    })
}

fn new_inotify(at: i32) -> Done<i32> {
    // SAFETY: a call without pointers.
    moved(
        must("inotify_init1", unsafe {
            libc::inotify_init1(libc::IN_NONBLOCK)
        })?,
        at,
        0,
    )
}

pub fn inotify() -> Done<Box<dyn Held>> {
    let (folder, other) = (in_folder("watched"), in_folder("other"));
    std::fs::create_dir(&folder).map_err(|e| e.to_string())?;
    std::fs::create_dir(&other).map_err(|e| e.to_string())?;
    let (instance, closed) = (new_inotify(60)?, new_inotify(61)?);
    // Numbers that do not begin at 1.
    for _ in 0..5 {
        let wd = watch(closed, &other, libc::IN_CREATE)?;
        // SAFETY: a call without pointers.
        must("inotify_rm_watch", unsafe {
            libc::inotify_rm_watch(closed, wd)
        })?;
        read(closed, 4096)?;
    }
    watch(instance, &folder, libc::IN_CREATE)?;
    let watch = watch(closed, &folder, libc::IN_CREATE | libc::IN_DELETE)?;
    Ok(Box::new(Inotify {
        instance,
        closed,
        folder,
        other,
        watch,
    }))
}

/// Watch descriptor and mask of the first event.
fn event(instance: i32) -> Done<(i32, u32)> {
    let bytes = read(instance, 4096)?;
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    Ok((word(0) as i32, word(4)))
}

impl Held for Inotify {
    fn change(&mut self) -> Done {
        close(self.closed)?;
        watch(self.instance, &self.other, libc::IN_CREATE).map(drop)
    }

    fn check(&mut self, changed: bool) -> Done {
        same("the instance is open", is_open(self.closed), !changed)?;
        // Events that others made while nobody looked are of no interest.
        while ready(self.instance, libc::POLLIN)? {
            read(self.instance, 4096)?;
        }
        let file = format!("{}/file", self.other);
        std::fs::write(&file, "").map_err(|e| e.to_string())?;
        std::fs::remove_file(&file).map_err(|e| e.to_string())?;
        same(
            "an event of the other folder",
            ready(self.instance, libc::POLLIN)?,
            changed,
        )?;
        let file = format!("{}/file", self.folder);
        std::fs::write(&file, "").map_err(|e| e.to_string())?;
        same("an event", ready(self.instance, libc::POLLIN)?, true)?;
        if !changed {
            while ready(self.closed, libc::POLLIN)? {
                same(
                    "watch and event",
                    event(self.closed)?,
                    (self.watch, libc::IN_CREATE),
                )?;
            }
        }
        std::fs::remove_file(&file).map_err(|e| e.to_string())?;
        if !changed {
            same(
                "watch and event",
                event(self.closed)?,
                (self.watch, libc::IN_DELETE),
            )?;
            has_flag(self.closed, libc::O_NONBLOCK, true)?;
        }
        Ok(())
    }
}

struct Pidfd {
    parent: i32,
    ended: i32,
}

fn pidfd_open(pid: i32) -> Done<i32> {
    // SAFETY: a call without pointers.
    must("pidfd_open", unsafe {
        libc::syscall(libc::SYS_pidfd_open, pid, 0)
    })
}

pub fn pidfd() -> Done<Box<dyn Held>> {
    // SAFETY: a call without arguments.
    let parent = moved(pidfd_open(unsafe { libc::getppid() })?, 60, 0)?;
    let mut child = std::process::Command::new("true")
        .spawn()
        .map_err(|e| e.to_string())?;
    let ended = moved(pidfd_open(child.id() as i32)?, 61, libc::O_CLOEXEC)?;
    child.wait().map_err(|e| e.to_string())?;
    Ok(Box::new(Pidfd { parent, ended }))
}

fn signal(fd: i32) -> Result<(), i32> {
    // SAFETY: null for the information that signal 0 does not need.
    match unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            0,
            std::ptr::null::<u8>(),
            0,
        )
    } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

impl Held for Pidfd {
    fn change(&mut self) -> Done {
        close(self.parent)?;
        close(self.ended)
    }

    fn check(&mut self, changed: bool) -> Done {
        if changed {
            return same(
                "they are open",
                is_open(self.parent) || is_open(self.ended),
                false,
            );
        }
        same("the parent lives", signal(self.parent), Ok(()))?;
        same("the child does not", signal(self.ended), Err(libc::ESRCH))?;
        same(
            "and it is seen to have ended",
            ready(self.ended, libc::POLLIN)?,
            true,
        )?;
        same("close on exec", cloexec(self.ended)?, true)
    }
}

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

struct Terminal {
    master: i32,
    side: i32,
    /// Closed by the change.
    closed: [i32; 2],
}

fn pty(at: i32) -> Done<[i32; 2]> {
    let master = open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
    let off = 0;
    // SAFETY: the request reads one int, which is live.
    must("ioctl(TIOCSPTLCK)", unsafe {
        libc::ioctl(master, libc::TIOCSPTLCK, &off)
    })?;
    // SAFETY: the request takes flags in place of a pointer.
    let side = must("ioctl(TIOCGPTPEER)", unsafe {
        libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY)
    })?;
    Ok([moved(master, at, 0)?, moved(side, at + 1, libc::O_CLOEXEC)?])
}

fn settings(fd: i32) -> Done<libc::termios> {
    // SAFETY: zeroed is a valid structure, which the call fills.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        must("tcgetattr", libc::tcgetattr(fd, &mut termios))?;
        Ok(termios)
    }
}

fn set(fd: i32, raw: bool, rows: u16) -> Done {
    let mut termios = settings(fd)?;
    let bits = libc::ICANON | libc::ECHO;
    termios.c_lflag = if raw {
        termios.c_lflag & !bits
    } else {
        termios.c_lflag | bits
    };
    termios.c_oflag &= !libc::OPOST;
    let size = libc::winsize {
        ws_row: rows,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both structures are live.
    unsafe {
        must("tcsetattr", libc::tcsetattr(fd, libc::TCSANOW, &termios))?;
        must(
            "ioctl(TIOCSWINSZ)",
            libc::ioctl(fd, libc::TIOCSWINSZ, &size),
        )?;
    }
    Ok(())
}

fn is_set(fd: i32, raw: bool, rows: u16) -> Done {
    let termios = settings(fd)?;
    same(
        "raw",
        termios.c_lflag & libc::ICANON == 0 && termios.c_lflag & libc::ECHO == 0,
        raw,
    )?;
    // SAFETY: zeroed is a valid structure, which the call fills.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        must(
            "ioctl(TIOCGWINSZ)",
            libc::ioctl(fd, libc::TIOCGWINSZ, &mut size),
        )?;
        size
    };
    same("size", (size.ws_row, size.ws_col), (rows, 132))
}

pub fn terminal() -> Done<Box<dyn Held>> {
    let (first, closed) = (pty(60)?, pty(62)?);
    set(first[1], true, 50)?;
    set(closed[1], true, 70)?;
    Ok(Box::new(Terminal {
        master: first[0],
        side: first[1],
        closed,
    }))
}

impl Held for Terminal {
    fn change(&mut self) -> Done {
        set(self.side, false, 20)?;
        close(self.closed[0])?;
        close(self.closed[1])
    }

    fn check(&mut self, changed: bool) -> Done {
        is_set(self.side, !changed, if changed { 20 } else { 50 })?;
        write(self.side, b"out")?;
        same(
            "what the program printed",
            read(self.master, 10)?,
            b"out".to_vec(),
        )?;
        for fd in self.closed {
            same("the other one is open", is_open(fd), !changed)?;
        }
        if changed {
            return Ok(());
        }
        is_set(self.closed[1], true, 70)?;
        write(self.closed[0], b"typed")?;
        same(
            "what was typed",
            read(self.closed[1], 10)?,
            b"typed".to_vec(),
        )?;
        same("close on exec", cloexec(self.closed[1])?, true)
    }
}
