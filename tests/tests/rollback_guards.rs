//! Rollbacks between moments in which pages are guards: memory that is mapped, and that nothing may touch.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::python::{ask, tell};
use tests::{Ksnap, Python, require};

const LIMIT: Duration = Duration::from_secs(60);

/// `guard`, `write N` and `take` on one page of memory; `look` prints its first byte, or -1 where the kernel refuses to
/// read it.
const SCRIPT: &str = r#"
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + 16 * 4096
memory[16 * 4096] = 1
def advise(advice):
    return libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(4096), advice)
fd = os.open("/proc/self/mem", os.O_RDONLY)
def look():
    try:
        return os.pread(fd, 1, page)[0]
    except OSError:
        return -1
print("ready")
while True:
    words = os.read(0, 100).decode().split()
    if words[0] == "guard":
        print(advise(102))
    elif words[0] == "take":
        print(advise(103))
    elif words[0] == "write":
        memory[16 * 4096] = int(words[1])
        print(0)
    elif words[0] == "look":
        print(look())
    else:
        sys.exit(0)
"#;

#[test]
fn a_guard_page_that_was_a_page_of_its_own_meanwhile_is_one_again() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Kernel(6, 15));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SCRIPT)?;
    ensure!(python.line(LIMIT)? == "ready");
    let pid = python.pid();
    let mut say = |word: &str| {
        ask(python.process(), word)?
            .parse::<i32>()
            .map_err(Into::<anyhow::Error>::into)
    };
    ensure!(say("guard")? == 0);
    let guarded = ksnap.snap(pid, &["--audit"])?;
    // A guard again in the end, but written in between: its content may differ, and it has none.
    for word in ["take", "write 7", "guard"] {
        ensure!(say(word)? == 0, "{word}");
    }
    let again = ksnap.snap(pid, &["--audit"])?;
    ensure!(say("take")? == 0 && say("write 9")? == 0);
    let written = ksnap.snap(pid, &["--audit"])?;
    for _ in 0..2 {
        for (id, byte) in [(&again, -1), (&guarded, -1), (&written, 9)] {
            ksnap.roll_back(pid, id)?;
            let found = say("look")?;
            ensure!(found == byte, "{found} instead of {byte}");
        }
    }
    tell(python.process(), "end")?;
    python.finish(LIMIT)?.success().map(drop)
}
