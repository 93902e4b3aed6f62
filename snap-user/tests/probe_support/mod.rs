//! Victims in processes of their own.
//!
//! A victim is the test binary again, started with the victim's name in the environment: it says what it prepared, waits
//! for a line, acts, and says what it did. So each test binary has a test `victim`, which calls [`act`].
#![allow(
    unsafe_code,
    reason = "victims make raw system calls on memory of their own"
)]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::skip;
use snap_user::model::PAGE_SIZE;
use snap_user::probe::{Event, FaultSource, ProbeOptions, Probes};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Set to run all tests on the second source of faults where the first one works.
const FORCE_TRACEPOINTS: &str = "KSNAP_PROBE_TRACEPOINTS";
const VICTIM: &str = "KSNAP_PROBE_VICTIM";
const VICTIM_FILE: &str = "KSNAP_PROBE_VICTIM_FILE";
pub const PAGES: u64 = 500;

/// The probes, or a printed reason why this test cannot run here.
pub fn probes_with(options: &ProbeOptions) -> Option<Probes> {
    let mut options = options.clone();
    if std::env::var_os(FORCE_TRACEPOINTS).is_some() {
        options.fault_source = Some(FaultSource::Tracepoints);
    }
    skip::loaded(&options)
}

pub fn probes() -> Option<Probes> {
    probes_with(&ProbeOptions::default())
}

/// Drains until `enough` says so, or a minute has passed.
pub fn drain_until(probes: &mut Probes, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        probes.drain(|event| events.push(*event));
        if enough(&events) || Instant::now() > deadline {
            return events;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub struct Victim {
    pub child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Victim {
    pub fn start(name: &str) -> Self {
        Self::start_on(name, std::path::Path::new("/dev/null"))
    }

    /// A victim that works on a file.
    pub fn start_on(name: &str, file: &std::path::Path) -> Self {
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

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The numbers in the victim's next line.
    pub fn hear(&mut self) -> Vec<u64> {
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

    pub fn go(&mut self) {
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
pub fn act() {
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

pub fn faults(events: &[Event], process: u32) -> BTreeSet<u64> {
    let page = |event: &Event| match event {
        Event::Fault { tgid, page, .. } if *tgid == process => Some(*page),
        _ => None,
    };
    events.iter().filter_map(page).collect()
}
