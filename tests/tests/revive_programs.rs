//! Real programs in the middle of their work: captured, ended, brought back, and started as copies. Each finishes what
//! it had begun, with the result that it would have had.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::background::Ended;
use tests::footprint::{adopt_orphans, await_gone};
use tests::tree::{living, none_but};
use tests::{Background, Ksnap, Python, Redis, Victim, require};

const LIMIT: Duration = Duration::from_secs(120);

/// Takes a snapshot of a process and ends it.
fn end_captured(ksnap: &Ksnap, pid: i32) -> Result<()> {
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    Ok(())
}

/// The next line of a program's output that says that it is done.
fn result_of(process: &mut Background) -> Result<String> {
    let end = Instant::now() + LIMIT;
    while let Some(line) = process.line(end.saturating_duration_since(Instant::now()))? {
        if let Some(result) = line.strip_prefix("done ") {
            return Ok(result.trim().to_owned());
        }
    }
    bail!("no result; stderr: {}", process.stderr())
}

/// Ends a program in the middle of its work, brings it back, and starts two copies: all of them come to `expected`.
fn finishes(mut process: Background, expected: &str, copies: bool) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let ready = process.line(LIMIT)?;
    ensure!(
        ready.as_deref() == Some("ready"),
        "{ready:?}: {}",
        process.stderr()
    );
    std::thread::sleep(Duration::from_millis(400));
    let pid = process.pid();
    end_captured(&ksnap, pid)?;
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    // Its output is closed, which is an error where more is expected.
    let early = process.line(Duration::from_millis(200)).ok().flatten();
    ensure!(
        early.is_none(),
        "it was done before it was captured: {early:?}"
    );
    await_gone(pid, LIMIT)?;
    let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
    let got = result_of(&mut back)?;
    ensure!(got == expected, "brought back: {got} instead of {expected}");
    let status = back.wait(LIMIT)?.context("it does not end")?;
    ensure!(status.code() == Some(0), "{status}: {}", back.stderr());
    if copies {
        let mut fork = ksnap.start(&["fork", "latest", "-n", "2", "--net", "private"])?;
        for copy in 0..2 {
            let got = result_of(&mut fork)?;
            ensure!(got == expected, "copy {copy}: {got} instead of {expected}");
        }
    }
    Ok(())
}

/// SHA-256, over and over, from a first text: what the programs compute.
fn chain(seed: &str, rounds: u64) -> Result<String> {
    let script = format!(
        "import hashlib\nh = {seed}\nfor _ in range({rounds}): h = hashlib.sha256(h).digest()\nprint(h.hex())\n"
    );
    let output = Command::new(Python::interpreter()?)
        .args(["-c", &script])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn python_with_threads_and_a_listening_socket() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    const ROUNDS: u64 = 300_000;
    let script = format!(
        r#"
import hashlib, socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
results = {{}}
def work(seed):
    h = bytes([seed])
    for n in range({ROUNDS}):
        h = hashlib.sha256(h).digest()
        if n % 1000 == 0:
            time.sleep(0.015)
    results[seed] = h.hex()
def serve():
    while True:
        client, _ = server.accept()
        client.sendall(b"%d of 3" % len(results))
        client.close()
threading.Thread(target=serve, daemon=True).start()
workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
for worker in workers:
    worker.start()
print("ready", flush=True)
for worker in workers:
    worker.join()
answer = socket.create_connection(server.getsockname()).recv(100)
assert answer == b"3 of 3", answer
print("done", *(results[seed] for seed in range(3)), flush=True)
"#
    );
    let expected: Vec<String> = (0..3)
        .map(|seed| chain(&format!("bytes([{seed}])"), ROUNDS))
        .collect::<Result<_>>()?;
    let mut command = Command::new(Python::interpreter()?);
    command.args(["-c", &script]);
    finishes(Background::start(command)?, &expected.join(" "), true)
}

