//! Two processes with something between them, rolled back together.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::background::Background;
use crate::footprint::await_reading;
use crate::ksnap::Ksnap;
use crate::tree::Pids;

const LIMIT: Duration = Duration::from_secs(60);

/// Captures a tree that goes on; gives the name of its root's snapshot, and its processes.
pub fn capture(ksnap: &Ksnap, root: i32, options: &[&str]) -> Result<(String, Vec<i32>)> {
    let root = root.to_string();
    let ended = ksnap.run(&[&["snap", &root, "--tree", "--json"], options].concat())?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    let said: Value = serde_json::from_str(&ended.stdout)?;
    let id = said["id"].as_str().context("no id")?.to_owned();
    Ok((id, pids_in(&said["processes"])?))
}

/// The processes in a list of them, or of what is said of each.
pub fn pids_in(processes: &Value) -> Result<Vec<i32>> {
    let all = processes.as_array().context("no processes")?.iter();
    let pid = |one: &Value| {
        let pid = one.get("pid").unwrap_or(one).as_i64();
        pid.map(|pid| pid as i32).context("no process id")
    };
    all.map(pid).collect()
}

/// Rolls a tree back; gives what ksnap says.
pub fn roll_back(ksnap: &Ksnap, root: i32, id: &str) -> Result<Value> {
    let said = ksnap.ok(&["rollback", &root.to_string(), id, "--tree", "-y", "--json"])?;
    Ok(serde_json::from_str(&said)?)
}

/// Orders that a member of a family reads, a line each; it ends when nobody can give any more.
pub(crate) const ORDERS: &str = r#"
import os
def lines(fd):
    held = b""
    while True:
        more = os.read(fd, 4096)
        if not more:
            os._exit(0)
        held += more
        while b"\n" in held:
            line, held = held.split(b"\n", 1)
            yield line.decode().split()
"#;

/// A parent and its child, with a pipe, a pair of sockets, a memory page and a file's position between them; both do only
/// what they are told.
const FAMILY: &str = r#"
import fcntl, json, mmap, os, signal, socket, struct, sys, time
shared = mmap.mmap(-1, 4096)
queue, into = os.pipe()
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
orders, order = os.pipe()
answers, answer = os.pipe()
place = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)

def all_of(fd):
    os.set_blocking(fd, False)
    found = b""
    try:
        while True:
            more = os.read(fd, 4096)
            if not more:
                break
            found += more
    except BlockingIOError:
        pass
    os.set_blocking(fd, True)
    return found.decode()

# The file, opened once more.
def opened(fd):
    return os.open(sys.argv[1], os.O_RDWR) if fd is None else fd

# A lock of the whole file, or one of its first byte: both belong to the open file, not to the process.
def hold(fd, on):
    fcntl.flock(fd, fcntl.LOCK_EX if on else fcntl.LOCK_UN)
    kind = fcntl.F_WRLCK if on else fcntl.F_UNLCK
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqixxxx", kind, os.SEEK_SET, 0, 1, 0))

def child():
    own = ""
    apart = None
    for word in lines(orders):
        said = {}
        if word[0] == "fill":
            own = word[1]
        elif word[0] == "show":
            said = {"own": own, "pipe": all_of(queue), "socket": all_of(far.fileno()),
                    "shared": shared[:8].decode().strip("\0"), "place": os.lseek(place, 0, os.SEEK_CUR)}
        elif word[0] == "lock":
            fcntl.lockf(place, fcntl.LOCK_EX if word[1] == "child" else fcntl.LOCK_UN)
        elif word[0] == "hold":
            apart = opened(apart)
            hold(apart, word[1] == "child")
            if word[1] == "another":
                os.open(sys.argv[1], os.O_RDWR)
                hold(os.open(sys.argv[1], os.O_RDWR), True)
        elif word[0] == "close":
            os.close(queue)
            far.close()
        elif word[0] == "exec":
            os.write(answer, b"{}\n")
            os.execvp("sleep", ["sleep", "1000"])
        elif word[0] == "exit":
            os._exit(0)
        os.write(answer, (json.dumps(said) + "\n").encode())

pid = os.fork()
if pid == 0:
    os.close(into); near.close(); os.close(order); os.close(answers)
    child()
