//! What a machine of the tests has for itself beside its network: `/tmp`, and where that is asked for its process ids.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Takes over a mount namespace of its own: `/tmp` is empty but for what is named and lies there, which stays. Then it takes
/// in whoever is nobody's child, if it is the first process, and lasts until it is ended.
const SCRIPT: &str = r#"set -e
old=$(mktemp -d -p /run)
mount --bind /tmp "$old"
mount -t tmpfs -o mode=1777 tmpfs /tmp
for keep in "$@"; do
    case "$keep" in /tmp/*) mkdir -p "$keep"; mount --bind "$old${keep#/tmp}" "$keep" ;; esac
done
umount "$old"
rmdir "$old"
echo ready
if [ $$ != 1 ]; then exec sleep infinity; fi
while :; do sleep 3600 & wait; done
"#;

/// Namespaces, which go with all that runs in them when this is dropped.
pub struct Apart {
    /// Of the process that holds them.
    holder: Child,
    /// Its id here.
    inside: i32,
    own_ids: bool,
}

impl Apart {
    /// Makes them beside the network of this name. `keep`: folders of `/tmp` that stay. `own_ids`: process ids of its own, and
    /// `/proc` with these.
    pub fn new(network: &str, keep: &[PathBuf], own_ids: bool) -> Result<Self> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{network}"));
        command.args(["--", "unshare", "--mount"]);
        if own_ids {
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        }
        command.args(["sh", "-c", SCRIPT, "sh"]).args(keep);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let holder = command.spawn().context("cannot start nsenter")?;
        let mut apart = Self {
            inside: holder.id() as i32,
            holder,
            own_ids,
        };
        let out = apart.holder.stdout.take().context("no pipe")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line == "ready\n", "no namespaces of its own");
        if own_ids {
            let pid = apart.holder.id();
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            apart.inside = children.trim().parse().context("no first process")?;
        }
        Ok(apart)
    }

    /// Words in front of a command that is to run there.
    pub fn words(&self) -> Vec<String> {
        let of = |name: &str| format!("/proc/{}/ns/{name}", self.inside);
        let mut words = vec![format!("--mount={}", of("mnt"))];
        if self.own_ids {
            words.push(format!("--pid={}", of("pid_for_children")));
        }
        words.push("--".into());
        if self.own_ids {
            // There is a process in between then, and what that is killed with is meant for it.
            words.extend(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned));
        }
        words
    }

    /// What a process of this machine is called there.
    pub fn id_inside(&self, pid: i32) -> Option<i32> {
        if !self.own_ids {
            return Some(pid);
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        ids.split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
