//! Snapshots that are encrypted at rest: whoever has the key has all of them, and nobody else anything.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::footprint::await_gone;
use tests::moving::Moving;
use tests::{Footprint, Ksnap, Redis, Victim, Watch, paths, require};

const LIMIT: Duration = Duration::from_secs(120);

/// Made for these tests; nothing else is encrypted to them.
const OWN: [&str; 2] = [
    "AGE-SECRET-KEY-1ZY2PWXSAYQ3JV2FV9UER2WPM8EQ5G362F4G9X4JET30KYETGDDHQ8H32DM",
    "age1xm0d7wknmguj4wuaw6jzhyn9sjf4ggk7d90fh9q75na9ry78e5ms2nmgj2",
];
const OTHER: [&str; 2] = [
    "AGE-SECRET-KEY-1YGJJS2EWXY6RWW3AGPP5VJ2VFAF92KZMTESKGEM2D4C8XANE03LSZ8N8JX",
    "age1qj2zznhk6tsr83muh8v4g7w94aeg236duhvwyg86n9jvdgs8yvkq2kdz6w",
];
/// In the environment of the victim, and so in its memory.
const SECRET: &str = "9f3kq0zVx7Wm2RtLpB5uYc8dNhEoJs4gTa6iXwQv1UbK";

/// Files with the keys.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let text = |[secret, public]: [&str; 2]| format!("# public key: {public}\n{secret}\n");
        std::fs::write(folder.path().join("own"), text(OWN))?;
        std::fs::write(folder.path().join("other"), text(OTHER))?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        Ok(path.to_str().context("not text")?.to_owned())
    }
}

fn victim() -> Result<Victim> {
    let mut command = Command::new(paths::victim()?);
    command.args(["counter", "--mib", "8", "--rollbacks"]);
    command.env("SECRET", SECRET);
    Victim::from_command(command)
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files_below(&path)?),
            false => all.push(path),
        }
    }
    Ok(all)
}

