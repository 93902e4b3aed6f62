//! Trees with sessions on terminals: each session comes back with its terminal, and the terminal with its foreground.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::background::{Background, Ended};
use tests::tree::{Pids, bring_back, children_of, end_captured, nothing_early, parent_of, stat_of};
use tests::{Ksnap, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Waits until something is so.
fn await_that(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        ensure!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A victim that looks at its session all the time, captured, ended and brought back, twice in a row.
fn a_session_goes_on(options: &[&str]) -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut first = Victim::spawn("session", &[])?;
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
        let notes = victim.ready()["notes"].to_string();
        ensure!(!notes.contains("controlling terminal"), "{notes}");
        // Ctrl-C is among them.
        victim.wait_beyond(counter + 20, LIMIT).with_context(what)?;
        counter = victim.check().with_context(what)?.counter;
        let pids = end_captured(&ksnap, victim.pid()).with_context(what)?;
        ensure!(pids.0.len() == 3, "{:?}, {}", pids.0, what());
        victim.process().wait(LIMIT)?.context("it lives")?;
        pids.are_gone()?;
    }
    Ok(())
}

#[test]
fn a_session_goes_on_with_its_terminal() -> Result<()> {
    a_session_goes_on(&[])
}

#[test]
fn a_session_goes_on_with_its_terminal_in_a_namespace_of_its_own() -> Result<()> {
    a_session_goes_on(&["--pids", "namespace"])
}

#[test]
fn copies_of_a_session_have_terminals_of_their_own() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("session", &[])?;
    for _ in 0..3 {
        let ended = ksnap.run(&["snap", &victim.pid().to_string(), "--tree"])?;
        ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
        victim.check()?;
    }
    let mut process = ksnap.start(&["fork", "latest", "-n", "2", "--json"])?;
    for _ in 0..2 {
        let line = process.line(LIMIT)?.context("too few copies")?;
        let copy: Value = serde_json::from_str(&line)?;
        let notes = copy["notes"].to_string();
        // The one that it had is the running one's.
        ensure!(notes.contains("the terminal that was /dev/pts/"), "{copy}");
    }
    ensure!(process.wait(LIMIT)?.is_some(), "ksnap does not end");
    for n in 0..2 {
        let reply = tests::subject::request(&mut process, "quit", n, LIMIT)?;
        ensure!(reply["ok"] == true, "{reply}");
    }
    victim.check()?;
    victim.quit()
}

/// Holds the master of a terminal that a program runs on: types what it is told to, in hexadecimal digits, and says what
/// the program writes, in the same way.
const HOLDER: &str = r#"
import os, pty, select, sys
pid, master = pty.fork()
if pid == 0:
    os.environ.update(PS1='% ', TERM='dumb', HISTFILE='', INPUTRC='/dev/null')
    os.execvp(sys.argv[1], sys.argv[1:])
print('child', pid)
while True:
    ready = select.select([0, master], [], [])[0]
    if master in ready:
        try:
            data = os.read(master, 4096)
        except OSError:
            data = b''
        if not data:
            break
        print(data.hex())
    if 0 in ready:
        for word in os.read(0, 4096).split():
            os.write(master, bytes.fromhex(word.decode()))
