//! The kernel's own account of a process agrees with what its interfaces tell the process itself.
#![allow(
    unsafe_code,
    reason = "raw system calls that change this process's own attributes"
)]

mod skip;

use snap_user::capture::Files;
use snap_user::model::{Observed, Referent};
use snap_user::probe::ProbeOptions;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::time::Instant;

/// What the kernel knows of this process; `None` with a printed reason where it cannot be asked.
fn observe() -> Option<Observed> {
    let mut probes = skip::loaded(&ProbeOptions::default())?;
    let pid = std::process::id() as i32;
    Some(probes.observe(pid, pid).unwrap())
}

#[test]
fn what_each_descriptor_refers_to() {
    use std::os::fd::AsRawFd;
    use std::os::linux::fs::MetadataExt;
    let Some(mut probes) = skip::loaded(&ProbeOptions::default()) else {
        return;
    };
    let pid = std::process::id() as i32;
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let twice = file.try_clone().unwrap();
    let Some(seen) = probes.referents(pid).unwrap() else {
        panic!("this kernel has iterators over tasks, and none over descriptors");
    };
    let of = |seen: &[(i32, Referent)], fd: i32| seen.iter().find(|(n, _)| *n == fd).unwrap().1;
    let all = [
        socket.as_raw_fd(),
        other.as_raw_fd(),
        reader.as_raw_fd(),
        file.as_raw_fd(),
    ];
    for fd in all {
        let path = format!("/proc/self/fd/{fd}");
        assert_eq!(
            of(&seen, fd).number,
            std::fs::metadata(path).unwrap().st_ino()
        );
    }
    assert_eq!(
        of(&seen, file.as_raw_fd()),
        of(&seen, twice.as_raw_fd()),
        "one open file"
    );
    assert_eq!(
        of(&seen, socket.as_raw_fd()).operations,
        of(&seen, other.as_raw_fd()).operations
    );
    assert_ne!(
        of(&seen, socket.as_raw_fd()).operations,
        of(&seen, reader.as_raw_fd()).operations
    );
    // Each is there, and no other.
    let listed = |seen: &[(i32, Referent)]| seen.iter().map(|(fd, _)| *fd).collect::<Vec<_>>();
    let mut files = Files::read(pid).unwrap();
    let known: Vec<i32> = files.open_files().map(|(d, _)| d.fd).collect();
    // The two folders of /proc that it has open are not there in the answer before.
    assert!(listed(&seen).iter().all(|fd| known.contains(fd)));
    let before = probes.referents(pid).unwrap().unwrap();
    files.refresh().unwrap();
    files.identify(&before, &probes.referents(pid).unwrap().unwrap());
    // One is replaced, one is gone, one is new.
    let eventfd = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    nix::unistd::dup2_stdin(&eventfd).unwrap();
    drop(other);
    let after = probes.referents(pid).unwrap().unwrap();
    assert_ne!(of(&before, 0), of(&after, 0));
    let by_kernel = files.frozen(&[], Some(&after)).unwrap();
    assert_eq!(by_kernel, files.frozen(&[], None).unwrap());
}

#[test]
fn signal_dispositions_and_the_alternate_stack() {
    extern "C" fn handler(_: i32) {}
    let mut room = vec![0u8; 32 << 10];
    // SAFETY: handlers and stack live as long as the process needs them; structures are zeroed.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigaddset(&mut action.sa_mask, libc::SIGHUP);
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, null_mut()), 0);
        libc::signal(libc::SIGUSR2, libc::SIG_IGN);
        let stack = libc::stack_t {
            ss_sp: room.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: room.len(),
        };
        assert_eq!(libc::sigaltstack(&stack, null_mut()), 0);
    }
    let Some(seen) = observe() else { return };
    let signals = seen.process.signals.unwrap();
    let usr1 = signals[libc::SIGUSR1 as usize - 1];
    assert_eq!(usr1.handler, handler as *const () as u64);
    assert_eq!(usr1.mask, 1 << (libc::SIGHUP - 1));
    let set = (libc::SA_RESTART | libc::SA_ONSTACK) as u64;
    assert_eq!(usr1.flags & set, set);
    assert_ne!(usr1.restorer, 0);
    assert_eq!(signals[libc::SIGUSR2 as usize - 1].handler, 1);
    assert_eq!(signals.len(), 64);
    // The harness may run the test on a thread of its own.
    let tid = nix::unistd::gettid().as_raw();
    let own = seen.threads.iter().find(|t| t.tid == tid).unwrap();
    let stack = own.attributes.alt_stack.unwrap();
    assert_eq!(
        (stack.sp, stack.size),
        (room.as_ptr() as u64, room.len() as u64)
    );
    let off = libc::stack_t {
        ss_sp: null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    // SAFETY: turns the stack off before its memory goes.
    unsafe { libc::sigaltstack(&off, null_mut()) };
}