/// Which of these can be seen in a folder: in files, or in their names.
fn seen<'a>(dir: &Path, secrets: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut found = Vec::new();
    for path in files_below(dir)? {
        let mut bytes = path.as_os_str().as_encoded_bytes()[dir.as_os_str().len()..].to_vec();
        if path.is_file() {
            bytes.extend(std::fs::read(&path)?);
        }
        let has = |word: &&&str| bytes.windows(word.len()).any(|w| w == word.as_bytes());
        found.extend(secrets.iter().filter(has));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Fails with this exit code, and says these words.
fn refused(ksnap: &Ksnap, args: &[&str], code: i32, words: &str) -> Result<()> {
    let done = ksnap.run(args)?;
    ensure!(done.code()? == code, "{args:?}: {done:?}");
    ensure!(done.stderr.contains(words), "{args:?}: {done:?}");
    Ok(())
}

#[test]
fn a_sealed_watch_goes_back_without_a_key_and_comes_back_with_it_alone() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let keys = Keys::new()?;
    let (own, other) = (keys.path("own")?, keys.path("other")?);
    let (ksnap, plain) = (Ksnap::new()?, Ksnap::new()?);
    let mut victim = victim()?;
    let pid = victim.pid().to_string();
    let before = Footprint::of(victim.pid())?;
    let program = paths::victim()?.display().to_string();
    let secrets = [SECRET, "\"cmdline\"", program.as_str(), "--rollbacks"];

    // What is looked for can be found.
    plain.snap(victim.pid(), &["--audit"])?;
    let found = seen(plain.store(), &secrets)?;
    ensure!(found.len() == secrets.len(), "only {found:?}");

    let options = ["--every", "20ms", "--audit", "--encrypt-to", OWN[1]];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(8, LIMIT)?;
    // The watcher has the key.
    let ids = watch.ids()?;
    ksnap.roll_back(victim.pid(), &ids[3])?;
    ksnap.ok(&["rollback", &pid, "latest~2", "-y"])?;
    victim.check()?;
    ksnap.ok(&["snap", &pid])?;
    ksnap.ok(&["snap", &pid, "--encrypt-to", OWN[1]])?;
    refused(
        &ksnap,
        &["snap", &pid, "--encrypt-to", OTHER[1]],
        1,
        "--encrypt-to",
    )?;
    watch.wait_taken(20, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    watched.left_nothing(&before)?;
    let ids = watched.ids()?;
    ensure!(seen(ksnap.store(), &secrets)?.is_empty());

    // Without the key, and with another one.
    let listed = ksnap.run(&["log", "--json"])?;
    ensure!(
        listed.code()? == 0 && listed.stdout.is_empty(),
        "{listed:?}"
    );
    ensure!(listed.stderr.contains("--identity"), "{listed:?}");
    let verified = ksnap.run(&["verify"])?;
    ensure!(
        verified.code()? == 13,
        "what was not checked is not whole: {verified:?}"
    );
    ensure!(verified.stderr.contains("--identity"), "{verified:?}");
    ensure!(
        verified.stdout.starts_with("not all checked"),
        "{verified:?}"
    );
    let listed = ksnap.run(&["log"])?;
    ensure!(
        listed.stderr.contains("snapshots cannot be read"),
        "{listed:?}"
    );
    ensure!(!listed.stderr.contains("no snapshots yet"), "{listed:?}");
    let core = keys.path("core")?;
    let stretch = format!("..{}", ids[2]);
    for args in [
        &["show", "latest"][..],
        &["show", &ids[2]],
        &["restore", &ids[2]],
        &["rollback", &pid, &ids[2], "-y"],
        &["export", &ids[2], "--core", &core],
        &["diff", &ids[1], &ids[2]],
        &["prune", "--pid", &pid, "--keep-last", "1", "-y"],
        &["squash", &stretch, "-y"],
        &["verify", &ids[2]],
    ] {
        refused(&ksnap, args, 13, "--identity")?;
        let wrong = [args, &["--identity", &other]].concat();
        refused(&ksnap, &wrong, 13, "none of the keys")?;
    }
    refused(&ksnap, &["log", "--identity", "/nowhere"], 2, "/nowhere")?;
    refused(&ksnap, &["snap", &pid, "--encrypt-to", "age1x"], 2, "age1x")?;

    // With the key.
    let ksnap = ksnap.with_variable("KSNAP_IDENTITY", own.into());
    ensure!(ksnap.json(&["log"])?.len() == ids.len());
    ksnap.ok(&["verify"])?;
    let shown = ksnap.json(&["show", &ids[2]])?.remove(0);
    ensure!(
        shown["process"]["cmdline"][0] == program.as_str(),
        "{shown}"
    );
    ksnap.roll_back(victim.pid(), &ids[5])?;
    victim.check()?;
    ksnap.ok(&["prune", "--pid", &pid, "--keep-last", "5", "-y"])?;
    ksnap.ok(&["verify"])?;
    // It goes on in the same session, and comes back from it; no page of it is left on the disk.
    ksnap.run(&["snap", &pid, "--audit", "--kill", "--encrypt-to", OWN[1]])?;
    victim.process().wait(LIMIT)?.context("it lives")?;
    let sessions = ksnap.json(&["log"])?;
    ensure!(
        sessions
            .iter()
            .all(|one| one["session"] == sessions[0]["session"])
    );
    ensure!(sessions.len() == 6, "{sessions:?}");
    let mut back = Victim::brought_back(ksnap.start(&["restore", "latest", "--wait", "--json"])?)?;
    let then = back.check()?.counter;
    back.wait_beyond(then + 20, LIMIT)?;
    back.check()?;
    ensure!(seen(ksnap.store(), &secrets)?.is_empty());
    ensure!(!ksnap.store().join("flat").exists(), "plain pages are left");
    // Pushed, it stays sealed, and comes back where there is nothing but the URL and the key.
    let bucket = keys.path("bucket")?;
    let url = format!("file://{bucket}");
    ksnap.ok(&["push", "latest", &url])?;
    ensure!(seen(Path::new(&bucket), &secrets)?.is_empty());
    ensure!(seen(Path::new(&bucket), &["victim"])?.is_empty());
    let pid = back.pid();
    back.quit()?;
    await_gone(pid, LIMIT)?;
    drop(ksnap);
    goes_on_from(&url, &keys.path("own")?, then + 20)
}

/// Pulls a sealed snapshot, and has its process go on from a counter beyond this one.
fn goes_on_from(url: &str, key: &str, then: u64) -> Result<()> {
    let there = Ksnap::new()?;
    refused(&there, &["pull", url], 13, "--identity")?;
    let listed = there.run(&["pull", url, "--list", "--json"])?;
    ensure!(
        listed.stdout.contains("\"comm\":null") && listed.stderr.contains("--identity"),
        "{listed:?}"
    );
    let there = there.with_variable("KSNAP_IDENTITY", key.into());
    ensure!(there.json(&["pull", url, "--list"])?[0]["comm"] == "victim");
    there.ok(&["pull", url])?;
    there.ok(&["verify"])?;
    let mut back = Victim::brought_back(there.start(&["restore", "latest", "--wait", "--json"])?)?;
    back.wait_beyond(then, LIMIT)?;
    back.check()?;
    ensure!(seen(there.store(), &[SECRET, "\"cmdline\"", "--rollbacks"])?.is_empty());
    back.quit()
}

#[test]
fn a_sealed_watch_goes_back_to_its_latest_whatever_else_is_sealed_in_the_store() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let (victim, stranger) = (victim()?, victim()?);
    let options = ["--every", "1h", "--encrypt-to", OWN[1]];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(1, LIMIT)?;
    let other = stranger.pid().to_string();
    ksnap.ok(&["snap", &other, "--encrypt-to", OTHER[1]])?;
    let pid = victim.pid().to_string();
    for reference in ["latest", "@1"] {
        ksnap.ok(&["rollback", &pid, reference, "-y"])?;
    }
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    ensure!(watched.rolled_back.len() == 2, "{watched:?}");
    stranger.quit()?;
    victim.quit()
}

