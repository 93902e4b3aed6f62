//! Bits that are flipped in what a store keeps beside its snapshots are found, and change nothing that anybody relies on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Finished;
use tests::footprint::{adopt_orphans, await_gone};
use tests::ksnap::number;
use tests::{Background, Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 4], at)?)
}

/// `show --store`, of the store of this test.
fn described(ksnap: &Ksnap) -> Result<Value> {
    let mut command = ksnap.command();
    command
        .args(["show", "--store", "--json"])
        .env("KSNAP_STORE", ksnap.store());
    let shown = Background::start(command)?.finish(LIMIT)?.success()?;
    Ok(serde_json::from_str(&shown)?)
}

/// Bytes of all files with pages below a folder, each once, however many names it has.
fn on_disk(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut files = std::collections::BTreeMap::new();
    for session in fs::read_dir(dir)?
        .flatten()
        .filter(|one| one.path().is_dir())
    {
        for file in fs::read_dir(session.path())?.flatten() {
            let path = file.path();
            let end = path
                .extension()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if ["ksnap", "kloan", "kpack"].contains(&end.as_str()) {
                let metadata = file.metadata()?;
                files.insert(metadata.ino(), metadata.len());
            }
        }
    }
    Ok(files.values().sum())
}

#[test]
fn a_bit_flipped_in_a_tag_lets_nothing_be_removed() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let victim = Victim::spawn("counter", &["--mib", "1"])?;
    let first = ksnap.snap(victim.pid(), &[])?;
    ksnap.ok(&["tag", "before-upgrade"])?;
    for _ in 0..4 {
        ksnap.snap(victim.pid(), &[])?;
    }
    let path = ksnap.store().join("tags/before-upgrade");
    let text = fs::read_to_string(&path)?;
    let at = text.find(&first).context("no id in the tag")?;
    flip(&path, at as u64 + 7)?;
    let verified = ksnap.run(&["verify"])?;
    ensure!(verified.code()? == 15, "{verified:?}");
    ensure!(verified.stdout.contains("before-upgrade"), "{verified:?}");
    for args in [
        &["prune", "--keep-last", "3", "-y"][..],
        &["squash", "..latest", "-y"],
    ] {
        let refused = ksnap.run(args)?;
        ensure!(refused.code()? == 15, "{refused:?}");
        for words in ["before-upgrade", "ksnap tag -d before-upgrade"] {
            ensure!(refused.stderr.contains(words), "{refused:?}");
        }
    }
    ensure!(ksnap.json(&["log"])?.len() == 5);
    let listed = ksnap.json(&["tag"])?.remove(0);
    ensure!(
        listed[0]["name"] == "before-upgrade" && listed[0]["id"].is_null(),
        "{listed}"
    );
    // As the message says.
    ksnap.ok(&["tag", "before-upgrade", &first, "--force"])?;
    ksnap.ok(&["prune", "--keep-last", "3", "-y"])?;
    let left = ksnap.json(&["log"])?;
    ensure!(
        left.len() == 4 && left[0]["id"] == first.as_str(),
        "{left:?}"
    );
    flip(&path, at as u64 + 7)?;
    ksnap.ok(&["tag", "-d", "before-upgrade"])?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn a_bit_flipped_in_a_session_description_is_found_and_told() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let victim = Victim::spawn("counter", &["--mib", "1"])?;
    ksnap.snap(victim.pid(), &[])?;
    let session = ksnap.json(&["log"])?.remove(0);
    let session = session["session"].as_str().context("no session")?;
    let path = ksnap.store().join(session).join("session.json");
    let text = fs::read_to_string(&path)?;
    // One that is a number still.
    let at = text.find("\"pid\": ").context("no pid")? + 7;
    let file = File::options().write(true).open(&path)?;
    file.write_all_at(&[text.as_bytes()[at] ^ 1], at as u64)?;
    let verified = ksnap.run(&["verify"])?;
    ensure!(verified.code()? == 15, "{verified:?}");
    ensure!(verified.stdout.contains("session.json"), "{verified:?}");
    let taken = ksnap.run(&["snap", &victim.pid().to_string()])?;
    ensure!(taken.stderr.contains("checksum"), "not a word: {taken:?}");
    let mended = ksnap.run(&["verify", "--rebuild"])?;
    ensure!(mended.code()? == 0, "{mended:?}");
    ensure!(mended.stderr.contains("was made anew"), "{mended:?}");
    victim.quit()
}

/// Takes a snapshot of a victim with much memory, ends it, and brings it back once, which makes its flat image.
fn with_image(ksnap: &Ksnap, options: &[&str]) -> Result<(Victim, PathBuf)> {
    let mut victim = Victim::spawn("counter", &["--mib", "24"])?;
    victim.check()?;
    let id = ksnap.snap_in_part(victim.pid(), &["--kill"])?;
    victim.process().wait(LIMIT)?.context("it lives")?;
    await_gone(victim.pid(), LIMIT)?;
    bring_back(ksnap, options)?.quit()?;
    Ok((victim, ksnap.store().join("flat").join(id)))
}

