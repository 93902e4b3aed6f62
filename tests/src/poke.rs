//! Damages a process's memory on purpose, so that a test can see the damage found.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// Inverts bytes in another process's memory. Works on read-only pages too, as a debugger's write does.
pub fn invert(pid: i32, address: u64, length: usize) -> Result<()> {
    let path = format!("/proc/{pid}/mem");
    let memory = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {path}"))?;
    let mut bytes = vec![0; length];
    memory
        .read_exact_at(&mut bytes, address)
        .with_context(|| format!("read {length} bytes at {address:#x} of {pid}"))?;
    for byte in &mut bytes {
        *byte = !*byte;
    }
    memory
        .write_all_at(&bytes, address)
        .with_context(|| format!("write {length} bytes at {address:#x} of {pid}"))
}
