//! `ksnap push` and `ksnap pull`: processes that come back from object storage, on a machine that has nothing else.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::background::Ended;
use tests::footprint::await_gone;
use tests::ksnap::number;
use tests::{Ksnap, Moto, Python, Redis, Resp, Victim, effort, python, require};

const LIMIT: Duration = Duration::from_secs(60);

/// A folder as a bucket.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-bucket-").tempdir()?;
        Ok(Self { folder })
    }

    fn url(&self) -> String {
        format!("file://{}", self.folder.path().display())
    }

    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        fn below(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.path().is_dir() {
                    true => below(&entry.path(), found),
                    false => found.push(entry.path()),
                }
            }
        }
        let mut found = Vec::new();
        below(&self.folder.path().join(folder), &mut found);
        found
    }
}

fn one(mut values: Vec<Value>) -> Result<Value> {
    ensure!(values.len() == 1, "{values:?}");
    Ok(values.remove(0))
}

/// Pushes redis-server's last snapshot, forgets the store, and has it come back from the URL alone.
fn redis_comes_back_from(url: &str, equip: impl Fn(Ksnap) -> Ksnap) -> Result<()> {
    let here = equip(Ksnap::new()?);
    let mut redis = Redis::start()?;
    redis.populate(20_000, 200)?;
    let mut client = redis.client()?;
    client.set("answer", "42")?;
    let (digest, port, pid) = (client.digest()?, redis.port(), redis.pid());
    drop(client);
    let ended = here.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    redis.ended(LIMIT)?;
    await_gone(pid, LIMIT)?;
    let pushed = one(here.json(&["push", "latest", url])?)?;
    ensure!(number(&pushed["sent_bytes"])? > 256 << 10, "{pushed}");
    // Again: nothing has to be sent.
    let again = one(here.json(&["push", "latest", url])?)?;
    ensure!(
        again["new_pages"] == 0 && again["sent_chunks"] == 0,
        "{again}"
    );
    // The other machine has neither this store nor its folder.
    drop(here);
    let there = equip(Ksnap::new()?);
    let listed = one(there.json(&["pull", url, "--list"])?)?;
    ensure!(
        listed["id"] == pushed["id"] && listed["comm"] == "redis-server",
        "{listed}"
    );
    let pulled = one(there.json(&["pull", url])?)?;
    ensure!(pulled["pages"] == pushed["pages"], "{pulled} {pushed}");
    there.ok(&["verify"])?;
    let shown = one(there.json(&["show", "latest"])?)?;
    ensure!(shown["process"]["pid"] == pid, "{}", shown["process"]);
    let restored = there.run(&["restore", "latest", "--json"])?;
    ensure!(matches!(restored.code()?, 0 | 3), "{restored:?}");
    let back: Value = serde_json::from_str(restored.stdout.trim())?;
    let _ended = Ended(i32::try_from(number(&back["pid"])?)?, "redis");
    let mut client = Resp::connect(port)?;
    ensure!(client.digest()? == digest, "other data");
    ensure!(client.get("answer")?.as_deref() == Some("42"));
    client.set("answer", "43")?;
    ensure!(client.get("answer")?.as_deref() == Some("43"));
    Ok(())
}

#[test]
fn redis_comes_back_from_a_folder() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"), ChosenIds);
    redis_comes_back_from(&Place::new()?.url(), |ksnap| ksnap)
}

#[test]
fn redis_comes_back_from_s3() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"), S3, ChosenIds);
    let moto = Moto::start("snapshots")?;
    redis_comes_back_from("s3://snapshots/some/fleet", |ksnap| moto.equip(ksnap))
}

/// Memory that is all other whenever it is asked to be.
const CHANGING: &str = r#"
import os
kept = os.urandom(16 << 20)
print("ready")
while os.read(0, 100):
    kept = os.urandom(16 << 20)
    print("changed")
"#;