print('ended', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// A program on a terminal whose master the test's child holds.
struct Terminal {
    holder: Background,
    /// The holder's id, also when ksnap has brought it back.
    root: i32,
    child: i32,
    /// What the program has written that no test has taken yet.
    seen: String,
}

impl Terminal {
    fn start(program: &[&str]) -> Result<Self> {
        let mut command = Command::new(Python::interpreter()?);
        command.args(["-u", "-c", HOLDER]).args(program);
        let mut holder = Background::start(command)?;
        let line = holder.line(LIMIT)?.context("no child")?;
        let child = line.strip_prefix("child ").context("no child")?.parse()?;
        Ok(Self {
            root: holder.pid(),
            holder,
            child,
            seen: String::new(),
        })
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.holder
            .stdin()?
            .write_all(format!("{digits}\n").as_bytes())?;
        Ok(())
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let digits = |n: usize| u8::from_str_radix(line.get(n..n + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..line.len()).step_by(2).map(digits).collect();
        let bytes = bytes.with_context(|| format!("the holder says {line}"))?;
        self.seen.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }

    /// Waits until the program has written this, and gives all up to it.
    fn expect(&mut self, text: &str) -> Result<String> {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            let why = |holder: &Background| format!("{text:?} does not come: {}", holder.stderr());
            let line = self.holder.line(LIMIT)?;
            let line = line.with_context(|| format!("{}, {:?}", why(&self.holder), self.seen))?;
            self.take(&line)?;
        }
    }

    /// Has a shell run a command, and gives what that writes. The shell is at its prompt again then.
    fn run(&mut self, command: &str) -> Result<String> {
        // The echo of what is typed does not have the sum in it.
        self.type_in(&format!("{command}; echo end$((40+2)).\n"))?;
        let said = self.expect("end42.\r\n")?;
        self.expect("% ")?;
        let (_, said) = said.split_once(".\r\n").context("no echo")?;
        Ok(said.trim_end_matches("end42.\r\n").to_owned())
    }

    /// Captures the holder's tree, ends it, and brings it back. Gives the notes.
    fn again(&mut self, ksnap: &Ksnap) -> Result<(Pids, String)> {
        let pids = end_captured(ksnap, self.root)?;
        self.holder.wait(LIMIT)?.context("the holder lives")?;
        pids.are_gone()?;
        while let Ok(Some(line)) = self.holder.line(LIMIT) {
            self.take(&line)?;
        }
        self.holder = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
        loop {
            let line = self.holder.line(LIMIT)?;
            let line = line.with_context(|| self.holder.stderr())?;
            // The tree runs already, and writes to the same pipe.
            match serde_json::from_str::<Value>(&line) {
                Ok(said @ Value::Object(_)) => {
                    ensure!(said["pid"] == pids.0[0], "{said}");
                    return Ok((pids, said["notes"].to_string()));
                }
                _ => self.take(&line)?,
            }
        }
    }

    fn ended(&mut self) -> Result<String> {
        let finished = self.holder.finish(LIMIT)?;
        Ok(finished.stdout)
    }
}

/// Session, terminal and foreground of a process (proc_pid_stat(5)).
fn place_of(pid: i32) -> Result<[i64; 4]> {
    let stat = stat_of(pid).with_context(|| format!("process {pid} is gone"))?;
    let field = |n: usize| stat[n].parse::<i64>();
    Ok([field(2)?, field(3)?, field(4)?, field(5)?])
}

fn state_of(pid: i32) -> Option<String> {
    stat_of(pid).map(|stat| stat[0].clone())
}

/// The child of a process with this argument, which may have to become that yet.
fn await_child(parent: i32, argument: &str) -> Result<i32> {
    let mut found = child_with(parent, argument);
    await_that(argument, || {
        found = child_with(parent, argument);
        found.is_ok()
    })
    .with_context(|| format!("{found:?}"))?;
    found
}

fn child_with(parent: i32, argument: &str) -> Result<i32> {
    let mut lines = Vec::new();
    for pid in children_of(parent)? {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split('\0').any(|word| word == argument) {
            return Ok(pid);
        }
        lines.push(line);
    }
    bail!("no child of {parent} with {argument}: {lines:?}")
}

/// The places of processes are as they were, the number of the terminal included where others have left it free, and
/// that is the terminal that they have open.
fn are_as_before(before: &[(i32, [i64; 4])], notes: &str) -> Result<()> {
    let shell = before[1].0;
    let open = std::fs::metadata(format!("/proc/{shell}/fd/0"))?.rdev();
    // Encoded in the same way.
    let (now, session) = (open as i64, place_of(shell)?[1]);
    for (pid, was) in before {
        let (mut expected, is_in) = (*was, was[1] == session);
        if is_in && notes.contains("the terminal that was /dev/pts/") {
            expected[2] = now;
        }
        let is = place_of(*pid)?;
        ensure!(
            is == expected,
            "{pid}: {is:?} instead of {expected:?}: {notes}"
        );
        ensure!(!is_in || is[2] == now, "{pid}: {is:?}, and {now} is open");
    }
    ensure!(!notes.contains("controlling terminal"), "{notes}");
    ensure!(!notes.contains("foreground"), "{notes}");
    Ok(())
}

/// Jobs in the background, stopped and running, and one in the foreground.
#[test]
fn a_shell_goes_on_leading_its_jobs() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("bash"));
    let ksnap = Ksnap::new()?;
    let mut terminal = Terminal::start(&["bash", "--noediting", "--norc", "--noprofile", "-i"])?;
    let (holder, shell) = (terminal.root, terminal.child);
    terminal.expect("% ")?;
    terminal.run("stty rows 33 cols 101; before=kept")?;
    terminal.type_in("sleep 100001 &\n")?;
    terminal.expect("% ")?;
    terminal.type_in("sleep 100002\n")?;
    await_that("a job in the foreground", || {
        child_with(shell, "100002")
            .is_ok_and(|job| place_of(shell).is_ok_and(|place| place[3] == i64::from(job)))
    })?;
    let job = child_with(shell, "100002")?;
    terminal.type_in("\x1a")?;
    await_that("a stopped job", || state_of(job).as_deref() == Some("T"))?;
    terminal.expect("% ")?;
    let listed = terminal.run("jobs -l")?;
    let running = await_child(shell, "100001")?;
    for word in ["Stopped", "Running", &job.to_string(), &running.to_string()] {
        ensure!(listed.contains(word), "{word}: {listed}");
    }
    let all = [holder, shell, running, job];
    let places = || -> Result<Vec<(i32, [i64; 4])>> {
        all.iter().map(|pid| Ok((*pid, place_of(*pid)?))).collect()
    };
    let before = places()?;
    ensure!(before[1].1[3] == i64::from(shell), "{before:?}");
    // The shell is in the foreground.
    let (pids, notes) = terminal.again(&ksnap)?;
    ensure!(pids.0.len() == 4, "{:?}", pids.0);
    are_as_before(&before, &notes)?;
    ensure!(state_of(job).as_deref() == Some("T"), "{:?}", state_of(job));
    let listed = terminal.run("jobs -l")?;
    for word in ["Stopped", "Running", &job.to_string(), &running.to_string()] {
        ensure!(listed.contains(word), "{word}: {listed}");
    }
    let said = terminal.run("echo $before; stty size")?;
    ensure!(said.contains("kept\r\n33 101\r\n"), "{said}");
    // A job is.
    terminal.type_in("fg %2\n")?;
    await_that("it goes on in the foreground", || {
        state_of(job).as_deref() == Some("S")
            && place_of(job).is_ok_and(|place| place[3] == i64::from(job))
    })?;
    let before = places()?;
    let (_pids, notes) = terminal.again(&ksnap)?;
    are_as_before(&before, &notes)?;
    terminal.type_in("\x03")?;
    terminal.expect("% ")?;
    let said = terminal.run("echo code $?")?;
    ensure!(said.contains("code 130"), "{said}");
    await_that("it has ended", || state_of(job).is_none())?;
    ensure!(
        state_of(running).as_deref() == Some("S"),
        "Ctrl-C reached it"
    );
    ensure!(
        place_of(shell)?[3] == i64::from(shell),
        "{:?}",
        place_of(shell)?
    );
    let said = terminal.run("jobs; kill %1; wait %1; echo waited $?")?;
    ensure!(said.contains("waited 143"), "{said}");
    terminal.type_in("exit 5\n")?;
    let said = terminal.ended()?;
    ensure!(said.contains("ended 5"), "{said}");
    pids.are_gone()
}

