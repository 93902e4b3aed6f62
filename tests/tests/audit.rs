//! `--audit` finds what the snapshot does not have.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use tests::{Ksnap, Python, require};

/// A page whose content nobody in the process touches again.
const SCRIPT: &str = r#"
import ctypes, mmap, time
page = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 64 << 20, 4096):
    page[at] = 1
print(ctypes.addressof(ctypes.c_char.from_buffer(page)), flush=True)
time.sleep(1000)
"#;

/// Another process writes all the time, also between the moment in which a page is copied and the one in which it is
/// compared, both of which lie in the stop.
#[test]
fn a_page_that_is_not_what_was_stored_is_named_and_fails_the_audit() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Python::script(SCRIPT)?;
    let line = script.line(std::time::Duration::from_secs(60))?;
    let address: u64 = line.trim().parse().context(line)?;
    // The last page: all before it are compared before it is.
    let last = address + (64 << 20) - 4096;
    let pid = script.pid().to_string();
    let clean = ksnap.run(&["snap", &pid, "--audit"])?;
    ensure!(clean.code()? == 0, "{clean:?}");
    let memory = std::fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/mem"))?;
    let ended = AtomicBool::new(false);
    let audited = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !ended.load(Ordering::Relaxed) {
                n += 1;
                if memory.write_at(&n.to_ne_bytes(), last + 8).is_err() {
                    break;
                }
            }
        });
        let audited = ksnap.run(&["snap", &pid, "--audit"]);
        ended.store(true, Ordering::Relaxed);
        audited
    })?;
    ensure!(audited.code()? == 1, "{audited:?}");
    let named = format!("{last:#x} in ");
    ensure!(audited.stderr.contains("audit: 1 page"), "{audited:?}");
    ensure!(audited.stderr.contains(&named), "{audited:?}");
    ensure!(audited.stderr.contains("process_vm_writev"), "{audited:?}");
    // What is stored is whole all the same, and the next one is right.
    ksnap.ok(&["verify"])?;
    let again = ksnap.run(&["snap", &pid, "--audit"])?;
    ensure!(again.code()? == 0, "{again:?}");
    Ok(())
}
