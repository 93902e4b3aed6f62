//! What a process copies or moves within its memory is stored once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::python::ask;
use tests::{Ksnap, Python, Watch, require};

const LIMIT: Duration = Duration::from_secs(120);
/// What a copy of 16 MiB may take: the index, and what the interpreter itself changes.
const LITTLE: u64 = 2 << 20;

/// Memory of noise, copied and moved on demand.
const SCRIPT: &str = r#"
import mmap, os, sys
size = 16 << 20
def room(n):
    return mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
noise = room(size)
noise[:] = os.urandom(size)
digest = hash(noise[:])
others = []
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "copy":
        others.append(room(size))
        others[-1][:] = noise[:size]
    elif word == "move":
        noise.resize(4 * size)
    print(word, all(hash(one[:size]) == digest for one in [noise, *others]), flush=True)
"#;

/// Bytes of the snapshots that are there beside `before`.
fn stored(ksnap: &Ksnap, before: &[String]) -> Result<u64> {
    let all = ksnap.json(&["log"])?;
    let new = all
        .iter()
        .filter(|one| !before.iter().any(|id| one["id"] == **id));
    Ok(new.filter_map(|one| one["file_bytes"].as_u64()).sum())
}

#[test]
fn memory_that_is_copied_or_moved_is_stored_once() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Python::script(SCRIPT)?;
    ensure!(script.line(LIMIT)?.trim() == "ready");
    let mut watch = Watch::start(&ksnap, script.pid(), &["--every", "50ms", "--audit"])?;
    watch.wait_taken(2, LIMIT)?;
    let first = watch.ids()?.last().context("no snapshot")?.clone();
    let base = stored(&ksnap, &[])?;
    ensure!(base > 16 << 20, "the noise took {base} bytes");
    for word in ["copy", "move", "copy"] {
        let before = watch.ids()?;
        ensure!(ask(script.process(), word)? == format!("{word} True"));
        watch.wait_taken(before.len() + 3, LIMIT)?;
        let took = stored(&ksnap, &before)?;
        ensure!(took < LITTLE, "{word} took {took} bytes");
    }
    // All of it comes back, from wherever it was stored.
    let last = watch.ids()?.last().context("no snapshot")?.clone();
    let pid = script.pid().to_string();
    for id in [&first, &last, &first, &last] {
        ksnap.ok(&["rollback", &pid, id, "-y"])?;
    }
    ensure!(ask(script.process(), "still")? == "still True");
    watch.interrupt(LIMIT)?.none_failed()?;
    ksnap.ok(&["squash", &format!("{first}..{last}"), "-y"])?;
    ksnap.ok(&["verify"])?;
    ksnap.ok(&["rollback", &pid, &last, "-y"])?;
    ensure!(ask(script.process(), "again")? == "again True");
    Ok(())
}
