//! The probes on the running kernel, against victims in processes of their own.
//!
//! A victim is this test binary again, started with the victim's name in the environment: it says
//! what it prepared, waits for a line, acts, and says what it did.
#![allow(
    unsafe_code,
    reason = "victims make raw system calls on memory of their own"
)]

mod skip;

use snap_user::model::{PAGE_SIZE, PageRange};
use snap_user::probe::{
    Drained, Event, FaultSource, HazardKind, MappingKind, ProbeError, ProbeOptions, Probes,
};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Set to run all tests on the second source of faults where the first one works.
const FORCE_TRACEPOINTS: &str = "KSNAP_PROBE_TRACEPOINTS";
const VICTIM: &str = "KSNAP_PROBE_VICTIM";
const VICTIM_FILE: &str = "KSNAP_PROBE_VICTIM_FILE";
const PAGES: u64 = 500;

/// The probes, or a printed reason why this test cannot run here.
fn probes_with(options: &ProbeOptions) -> Option<Probes> {
    let mut options = options.clone();
    if std::env::var_os(FORCE_TRACEPOINTS).is_some() {
        options.fault_source = Some(FaultSource::Tracepoints);
    }
    match Probes::load(&options) {
        Ok(probes) => Some(probes),
        Err(error @ (ProbeError::NotPermitted { .. } | ProbeError::PidNamespace { .. })) => {
            skip::skip(
                &format!("the right to load the probes ({error})"),
                "run the tests as root",
            );
            None
        }
        Err(error @ ProbeError::NoBtf { .. }) => {
            skip::skip(
                &format!("what the probes need of the kernel ({error})"),
                "use a kernel with CONFIG_DEBUG_INFO_BTF",
            );
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn probes() -> Option<Probes> {
    probes_with(&ProbeOptions::default())
}

/// Drains until `enough` says so, or two seconds have passed.
fn drain_until(probes: &mut Probes, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        probes.drain(|event| events.push(*event));
        if enough(&events) || Instant::now() > deadline {
            return events;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Victim {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Victim {
    fn start(name: &str) -> Self {
        Self::start_on(name, std::path::Path::new("/dev/null"))
    }

    /// A victim that works on a file.
    fn start_on(name: &str, file: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
            .env(VICTIM, name)
            .env(VICTIM_FILE, file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            stdin,
            stdout,
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The numbers in the victim's next line.
    fn hear(&mut self) -> Vec<u64> {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            if let Some((_, words)) = line.split_once("victim:") {
                return words
                    .split_whitespace()
                    .map(|word| word.parse().unwrap())
                    .collect();
            }
            line.clear();
        }
        panic!("the victim ended without a word");
    }

    fn go(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(words: &[u64]) {
    let words: Vec<String> = words.iter().map(u64::to_string).collect();
    println!("\nvictim: {}", words.join(" "));
    std::io::stdout().flush().unwrap();
}

fn await_go() {
    std::io::stdin().read_exact(&mut [0]).unwrap();
}

fn map(pages: u64) -> u64 {
    // SAFETY: a new anonymous mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            (pages * PAGE_SIZE) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: the mapping just made. Small pages make each first write a fault.
    unsafe { libc::madvise(at, (pages * PAGE_SIZE) as usize, libc::MADV_NOHUGEPAGE) };
    at as u64
}

fn write_pages(at: u64, pages: u64) {
    for page in 0..pages {
        // SAFETY: inside a mapping of this victim.
        unsafe { ((at + page * PAGE_SIZE) as *mut u8).write_volatile(1) };
    }
}

/// The other side of every test: does nothing unless it was started as a victim.
#[test]
fn victim() {
    let Ok(name) = std::env::var(VICTIM) else {
        return;
    };
    match name.as_str() {
        "writer" => {
            let at = map(PAGES);
            say(&[at]);
            await_go();
            write_pages(at, PAGES);
            say(&[at]);
        }
        "forker" => {
            let at = map(PAGES);
            say(&[at]);
            await_go();
            // SAFETY: the child only writes memory and leaves.
            let child = unsafe { libc::fork() };
            if child == 0 {
                write_pages(at, PAGES);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) };
            }
            // SAFETY: waits for the child made above.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            std::thread::spawn(|| {}).join().unwrap();
            say(&[child as u64]);
        }
        "mapper" => {
            say(&[]);
            await_go();
            let at = map(8);
            let bytes = 8 * PAGE_SIZE as usize;
            let address = at as *mut libc::c_void;
            // SAFETY: all on the mapping made above, and no pointer into it is kept.
            let moved = unsafe {
                libc::mprotect(address, bytes / 2, libc::PROT_READ);
                libc::madvise(address, bytes, libc::MADV_DONTNEED);
                libc::mprotect(address, bytes, libc::PROT_READ | libc::PROT_WRITE);
                let moved = libc::mremap(address, bytes, 4 * bytes, libc::MREMAP_MAYMOVE);
                assert_ne!(moved, libc::MAP_FAILED);
                libc::munmap(moved, 4 * bytes);
                moved as u64
            };
            say(&[at, moved]);
        }
        "direct-reader" => {
            use std::os::fd::AsRawFd;
            use std::os::unix::fs::OpenOptionsExt;
            let path = std::env::var(VICTIM_FILE).unwrap();
            let file = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(path)
                .unwrap();
            let at = map(6);
            say(&[at]);
            await_go();
            let part = |page: u64, pages: u64| libc::iovec {
                iov_base: (at + page * PAGE_SIZE) as *mut libc::c_void,
                iov_len: (pages * PAGE_SIZE) as usize,
            };
            let (plain, vector) = (part(0, 2), [part(2, 1), part(4, 2)]);
            // SAFETY: both reads fill memory of the mapping made above.
            let got = unsafe {
                let plain = libc::pread(file.as_raw_fd(), plain.iov_base, plain.iov_len, 0);
                plain + libc::preadv(file.as_raw_fd(), vector.as_ptr(), 2, 0)
            };
            say(&[got as u64]);
        }
        "watcher" => {
            let mut probes = Probes::load(&ProbeOptions::default()).unwrap();
            probes.track(std::os::unix::process::parent_id()).unwrap();
            let stats = probes.program_stats().unwrap();
            say(&stats
                .iter()
                .map(|program| u64::from(program.id))
                .collect::<Vec<_>>());
            await_go();
        }
        "idle" => {
            let at = map(1);
            say(&[at]);
        }
        other => panic!("no victim is called {other}"),
    }
    await_go();
}

fn faults(events: &[Event], process: u32) -> BTreeSet<u64> {
    let page = |event: &Event| match event {
        Event::Fault { tgid, page, .. } if *tgid == process => Some(*page),
        _ => None,
    };
    events.iter().filter_map(page).collect()
}

#[test]
fn every_freshly_written_page_has_a_fault_event_of_the_thread_that_wrote_it() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("writer");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    victim.go();
    victim.hear();

    let wanted: BTreeSet<u64> = PageRange::new(at, at + PAGES * PAGE_SIZE).iter().collect();
    let events = drain_until(&mut probes, |events| {
        wanted.is_subset(&faults(events, victim.pid()))
    });
    let seen = faults(&events, victim.pid());
    let missing: Vec<&u64> = wanted.difference(&seen).collect();
    assert!(
        missing.is_empty(),
        "{missing:x?} of {PAGES} pages are missing"
    );

    let mut last = 0;
    for event in &events {
        if let Event::Fault {
            page,
            user,
            remote,
            ip,
            time_ns,
            tid,
            ..
        } = event
            && wanted.contains(page)
        {
            assert!(*user && !*remote && *ip != 0, "{event:?}");
            assert!(*tid >= victim.pid() && *time_ns >= last, "{event:?}");
            last = *time_ns;
        }
    }
}

#[test]
fn a_forked_child_is_tracked_from_its_first_write() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("forker");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    victim.go();
    let child = victim.hear()[0] as u32;

    let ended = |events: &[Event]| {
        events
            .iter()
            .any(|e| matches!(e, Event::Exit { tgid, last: true, .. } if *tgid == child))
            && events
                .iter()
                .any(|e| matches!(e, Event::ThreadStart { .. }))
    };
    let events = drain_until(&mut probes, ended);
    assert!(ended(&events), "{:?}", events.last());
    let fork = events.iter().position(|e| {
        matches!(e, Event::Fork { parent, child: c, shares_memory: false, .. }
            if *parent == victim.pid() && *c == child)
    });
    let first = events
        .iter()
        .position(|e| matches!(e, Event::Fault { tgid, .. } if *tgid == child));
    assert!(fork.unwrap() < first.unwrap());
    let wanted: BTreeSet<u64> = PageRange::new(at, at + PAGES * PAGE_SIZE).iter().collect();
    assert!(wanted.is_subset(&faults(&events, child)));
    assert_eq!(
        probes.tracked().collect::<Vec<_>>(),
        [victim.pid()],
        "the child has ended"
    );
}

#[test]
fn mapping_changes_arrive_in_order_with_their_ranges() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("mapper");
    victim.hear();
    probes.track(victim.pid()).unwrap();
    victim.go();
    let told = victim.hear();
    let (at, moved) = (told[0], told[1]);

    let size = 8 * PAGE_SIZE;
    let whole = Some(PageRange::new(at, at + size));
    let half = Some(PageRange::new(at, at + size / 2));
    let grown = Some(PageRange::new(moved, moved + 4 * size));
    let dontneed = MappingKind::Madvise(libc::MADV_DONTNEED);
    let nohuge = MappingKind::Madvise(libc::MADV_NOHUGEPAGE);
    let wanted = [
        (MappingKind::Mmap, None, whole),
        (nohuge, whole, whole),
        (MappingKind::Mprotect, half, half),
        (dontneed, whole, whole),
        (MappingKind::Mprotect, whole, whole),
        (MappingKind::Mremap, whole, grown),
        (MappingKind::Munmap, grown, None),
    ];
    let changes = |events: &[Event]| -> Vec<_> {
        let change = |event: &Event| match event {
            Event::Mapping { tgid, change, .. } if *tgid == victim.pid() => {
                Some((change.kind, change.old, change.new))
            }
            _ => None,
        };
        events.iter().filter_map(change).collect()
    };
    let found = |events: &[Event]| changes(events).windows(7).any(|seven| seven == wanted);
    let events = drain_until(&mut probes, found);
    assert!(found(&events), "{:x?}", changes(&events));
}

#[test]
fn a_ring_that_is_too_small_counts_what_it_loses() {
    let Some(mut probes) = probes_with(&ProbeOptions {
        ring_bytes: 4096,
        ..Default::default()
    }) else {
        return;
    };
    let mut victim = Victim::start("writer");
    victim.hear();
    assert_eq!(
        probes.drain(|_| {}),
        Drained {
            events: 0,
            drops_total: 0
        }
    );
    probes.track(victim.pid()).unwrap();
    victim.go();
    victim.hear();
    let drained = probes.drain(|_| {});
    assert!(drained.drops_total > 0 && drained.events > 0, "{drained:?}");
    assert!(drained.events + drained.drops_total >= PAGES, "{drained:?}");
}

#[test]
fn a_ptrace_stop_is_timed_as_the_thread_saw_it() {
    use nix::sys::{ptrace, wait};
    let Some(mut probes) = probes() else { return };
    if !probes.times_stops() {
        skip::skip(
            "the state of a task in sched_switch",
            "use Linux 5.18 or newer",
        );
        return;
    }
    let mut victim = Victim::start("idle");
    victim.hear();
    probes.track(victim.pid()).unwrap();
    let pid = nix::unistd::Pid::from_raw(victim.pid() as i32);
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    let pause = Duration::from_millis(30);
    ptrace::interrupt(pid).unwrap();
    wait::waitpid(pid, None).unwrap();
    std::thread::sleep(pause);
    ptrace::detach(pid, None).unwrap();

    let stop = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::Stopped {
                tgid,
                tid,
                start_ns,
                end_ns,
            } if *tgid == victim.pid() => Some((*tid, Duration::from_nanos(end_ns - start_ns))),
            _ => None,
        })
    };
    let events = drain_until(&mut probes, |events| stop(events).is_some());
    let (tid, length) = stop(&events).expect("an event for the stop");
    assert_eq!(tid, victim.pid());
    assert!(length >= pause && length < pause * 20, "{length:?}");
}

#[test]
fn a_write_by_another_process_is_a_remote_fault_or_a_hazard() {
    use nix::sys::uio::{RemoteIoVec, process_vm_writev};
    // Nobody's id: this process is the stranger here.
    let Some(mut probes) = probes_with(&ProbeOptions {
        own_tgid: 0,
        ..Default::default()
    }) else {
        return;
    };
    let mut victim = Victim::start("idle");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    let pid = nix::unistd::Pid::from_raw(victim.pid() as i32);
    let remote = [RemoteIoVec {
        base: at as usize,
        len: 4,
    }];
    let local = [std::io::IoSlice::new(b"text")];
    assert_eq!(process_vm_writev(pid, &local, &remote).unwrap(), 4);

    let (locks, faults_too) = (probes.sees_page_locks(), probes.sees_gup_writes());
    let told = |events: &[Event]| {
        let hazard = |wanted: HazardKind, process: Option<u32>| {
            events.iter().any(|e| {
                matches!(e, Event::Hazard { kind, tgid, .. } if *kind == wanted && *tgid == process)
            })
        };
        let fault = events.iter().any(|e| {
            matches!(e, Event::Fault { page, remote: true, tgid, .. } if *page == at && *tgid == victim.pid())
        });
        let lock = hazard(HazardKind::PageLock { syscall: None }, Some(victim.pid()));
        (fault || !faults_too) && (lock || !locks) && hazard(HazardKind::RemoteWrite, None)
    };
    let events = drain_until(&mut probes, told);
    assert!(told(&events), "{events:?}");
}

#[test]
fn ksnap_s_own_writes_are_no_hazard() {
    use nix::sys::uio::{RemoteIoVec, process_vm_writev};
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("idle");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    let pid = nix::unistd::Pid::from_raw(victim.pid() as i32);
    let remote = [RemoteIoVec {
        base: at as usize,
        len: 4,
    }];
    process_vm_writev(pid, &[std::io::IoSlice::new(b"text")], &remote).unwrap();
    let mine = |event: &Event| matches!(event, Event::Hazard { tid, .. } if *tid == nix::unistd::gettid().as_raw() as u32);
    let mut events = Vec::new();
    probes.drain(|event| events.push(*event));
    assert!(!events.iter().any(mine), "{events:?}");
}

#[test]
fn direct_reads_are_hazards_with_the_range_of_each_buffer() {
    let Some(mut probes) = probes() else { return };
    // Beside this program: /tmp is often a file system without O_DIRECT.
    let folder = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(folder.parent().unwrap()).unwrap();
    std::fs::write(file.path(), [7; 6 * PAGE_SIZE as usize]).unwrap();
    let direct = {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(file.path())
    };
    if let Err(error) = direct {
        eprintln!(
            "skipped (file system): no O_DIRECT on {}: {error}",
            file.path().display()
        );
        return;
    }
    let mut victim = Victim::start_on("direct-reader", file.path());
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    victim.go();
    assert_eq!(victim.hear(), [5 * PAGE_SIZE], "the reads worked");

    let range = |page: u64, pages: u64| {
        PageRange::new(at + page * PAGE_SIZE, at + (page + pages) * PAGE_SIZE)
    };
    let wanted = [range(0, 2), range(2, 1), range(4, 2)];
    let ranges = |events: &[Event]| -> Vec<PageRange> {
        let range = |event: &Event| match event {
            Event::Hazard {
                kind: HazardKind::DirectRead,
                tgid,
                range,
                ..
            } => {
                assert_eq!(*tgid, Some(victim.pid()));
                *range
            }
            _ => None,
        };
        events.iter().filter_map(range).collect()
    };
    let events = drain_until(&mut probes, |events| ranges(events).len() >= wanted.len());
    assert_eq!(ranges(&events), wanted);
    // tmpfs takes O_DIRECT and copies all the same: then there are fault events instead.
    let file_system = nix::sys::statfs::statfs(file.path())
        .unwrap()
        .filesystem_type();
    if probes.sees_page_locks() && file_system != nix::sys::statfs::TMPFS_MAGIC {
        let lock = HazardKind::PageLock {
            syscall: Some(libc::SYS_pread64 as u32),
        };
        let is_lock = |e: &Event| matches!(e, Event::Hazard { kind, .. } if *kind == lock);
        assert!(events.iter().any(is_lock), "the lock is seen: {events:?}");
    }
}

#[test]
fn programs_are_attached_only_while_something_is_tracked_and_gone_afterwards() {
    let Some(mut probes) = probes() else { return };
    let victim = Victim::start("idle");
    assert!(!probes.is_attached());
    probes.track(victim.pid()).unwrap();
    assert!(probes.is_attached());
    probes.untrack(victim.pid()).unwrap();
    assert!(!probes.is_attached());

    probes.track(victim.pid()).unwrap();
    drop(victim);
    drain_until(&mut probes, |events| {
        events
            .iter()
            .any(|e| matches!(e, Event::Exit { last: true, .. }))
    });
    assert!(!probes.is_attached(), "the last target has ended");
}

/// Which of these programs the kernel still has.
fn still_loaded(ids: &[u64]) -> usize {
    aya::programs::loaded_programs()
        .filter(|program| {
            program
                .as_ref()
                .is_ok_and(|p| ids.contains(&u64::from(p.id())))
        })
        .count()
}

#[test]
fn a_killed_ksnap_leaves_no_program_behind() {
    if probes().is_none() {
        return;
    }
    let mut watcher = Victim::start("watcher");
    let ids = watcher.hear();
    assert!(ids.len() >= 6);
    assert_eq!(still_loaded(&ids), ids.len());
    watcher.child.kill().unwrap();
    watcher.child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    // The kernel frees programs after a grace period.
    while still_loaded(&ids) > 0 {
        assert!(
            Instant::now() < deadline,
            "{} programs are left",
            still_loaded(&ids)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn statistics_count_runs_and_time() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("writer");
    victim.hear();
    probes.count_costs(true).unwrap();
    probes.track(victim.pid()).unwrap();
    victim.go();
    victim.hear();
    let stats = probes.program_stats().unwrap();
    let of = |name: &str| stats.iter().find(|s| s.name == name).copied();
    let fault = match probes.fault_source() {
        FaultSource::HandleMmFault => of("handle_mm_fault"),
        FaultSource::Tracepoints => of("page_fault_user"),
    }
    .unwrap();
    assert!(
        fault.run_count >= PAGES && !fault.run_time.is_zero(),
        "{stats:?}"
    );
    assert!(of("sys_exit").unwrap().run_count > 0, "{stats:?}");
}
