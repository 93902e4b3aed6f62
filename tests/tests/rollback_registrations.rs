//! A rollback to a moment in a thread's start, when it has not registered yet with the kernel what each does then.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::python::{ask, tell};
use tests::{Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(60);

// The C library ends a program in which the registration of its restartable sequences fails.

/// Takes the C library's registration back, or makes it again, on request; prints 0 or the error number.
const RSEQ: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.pthread_self.restype = ctypes.c_void_p
area = libc.pthread_self() + ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value
def rseq(length, flags):
    done = libc.syscall(334, ctypes.c_void_p(area), length, flags, 0x53053053)
    return 0 if done == 0 else ctypes.get_errno()
length = next((n for n in range(20, 129) if rseq(n, 1) == 0), 0)
print("ready", length, rseq(length, 0))
while True:
    word = os.read(0, 100).decode().strip()
    if word == "off":
        print(rseq(length, 1))
    elif word == "on":
        print(rseq(length, 0))
    else:
        sys.exit(0)
"#;

struct Script(Python);

impl Script {
    fn start(text: &str) -> Result<Self> {
        let mut python = Python::script(text)?;
        let line = python.line(LIMIT)?;
        ensure!(line.starts_with("ready") && !line.contains(" 0 "), "{line}");
        Ok(Self(python))
    }

    fn ask(&mut self, word: &str) -> Result<i32> {
        Ok(ask(self.0.process(), word)?.parse()?)
    }

    fn snapshot(&self, ksnap: &Ksnap) -> Result<String> {
        ksnap.snap(self.0.pid(), &["--audit"])
    }

    fn roll_back(&self, ksnap: &Ksnap, id: &str) -> Result<()> {
        ksnap.roll_back(self.0.pid(), id).map(drop)
    }

    fn end(mut self) -> Result<()> {
        tell(self.0.process(), "end")?;
        self.0.finish(LIMIT)?.success().map(drop)
    }
}

#[test]
fn a_registration_made_since_is_taken_back_and_one_taken_back_since_is_made_again() -> Result<()> {
    require!(Root, Ksnap, Rseq, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Script::start(RSEQ)?;
    ensure!(script.ask("off")? == 0);
    let without = script.snapshot(&ksnap)?;
    ensure!(script.ask("on")? == 0);
    let with = script.snapshot(&ksnap)?;
    for _ in 0..2 {
        script.roll_back(&ksnap, &without)?;
        ensure!(script.ask("on")? == 0, "still registered");
        script.roll_back(&ksnap, &without)?;
        script.roll_back(&ksnap, &with)?;
        ensure!(script.ask("on")? == libc::EBUSY, "not registered");
        ensure!(script.ask("off")? == 0, "another one registered");
    }
    script.end()
}

/// A thread that takes its robust list back, as if it had not come so far as to register one, and one that waits for
/// its end on request.
const UNREGISTERED: &str = r#"
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
end = threading.Event()
def work(_):
    libc.syscall(273, None, 24)
    print("ready")
    end.wait()
    return None
work = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(work)
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, work, None)
while True:
    word = os.read(0, 100).decode().strip()
    if word == "join":
        end.set()
        # Waits for the word that the kernel clears.
        print(libc.pthread_join(thread, None))
    else:
        sys.exit(0)
"#;

#[test]
fn whoever_waits_for_the_end_of_a_thread_made_again_is_told_though_it_had_no_robust_list()
-> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut script = Script::start(UNREGISTERED)?;
    std::thread::sleep(Duration::from_millis(20));
    let alive = script.snapshot(&ksnap)?;
    for _ in 0..3 {
        ensure!(script.ask("join")? == 0);
        script.roll_back(&ksnap, &alive)?;
    }
    ensure!(script.ask("join")? == 0);
    script.end()
}
