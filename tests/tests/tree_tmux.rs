//! A terminal multiplexer, captured with the shells in its panes and brought back.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::footprint::state_of;
use tests::terminal::{Terminal, are_as_before, await_child, await_that, child_with, place_of};
use tests::tree::{end_captured, parent_of};
use tests::{Ksnap, require};

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
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("tmux"),
        Program("bash"),
        ChosenIds
    );
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
    ensure!(state_of(job) == 'S', "Ctrl-C reached it");
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