#[test]
fn timers_of_every_kind() {
    let seconds = |s| libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 7,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: s,
            tv_nsec: 0,
        },
    };
    let mut made = Vec::new();
    // SAFETY: structures are zeroed and live; the timers are of this process and far from expiring.
    unsafe {
        for (which, s) in [
            (libc::ITIMER_REAL, 1000),
            (libc::ITIMER_VIRTUAL, 2000),
            (libc::ITIMER_PROF, 3000),
        ] {
            let mut value: libc::itimerval = zeroed();
            value.it_value.tv_sec = s;
            value.it_interval.tv_sec = 5;
            assert_eq!(libc::setitimer(which, &value, null_mut()), 0);
        }
        for (n, (clock, flags)) in [
            (libc::CLOCK_MONOTONIC, 0),
            (libc::CLOCK_REALTIME, 0),
            (libc::CLOCK_REALTIME, libc::TIMER_ABSTIME),
            (libc::CLOCK_BOOTTIME, 0),
            (libc::CLOCK_PROCESS_CPUTIME_ID, 0),
            (libc::CLOCK_THREAD_CPUTIME_ID, 0),
        ]
        .into_iter()
        .enumerate()
        {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = match n {
                1 => libc::SIGEV_NONE,
                _ => libc::SIGEV_SIGNAL,
            };
            event.sigev_signo = libc::SIGUSR1 + (n as i32 % 2) * 2;
            event.sigev_value.sival_ptr = (0x1234_0000 + n) as *mut _;
            let mut timer = null_mut();
            assert_eq!(libc::timer_create(clock, &mut event, &mut timer), 0);
            let mut value = seconds(4000 + n as i64);
            if flags == libc::TIMER_ABSTIME {
                value.it_value.tv_sec = 4_000_000_000;
            }
            assert_eq!(libc::timer_settime(timer, flags, &value, null_mut()), 0);
            // The C library has another number for the same clock: that of process or thread 0, counting run time.
            let clock = match clock {
                libc::CLOCK_PROCESS_CPUTIME_ID => !0 << 3 | 2,
                libc::CLOCK_THREAD_CPUTIME_ID => !0 << 3 | 6,
                clock => clock,
            };
            // The C library hands the kernel's number on, in place of an address.
            let id = timer as usize as i32;
            made.push((id, clock, event.sigev_signo, flags, value.it_value.tv_sec));
        }
    }
    let Some(seen) = observe() else { return };
    let near = |left: u64, seconds: u64| {
        let want = seconds * 1_000_000_000;
        assert!(
            left <= want && left + 30_000_000_000 > want,
            "{left} for {want}"
        );
    };
    let [real, virtual_time, profiling] = seen.process.interval_timers.unwrap();
    near(real.left_ns, 1000);
    near(virtual_time.left_ns, 2000);
    near(profiling.left_ns, 3000);
    assert_eq!(profiling.interval_ns, 5_000_000_000);
    let timers = seen.process.timers.unwrap();
    assert_eq!(timers.len(), made.len(), "{timers:?}");
    for (n, (timer, (id, clock, signo, flags, seconds))) in timers.iter().zip(&made).enumerate() {
        assert_eq!((timer.id, timer.clock, timer.signo), (*id, *clock, *signo));
        assert_eq!(timer.value, 0x1234_0000 + n as u64);
        assert_eq!(timer.interval_ns, 7_000_000_000);
        match *flags {
            libc::TIMER_ABSTIME => {
                assert_eq!(timer.deadline_ns, Some(*seconds as u64 * 1_000_000_000))
            }
            _ => {
                assert_eq!(timer.deadline_ns, None);
                near(timer.left_ns, *seconds as u64);
            }
        }
    }
}

