//! What a process copies or moves within its memory is stored once, and what several have.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::python::ask;
use tests::{Ksnap, Python, Watch, require};

const LIMIT: Duration = Duration::from_secs(120);
/// What the program has of each kind of noise.
const SIZE: u64 = 16 << 20;
/// What a copy of it may take: the index, and what the interpreter itself changes.
const LITTLE: u64 = 2 << 20;

/// Memory of noise, copied and moved on demand, and other that swings between two contents.
const SCRIPT: &str = r#"
import mmap, random, sys, zlib
size = 16 << 20
def room(n):
    return mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
# In pieces, and without copies that would be memory too.
def fill(place, seed):
    pieces = random.Random(seed)
    for at in range(0, size, 1 << 16):
        place[at:at + (1 << 16)] = pieces.randbytes(1 << 16)
def digest(place):
    return zlib.crc32(memoryview(place)[:size])
noise, twin, swing = room(size), room(size), room(size)
fill(noise, 0)
twin[:] = memoryview(noise)
others = [twin]
sides, digests = {"there": 1, "back": 2}, {}
for swung, seed in sides.items():
    fill(swing, seed)
    digests[swung] = digest(swing)
digests["noise"] = digest(noise)
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "copy":
        others.append(room(size))
        others[-1][:] = memoryview(noise)[:size]
    elif word == "move":
        noise.resize(4 * size)
    elif word in sides:
        swung = word
        fill(swing, sides[word])
    is_whole = digest(swing) == digests[swung]
    is_whole = is_whole and all(digest(one) == digests["noise"] for one in [noise, *others])
    print(word, is_whole, flush=True)
"#;

/// Bytes of the snapshots that are there beside `before`.
fn stored(ksnap: &Ksnap, before: &[String]) -> Result<u64> {
    let all = ksnap.json(&["log"])?;
    let new = all
        .iter()
        .filter(|one| !before.iter().any(|id| one["id"] == **id));
    Ok(new.filter_map(|one| one["file_bytes"].as_u64()).sum())
}

fn ids(ksnap: &Ksnap) -> Result<Vec<String>> {
    let all = ksnap.json(&["log"])?;
    let id = |one: &serde_json::Value| Some(one["id"].as_str()?.to_owned());
    Ok(all.iter().filter_map(id).collect())
}

#[test]
fn memory_that_is_copied_or_moved_or_comes_back_is_stored_once() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut script = Python::script(SCRIPT)?;
    ensure!(script.line(LIMIT)?.trim() == "ready");
    let mut watch = Watch::start(&ksnap, script.pid(), &["--every", "50ms", "--audit"])?;
    watch.wait_taken(2, LIMIT)?;
    let first = watch.ids()?.last().context("no snapshot")?.clone();
    let base = stored(&ksnap, &[])?;
    // The noise, of which there are two, and what swings.
    let about = 2 * SIZE..2 * SIZE + SIZE / 2;
    ensure!(about.contains(&base), "the noise took {base} bytes");
    for (word, most) in [
        ("copy", LITTLE),
        ("move", LITTLE),
        ("copy", LITTLE),
        ("there", SIZE + LITTLE),
        ("back", LITTLE),
        ("there", LITTLE),
    ] {
        let before = watch.ids()?;
        ensure!(ask(script.process(), word)? == format!("{word} True"));
        watch.wait_taken(before.len() + 3, LIMIT)?;
        let took = stored(&ksnap, &before)?;
        ensure!(took < most, "{word} took {took} bytes");
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

#[test]
fn what_another_process_has_stored_is_borrowed_whenever_a_later_one_has_it() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut took = Vec::new();
    let mut before = Vec::new();
    for _ in 0..2 {
        let mut script = Python::script(SCRIPT)?;
        ensure!(script.line(LIMIT)?.trim() == "ready");
        let mut watch = Watch::start(&ksnap, script.pid(), &["--every", "50ms", "--audit"])?;
        watch.wait_taken(2, LIMIT)?;
        let base = watch.ids()?.first().context("no snapshot")?.clone();
        ensure!(ask(script.process(), "there")? == "there True");
        ensure!(ask(script.process(), "back")? == "back True");
        let taken = watch.ids()?.len();
        watch.wait_taken(taken + 3, LIMIT)?;
        let last = watch.ids()?.last().context("no snapshot")?.clone();
        watch.interrupt(LIMIT)?.none_failed()?;
        took.push(stored(&ksnap, &before)?);
        // Also without those that it borrows from.
        if let Some(earlier) = before.first() {
            ksnap.ok(&[
                "squash",
                &format!("{earlier}..{}", before[before.len() - 1]),
                "-y",
            ])?;
        }
        ksnap.ok(&["verify"])?;
        let pid = script.pid().to_string();
        for id in [&base, &last] {
            ksnap.ok(&["rollback", &pid, id, "-y"])?;
        }
        ensure!(ask(script.process(), "still")? == "still True");
        before = ids(&ksnap)?;
    }
    // One has the noise and both sides of what swings, the other what of the interpreter's memory is its own.
    ensure!(took[0] > 2 * SIZE && took[1] < SIZE / 4, "{took:?}");
    Ok(())
}