/// The terminal of a shell whose master is elsewhere.
#[test]
fn a_terminal_that_is_held_elsewhere_is_named() -> Result<()> {
    require!(Root, Ksnap, Program("python3"), Program("bash"));
    let ksnap = Ksnap::new()?;
    let mut terminal =
        Terminal::start(&["sh", "-c", "sleep 100003 & echo here; exec sleep 100004"])?;
    terminal.expect("here")?;
    let pids = end_captured(&ksnap, terminal.child)?;
    ensure!(pids.0.len() == 2, "{:?}", pids.0);
    ensure!(terminal.ended()?.contains("ended -9"));
    pids.are_gone()?;
    let (back, said) = bring_back(&ksnap, &mut nothing_early)?;
    let notes: Vec<&str> = said["notes"]
        .as_array()
        .context("no notes")?
        .iter()
        .filter_map(|note| note.as_str())
        .filter(|note| note.contains("controlling terminal"))
        .collect();
    let [note] = notes[..] else {
        bail!("one note for the session: {said}");
    };
    for word in [
        &format!("process {}", terminal.child),
        "/dev/pts/",
        "a process outside of the tree has its master",
    ] {
        ensure!(note.contains(word), "{word}: {note}");
    }
    for pid in &pids.0 {
        ensure!(place_of(*pid)?[2] == 0, "{:?}", place_of(*pid)?);
    }
    for pid in &pids.0 {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
    }
    drop(back);
    pids.are_gone()
}

/// One that leads a session begins one without a terminal, also where ksnap's has the number of the one that it had.
#[test]
fn a_leader_alone_goes_on_without_its_terminal_which_is_named() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let mut terminal = Terminal::start(&["sleep", "100007"])?;
    let pid = terminal.child;
    await_that("it sleeps", || {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| comm.trim() == "sleep")
    })?;
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    ensure!(terminal.ended()?.contains("ended -9"));
    let tool = ksnap.command();
    let words = std::iter::once(tool.get_program()).chain(tool.get_args());
    let words: Vec<&str> = words.filter_map(|word| word.to_str()).collect();
    let mut terminal = Terminal::start(&[&words[..], &["restore", "latest"]].concat())?;
    terminal.expect("and has no controlling terminal")?;
    await_that("it is there", || stat_of(pid).is_some())?;
    let _ended = Ended(pid, "sleep");
    ensure!(place_of(pid)?[2] == 0, "{:?}", place_of(pid)?);
    Ok(())
}