#[test]
fn node_with_a_server_and_a_compiled_loop() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("node"), ChosenIds);
    const ROUNDS: u64 = 300_000;
    let script = format!(
        r#"
const crypto = require('crypto'), http = require('http');
let h = Buffer.from('x'), n = 0;
const server = http.createServer((_, reply) => reply.end(String(n)));
const step = () => {{
  for (let k = 0; k < 1000 && n < {ROUNDS}; k++, n++)
    h = crypto.createHash('sha256').update(h).digest();
  if (n < {ROUNDS}) return setTimeout(step, 15);
  http.get({{ port: server.address().port, host: '127.0.0.1' }}, reply => {{
    let text = '';
    reply.on('data', part => text += part);
    reply.on('end', () => {{
      console.log('done ' + h.toString('hex') + ' ' + text);
      process.exit(0);
    }});
  }});
}};
server.listen(0, '127.0.0.1', () => {{ console.log('ready'); step(); }});
"#
    );
    let expected = format!("{} {ROUNDS}", chain("b'x'", ROUNDS)?);
    let mut command = Command::new("node");
    command.args(["-e", &script]);
    finishes(Background::start(command)?, &expected, true)
}

const JAVA: &str = r#"
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;

public class Work {
  static byte[] chain(int seed, int rounds) throws Exception {
    MessageDigest digest = MessageDigest.getInstance("SHA-256");
    byte[] h = {(byte) seed};
    List<byte[]> garbage = new ArrayList<>();
    for (int n = 0; n < rounds; n++) {
      h = digest.digest(h);
      if (n % 100 == 0) garbage.add(new byte[4096]);
      if (garbage.size() > 500) garbage.clear();
      if (n % 1000 == 0) Thread.sleep(15);
    }
    return h;
  }

  public static void main(String[] args) throws Exception {
    int rounds = Integer.parseInt(args[0]);
    ExecutorService threads = Executors.newFixedThreadPool(2);
    List<Future<byte[]>> results = new ArrayList<>();
    for (int i = 0; i < 2; i++) {
      final int seed = i;
      results.add(threads.submit(() -> chain(seed, rounds)));
    }
    System.out.println("ready");
    StringBuilder text = new StringBuilder("done");
    for (Future<byte[]> result : results)
      text.append(' ').append(HexFormat.of().formatHex(result.get()));
    System.out.println(text);
    System.exit(0);
  }
}
"#;

#[test]
fn a_jvm_with_its_compilers_and_its_collector() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("java"),
        Program("javac"),
        ChosenIds
    );
    const ROUNDS: u64 = 300_000;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("Work.java"), JAVA)?;
    let compiled = Command::new("javac")
        .arg("Work.java")
        .current_dir(folder.path())
        .output()?;
    ensure!(compiled.status.success(), "{compiled:?}");
    let expected: Vec<String> = (0..2)
        .map(|seed| chain(&format!("bytes([{seed}])"), ROUNDS))
        .collect::<Result<_>>()?;
    let mut command = Command::new("java");
    command.args(["-Xmx64m", "-XX:-UsePerfData", "Work"]);
    command.arg(ROUNDS.to_string()).current_dir(folder.path());
    finishes(Background::start(command)?, &expected.join(" "), true)
}