fn bring_back(ksnap: &Ksnap, options: &[&str]) -> Result<Victim> {
    let args = [&["restore", "latest", "--wait", "--json"], options].concat();
    let mut back = Victim::brought_back(ksnap.start(&args)?)?;
    back.check()?;
    Ok(back)
}

/// Brings it back, to be ended before it has all of its memory: its input stays open, so that it does not end by itself.
fn break_off(ksnap: &Ksnap, options: &[&str]) -> Result<Finished> {
    let args = [&["restore", "latest"], options].concat();
    ksnap.start(&args)?.finish(LIMIT)
}

/// Whoever finds an image damaged says so in it.
fn is_given_up(image: &Path) -> Result<bool> {
    Ok(fs::read(image)?.starts_with(&[0; 8]))
}

/// A bit in the middle of the image, which is in the victim's table.
fn flip_a_page(image: &Path) -> Result<()> {
    flip(image, image.metadata()?.len() / 2)
}

#[test]
fn a_bit_flipped_in_a_flat_image_reaches_no_process() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let (first, image) = with_image(&ksnap, &[])?;

    // All of it before the first instruction: it is found in time, and made anew.
    flip_a_page(&image)?;
    bring_back(&ksnap, &["--eager"])?.quit()?;
    ksnap.ok(&["verify"])?;

    // Behind its first instruction: it is ended rather than given something else.
    flip_a_page(&image)?;
    let failed = break_off(&ksnap, &[])?;
    ensure!(failed.code()? == 1, "{failed:?}");
    ensure!(failed.stderr.contains("restore again"), "{failed:?}");
    ensure!(is_given_up(&image)?);
    await_gone(first.pid(), LIMIT)?;
    bring_back(&ksnap, &[])?.quit()?;

    // Nobody has looked yet.
    flip_a_page(&image)?;
    let verified = ksnap.run(&["verify"])?;
    ensure!(verified.code()? == 0, "only a cache: {verified:?}");
    ensure!(verified.stderr.contains("flat image"), "{verified:?}");
    ensure!(!image.exists());
    bring_back(&ksnap, &[])?.quit()
}

#[test]
fn a_bit_flipped_in_a_flat_image_ends_the_namespace_that_it_was_for() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let own = ["--pids", "namespace"];
    let (_first, image) = with_image(&ksnap, &own)?;
    flip_a_page(&image)?;
    let ended = break_off(&ksnap, &[&own[..], &["--wait"]].concat())?;
    ensure!(ended.code()? == 1, "{ended:?}");
    ensure!(is_given_up(&image)?);
    bring_back(&ksnap, &own)?.quit()
}

#[test]
fn a_store_says_what_it_takes_and_gives_back_what_nobody_uses() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let script = "import os, time\nnoise = os.urandom(24 << 20)\nprint('ready', flush=True)\ntime.sleep(600)";
    let mut command = Command::new(Python::interpreter()?);
    command.args(["-c", script]);
    let mut python = Background::start(command)?;
    python.line(LIMIT)?.context("it is not ready")?;
    ksnap.snap_in_part(python.pid(), &[])?;
    // Two that borrow most of what they have.
    let mut process = ksnap.start(&["fork", "latest", "-n", "2", "--json"])?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        ksnap.snap_in_part(number(&copy["pid"])? as i32, &[])?;
        let init = number(&copy["init"])? as i32;
        kill(Pid::from_raw(init), Signal::SIGKILL)?;
        await_gone(init, LIMIT)?;
    }
    // As long as it lives it may have the image of what it has brought back.
    process.finish(LIMIT)?;
    let shown = described(&ksnap)?;
    let (says, takes) = (number(&shown["bytes"])?, on_disk(ksnap.store())?);
    ensure!(says.abs_diff(takes) < 1000, "{says} of {takes} bytes");
    let borrower = ksnap.json(&["show", "latest"])?.remove(0);
    let content = &borrower["content"];
    ensure!(
        number(&content["borrowed"])? * 2 > number(&content["unique"])?,
        "{content}"
    );
    let logged = &borrower["snapshot"];
    ensure!(
        number(&logged["changed_pages"])? >= number(&content["unique"])?,
        "{logged}"
    );

    let flat = number(&shown["flat_bytes"])?;
    ensure!(flat > 20 << 20, "{shown}");
    let planned = ksnap.json(&["prune", "--keep-last", "9", "-n"])?.remove(0);
    ensure!(planned["flat_freed"] == flat, "{planned}");
    let pruned = ksnap.json(&["prune", "--keep-last", "9", "-y"])?.remove(0);
    ensure!(
        pruned["flat_freed"] == flat && pruned["removed"] == 0,
        "{pruned}"
    );
    ensure!(number(&pruned["bytes_after"])? == says, "{pruned}");
    ensure!(number(&described(&ksnap)?["flat_bytes"])? == 0);
    // It fits, and nothing has to go.
    let most = (takes + (1 << 20)).to_string();
    let pruned = ksnap.json(&["prune", "--max-size", &most, "-y"])?.remove(0);
    ensure!(
        pruned["removed"] == 0 && pruned["notes"] == Value::Array(Vec::new()),
        "{pruned}"
    );
    ksnap.ok(&["verify"]).map(drop)
}