#[test]
fn a_periodic_timer_whose_signal_is_blocked_goes_on_and_counts() {
    // SAFETY: structures are zeroed and live; the signal is blocked before the timer is made.
    let timer = unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, null_mut());
        let mut event: libc::sigevent = zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR1;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = null_mut();
        assert_eq!(
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer),
            0
        );
        let mut value: libc::itimerspec = zeroed();
        value.it_value.tv_nsec = 1_000_000;
        value.it_interval.tv_nsec = 40_000_000;
        assert_eq!(libc::timer_settime(timer, 0, &value, null_mut()), 0);
        let begun = Instant::now();
        while begun.elapsed().as_millis() < 60 {
            std::hint::spin_loop();
        }
        timer
    };
    let seen = observe();
    // Tests may run in one process, one after the other, and the next counts its timers.
    // SAFETY: it was made above, and is not used any more.
    assert_eq!(unsafe { libc::timer_delete(timer) }, 0);
    let Some(seen) = seen else { return };
    let timers = seen.process.timers.unwrap();
    assert_eq!(timers.len(), 1);
    assert_eq!(timers[0].thread, Some(nix::unistd::gettid().as_raw()));
    assert!((1..=40_000_000).contains(&timers[0].left_ns), "{timers:?}");
}

#[test]
fn what_prctl_and_its_like_have_set() {
    // First: an ordinary user may not write them once this process is not to be dumped.
    std::fs::write("/proc/self/coredump_filter", "0x51").unwrap();
    std::fs::write("/proc/self/oom_score_adj", "321").unwrap();
    // SAFETY: system calls of this process on itself, with integers only.
    unsafe {
        libc::umask(0o137);
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGHUP, 0, 0, 0),
            0
        );
        assert_eq!(libc::prctl(libc::PR_SET_TIMERSLACK, 123_456, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(
                libc::PR_MCE_KILL,
                libc::PR_MCE_KILL_SET,
                libc::PR_MCE_KILL_EARLY,
                0,
                0
            ),
            0
        );
        assert_eq!(libc::personality(libc::ADDR_NO_RANDOMIZE as u64), 0);
        assert_eq!(libc::mlockall(libc::MCL_FUTURE | libc::MCL_ONFAULT), 0);
    }
    let Some(seen) = observe() else { return };
    let process = &seen.process;
    assert_eq!(process.umask, Some(0o137));
    assert_eq!(process.dumpable, Some(0));
    assert_eq!(process.subreaper, Some(true));
    assert_eq!(process.coredump_filter, Some(0x51));
    assert_eq!(process.oom_score_adj, Some(321));
    assert_eq!(
        process.lock_future,
        Some((libc::MCL_FUTURE | libc::MCL_ONFAULT) as u32)
    );
    assert_eq!(
        process.limits,
        snap_user::sys::limits(std::process::id() as i32).unwrap()
    );
    let tid = nix::unistd::gettid().as_raw();
    let own = seen.threads.iter().find(|t| t.tid == tid).unwrap();
    let own = &own.attributes;
    assert_eq!(own.parent_death_signal, Some(libc::SIGHUP));
    assert_eq!(own.personality, Some(libc::ADDR_NO_RANDOMIZE as u32));
    assert_eq!(own.timer_slack_ns, Some(123_456));
    assert_eq!(own.machine_check_kill, libc::PR_MCE_KILL_EARLY as u32);
    assert!(!own.io_flusher);
    assert_eq!(own.memory_policy, Some(Default::default()));
    // SAFETY: registers an intent, then asks which are; no pointers.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_membarrier, 1 << 4, 0, 0), 0);
        let registered = libc::syscall(libc::SYS_membarrier, 1 << 9, 0, 0);
        if registered >= 0 {
            let seen = observe().unwrap();
            assert_eq!(seen.process.membarrier, Some(registered as u32));
        }
    }
    let credentials = own.credentials.clone().unwrap();
    assert!(credentials.no_new_privs);
    let status = snap_user::sys::proc::task_status(std::process::id() as i32, tid).unwrap();
    assert_eq!(
        snap_user::model::Credentials {
            securebits: None,
            ..credentials
        },
        status.credentials
    );
    // SAFETY: a query without pointers.
    let securebits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    assert_eq!(
        own.credentials.as_ref().unwrap().securebits,
        Some(securebits as u32)
    );
    assert_eq!(own.speculation, status.speculation);
}