#[test]
fn without_the_key_a_new_session_begins_and_it_is_said() -> Result<()> {
    require!(Root, Ksnap);
    let keys = Keys::new()?;
    let ksnap = Ksnap::new()?;
    let mut victim = victim()?;
    let pid = victim.pid().to_string();
    let recipients = keys.path("recipients")?;
    std::fs::write(&recipients, format!("# us\n{}\n{}\n", OWN[1], OTHER[1]))?;
    ksnap.ok(&["snap", &pid, "--encrypt-to", &recipients])?;
    // Sealed again, and then not.
    for (options, words) in [
        (
            &["--encrypt-to", &recipients][..],
            "so a new one begins, which is sealed",
        ),
        (&[], "so a new one begins, which is not sealed"),
    ] {
        let done = ksnap.run(&[&["snap", &pid], options].concat())?;
        ensure!(done.code()? == 0 && done.stderr.contains(words), "{done:?}");
    }
    let sessions = |name: &str| -> Result<usize> {
        let log = ksnap.json(&["log", "--identity", &keys.path(name)?])?;
        let all: std::collections::BTreeSet<_> =
            log.iter().map(|one| one["session"].to_string()).collect();
        Ok(all.len())
    };
    // Each of the two has all of it.
    ensure!(sessions("own")? == 3 && sessions("other")? == 3);
    // With the key it goes on in the last one that fits.
    let own = keys.path("own")?;
    let both = ["--encrypt-to", &recipients, "--identity", &own];
    ksnap.ok(&[&["snap", &pid, "--audit"][..], &both].concat())?;
    ensure!(sessions("own")? == 3);
    // Other keys, another session.
    let fewer = ["--encrypt-to", OWN[1], "--identity", &own];
    let done = ksnap.run(&[&["snap", &pid][..], &fewer].concat())?;
    ensure!(
        done.stderr.contains("not sealed for these keys"),
        "{done:?}"
    );
    ensure!(sessions("own")? == 4 && sessions("other")? == 3);
    victim.check()?;
    victim.quit()
}