#[test]
fn a_prune_of_s3_leaves_what_is_needed() -> Result<()> {
    require!(Root, Ksnap, S3, Program("python3"));
    let moto = Moto::start("snapshots")?;
    let ksnap = moto.equip(Ksnap::new()?);
    let url = "s3://snapshots/fleet";
    // Its first snapshot has chunks that nothing else refers to.
    let mut script = Python::script(CHANGING)?;
    ensure!(script.line(LIMIT)? == "ready");
    ksnap.snap(script.pid(), &[])?;
    ksnap.ok(&["push", "latest", url])?;
    ensure!(python::ask(script.process(), "change")? == "changed");
    ksnap.snap(script.pid(), &[])?;
    ksnap.ok(&["push", "latest", url])?;
    drop(script);
    let mut victim = Victim::spawn("counter", &["--mib", "16"])?;
    for _ in 0..3 {
        let beyond = victim.status()?.counter + 100;
        victim.wait_beyond(beyond, LIMIT)?;
        ksnap.snap(victim.pid(), &[])?;
        ksnap.ok(&["push", "latest", url])?;
    }
    let prune = ["prune", "--bucket", url, "--keep-last", "1", "--grace", "0"];
    let refused = ksnap.run(&prune)?;
    ensure!(refused.code()? == 2, "{refused:?}");
    let pruned = one(ksnap.json(&[&prune[..], &["-y"]].concat())?)?;
    ensure!(
        pruned["removed"].as_array().map(Vec::len) == Some(3),
        "{pruned}"
    );
    ensure!(pruned["kept"] == 2, "{pruned}");
    ensure!(number(&pruned["deleted_chunks"])? > 0, "{pruned}");
    let other = moto.equip(Ksnap::new()?);
    for left in other.json(&["pull", url, "--list"])? {
        other.ok(&["pull", url, left["id"].as_str().context("no id")?])?;
    }
    other.ok(&["verify"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_wrong_key_is_told_and_never_shown() -> Result<()> {
    require!(Ksnap);
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    // Says that the key is wrong, to all who come.
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(
                b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            );
        }
    });
    let ksnap = Ksnap::new()?
        .with_variable(
            "AWS_ENDPOINT_URL",
            format!("http://127.0.0.1:{port}").into(),
        )
        .with_variable("AWS_ALLOW_HTTP", "true".into())
        .with_variable("AWS_ACCESS_KEY_ID", "WHOAMI".into())
        .with_variable("AWS_SECRET_ACCESS_KEY", "HUSHHUSH".into())
        .with_variable("AWS_SESSION_TOKEN", "TOKENTOKEN".into());
    for verbose in ["-q", "-vvv"] {
        let refused = ksnap.run(&["pull", "s3://bucket/prefix", verbose])?;
        ensure!(refused.code()? == 13, "{refused:?}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(said.contains("s3://bucket/prefix"), "{said}");
        for secret in ["WHOAMI", "HUSHHUSH", "TOKENTOKEN", "Signature"] {
            ensure!(!said.contains(secret), "{said}");
        }
    }
    Ok(())
}

/// Runs what is to be killed at a point, and demands that it was.
fn was_killed(mut command: Command) -> Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.signal() == Some(libc::SIGKILL),
        "it was not killed (not a debug build?): {output:?}"
    );
    Ok(())
}

#[test]
fn a_push_that_was_killed_is_nowhere_and_goes_on() -> Result<()> {
    require!(Root, Ksnap);
    let place = Place::new()?;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "32"])?;
    ksnap.snap(victim.pid(), &[])?;
    let mut command = ksnap.command();
    command.args(["push", "latest", &place.url()]);
    command.env("KSNAP_KILL_AT", "push-publishing");
    was_killed(command)?;
    ensure!(!place.objects("chunks").is_empty());
    ensure!(place.objects("snapshots").is_empty());
    let nothing = ksnap.run(&["pull", &place.url()])?;
    ensure!(nothing.code()? == 1, "{nothing:?}");
    let pushed = one(ksnap.json(&["push", "latest", &place.url()])?)?;
    ensure!(
        pushed["sent_chunks"] == 0 && number(&pushed["chunks"])? > 0,
        "{pushed}"
    );
    // The same with what is on its way back.
    let other = Ksnap::new()?;
    let mut command = other.command();
    command.args(["pull", &place.url()]);
    command.env("KSNAP_KILL_AT", "pull-publishing");
    was_killed(command)?;
    ensure!(other.ok(&["log", "--json"])?.is_empty());
    let pulled = one(other.json(&["pull", &place.url()])?)?;
    // What was still in a buffer when it was killed comes again.
    ensure!(
        number(&pulled["chunks"])? < number(&pushed["chunks"])? && pulled["was_there"] == false,
        "{pulled} {pushed}"
    );
    other.ok(&["verify"])?;
    victim.check()?;
    victim.quit()
}