#[test]
fn each_thread_has_its_own_clear_child_tid_and_name() {
    let (send, receive) = std::sync::mpsc::channel();
    let threads: Vec<_> = (0..40)
        .map(|n| {
            let send = send.clone();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let handle = std::thread::Builder::new()
                .name(format!("worker-{n}"))
                .spawn(move || {
                    let mut address = 0u64;
                    // SAFETY: fills a live word.
                    unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
                    send.send((
                        nix::unistd::gettid().as_raw(),
                        format!("worker-{n}"),
                        address,
                    ))
                    .unwrap();
                    let _ = ended.recv();
                })
                .unwrap();
            (handle, end)
        })
        .collect();
    let told: Vec<_> = (0..40).map(|_| receive.recv().unwrap()).collect();
    if let Some(seen) = observe() {
        for (tid, name, address) in told {
            let thread = seen.threads.iter().find(|t| t.tid == tid).unwrap();
            assert_eq!(thread.comm, name);
            assert_eq!(thread.attributes.clear_child_tid, Some(address));
        }
    }
    for (handle, end) in threads {
        drop(end);
        handle.join().unwrap();
    }
}

#[test]
fn traps_of_a_thread_and_denial_of_writable_code() {
    use snap_user::sys::{Trap, set_trap};
    // SAFETY: takes integers; from here on this process may not make written memory executable.
    let denied = unsafe { libc::prctl(65, 1, 0, 0, 0) } == 0;
    let (send, receive) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let tid = nix::unistd::gettid().as_raw();
        set_trap(Trap::Tsc, true);
        // Neither sending nor waiting without a limit looks at a clock.
        send.send(tid).unwrap();
        let _ = ended.recv();
        set_trap(Trap::Tsc, false);
    });
    let tid = receive.recv().unwrap();
    if let Some(seen) = observe() {
        let of = |tid: i32| seen.threads.iter().find(|t| t.tid == tid).unwrap();
        assert_eq!(of(tid).attributes.tsc_faults, Some(true));
        let own = of(nix::unistd::gettid().as_raw());
        assert_eq!(own.attributes.tsc_faults, Some(false));
        if let Some(seen) = seen.process.write_execute_denied {
            assert_eq!(seen, u32::from(denied));
        }
    }
    drop(end);
    thread.join().unwrap();
}

#[test]
fn what_threads_have_registered_and_what_waits_for_them() {
    // SAFETY: the set is zeroed; the signal is blocked before it is sent to this thread.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigaddset(&mut set, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, null_mut());
        libc::syscall(libc::SYS_tkill, libc::gettid(), libc::SIGUSR1);
    }
    let Some(seen) = observe() else { return };
    let tid = nix::unistd::gettid().as_raw();
    let own = seen.threads.iter().find(|t| t.tid == tid).unwrap();
    assert!(own.pending);
    let list = snap_user::sys::ptrace::robust_list(tid).unwrap();
    assert_eq!(own.robust_list, list);
    assert!(list.is_some(), "the C library has registered one");
    // From glibc 2.35 on the C library registers one for each thread, with this signature.
    if let Some(Some(rseq)) = own.rseq {
        assert_eq!(rseq.signature, 0x5305_3053);
        assert!(rseq.size >= 20, "{rseq:?}");
    }
    for other in seen.threads.iter().filter(|t| t.tid != tid) {
        assert!(!other.pending);
    }
}