os.close(queue); far.close(); os.close(orders); os.close(answer)
apart = None
heard = lines(answers)
mine = ""
print(json.dumps({"child": pid}), flush=True)
for word in lines(0):
    said = {}
    if word[0] == "fill":
        mine = word[1]
        os.write(into, mine.encode())
        near.send(mine.encode())
        shared[:8] = mine.encode().ljust(8, b"\0")
        os.lseek(place, len(mine), os.SEEK_SET)
    if word[0] == "lock" and word[1] != "parent":
        fcntl.lockf(place, fcntl.LOCK_UN)
    if word[0] in ("hold", "ranges"):
        apart = opened(apart)
    if word[0] == "hold" and word[1] != "parent":
        hold(apart, False)
    if word[0] == "ranges":
        # Through two open files of one file, and both are the process's.
        how = fcntl.LOCK_EX if word[1] == "both" else fcntl.LOCK_UN
        fcntl.lockf(place, how, 1, 0)
        fcntl.lockf(apart, how, 1, 10)
    elif word[0] == "extra":
        extra = os.open(sys.argv[1], os.O_RDWR)
    elif word[0] == "over":
        os.close(extra)
    elif word[0] == "born":
        born = os.fork()
        if born == 0:
            deeper = os.fork()
            time.sleep(1000)
        said = {"born": born}
    elif word[0] == "reap":
        try:
            gone, status = os.waitpid(int(word[1]), 0)
            said = {"signal": os.WTERMSIG(status)}
        except ChildProcessError:
            said = {"signal": None}
    elif word[0] == "mine":
        said = {"mine": mine}
    elif word[0] == "exit":
        os.write(order, b"exit\n")
        os.waitpid(pid, 0)
    else:
        os.write(order, (" ".join(word) + "\n").encode())
        said = json.loads(" ".join(next(heard)))
        said["mine"] = mine
        if word[0] == "lock" and word[1] == "parent":
            fcntl.lockf(place, fcntl.LOCK_EX)
        if word[0] == "hold" and word[1] == "parent":
            hold(apart, True)
    print(json.dumps(said), flush=True)
"#;

/// Two processes that do what they are told.
pub struct Family {
    /// With a store of its own.
    pub ksnap: Ksnap,
    process: Background,
    /// The child.
    pub child: i32,
    /// Whoever there is below it, ended when this is dropped.
    pub others: Pids,
    folder: tempfile::TempDir,
}

impl Family {
    /// Starts both.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new("python3");
        command
            .arg("-c")
            .arg([ORDERS, FAMILY].concat())
            .arg(folder.path().join("place"));
        let mut process = Background::start(command)?;
        let child = hear(&mut process)?["child"].as_i64().context("no child")?;
        Ok(Self {
            ksnap: Ksnap::new()?,
            process,
            child: child as i32,
            others: Pids(vec![child as i32]),
            folder,
        })
    }

    /// The parent.
    pub fn root(&self) -> i32 {
        self.process.pid()
    }

    /// The file that both have open.
    pub fn place(&self) -> PathBuf {
        self.folder.path().join("place")
    }

    /// Tells the parent a word, and gives the answer.
    pub fn say(&mut self, word: &str) -> Result<Value> {
        self.process
            .stdin()?
            .write_all(format!("{word}\n").as_bytes())?;
        hear(&mut self.process).with_context(|| word.to_owned())
    }

    /// Captures both; they go on.
    pub fn capture(&self) -> Result<String> {
        let (id, pids) = capture(&self.ksnap, self.root(), &[])?;
        ensure!(pids == [self.root(), self.child], "{pids:?}");
        Ok(id)
    }

    /// Everything that both have, once: the queues are empty behind it.
    pub fn shows(&mut self, word: &str) -> Result<()> {
        let said = self.say("show")?;
        let all = ["own", "mine", "pipe", "socket", "shared"];
        ensure!(all.iter().all(|what| said[what] == word), "{word}: {said}");
        ensure!(said["place"] == word.len(), "{word}: {said}");
        Ok(())
    }

    /// Waits until the parent waits for the next word, and changes nothing meanwhile.
    pub fn stands_still(&self) -> Result<()> {
        await_reading(self.root(), LIMIT)
    }

    /// A rollback that must be refused; gives what ksnap says.
    pub fn refused(&self, id: &str) -> Result<String> {
        let root = self.root().to_string();
        let refused = self.ksnap.run(&["rollback", &root, id, "--tree", "-y"])?;
        ensure!(refused.code()? == 1, "{refused:?}");
        ensure!(
            refused.stderr.contains("nothing was touched"),
            "{refused:?}"
        );
        Ok(refused.stderr)
    }

    /// When all is well.
    pub fn end(self) -> Result<()> {
        self.ksnap.ok(&["verify"])?;
        drop(self.folder);
        Ok(())
    }
}

fn hear(process: &mut Background) -> Result<Value> {
    let line = process.line(LIMIT)?;
    let line = line.with_context(|| format!("it says nothing: {}", process.stderr()))?;
    Ok(serde_json::from_str(&line)?)
}