/// What waits in a terminal is in no snapshot.
#[test]
fn what_waits_in_a_terminal_is_named() -> Result<()> {
    require!(Root, Ksnap, Program("python3"));
    let ksnap = Ksnap::new()?;
    let python = Python::script(
        "import os, pty, time\n\
         pid, master = pty.fork()\n\
         if pid == 0:\n\
         \x20   os.write(1, b'x' * 100)\n\
         \x20   time.sleep(1000)\n\
         os.write(master, b'typed\\n')\n\
         time.sleep(1000)\n",
    )?;
    let words = [
        "6 bytes that were typed",
        "107 bytes that were written to it",
    ];
    // The kernel brings it there a moment later.
    let mut said = String::new();
    await_that("what waits is named", || {
        let snap = ksnap.run(&["snap", &python.pid().to_string(), "--tree", "--json"]);
        said = snap.map_or_else(|e| format!("{e:#}"), |ended| ended.stdout);
        words.iter().all(|word| said.contains(word))
    })
    .with_context(|| said.clone())
}

/// Ends a server of tmux when the test is over.
struct Tmux<'a>(&'a Path);

impl Tmux<'_> {
    fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("tmux")
            .arg("-S")
            .arg(self.0)
            .args(["-f", "/dev/null"])
            .args(args)
            .env_remove("TMUX")
            .output()?;
        ensure!(
            output.status.success(),
            "tmux {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until the pane shows this.
    fn shows(&self, text: &str) -> Result<String> {
        let mut shown = String::new();
        await_that(text, || {
            shown = self
                .run(&["capture-pane", "-p"])
                .unwrap_or_else(|e| format!("{e:#}"));
            shown.contains(text)
        })
        .with_context(|| shown.clone())?;
        Ok(shown)
    }

    fn has_run(&self, command: &str, text: &str) -> Result<()> {
        self.run(&["send-keys", "-l", command])?;
        self.run(&["send-keys", "Enter"])?;
        self.shows(text).map(drop)
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        let _ = self.run(&["kill-server"]);
    }
}

/// A server, with a shell in a pane; clients come afterwards.
#[test]
fn tmux_goes_on_with_the_shell_in_its_pane() -> Result<()> {
    require!(Root, Ksnap, Program("tmux"), Program("bash"));
    let ksnap = Ksnap::new()?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let tmux = Tmux(&socket);
    let shell = "env PS1='% ' HISTFILE= bash --norc --noprofile -i";
    tmux.run(&["new-session", "-d", "-x", "91", "-y", "29", shell])?;
    tmux.shows("%")?;
    tmux.has_run("echo before$((20+3)); sleep 100005 &", "before23")?;
    let pid = |what: &str| -> Result<i32> {
        Ok(tmux.run(&["display-message", "-p", what])?.trim().parse()?)
    };
    let (server, shell) = (pid("#{pid}")?, pid("#{pane_pid}")?);
    ensure!(parent_of(shell) == Some(server));
    let job = await_child(shell, "100005")?;
    await_that("the shell is in the foreground", || {
        place_of(shell).is_ok_and(|place| place[3] == i64::from(shell))
    })?;
    let before: Vec<(i32, [i64; 4])> = [server, shell, job]
        .iter()
        .map(|pid| Ok((*pid, place_of(*pid)?)))
        .collect::<Result<_>>()?;
    let pids = end_captured(&ksnap, server)?;
    ensure!(pids.0.contains(&job), "{:?}", pids.0);
    pids.are_gone()?;
    let back = ksnap.run(&["restore", "latest", "--json"])?;
    ensure!(matches!(back.code()?, 0 | 3), "{back:?}");
    let said: Value = serde_json::from_str(&back.stdout)?;
    are_as_before(&before, &said["notes"].to_string())?;
    tmux.shows("before23")?;
    tmux.has_run("echo after$((20+4)); stty size", "after24")?;
    tmux.shows("29 91")?;
    // Ctrl-C reaches what is in the foreground alone.
    tmux.has_run("sleep 100006", "sleep 100006")?;
    await_that("it is in the foreground", || {
        child_with(shell, "100006")
            .is_ok_and(|job| place_of(job).is_ok_and(|place| place[3] == i64::from(job)))
    })?;
    tmux.run(&["send-keys", "C-c"])?;
    tmux.has_run("echo code$((100+$?))", "code230")?;
    ensure!(state_of(job).as_deref() == Some("S"), "Ctrl-C reached it");
    // A client on a terminal of its own.
    let at = socket.to_str().context("no path")?;
    let mut client = Terminal::start(&["env", "TERM=xterm", "tmux", "-S", at, "attach"])?;
    client.expect("before23")?;
    client.type_in("exit\n")?;
    let said = client.ended()?;
    ensure!(said.contains("ended 0"), "{said}");
    kill(Pid::from_raw(job), Signal::SIGKILL).ok();
    pids.are_gone()
}
