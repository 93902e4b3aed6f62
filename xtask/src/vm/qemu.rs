//! One virtual machine: its command line, its time limits, its end.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::console::{self, CommandResult, Progress, Recorder, Status};
use super::payload::GuestCommand;
use super::tools::on_path;
use super::{Error, Kernel, Result};

/// What the guest may take, in host time, beyond a command's own limit in guest time. Emulation on a
/// busy host makes the two differ.
const GRACE: Duration = Duration::from_secs(90);

/// What powering off may take.
const POWER_OFF: Duration = Duration::from_secs(15);

/// `console`: kernel messages on the first port. `panic=-1`: reset at once, which `-no-reboot` turns
/// into an end. The rest is speed under emulation: no mitigations, no waiting for entropy.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet mitigations=off \
     random.trust_cpu=on nowatchdog rcupdate.rcu_expedited=1 rdinit=/init";

/// `max` has AVX2 and XSAVE. Five-level page tables would only make emulation slower. CMPXCHG16B is
/// hidden because QEMU 7.2 leaves garbage in EFLAGS after it, up to the trap and nested-task flags: an
/// interrupt there ends the guest in a double fault. The kernel's slab allocator uses the instruction
/// where the processor has it; half of the 6.12 boots on a busy host died of that, and none without.
const PROCESSOR: &str = "max,la57=off,cx16=off";

/// A machine to start.
pub struct Spec<'a> {
    /// For messages.
    pub kernel: Kernel,
    /// QEMU's program.
    pub qemu: &'a Path,
    /// The kernel image.
    pub vmlinuz: &'a Path,
    /// The initial file system.
    pub initrd: &'a Path,
    /// Guest memory.
    pub memory_mib: u64,
    /// Guest processors.
    pub processors: u32,
    /// Where the first serial port is written to.
    pub console: PathBuf,
    /// How long the guest may take to say hello.
    pub boot_limit: Duration,
}

/// How a boot ended that never reached user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The machine was ended at the limit.
    TimeLimit,
    /// The machine ended by itself, as after a kernel panic.
    Died,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ending::TimeLimit => "it was ended at the limit",
            Ending::Died => "the machine ended by itself",
        })
    }
}

/// Runs the machine to its end, feeding `recorder`; gives back how long it took to be ready.
///
/// # Errors
/// `Boot` if the guest's first process never said hello. Later ends are results of the commands.
pub fn run(
    spec: &Spec<'_>,
    recorder: &mut Recorder,
    commands: &[GuestCommand],
    done: &mut dyn FnMut(&CommandResult),
) -> Result<Duration> {
    let started = Instant::now();
    let (_machine, lines) = Machine::start(spec)?;
    let mut ready = None;
    let mut deadline = started + spec.boot_limit;
    let lost = loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => break Some(Status::TimedOut),
            Err(RecvTimeoutError::Disconnected) => break Some(Status::GuestDied),
        };
        match recorder.line(&line) {
            Progress::None => {}
            Progress::Ready => {
                ready = Some(started.elapsed());
                deadline = Instant::now() + GRACE;
            }
            Progress::Began(index) => deadline = Instant::now() + commands[index].limit + GRACE,
            Progress::Ended(index) => {
                done(recorder.result(index));
                deadline = Instant::now() + GRACE;
            }
            Progress::Bye => break None,
        }
    };
    let Some(ready) = ready else {
        return Err(Error::Boot {
            kernel: spec.kernel,
            limit: spec.boot_limit,
            ending: match lost {
                Some(Status::TimedOut) => Ending::TimeLimit,
                _ => Ending::Died,
            },
            log: spec.console.clone(),
            tail: console::tail(&spec.console),
        });
    };
    match lost {
        Some(status) => recorder.lost(status),
        // The channel ends with the machine. One that does not power off is ended below all the same.
        None => while lines.recv_timeout(POWER_OFF).is_ok() {},
    }
    Ok(ready)
}

/// A running QEMU, ended by its own process id when dropped.
struct Machine(Child);

impl Machine {
    fn start(spec: &Spec<'_>) -> Result<(Machine, Receiver<Vec<u8>>)> {
        let mut command = command(spec, on_path("setpriv").as_deref());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io("start", spec.qemu))?;
        let output = child.stdout.take();
        let machine = Machine(child);
        let (send, lines) = channel();
        if let Some(output) = output {
            // Ends with the pipe, that is with the machine.
            thread::spawn(move || {
                let mut output = BufReader::new(output);
                let mut line = Vec::new();
                while output
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|length| length > 0)
                {
                    if send.send(std::mem::take(&mut line)).is_err() {
                        break;
                    }
                }
            });
        }
        Ok((machine, lines))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `setpriv` makes the machine die with us, also by a signal that runs no destructor.
fn command(spec: &Spec<'_>, setpriv: Option<&Path>) -> Command {
    let mut command = match setpriv {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(spec.qemu);
            command
        }
        None => Command::new(spec.qemu),
    };
    command.args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR]);
    command.args([
        "-smp",
        &spec.processors.to_string(),
        "-m",
        &spec.memory_mib.to_string(),
    ]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command
        .arg("-kernel")
        .arg(spec.vmlinuz)
        .arg("-initrd")
        .arg(spec.initrd);
    command.args(["-append", KERNEL_ARGUMENTS]);
    // A comma begins the next option; QEMU takes a doubled one as itself.
    let log = spec.console.display().to_string().replace(',', ",,");
    command.args([
        "-chardev",
        &format!("file,id=console,path={log}"),
        "-serial",
        "chardev:console",
    ]);
    command.args([
        "-chardev",
        "stdio,id=results,signal=off",
        "-serial",
        "chardev:results",
    ]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec<'static> {
        Spec {
            kernel: Kernel::V6_1,
            qemu: Path::new("/usr/bin/false"),
            vmlinuz: Path::new("/k/vmlinuz"),
            initrd: Path::new("/k/initrd"),
            memory_mib: 512,
            processors: 1,
            console: std::env::temp_dir().join("no-such-folder/a,b.log"),
            boot_limit: Duration::from_secs(20),
        }
    }

    #[test]
    fn a_comma_in_the_log_path_does_not_end_the_option() {
        let command = command(&spec(), None);
        assert!(
            command
                .get_args()
                .any(|a| a.to_string_lossy().ends_with("/a,,b.log"))
        );
    }

    #[test]
    fn a_machine_that_ends_before_hello_is_a_boot_error() {
        let mut recorder = Recorder::new("@x", &[]);
        let error = run(&spec(), &mut recorder, &[], &mut |_| {}).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Boot {
                    ending: Ending::Died,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_machine_that_says_nothing_is_ended_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("qemu");
        // It waits for somebody who writes to this: nobody does.
        let silent = folder.path().join("silent");
        let made = Command::new("mkfifo").arg(&silent).status().unwrap();
        assert!(made.success());
        let line = format!("#!/bin/sh\nread -r line < {}\n", silent.display());
        std::fs::write(&script, line).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let spec = Spec {
            qemu: &script,
            boot_limit: Duration::from_millis(700),
            ..spec()
        };
        let error = run(&spec, &mut Recorder::new("@x", &[]), &[], &mut |_| {}).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Boot {
                    ending: Ending::TimeLimit,
                    ..
                }
            ),
            "{error}"
        );
        // However far it came: the path of the script is in its command line from the start.
        let script = script.to_str().unwrap();
        let runs = |process: &std::fs::DirEntry| {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(script)
        };
        let running = std::fs::read_dir("/proc").unwrap().flatten().find(runs);
        assert!(running.is_none(), "{running:?} still runs");
    }
}