#[test]
fn sqlite_in_the_middle_of_a_transaction() -> Result<()> {
    require!(Root, Ksnap, Program("sqlite3"), ChosenIds);
    let run = |folder: &Path| -> Result<Background> {
        std::fs::write(
            folder.join("work.sql"),
            "CREATE TABLE t(x);
             INSERT INTO t VALUES (1);
             PRAGMA cache_size = 100;
             PRAGMA synchronous = OFF;
             BEGIN;
             WITH RECURSIVE c(n, h) AS (SELECT 1, 7 UNION ALL
                 SELECT n + 1, (h * 1103515245 + 12345) % 2147483648 FROM c WHERE n < 3000000)
             INSERT INTO t SELECT h FROM c;
             COMMIT;
             SELECT 'done ' || count(*) || ' ' || sum(x) FROM t;
             PRAGMA integrity_check;\n",
        )?;
        let mut command = Command::new("sqlite3");
        command
            .args(["data.db", ".read work.sql"])
            .current_dir(folder);
        Background::start(command)
    };
    let calm = tempfile::tempdir()?;
    let expected = result_of(&mut run(calm.path())?)?;
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let mut process = run(folder.path())?;
    let end = Instant::now() + LIMIT;
    // It has begun to write what it has not committed.
    let size = || std::fs::metadata(folder.path().join("data.db")).map_or(0, |meta| meta.len());
    while size() < 2 << 20 {
        ensure!(Instant::now() < end, "sqlite does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = process.pid();
    end_captured(&ksnap, pid)?;
    ensure!(process.wait(LIMIT)?.is_some(), "it lives");
    ensure!(
        !matches!(process.line(Duration::from_millis(200)), Ok(Some(_))),
        "it was done"
    );
    await_gone(pid, LIMIT)?;
    let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
    let got = result_of(&mut back)?;
    ensure!(got == expected, "{got} instead of {expected}");
    let checked = back.line(LIMIT)?;
    ensure!(checked.as_deref() == Some("ok"), "{checked:?}");
    Ok(())
}

#[test]
fn twenty_generations_of_redis_lose_nothing() -> Result<()> {
    require!(Root, Ksnap, Program("redis-server"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut redis = Redis::start()?;
    redis.populate(20_000, 200)?;
    let pid = redis.pid();
    let mut client = redis.client()?;
    client.set("generation", "0")?;
    end_captured(&ksnap, pid)?;
    redis.ended(LIMIT)?;
    let mut digest = None;
    for generation in 1..=20 {
        let what = || format!("generation {generation}");
        let mut process = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
        process.line(LIMIT)?.with_context(what)?;
        let mut client = redis.client().with_context(what)?;
        let last = client.get("generation")?;
        ensure!(
            last == Some((generation - 1).to_string()),
            "{last:?} in {}",
            what()
        );
        let now = client.digest()?;
        if let Some(digest) = digest {
            ensure!(now == digest, "other data in {}", what());
        }
        client.set("generation", &generation.to_string())?;
        digest = Some(client.digest()?);
        end_captured(&ksnap, pid).with_context(what)?;
        ensure!(process.wait(LIMIT)?.is_some(), "it lives in {}", what());
        await_gone(pid, LIMIT)?;
    }
    ksnap.ok(&["verify"])?;
    Ok(())
}

#[test]
fn one_image_comes_back_a_hundred_times() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut first = Victim::spawn("counter", &["--mib", "2"])?;
    let pid = first.pid();
    end_captured(&ksnap, pid)?;
    first.process().wait(LIMIT)?.context("it lives")?;
    await_gone(pid, LIMIT)?;
    let image = ksnap.json(&["log"])?.pop().context("no snapshot")?;
    let id = image["id"].as_str().context("no id")?;
    let mut counter = None;
    for round in 0..100 {
        let what = || format!("round {round}");
        let process = ksnap.start(&["restore", id, "--wait", "--json"])?;
        let mut victim = Victim::brought_back(process).with_context(what)?;
        ensure!(victim.pid() == pid, "another id in {}", what());
        let now = victim.check().with_context(what)?.counter;
        // Each begins where the image was.
        let first = *counter.get_or_insert(now);
        ensure!(
            now < first + 1_000_000,
            "{now} in {}, {first} at first",
            what()
        );
        victim.quit().with_context(what)?;
        await_gone(pid, LIMIT)?;
    }
    Ok(())
}

#[test]
fn fifty_thousand_mappings_come_back() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), ChosenIds);
    const SCRIPT: &str = r#"
import ctypes, hashlib, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
PAGES, PAGE = 50000, 4096
memory = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for n in range(0, PAGES, 7):
    memory[n * PAGE:n * PAGE + 8] = n.to_bytes(8, "little")
for n in range(0, PAGES, 2):
    if libc.mprotect(ctypes.c_void_p(start + n * PAGE), PAGE, 1) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
def state():
    with open("/proc/self/maps") as maps:
        shape = [line.split()[:2] for line in maps]
    own = [m for m in shape if start <= int(m[0].split("-")[0], 16) < start + PAGES * PAGE]
    return "%d %s %s" % (len(own), hashlib.sha256(repr(own).encode()).hexdigest(), hashlib.sha256(memory).hexdigest())
print(state(), flush=True)
while True:
    os.read(0, 1)
    print(state(), flush=True)
"#;
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(SCRIPT)?;
    let _end = Ended(python.pid(), "python");
    let before = python.line(LIMIT)?;
    ensure!(before.starts_with("50000 "), "{before}");
    std::thread::sleep(Duration::from_millis(50));
    let pid = python.pid();
    end_captured(&ksnap, pid)?;
    ensure!(python.process().wait(LIMIT)?.is_some(), "it lives");
    await_gone(pid, LIMIT)?;
    let mut back = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    back.line(LIMIT)?.with_context(|| back.stderr())?;
    use std::io::Write;
    back.stdin()?.write_all(b".")?;
    let after = back.line(LIMIT)?.with_context(|| back.stderr())?;
    ensure!(after == before, "{after}\ninstead of\n{before}");
    Ok(())
}

