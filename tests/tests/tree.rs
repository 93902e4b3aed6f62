//! Trees of processes: captured at one moment, and brought back as a whole or not at all.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::Background;
use tests::footprint::await_gone;
use tests::subject::request;
use tests::victim::rng::Rng;
use tests::{Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// The processes of a tree, ended when dropped: they may be nobody's children by then.
struct Pids(Vec<i32>);

impl Drop for Pids {
    fn drop(&mut self) {
        for pid in &self.0 {
            if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/cmdline")) {
                // What has such an id by now may be somebody else.
                if !stat.is_empty() && self.is_ours(*pid) {
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
            }
        }
    }
}

impl Pids {
    /// Below this process, or handed to process 1.
    fn is_ours(&self, pid: i32) -> bool {
        let own = std::process::id() as i32;
        let mut at = pid;
        for _ in 0..64 {
            match parent_of(at) {
                Some(parent) if parent == own || parent == 1 => return true,
                Some(parent) => at = parent,
                None => return false,
            }
        }
        false
    }

    fn are_gone(&self) -> Result<()> {
        self.0.iter().try_for_each(|pid| await_gone(*pid, LIMIT))
    }
}

fn stat_of(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(')')?.1;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn parent_of(pid: i32) -> Option<i32> {
    stat_of(pid)?.get(1)?.parse().ok()
}

/// Captures a tree and ends it.
fn end_captured(ksnap: &Ksnap, root: i32) -> Result<Pids> {
    let ended = ksnap.run(&["snap", &root.to_string(), "--tree", "--kill", "--json"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    let said: Value = serde_json::from_str(&ended.stdout)?;
    let pids = said["processes"].as_array().context("no processes")?;
    let pids: Vec<i32> = pids
        .iter()
        .filter_map(|process| process["pid"].as_i64().map(|pid| pid as i32))
        .collect();
    ensure!(pids.first() == Some(&root), "{said}");
    Ok(Pids(pids))
}

/// Also gives what ksnap said. The tree runs by then, and writes to the same pipe: `early` takes what it has written.
fn bring_back(
    ksnap: &Ksnap,
    early: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<(Background, Value)> {
    let mut process = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    loop {
        let line = process
            .line(LIMIT)
            .and_then(|line| line.context("ksnap says nothing"))
            .with_context(|| process.stderr())?;
        match serde_json::from_str(&line) {
            Ok(said @ Value::Object(_)) => return Ok((process, said)),
            _ => early(&line)?,
        }
    }
}

fn nothing_early(line: &str) -> Result<()> {
    bail!("{line}")
}

/// Captured, ended, brought back, twice in a row.
fn goes_on(options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut first = Victim::spawn("tree", &[])?;
    let mut counter = first.check()?.counter;
    let pids = end_captured(&ksnap, first.pid())?;
    ensure!(pids.0.len() == 3, "{:?}", pids.0);
    first.process().wait(LIMIT)?.context("the victim lives")?;
    pids.are_gone()?;
    for round in 0..2 {
        let what = || format!("brought back {} times", round + 1);
        let mut args = vec!["restore", "latest", "--wait", "--json"];
        args.extend(options);
        let mut victim = Victim::brought_back(ksnap.start(&args)?).with_context(what)?;
        ensure!(victim.ready()["others"].as_array().map(Vec::len) == Some(2));
        victim.wait_beyond(counter + 20, LIMIT).with_context(what)?;
        counter = victim.check().with_context(what)?.counter;
        if options.is_empty() {
            ensure!(victim.pid() == first.pid(), "another id: {}", what());
        }
        let pids = end_captured(&ksnap, victim.pid()).with_context(what)?;
        ensure!(pids.0.len() == 3, "{:?}, {}", pids.0, what());
        victim.process().wait(LIMIT)?.context("it lives")?;
        pids.are_gone()?;
    }
    ksnap.ok(&["verify"])?;
    Ok(())
}

#[test]
fn a_tree_goes_on_with_its_ids() -> Result<()> {
    goes_on(&[])
}

#[test]
fn a_tree_goes_on_in_a_namespace_of_its_own() -> Result<()> {
    goes_on(&["--pids", "namespace"])
}

#[test]
fn a_running_tree_is_not_disturbed_and_copies_live_beside_it() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    for _ in 0..3 {
        let ended = ksnap.run(&["snap", &victim.pid().to_string(), "--tree", "--audit"])?;
        ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
        victim.check()?;
    }
    let mut process = ksnap.start(&["fork", "latest", "-n", "2", "--json"])?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        ensure!(copy["own_pid"] == victim.pid(), "{copy}");
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    for n in 0..2 {
        let reply = request(&mut process, "quit", n, LIMIT)?;
        ensure!(
            reply["ok"] == true && reply["pid"] == victim.pid(),
            "{reply}"
        );
    }
    victim.check()?;
    victim.quit()
}

#[test]
fn a_restore_that_is_killed_leaves_a_whole_tree_or_none() -> Result<()> {
    require!(Root, Ksnap);
    const KILLS: usize = 30;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("tree", &[])?;
    let pids = end_captured(&ksnap, victim.pid())?;
    victim.process().wait(LIMIT)?.context("the victim lives")?;
    pids.are_gone()?;
    let mut rng = Rng::new(5);
    let (mut whole, mut none) = (0, 0);
    for round in 0..KILLS {
        let what = || format!("after kill {round}");
        let mut command = ksnap.command();
        command.args(["restore", "latest", "--wait", "--json"]);
        // In some rounds when the first of them runs already.
        let chosen = round % 3 == 0;
        if chosen {
            command.env("KSNAP_KILL_AT", "release");
        }
        let mut process = Background::start(command)?;
        if !chosen {
            std::thread::sleep(Duration::from_micros(rng.word() % 80_000));
            process.signal(Signal::SIGKILL)?;
        }
        let status = process.wait(LIMIT)?.context("ksnap does not end")?;
        if chosen {
            ensure!(
                status.signal() == Some(libc::SIGKILL),
                "{status} instead of a kill {}: {}",
                what(),
                process.stderr()
            );
            // Those that are ended with ksnap take a moment to be gone.
            pids.are_gone().with_context(what)?;
            continue;
        }
        match lives_on(&pids, &mut process, round).with_context(what)? {
            true => whole += 1,
            false => none += 1,
        }
    }
    eprintln!("whole {whole} times, not there {none} times");
    ensure!(none > 0, "no kill came early enough");
    Victim::brought_back(ksnap.start(&["restore", "latest", "--wait", "--json"])?)?.quit()?;
    pids.are_gone()
}

/// Whether a tree lives on when ksnap is gone. One that does answers, and ends then; else nothing is left of it.
fn lives_on(pids: &Pids, process: &mut Background, id: usize) -> Result<bool> {
    // Whoever writes to one that is ended with ksnap finds that nobody reads, sooner or later.
    let reply = request(process, "quit", id, LIMIT);
    if let Ok(reply) = &reply {
        ensure!(reply["ok"] == true, "{reply}");
    }
    pids.are_gone()
        .with_context(|| format!("asked to quit: {reply:?}"))?;
    Ok(reply.is_ok())
}

/// The children of a process that has one thread.
fn children_of(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let listed = std::fs::read_to_string(&path).context(path)?;
    Ok(listed
        .split_whitespace()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?)
}

/// Process 1 of a PID namespace ends only when all others there have ended and have been met.
#[test]
fn a_tree_that_begins_with_process_1_of_a_namespace_is_ended() -> Result<()> {
    require!(Root, Ksnap, Program("unshare"));
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("unshare");
    let script = "sleep 1000 & sleep 1000 & echo here; wait";
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c", script]);
    let mut outside = Background::start(command)?;
    ensure!(outside.line(LIMIT)?.as_deref() == Some("here"));
    let [root] = children_of(outside.pid())?[..] else {
        bail!("process 1 is not there");
    };
    let pids = end_captured(&ksnap, root)?;
    ensure!(pids.0.len() == 3, "{:?}", pids.0);
    outside
        .wait(LIMIT)?
        .context("what waits for process 1 lives")?;
    pids.are_gone()
}

/// In a PID namespace of its own all of it ends with its first process, as soon as that is let go.
#[test]
fn a_tree_whose_first_process_ends_at_once_comes_back() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let word = folder.path().join("end");
    let script = format!(
        "for n in 0 1 2 3 4 5 6 7 8 9 10 11; do sleep 1000 & done; echo here; \
         while ! [ -e {} ]; do :; done; exit 7",
        word.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let mut shell = Background::start(command)?;
    ensure!(shell.line(LIMIT)?.as_deref() == Some("here"));
    let pids = end_captured(&ksnap, shell.pid())?;
    ensure!(pids.0.len() == 13, "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    std::fs::write(&word, "")?;
    for _ in 0..5 {
        let ended = ksnap.run(&["restore", "latest", "--wait", "--pids", "namespace"])?;
        ensure!(ended.code()? == 7, "{ended:?}");
    }
    Ok(())
}

const ORPHANED_GROUP: &str = r#"
import os, time
r, w = os.pipe()
first = os.fork()
if first == 0:
    os.read(r, 1)
    os._exit(0)
os.setpgid(first, first)
second = os.fork()
if second == 0:
    time.sleep(1000)
    os._exit(0)
os.setpgid(second, first)
os.write(w, b".")
os.waitpid(first, 0)
print(first, second)
time.sleep(1000)
"#;

/// A process with a certain id that does nothing. Ended when dropped.
struct Idle(i32);

impl Idle {
    /// By clone3(2), whose argument the id is.
    fn with_id(id: i32) -> Result<Self> {
        const EXIT_SIGNAL: usize = 4;
        const SET_TID: usize = 8;
        const SET_TID_SIZE: usize = 9;
        let ids = [id];
        let mut args = [0u64; 10];
        args[EXIT_SIGNAL] = libc::SIGCHLD as u64;
        args[SET_TID] = ids.as_ptr() as u64;
        args[SET_TID_SIZE] = 1;
        // SAFETY: the arguments and the array that they point at are live, with a null stack as fork has it; the child
        // makes system calls only.
        let made = unsafe {
            let made = libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args));
            if made == 0 {
                loop {
                    libc::pause();
                }
            }
            made
        };
        let why = || {
            format!(
                "a process with the id {id}: {}",
                std::io::Error::last_os_error()
            )
        };
        ensure!(made == i64::from(id), why());
        Ok(Self(id))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

#[test]
fn a_group_whose_id_is_taken_is_refused_before_anything_is_made() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(ORPHANED_GROUP)?;
    let line = python.line(LIMIT)?;
    let (first, second) = line.split_once(' ').context("no ids")?;
    let (first, second): (i32, i32) = (first.parse()?, second.parse()?);
    let pids = end_captured(&ksnap, python.pid())?;
    ensure!(pids.0 == [python.pid(), second], "{:?}", pids.0);
    python.process().wait(LIMIT)?.context("python lives")?;
    pids.are_gone()?;
    let other = Idle::with_id(first)?;
    let refused = ksnap.run(&["restore", "latest"])?;
    ensure!(refused.code()? != 0, "{refused:?}");
    for word in [format!("process group {first}"), "is taken".into()] {
        ensure!(refused.stderr.contains(&word), "{word}: {refused:?}");
    }
    pids.are_gone()?;
    drop(other);
    let (_back, said) = bring_back(&ksnap, &mut nothing_early)?;
    ensure!(said["pid"] == python.pid(), "{said}");
    let group = stat_of(second).and_then(|stat| stat.get(2)?.parse::<i32>().ok());
    ensure!(group == Some(first), "{group:?} instead of {first}");
    pids.0.iter().try_for_each(|pid| {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
        await_gone(*pid, LIMIT)
    })
}

/// Lines that must come with numbers in order, none missing and none twice.
#[derive(Default)]
struct Numbers(u64);

impl Numbers {
    fn take(&mut self, line: &str) -> Result<()> {
        ensure!(
            line == format!("n{}", self.0),
            "{line} instead of n{}",
            self.0
        );
        self.0 += 1;
        Ok(())
    }

    fn expect(&mut self, process: &mut Background, least: u64) -> Result<()> {
        for _ in 0..least {
            self.take(&process.line(LIMIT)?.context("no number")?)?;
        }
        Ok(())
    }

    /// Everything that was written before the end.
    fn rest(&mut self, process: &mut Background) -> Result<()> {
        while let Ok(Some(line)) = process.line(LIMIT) {
            self.take(&line)?;
        }
        Ok(())
    }
}

/// A shell with job control: a pipeline whose numbers must all arrive, and a background job in a group of its own.
#[test]
fn a_pipeline_of_a_shell_loses_nothing() -> Result<()> {
    require!(Root, Ksnap, Program("bash"));
    let ksnap = Ksnap::new()?;
    let script = "set -m; sleep 1000 & echo job $!; \
        (i=0; while :; do echo $i; i=$((i+1)); sleep 0.002; done) | while read x; do echo n$x; done | cat; \
        echo over; kill $(jobs -p); wait; echo ended";
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    let mut shell = Background::start(command)?;
    let line = shell.line(LIMIT)?.context("no job")?;
    let job: i32 = line.strip_prefix("job ").context("no job")?.parse()?;
    let mut numbers = Numbers::default();
    numbers.expect(&mut shell, 50)?;
    let root = shell.pid();
    let pids = end_captured(&ksnap, root)?;
    ensure!(pids.0.len() >= 5 && pids.0.contains(&job), "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    numbers.rest(&mut shell)?;
    let (mut back, said) = bring_back(&ksnap, &mut |line| numbers.take(line))?;
    ensure!(said["pid"] == root, "{said}");
    numbers.expect(&mut back, 100)?;
    let group = |pid: i32| stat_of(pid).and_then(|stat| stat.get(2)?.parse::<i32>().ok());
    ensure!(
        group(job) == Some(job),
        "the job is in group {:?}",
        group(job)
    );
    // The shell knows its children: it goes on when the pipeline has ended, and ends the job.
    let children = pids.0.iter().filter(|pid| parent_of(**pid) == Some(root));
    for pid in children.filter(|pid| **pid != job) {
        kill(Pid::from_raw(*pid), Signal::SIGTERM)?;
    }
    let mut line = String::new();
    while line != "over" {
        line = back.line(LIMIT)?.context("the shell does not go on")?;
    }
    let finished = back.finish(LIMIT)?;
    ensure!(finished.stdout.contains("ended"), "{finished:?}");
    pids.are_gone()
}

/// In a container that was entered from outside, ksnap's own session has no id (pid_namespaces(7): it is 0).
#[test]
fn a_tree_goes_on_where_the_session_of_ksnap_began_outside() -> Result<()> {
    require!(Root, Ksnap, Mount, Program("bash"));
    let ksnap = Ksnap::new()?;
    let script = "sleep 1000 & while read x; do echo got $x; done; kill $!; wait; echo ended";
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    let mut shell = Background::start(command)?;
    shell.stdin()?.write_all(b"one\n")?;
    ensure!(shell.line(LIMIT)?.as_deref() == Some("got one"));
    let pids = end_captured(&ksnap, shell.pid())?;
    ensure!(pids.0.len() == 2, "{:?}", pids.0);
    shell.wait(LIMIT)?.context("the shell lives")?;
    pids.are_gone()?;
    let tool = ksnap.command();
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(tool.get_program())
        .args(tool.get_args())
        .args(["restore", "latest", "--wait"]);
    let mut back = Background::start(command)?;
    back.stdin()?.write_all(b"two\n")?;
    while back.line(LIMIT)?.with_context(|| back.stderr())? != "got two" {}
    back.close_stdin();
    let finished = back.finish(LIMIT)?;
    ensure!(
        finished.code()? == 0 && finished.stdout.contains("ended"),
        "{finished:?}"
    );
    Ok(())
}

/// A pool of workers in the middle of its work.
#[test]
fn a_pool_of_python_finishes_its_work() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut python = Python::script(
        "import hashlib, multiprocessing\n\
         def work(n):\n\
         \x20   h = hashlib.sha256(str(n).encode())\n\
         \x20   for i in range(600000): h.update(h.digest())\n\
         \x20   return h.hexdigest()[:8]\n\
         if __name__ == '__main__':\n\
         \x20   multiprocessing.set_start_method('fork')\n\
         \x20   with multiprocessing.Pool(3) as pool:\n\
         \x20       for n, got in enumerate(pool.imap(work, range(40))):\n\
         \x20           print(n, got)\n\
         \x20   print('expected', [work(n) for n in range(0, 40, 13)])\n",
    )?;
    let mut lines = vec![python.line(LIMIT)?, python.line(LIMIT)?];
    let pids = end_captured(&ksnap, python.pid())?;
    ensure!(pids.0.len() >= 4, "{:?}", pids.0);
    python.process().wait(LIMIT)?.context("python lives")?;
    pids.are_gone()?;
    while let Ok(Some(line)) = python.process().line(LIMIT) {
        lines.push(line);
    }
    let mut back = ksnap.start(&["restore", "latest", "--wait"])?;
    let finished = back.finish(LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    // The first line is ksnap's.
    lines.extend(finished.stdout.lines().skip(1).map(str::to_owned));
    ensure!(lines.len() == 41, "{lines:?}");
    let results: Vec<&str> = lines[..40]
        .iter()
        .enumerate()
        .map(|(n, line)| line.strip_prefix(&format!("{n} ")).unwrap_or("?"))
        .collect();
    let some: Vec<String> = (0..40)
        .step_by(13)
        .map(|n| format!("'{}'", results[n]))
        .collect();
    ensure!(
        lines[40] == format!("expected [{}]", some.join(", ")),
        "{lines:?}"
    );
    pids.are_gone()
}

/// A page from a server, by a new connection.
fn page_of(port: u16) -> Result<String> {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A server with a master and workers: all answer, and the master still leads them.
#[test]
fn nginx_and_its_workers_answer_again() -> Result<()> {
    require!(Root, Ksnap, Program("nginx"));
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    // The workers are other users.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let at = folder.path().display().to_string();
    std::fs::write(folder.path().join("page"), "hello from a file")?;
    let config = format!(
        "daemon off; worker_processes 2; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log {at}/access.log; client_body_temp_path {at}/a; proxy_temp_path {at}/b;\n\
         fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n\
         server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
    );
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, config)?;
    let mut command = Command::new(tests::paths::program("nginx").context("no nginx")?);
    command.arg("-c").arg(&file).arg("-p").arg(folder.path());
    let mut nginx = Background::start(command)?;
    let end = Instant::now() + LIMIT;
    while page_of(port).is_err() {
        ensure!(
            Instant::now() < end,
            "nginx does not answer: {}",
            nginx.stderr()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let root = nginx.pid();
    let pids = end_captured(&ksnap, root)?;
    ensure!(pids.0.len() == 3, "{:?}", pids.0);
    nginx.wait(LIMIT)?.context("nginx lives")?;
    pids.are_gone()?;
    ensure!(page_of(port).is_err(), "somebody else answers");
    let (mut back, said) = bring_back(&ksnap, &mut nothing_early)?;
    ensure!(said["pid"] == root, "{said}");
    for _ in 0..20 {
        ensure!(page_of(port)?.contains("hello from a file"));
    }
    // Reloading replaces the workers: the master talks to them, and waits for their ends.
    kill(Pid::from_raw(root), Signal::SIGHUP)?;
    let end = Instant::now() + LIMIT;
    let worker = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    while worker(pids.0[1]) || worker(pids.0[2]) {
        ensure!(Instant::now() < end, "the old workers stay");
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(page_of(port)?.contains("hello from a file"));
    kill(Pid::from_raw(root), Signal::SIGQUIT)?;
    let finished = back.finish(LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    pids.are_gone()
}
