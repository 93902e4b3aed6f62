//! Two network namespaces with a cable between them, as two machines, which may have more for themselves; and ports of this
//! one.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::apart::Apart;
use crate::resp::Resp;

/// Two machines, `10.99.0.1` and `10.99.0.2`. Gone when dropped.
pub struct Machines {
    name: String,
    /// What each has for itself beside its network, if it does.
    apart: [Option<Apart>; 2],
}

/// Addresses of the two.
pub const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

fn run(words: &[&str]) -> Result<()> {
    let done = Command::new(words[0])
        .args(&words[1..])
        .output()
        .with_context(|| format!("cannot start {}", words[0]))?;
    ensure!(
        done.status.success(),
        "{}: {}",
        words.join(" "),
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}

impl Machines {
    /// Makes both, and connects them.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let machines = Self {
            name: format!("ks{}x{number}", std::process::id()),
            apart: [None, None],
        };
        let (a, b) = (machines.namespace(0), machines.namespace(1));
        for name in [&a, &b] {
            run(&["ip", "netns", "add", name])?;
            run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        }
        let peer = ["type", "veth", "peer", "name", "cable", "netns", &b];
        run(&[&["ip", "-n", &a, "link", "add", "cable"][..], &peer].concat())?;
        for (name, address) in [&a, &b].into_iter().zip(ADDRESSES) {
            let address = format!("{address}/24");
            run(&["ip", "-n", name, "addr", "add", &address, "dev", "cable"])?;
            run(&["ip", "-n", name, "link", "set", "cable", "up"])?;
        }
        Ok(machines)
    }

    /// The same, each with a `/tmp` of its own, in which only these folders are what they are here; and the second one with
    /// process ids of its own. The first one has those of this machine, since programs of the kernel that watch memory
    /// know no others.
    pub fn apart(keep: [Vec<PathBuf>; 2]) -> Result<Self> {
        let mut machines = Self::new()?;
        for (machine, keep) in keep.iter().enumerate() {
            let apart = Apart::new(&machines.namespace(machine), keep, machine == 1)?;
            machines.apart[machine] = Some(apart);
        }
        Ok(machines)
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{}{}", self.name, ["a", "b"][machine])
    }

    /// The command, on one of the two.
    pub fn on(&self, machine: usize, command: &Command) -> Command {
        // File systems, /sys among them, stay what they are, but for those that it has for itself.
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net=/run/netns/{}", self.namespace(machine)));
        match &self.apart[machine] {
            Some(apart) => inside.args(apart.words()),
            None => inside.arg("--"),
        };
        if let Some(folder) = command.get_current_dir() {
            // One of that machine.
            inside.arg("env").arg("-C").arg(folder);
        }
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// A connection to a server of one of the two, from there.
    pub fn client(&self, machine: usize, port: u16) -> Result<Resp> {
        self.inside(machine, move || Resp::connect(port))
    }

    /// Runs something in a thread of one of the two.
    pub fn inside<T: Send + 'static>(
        &self,
        machine: usize,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(machine)))?;
        // The thread alone goes there; its sockets stay in the namespace that they were made in.
        std::thread::spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
        .join()
        .map_err(|_| anyhow!("the thread in the namespace panicked"))?
    }

    /// Lets what both send be delayed, lost or slowed down, as `tc netem` says: `["loss", "1%"]`.
    pub fn disturb(&self, how: &[&str]) -> Result<()> {
        for machine in [0, 1] {
            let name = self.namespace(machine);
            let device = ["qdisc", "replace", "dev", "cable", "root", "netem"];
            run(&[&["tc", "-n", &name][..], &device, how].concat())?;
        }
        Ok(())
    }

    /// The processes that are in the network of a machine, as they are called there.
    pub fn own_processes(&self, machine: usize) -> Result<Vec<i32>> {
        let here = self.processes(machine)?.into_iter();
        Ok(match &self.apart[machine] {
            Some(apart) => here.filter_map(|pid| apart.id_inside(pid)).collect(),
            None => here.collect(),
        })
    }

    /// What a process of a machine is called here.
    pub fn process(&self, machine: usize, own: i32) -> Result<i32> {
        let is_it = |pid: &i32| match &self.apart[machine] {
            Some(apart) => apart.id_inside(*pid) == Some(own),
            None => *pid == own,
        };
        let found = self.processes(machine)?.into_iter().find(is_it);
        found.with_context(|| format!("there is no process {own}"))
    }

    /// The processes that are in the network of a machine.
    pub fn processes(&self, machine: usize) -> Result<Vec<i32>> {
        let inode = |path: &Path| path.metadata().map(|meta| meta.ino());
        let own = inode(Path::new(&format!(
            "/run/netns/{}",
            self.namespace(machine)
        )))?;
        let entries = std::fs::read_dir("/proc")?.flatten();
        let inside = entries
            .filter(|entry| inode(&entry.path().join("ns/net")).is_ok_and(|found| found == own));
        Ok(inside
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    fn end_processes(&self, machine: usize) -> Result<()> {
        for pid in self.processes(machine)? {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(())
    }

    /// Why machines cannot be made here.
    pub fn missing() -> Option<String> {
        let try_out = || -> Result<()> {
            let machines = Self::apart([Vec::new(), Vec::new()])?;
            for machine in [0, 1] {
                let inside = machines.on(machine, &Command::new("true")).status();
                ensure!(inside.context("cannot start nsenter")?.success(), "nsenter");
            }
            Ok(())
        };
        try_out().err().map(|e| format!("{e:#}"))
    }

    /// Why their cable cannot be disturbed here.
    pub fn no_netem() -> Option<String> {
        let try_out = || Self::new()?.disturb(&["delay", "1ms"]);
        try_out().err().map(|e| format!("{e:#}"))
    }
}

/// A port of 127.0.0.1 that nobody listens on, and that stays free while a server that is to have it is not there yet, or
/// was ended: none of those that the kernel gives to whoever asks for any (ip(7)). Tests that run side by side begin to
/// look at different ones.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_000;
    /// Ports that one test may ask for before it comes to those of the next.
    const EACH: u32 = 8;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let lowest = range.split_whitespace().next().context("no range")?;
    let count = lowest.parse::<u32>()?.saturating_sub(FIRST);
    for _ in 0..count {
        let place = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(EACH).wrapping_add(place) % count;
        let port = u16::try_from(FIRST + place)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    // The kernel gives all of them away.
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in [0, 1] {
            // What was brought back there is nobody's child any more.
            let _ = self.end_processes(machine);
            self.apart[machine] = None;
            let _ = run(&["ip", "netns", "del", &self.namespace(machine)]);
        }
    }
}
