//! A process with a child that has a child and a thread, and another child in a session of its own: all count what they
//! are asked, and say what they are.

use std::io::Write;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::background::Background;
use crate::family::{ORDERS, capture};
use crate::footprint::{await_gone, await_reading, await_state, state_of};
use crate::ksnap::Ksnap;
use crate::python::Python;
use crate::tree::Pids;

const LIMIT: Duration = Duration::from_secs(60);

/// Each but the root is asked through a pipe of its own, and answers into one that all share.
const CLAN: &str = r#"
import json, mmap, os, signal, sys, threading
shared = mmap.mmap(-1, 4096)
queue, into = os.pipe()
answers, answer = os.pipe()
place = os.open(sys.argv[1] + "/place", os.O_RDWR | os.O_CREAT, 0o600)
orders = {name: os.pipe() for name in ("child", "deeper", "apart")}

def status(name):
    return [line.split()[1] for line in open("/proc/thread-self/status") if line.startswith(name)][0]

def member(name):
    count = 0
    heard = []
    ring = threading.Event()
    thread = None
    if name == "child":
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 5000)
        os.umask(0o27)
        os.chdir(sys.argv[1])
        def wait():
            while True:
                ring.wait()
                ring.clear()
                heard.append(2)
                done.set()
        done = threading.Event()
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
    for word in lines(orders[name][0]):
        count += 1
        if word[0] == "end":
            os._exit(int(word[1]))
        elif word[0] == "group":
            os.setpgid(0, int(word[1]))
        shared[orders_of[name]] = count
        os.write(into, b"x")
        os.lseek(place, 1, os.SEEK_CUR)
        if name == "child":
            os.kill(os.getpid(), signal.SIGUSR1)
            done.clear(); ring.set(); done.wait()
        said = {"name": name, "count": count, "heard": len(heard), "pid": os.getpid(), "ppid": os.getppid(),
                "group": os.getpgid(0), "session": os.getsid(0), "threads": len(os.listdir("/proc/self/task")),
                "umask": status("Umask"), "cwd": os.getcwd(), "ignored": status("SigIgn"),
                "exe": os.readlink("/proc/self/exe"), "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0}
        os.write(answer, (json.dumps(said) + "\n").encode())

orders_of = {"child": 0, "deeper": 1, "apart": 2}
pids = {}
def fork(name, then):
    pid = os.fork()
    if pid == 0:
        then()
        for other, (reads, writes) in orders.items():
            os.close(writes)
            if other not in (name, "deeper"):
                os.close(reads)
        member(name)
        os._exit(0)
    return pid

def child():
    os.setpgid(0, 0)
    shared[8:16] = fork("deeper", lambda: None).to_bytes(8, "little")

pids["child"] = fork("child", child)
pids["apart"] = fork("apart", os.setsid)
heard = lines(answers)
def ask(name, word):
    os.write(orders[name][1], (word + "\n").encode())
    return json.loads(" ".join(next(heard)))
for name in ("child", "apart"):
    ask(name, "count")
pids["deeper"] = int.from_bytes(shared[8:16], "little")
ask("deeper", "count")
os.read(queue, 4096)
ends = []
signal.signal(signal.SIGCHLD, lambda *_: ends.append(1))
print(json.dumps(pids), flush=True)
for word in lines(0):
    said = {}
    if word[0] == "count":
        names = [name for name in orders_of if name in word[1:] or not word[1:]]
        said = {name: ask(name, "count") for name in names}
        said["written"] = len(os.read(queue, 4096))
        said["shared"] = list(shared[:3])
        said["place"] = os.lseek(place, 0, os.SEEK_CUR)
    elif word[0] == "wait":
        try:
            pid, how = os.waitpid(int(word[1]), os.WNOHANG if word[2:] else 0)
            said = {"pid": pid, "status": how}
        except ChildProcessError:
            said = {"pid": -1}
    elif word[0] == "end":
        os.write(orders[word[1]][1], ("end " + word[2] + "\n").encode())
    elif word[0] == "group":
        said = ask(word[1], "group " + word[2])
        os.read(queue, 4096)
    print(json.dumps(said), flush=True)
"#;

/// Four processes that say what they are.
pub struct Clan {
    /// With a store of its own.
    pub ksnap: Ksnap,
    process: Background,
    /// A child, which leads a group and has a thread.
    pub child: i32,
    /// Its child, in the same group.
    pub deeper: i32,
    /// The other child, which leads a session.
    pub apart: i32,
    /// All but the root.
    pub others: Pids,
    _folder: tempfile::TempDir,
}

impl Clan {
    /// Starts all of them.
    pub fn start() -> Result<Self> {
        Self::start_for(Ksnap::new()?, |command| command)
    }

    /// The same for this ksnap, by a command that is made of that of the root.
    pub fn start_for(ksnap: Ksnap, with: impl FnOnce(Command) -> Command) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), mode)?;
        let mut command = Command::new(Python::interpreter()?);
        command
            .arg("-c")
            .arg([ORDERS, CLAN].concat())
            .arg(folder.path());
        let mut process = Background::start(with(command))?;
        let said = hear(&mut process)?;
        let pid = |name: &str| said[name].as_i64().map(|pid| pid as i32).context("no pid");
        let (child, deeper, apart) = (pid("child")?, pid("deeper")?, pid("apart")?);
        Ok(Self {
            ksnap,
            process,
            child,
            deeper,
            apart,
            others: Pids(vec![child, deeper, apart]),
            _folder: folder,
        })
    }

    /// The first process.
    pub fn root(&self) -> i32 {
        self.process.pid()
    }

    /// Tells the root a word, and gives the answer.
    pub fn say(&mut self, word: &str) -> Result<Value> {
        self.process
            .stdin()?
            .write_all(format!("{word}\n").as_bytes())?;
        hear(&mut self.process).with_context(|| word.to_owned())
    }

    /// Captures all of them; they go on.
    pub fn capture(&self) -> Result<String> {
        let (id, pids) = capture(&self.ksnap, self.root(), &[])?;
        ensure!(pids.len() == 4 && pids[0] == self.root(), "{pids:?}");
        Ok(id)
    }

    /// Waits until the root, which has been killed, is gone.
    pub fn is_gone(&mut self) -> Result<()> {
        let ended = self.process.wait(LIMIT)?.context("the root lives")?;
        ensure!(!ended.success(), "{ended}");
        self.others.are_gone()
    }

    /// Waits until the root waits for the next word.
    pub fn stands_still(&self) -> Result<()> {
        await_reading(self.root(), LIMIT)
    }

    /// Has those of them end that have children no more, and the root wait for its own.
    pub fn end(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            self.say(&format!("end {name} 3"))?;
            match *name {
                "deeper" => await_state(self.deeper, 'Z', LIMIT)?,
                name => {
                    let pid = if name == "child" {
                        self.child
                    } else {
                        self.apart
                    };
                    let said = self.say(&format!("wait {pid}"))?;
                    ensure!(said["status"] == 3 << 8, "{said}");
                    if pid == self.child && state_of(self.deeper) == 'Z' {
                        // Whoever has it now waits for it.
                        await_gone(self.deeper, LIMIT)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The next answer of all is this one but for the counts that are one higher, as if nothing had been between.
    pub fn goes_on_from(&mut self, then: &Value) -> Result<()> {
        let now = self.say("count")?;
        let mut expected = then.clone();
        for name in ["child", "deeper", "apart"] {
            add(&mut expected[name]["count"], 1);
        }
        add(&mut expected["child"]["heard"], 2);
        add(&mut expected["place"], 3);
        for n in 0..3 {
            add(&mut expected["shared"][n], 1);
        }
        ensure!(now == expected, "{now}\ninstead of\n{expected}");
        Ok(())
    }
}

fn add(number: &mut Value, more: i64) {
    if let Some(old) = number.as_i64() {
        *number = (old + more).into();
    }
}

fn hear(process: &mut Background) -> Result<Value> {
    let line = process.line(LIMIT)?;
    let line = line.with_context(|| format!("it says nothing: {}", process.stderr()))?;
    Ok(serde_json::from_str(&line)?)
}

/// A process of no tree, ended when this is dropped.
pub struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program that has this id, which must be free.
pub fn take_id(pid: i32) -> Result<Stranger> {
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    let end = Instant::now() + LIMIT;
    loop {
        let before = std::fs::read_to_string(LAST)?;
        std::fs::write(LAST, (pid - 1).to_string())?;
        let other = Stranger(Command::new("sleep").arg("1000").spawn()?);
        // What begins next must not have an id that one of a tree had.
        std::fs::write(LAST, before.trim())?;
        if other.0.id() as i32 == pid {
            return Ok(other);
        }
        // Somebody was quicker.
        ensure!(Instant::now() < end, "the id {pid} is never free");
    }
}