#[test]
fn a_process_goes_back_to_a_snapshot_of_any_of_its_sessions() -> Result<()> {
    require!(Root, Ksnap);
    let keys = Keys::new()?;
    let ksnap = Ksnap::new()?.with_variable("KSNAP_IDENTITY", keys.path("own")?.into());
    let mut victim = victim()?;
    let pid = victim.pid().to_string();
    let sealing = ["--every", "20ms", "--encrypt-to", OWN[1]];
    let plain = ksnap.snap(victim.pid(), &["--audit"])?;
    let sealed = ksnap.snap(victim.pid(), &["--audit", "--encrypt-to", OWN[1]])?;
    for id in [&plain, &sealed, &plain] {
        let then = victim.check()?.counter;
        victim.wait_beyond(then + 5, LIMIT)?;
        ksnap.roll_back(victim.pid(), id)?;
        victim.check()?;
    }
    // A watcher writes one of them, and nobody else writes another one meanwhile.
    let mut watch = Watch::start(&ksnap, victim.pid(), &sealing)?;
    watch.wait_taken(2, LIMIT)?;
    let args = ["rollback", &pid, &plain, "-y"];
    refused(&ksnap, &args, 1, "end that watch first")?;
    ksnap.roll_back(victim.pid(), &sealed)?;
    watch.interrupt(LIMIT)?.none_failed()?;
    ksnap.ok(&["verify"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_rollback_that_failed_is_known_without_the_key_and_one_to_another_session_makes_it_good()
-> Result<()> {
    require!(Root, Ksnap);
    let keys = Keys::new()?;
    let ksnap = Ksnap::new()?;
    let mut victim = victim()?;
    let pid = victim.pid().to_string();
    let plain = ksnap.snap(victim.pid(), &[])?;
    let sealed = ksnap.snap(victim.pid(), &["--encrypt-to", OWN[1]])?;
    let then = victim.check()?.counter;
    victim.wait_beyond(then + 20, LIMIT)?;
    let identity = keys.path("own")?;
    let failed = ksnap
        .command()
        .args(["rollback", &pid, &sealed, "-y", "--identity", &identity])
        .env("KSNAP_FAIL_AT", "making threads")
        .output()?;
    let said = String::from_utf8_lossy(&failed.stderr);
    ensure!(
        failed.status.code() == Some(1) && said.contains("mixed state"),
        "it did not fail in the middle (not a debug build?): {said}"
    );
    refused(&ksnap, &["snap", &pid], 1, "roll it back again")?;
    ksnap.roll_back(victim.pid(), &plain)?;
    kill(Pid::from_raw(victim.pid()), Signal::SIGCONT)?;
    ksnap.snap(victim.pid(), &["--audit"])?;
    victim.check()?;
    victim.quit()
}

/// A place for a store in memory. What is mounted there is unmounted in the end.
struct Place(tempfile::TempDir);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(self.0.path().join("ram"))
            .status();
    }
}

#[test]
fn what_is_sealed_in_memory_gets_to_the_disk_sealed() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let keys = Keys::new()?;
    let own = keys.path("own")?;
    let place = Place(tempfile::tempdir()?);
    let ram = place.0.path().join("ram");
    let ksnap = Ksnap::new()?.with_variable("KSNAP_RAM", ram.clone());
    let mut victim = victim()?;
    let pid = victim.pid().to_string();
    let options = [
        "--ram=200M",
        "--every",
        "20ms",
        "--audit",
        "--keep-last",
        "30",
        "--encrypt-to",
        OWN[1],
    ];
    let mut watch = Watch::start(&ksnap, victim.pid(), &options)?;
    watch.wait_taken(10, LIMIT)?;
    // Nobody else can write it to the disk; the watcher can, when it is told to end.
    refused(&ksnap, &["flush"], 3, "--identity")?;
    ksnap.ok(&["flush", "--identity", &own])?;
    let so_far = watch.ids()?.len();
    watch.wait_taken(so_far + 40, LIMIT)?;
    watch.process().signal(Signal::SIGTERM)?;
    watch.process().finish(LIMIT)?;
    ensure!(seen(&ram, &[SECRET, "\"cmdline\"", "--rollbacks"])?.is_empty());
    ensure!(seen(ksnap.store(), &[SECRET, "\"cmdline\"", "--rollbacks"])?.is_empty());
    let ksnap = ksnap.with_variable("KSNAP_IDENTITY", own.into());
    ksnap.ok(&["verify"])?;
    ksnap.ok(&["verify", "--ram"])?;
    let disk = ksnap.json(&["log"])?;
    let memory = ksnap.json(&["log", "--ram"])?;
    ensure!(!memory.is_empty() && disk.last().map(|e| &e["id"]) == memory.last().map(|e| &e["id"]));
    ksnap.ok(&["rollback", &pid, "latest~3", "-y"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn redis_goes_back_to_a_sealed_snapshot_and_comes_back_from_one() -> Result<()> {
    require!(Root, Ksnap, ChosenIds, Program("redis-server"));
    let keys = Keys::new()?;
    let ksnap = Ksnap::new()?.with_variable("KSNAP_IDENTITY", keys.path("own")?.into());
    let mut redis = Redis::start()?;
    redis.populate(5000, 400)?;
    let sealed = ["--audit", "--encrypt-to", OWN[1]];
    redis.client()?.set("word", SECRET)?;
    let id = ksnap.snap_in_part(redis.pid(), &sealed)?;
    redis.client()?.set("word", "another")?;
    ksnap.roll_back(redis.pid(), &id)?;
    ensure!(redis.client()?.get("word")?.as_deref() == Some(SECRET));
    let pid = redis.pid().to_string();
    ksnap.run(&[&["snap", &pid, "--kill"][..], &sealed].concat())?;
    redis.ended(LIMIT)?;
    let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
    let mut client = tests::resp::Resp::connect(redis.port());
    let end = std::time::Instant::now() + LIMIT;
    while client.is_err() && std::time::Instant::now() < end && back.running()? {
        std::thread::sleep(Duration::from_millis(20));
        client = tests::resp::Resp::connect(redis.port());
    }
    let mut client = client.with_context(|| back.stderr())?;
    ensure!(client.get("word")?.as_deref() == Some(SECRET));
    ensure!(client.integer(&["DBSIZE"])? > 5000);
    ensure!(seen(ksnap.store(), &[SECRET, "redis-server"])?.is_empty());
    client.send(&["SHUTDOWN", "NOSAVE"])?;
    back.finish(LIMIT)?;
    Ok(())
}

/// On the other machine nothing of it is on the disk in plain, neither while it comes nor later, and it runs there.
#[test]
fn what_another_machine_sends_is_sealed_where_it_arrives() -> Result<()> {
    require!(Root, Ksnap, Machines, Program("redis-server"));
    let keys = Keys::new()?;
    for options in [&["--move"][..], &["--move", "--lazy"]] {
        let mut moving = Moving::start("60s", 200)?;
        moving.client.set("word", SECRET)?;
        moving.digest = moving.client.digest()?;
        let pid = moving.pid().to_string();
        moving.pair.kill_server(1);
        moving.pair.serve_with(1, &["--encrypt-to", OWN[1]])?;
        moving.pair.clone(0, &pid, options)?;
        moving.has_moved()?;
        let there = moving.pair.tool(1);
        ensure!(seen(there.store(), &[SECRET, "redis-server"])?.is_empty());
        // What went out is in plain where it came from.
        ensure!(!seen(moving.pair.tool(0).store(), &["redis-server"])?.is_empty());
        let own = keys.path("own")?;
        let list = there.json(&["log", "--identity", &own])?;
        ensure!(!list.is_empty(), "{options:?}: nothing is stored");
        there.ok(&["verify", "--identity", &own])?;
    }
    Ok(())
}

#[test]
fn what_is_pulled_is_sealed_where_it_arrives() -> Result<()> {
    require!(Root, Ksnap);
    let keys = Keys::new()?;
    let own = keys.path("own")?;
    let place = tempfile::tempdir()?;
    let url = format!("file://{}", place.path().display());
    let here = Ksnap::new()?;
    let victim = victim()?;
    here.run(&["snap", &victim.pid().to_string()])?;
    here.ok(&["push", "latest", &url])?;
    let there = Ksnap::new()?;
    there.ok(&["pull", &url, "--encrypt-to", OWN[1]])?;
    ensure!(!seen(here.store(), &[SECRET])?.is_empty(), "nothing to see");
    ensure!(seen(there.store(), &[SECRET, "\"cmdline\"", "--rollbacks"])?.is_empty());
    refused(&there, &["show", "latest"], 13, "--identity")?;
    let list = there.json(&["log", "--identity", &own])?;
    ensure!(list.len() == 1, "{list:?}");
    there.ok(&["verify", "--identity", &own])?;
    victim.quit()
}
