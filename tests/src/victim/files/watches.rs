//! What waits for something: epoll, inotify, pidfds.

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