#[test]
fn all_that_two_machines_pushed_at_once_is_pulled_whole() -> Result<()> {
    require!(Root, Ksnap);
    let place = Place::new()?;
    let mut machines = Vec::new();
    for _ in 0..2 {
        let victim = Victim::spawn("counter", &["--mib", "16"])?;
        machines.push((Ksnap::new()?, victim));
    }
    let mut ids = Vec::new();
    for round in 0..3 {
        for (ksnap, victim) in &mut machines {
            let beyond = victim.status()?.counter + 100;
            victim.wait_beyond(beyond, LIMIT)?;
            ids.push(ksnap.snap(victim.pid(), &[])?);
        }
        let mut pushes = machines
            .iter()
            .map(|(ksnap, _)| ksnap.start(&["push", "latest", &place.url()]))
            .collect::<Result<Vec<_>>>()?;
        for push in &mut pushes {
            let status = push.wait(LIMIT)?.context("it does not end")?;
            ensure!(status.success(), "round {round}: {}", push.stderr());
        }
    }
    let there = Ksnap::new()?;
    let listed = there.json(&["pull", &place.url(), "--list"])?;
    ensure!(listed.len() == 6, "{listed:?}");
    for id in &ids {
        there.ok(&["pull", &place.url(), id])?;
    }
    there.ok(&["verify"])?;
    for (_, victim) in &mut machines {
        victim.check()?;
    }
    Ok(())
}

#[test]
fn a_prune_beside_pushes_takes_nothing_from_them() -> Result<()> {
    require!(Root, Ksnap);
    let place = Place::new()?;
    let url = place.url();
    let ksnap = Ksnap::new()?;
    let pruner = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
    let mut deleted = 0;
    // One is there before: what nobody has pushed to yet is not pruned.
    ksnap.snap(victim.pid(), &[])?;
    let start = Instant::now();
    ksnap.ok(&["push", "latest", &url])?;
    // Far longer than a push of this size takes here: this one sends all, and later ones less.
    let grace = effort::patience(Duration::from_secs(8))
        .max((start.elapsed() * 10).min(Duration::from_secs(60)));
    let grace = Duration::from_secs(grace.as_secs() + 1);
    let words = format!("{}s", grace.as_secs());
    // A chunk that nothing refers to is deleted when it has been doomed for the grace time, which begins when it is as
    // old as that.
    let end = Instant::now() + grace * 10;
    let mut pushes = 1;
    while deleted == 0 || pushes <= 4 {
        ensure!(Instant::now() < end, "{pushes} pushes, nothing is deleted");
        ksnap.snap(victim.pid(), &[])?;
        let mut prune = pruner.start(&[
            "prune",
            "--bucket",
            &url,
            "--keep-last",
            "2",
            "--grace",
            &words,
            "-y",
            "--json",
        ])?;
        let start = Instant::now();
        ksnap.ok(&["push", "latest", &url])?;
        ensure!(start.elapsed() < grace, "a push took {:?}", start.elapsed());
        pushes += 1;
        let pruned = prune.finish(LIMIT)?.success()?;
        let pruned: Value = serde_json::from_str(&pruned).context(pruned)?;
        deleted += number(&pruned["deleted_chunks"])?;
        let other = Ksnap::new()?;
        other.ok(&["pull", &url])?;
        other.ok(&["verify"])?;
    }
    victim.check()?;
    victim.quit()
}

#[test]
fn a_victim_goes_on_from_a_folder_and_passes_its_own_check() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let place = Place::new()?;
    let here = Ksnap::new()?;
    let mut victim = Victim::spawn("threads", &[])?;
    let pid = victim.pid();
    // The second one is a delta, and is pushed as a whole.
    here.snap(pid, &[])?;
    let beyond = victim.status()?.counter + 100;
    victim.wait_beyond(beyond, LIMIT)?;
    let ended = here.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    drop(victim);
    await_gone(pid, LIMIT)?;
    here.ok(&["push", "latest", &place.url()])?;
    drop(here);
    let there = Ksnap::new()?;
    there.ok(&["pull", &place.url()])?;
    let back = there.start(&["restore", "latest", "--wait", "--json"])?;
    let mut victim = Victim::brought_back(back)?;
    let beyond = victim.check()?.counter + 100;
    victim.wait_beyond(beyond, LIMIT)?;
    victim.check()?;
    victim.quit()
}
