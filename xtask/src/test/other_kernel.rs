//! A process that is captured under a virtual machine's kernel goes on under this machine's.

use super::stage::Stages;
use crate::vm::{CommandResult, GuestCommand, Kernel, Payload, Status};
use crate::{cargo, host};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The guest's command.
const NAME: &str = "captured for another kernel";
const BEGIN: &str = "-- store --";
const END: &str = "-- end --";
/// How much longer than the guest had run the process's clocks may say.
const LATER: u64 = 300_000_000_000;

/// Captures a victim in the guest, and prints the store. What the victim has of the guest besides memory are pipes, whose
/// other ends are elsewhere: they become ksnap's own when it is brought back.
const SCRIPT: &str = r#"
set -e
mkfifo /tmp/asked
sleep 1000 > /tmp/asked &
(cat /tmp/asked | $WITH_LESS "$VICTIM" clocks 2>/dev/null | cat > /tmp/said) &
for _ in $(seq 600); do grep -q ready /tmp/said 2>/dev/null && break; sleep 0.1; done
sed -n 1p /tmp/said
pid=$(sed -n '1s/.*"pid":\([0-9]*\).*/\1/p' /tmp/said)
"$KSNAP_BIN" --store /tmp/captured snap "$pid" --kill || [ $? = 3 ]
echo "-- store --"
tar -C /tmp -c captured | gzip | base64
echo "-- end --"
"#;

/// Adds what the guest is to do.
///
/// # Errors
/// When a program is missing, in words.
pub fn add(payload: &mut Payload) -> Result<(), String> {
    let victim = cargo::binary(cargo::Profile::Dev, "victim");
    payload.env("VICTIM", victim.to_string_lossy());
    let mut with_less = String::new();
    let missing = missing_capabilities();
    if !missing.is_empty() {
        let setpriv = host::find("setpriv").ok_or("apt-get install util-linux")?;
        with_less = format!("{} --bounding-set {}", setpriv.display(), missing.join(","));
        payload.add_in_place(setpriv);
    }
    payload.env("WITH_LESS", with_less);
    let command = GuestCommand::new(NAME, ["sh", "-c", SCRIPT]);
    payload.command(command.limit(Duration::from_secs(180)));
    Ok(())
}

/// Capabilities of the guest that nobody on this machine may have, as a container is given fewer than there are.
fn missing_capabilities() -> Vec<String> {
    /// CAP_CHECKPOINT_RESTORE, the last one since Linux 5.9.
    const LAST: u32 = 40;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounds = bounds.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let bounds = bounds.unwrap_or(u64::MAX);
    let missing = (0..=LAST).filter(|one| bounds >> one & 1 == 0);
    missing.map(|one| format!("-cap_{one}")).collect()
}

/// Output for people to read: without a store.
pub fn shortened(output: &str) -> &str {
    output.split(BEGIN).next().unwrap_or_default().trim_end()
}

/// Its name in the summary.
pub fn stage(kernel: Kernel) -> String {
    format!("a process of Linux {kernel} goes on here")
}

/// Brings back what a guest has captured, and asks whether it is well.
pub fn bring_back(kernel: Kernel, results: &[CommandResult], stages: &mut Stages) {
    let Some(captured) = results.iter().find(|result| result.name == NAME) else {
        return;
    };
    let stage = stage(kernel);
    if !host::is_root() {
        return stages.skip(&stage, "root", "run the tests as root");
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["-T", "--monotonic", "1", "true"]);
    if !unshare.status().is_ok_and(|status| status.success()) {
        let how = "run the tests as root with CAP_SYS_ADMIN and CAP_SYS_TIME";
        return stages.skip(&stage, "a time namespace", how);
    }
    if captured.status != Status::Passed {
        // It is among the failures of the machine.
        return;
    }
    let begun = Instant::now();
    let done = go_on(&captured.output);
    match &done {
        Ok(said) => println!("{stage}: {said}"),
        Err(e) => stages.result(format!("{stage}: FAILED: {e:#}")),
    }
    stages.ended(&stage, done.is_ok(), begun.elapsed());
}

fn go_on(output: &str) -> Result<String> {
    let then = monotonic(output).context("what the victim said in the guest")?;
    let folder = std::env::temp_dir().join(format!("ksnap-captured-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let done = unpack(output, &folder).and_then(|()| restore(&folder.join("captured")));
    std::fs::remove_dir_all(&folder)?;
    let back = done?;
    let said = String::from_utf8_lossy(&back.stdout);
    let told = String::from_utf8_lossy(&back.stderr);
    let all = || format!("{}\n{said}{told}", back.status);
    ensure!(back.status.success(), "it did not end well: {}", all());
    ensure!(
        said.lines()
            .filter(|line| line.contains("\"ok\":true"))
            .count()
            == 2,
        "it did not answer: {}",
        all()
    );
    let now = monotonic(&said).with_context(all)?;
    ensure!(
        (then..then + LATER).contains(&now),
        "its clocks went from {then} to {now} ns: {}",
        all()
    );
    Ok(told.trim().to_owned())
}

/// What a victim's last line says of its monotonic clock.
fn monotonic(output: &str) -> Result<u64> {
    let mut lines = output.lines().filter(|line| line.starts_with('{'));
    let last = lines.next_back().context("it said nothing")?;
    let said: Value = serde_json::from_str(last)?;
    said["monotonic_ns"].as_u64().context("it told no time")
}

fn unpack(output: &str, folder: &Path) -> Result<()> {
    let text = output
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END));
    let (text, _) = text.context("the guest printed no store")?;
    let decoded = run(Command::new("base64").arg("-d"), text.as_bytes())?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(folder).arg("-xz");
    run(&mut tar, &decoded).map(drop)
}

fn restore(store: &Path) -> Result<Output> {
    let mut ksnap = Command::new(cargo::binary(cargo::Profile::Dev, "ksnap"));
    ksnap.arg("--store").arg(store);
    ksnap.args(["restore", "latest", "--pids", "namespace", "--wait"]);
    feed(&mut ksnap, b"check 1\nquit 2\n")
}

/// Runs a command with this input; gives its output.
fn run(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let output = feed(command, input)?;
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

fn feed(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // Beside its output, which may fill a pipe meanwhile. Whoever does not read on has a reason, which its status tells.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    })
    .with_context(|| format!("cannot wait for {}", command.get_program().display()))
}