/// Steps of a restore, each of which begins with a point at which a debug build can be killed.
const POINTS: [&str; 10] = [
    "making its mappings",
    "setting the bounds of its memory",
    "making its threads",
    "opening its files",
    "writing the contents of its files",
    "setting what its files hold",
    "setting its attributes",
    "taking out what is not its own",
    "setting its threads",
    "letting it go",
];

#[test]
fn a_restore_killed_at_any_step_leaves_nothing() -> Result<()> {
    require!(Root, Ksnap, ChosenIds);
    adopt_orphans()?;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("threads", &[])?;
    let pid = victim.pid();
    end_captured(&ksnap, pid)?;
    victim.process().wait(LIMIT)?.context("it lives")?;
    await_gone(pid, LIMIT)?;
    let before = living()?;
    for pids in ["same", "namespace"] {
        for point in POINTS {
            let what = || format!("killed while {point}, --pids {pids}");
            let mut command = ksnap.command();
            command.args(["restore", "latest", "--pids", pids]);
            command.env("KSNAP_KILL_AT", point);
            let mut process = Background::start(command)?;
            let status = process.wait(LIMIT)?.with_context(what)?;
            ensure!(
                status.signal() == Some(libc::SIGKILL),
                "{status}: {}",
                what()
            );
            await_gone(pid, LIMIT).with_context(what)?;
            none_but(&before).with_context(what)?;
        }
    }
    let process = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    let mut victim = Victim::brought_back(process)?;
    victim.check()?;
    let reply: Value = victim.status()?.reply;
    ensure!(reply["ok"] == true, "{reply}");
    victim.quit()
}

/// Leader of a session and of a process group, with files of its own, as daemons are: nothing about it differs.
#[test]
fn a_daemon_comes_back_without_a_word() -> Result<()> {
    require!(Root, Ksnap, Program("setsid"), ChosenIds);
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("setsid");
    let script = "exec sleep 600 0</dev/null >/dev/null 2>&1";
    command.args(["sh", "-c", script]);
    let mut daemon = Background::start(command)?;
    let pid = daemon.pid();
    let _ended = Ended(pid, "sleep");
    let end = Instant::now() + LIMIT;
    while std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() != "sleep" {
        ensure!(Instant::now() < end, "{}", daemon.stderr());
        std::thread::sleep(Duration::from_millis(1));
    }
    for round in 0..2 {
        end_captured(&ksnap, pid)?;
        if round == 0 {
            daemon.wait(LIMIT)?.context("it lives on")?;
        }
        await_gone(pid, LIMIT)?;
        let back = ksnap.run(&["restore", "latest"])?;
        // It may have got more open files from whoever runs this test.
        ensure!(matches!(back.code()?, 0 | 3), "{back:?}");
        ensure!(!back.stderr.contains("different"), "{back:?}");
        let own = Some(nix::unistd::Pid::from_raw(pid));
        ensure!(nix::unistd::getsid(own)?.as_raw() == pid);
        ensure!(nix::unistd::getpgid(own)?.as_raw() == pid);
    }
    Ok(())
}
