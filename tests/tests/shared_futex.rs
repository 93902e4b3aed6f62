//! Pages that the kernel makes writable for a call on a futex, as whoever joins a thread does, without a fault.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Footprint, Ksnap, Python, Watch, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Writes to page after page, each behind a call on a futex in it that other processes might share. After
/// tracking has been armed again, the call is the first to need the page writable, so that the write has no fault.
const SCRIPT: &str = r#"
import ctypes, mmap, platform
FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]
WAIT, NEVER = 0, 0xffffffff
libc = ctypes.CDLL(None)
area = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
base = ctypes.addressof(ctypes.c_char.from_buffer(area))
pages = []
for at in range(base, base + len(area), 4096):
    call = (FUTEX, ctypes.c_void_p(at), WAIT, ctypes.c_uint(NEVER), None, None, 0)
    pages.append((call, ctypes.c_uint32.from_address(at)))
syscall, n = libc.syscall, 0
print("ready")
while True:
    n = (n + 1) % NEVER
    for call, word in pages:
        syscall(*call)
        word.value = n
"#;

#[test]
fn what_is_written_behind_a_call_on_a_shared_futex_is_in_the_snapshots() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SCRIPT)?;
    ensure!(python.line(LIMIT)? == "ready");
    let pid = python.pid();
    let before = Footprint::of(pid)?;
    let mut watch = Watch::start(&ksnap, pid, &["--every", "20ms", "--audit"])?;
    watch.wait_taken(20, LIMIT)?;
    watch.interrupt(LIMIT)?.none_failed()?;
    Footprint::of(pid)?.nothing_left_since(&before)?;
    ksnap.ok(&["verify"])?;
    Ok(())
}
