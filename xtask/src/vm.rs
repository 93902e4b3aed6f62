//! Runs test programs on Debian kernels under QEMU, for the paths that the host's kernel cannot take.
//!
//! [`run`] makes a small system out of a [`Payload`] (static busybox, the given binaries and the
//! libraries they need, one script per command), boots it without root, KVM or a disk, and gives back
//! an [`Outcome`] per command. Everything fetched or made lies below `target/vm`.
//!
//! # Layout
//!
//! | file | its one job |
//! |---|---|
//! | `payload` | what a caller wants in the guest and run there |
//! | `kernels` | kernel images out of Debian packages, cached |
//! | `modules` | modules of theirs that tests need |
//! | `tools` | helper programs of the host |
//! | `initramfs`, `cpio`, `init.sh` | the guest's file system and first process |
//! | `qemu` | one virtual machine, its time limits and its end |
//! | `console` | what the guest wrote, as results |

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub mod command;
mod console;
mod cpio;
mod error;
mod initramfs;
mod kernels;
mod modules;
mod payload;
mod qemu;
#[cfg(test)]
mod tests;
mod tools;

pub use console::{CommandResult, Status, Tally};
pub use error::{Error, Result};
pub use payload::{GuestCommand, Payload};

/// A kernel of the test matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's kernel: soft-dirty, fentry and kprobes, without WP_ASYNC and PAGEMAP_SCAN.
    V6_1,
    /// Debian 13's kernel: WP_ASYNC, PAGEMAP_SCAN, soft-dirty and fentry.
    V6_12,
}

impl Kernel {
    /// Every kernel of the matrix.
    pub const ALL: [Kernel; 2] = [Kernel::V6_1, Kernel::V6_12];

    /// The series, as in `6.1`.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
        }
    }

    /// What it tracks pages by, as `ksnap --tracker` names it.
    pub fn tracker(self) -> &'static str {
        match self {
            Kernel::V6_1 => "soft-dirty",
            Kernel::V6_12 => "wp",
        }
    }

    /// Where ksnap's probes see write faults on it, as ksnap says it.
    pub fn fault_source(self) -> &'static str {
        match self {
            Kernel::V6_1 | Kernel::V6_12 => "fentry/handle_mm_fault",
        }
    }

    /// The package that depends on the newest image package.
    fn meta_package(self) -> &'static str {
        match self {
            Kernel::V6_1 => "linux-image-amd64",
            Kernel::V6_12 => "linux-image-cloud-amd64",
        }
    }

    /// The suites that carry it, best first. Backports come first for 6.12 because their package
    /// list is a thirtieth of a full suite's.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Kernel::V6_1 => &["bookworm"],
            Kernel::V6_12 => &["bookworm-backports", "trixie"],
        }
    }

    /// True for the image packages of this series and flavour, such as `linux-image-6.1.0-56-amd64`.
    fn is_image_package(self, package: &str) -> bool {
        let Some(rest) = package
            .strip_prefix("linux-image-")
            .and_then(|rest| rest.strip_prefix(self.name()))
            .and_then(|rest| rest.strip_prefix('.'))
        else {
            return false;
        };
        match self {
            Kernel::V6_1 => rest.strip_suffix("-amd64").is_some_and(|rest| {
                rest.chars()
                    .all(|c| c.is_ascii_digit() || c == '.' || c == '-')
            }),
            Kernel::V6_12 => rest.ends_with("-cloud-amd64"),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which kernels to run: the value of `--vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Selection {
    /// Debian 12's 6.1
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's 6.12
    #[value(name = "6.12")]
    V6_12,
    /// One after the other
    All,
}

impl Selection {
    /// The kernels meant.
    pub fn kernels(self) -> &'static [Kernel] {
        match self {
            Selection::V6_1 => &[Kernel::V6_1],
            Selection::V6_12 => &[Kernel::V6_12],
            Selection::All => &Kernel::ALL,
        }
    }
}

/// What one boot gave.
#[derive(Debug)]
pub struct Outcome {
    /// The kernel that was asked for.
    pub kernel: Kernel,
    /// The package and version of its image.
    pub package: String,
    /// What the guest's `uname -r` said.
    pub release: String,
    /// From starting QEMU to the guest's first process being ready for commands.
    pub boot: Duration,
    /// From starting QEMU to its end.
    pub total: Duration,
    /// Size of the guest's file system, in bytes.
    pub initramfs: u64,
    /// One for each command of the payload, in its order.
    pub results: Vec<CommandResult>,
    /// What the guest's first process could not set up, as it said it.
    pub warnings: Vec<String>,
    /// The kernel's own console, kept until the next boot of this kernel.
    pub console: PathBuf,
}

impl Outcome {
    /// Tests passed and failed, over all commands.
    pub fn tally(&self) -> Tally {
        self.results.iter().map(CommandResult::tally).sum()
    }

    /// Every command ran and passed.
    pub fn is_success(&self) -> bool {
        !self.results.is_empty()
            && self
                .results
                .iter()
                .all(|result| result.status == Status::Passed)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for result in &self.results {
            writeln!(f, "vm {}: {result}", self.kernel)?;
            if result.status == Status::GuestDied {
                let log = self.console.display();
                writeln!(f, "vm {}: what the kernel said is in {log}", self.kernel)?;
            }
        }
        write!(
            f,
            "vm {} ({}, {}, initramfs {} MiB): boot {:.1} s, in all {:.1} s: {}",
            self.kernel,
            self.release,
            self.package,
            self.initramfs >> 20,
            self.boot.as_secs_f64(),
            self.total.as_secs_f64(),
            self.tally()
        )
    }
}

/// Gets what a boot of `kernel` takes, where it is not there yet.
///
/// # Errors
/// As [`run`].
pub fn prepare(kernel: Kernel, say: &mut dyn FnMut(&str)) -> Result<()> {
    tools::ensure(say)?;
    kernels::ensure(kernel, &folder().join(kernel.name()), say)?;
    Ok(())
}

/// Boots `kernel` with `payload` and waits for its commands.
///
/// # Errors
/// [`Error::is_skip`] tells a machine that cannot run this from a real failure. A command that fails
/// is no error but a result in the [`Outcome`]; so is a guest that dies under a command.
pub fn run(kernel: Kernel, payload: &Payload) -> Result<Outcome> {
    run_with(kernel, payload, &mut |_| {}, &mut |message| {
        eprintln!("vm {kernel}: {message}")
    })
}

/// [`run`], telling `done` of each command as it ends and `say` of slow preparations.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    kernel: Kernel,
    payload: &Payload,
    done: &mut dyn FnMut(&CommandResult),
    say: &mut dyn FnMut(&str),
) -> Result<Outcome> {
    let (qemu, busybox) = tools::ensure(say)?;
    let folder = folder().join(kernel.name());
    let image = kernels::ensure(kernel, &folder, say)?;
    sweep(&folder);
    let token = format!("@ksnap-vm-{:x}-{:x}", std::process::id(), nanoseconds());
    let initrd = Scratch(folder.join(format!("initramfs-{}.cpio", std::process::id())));
    let mut payload = payload.clone();
    if let Some(config) = image.config {
        // Where programs look for it that find no /proc/config.gz: Debian's kernels have none.
        let release = image
            .package
            .split(' ')
            .next()
            .and_then(|p| p.strip_prefix("linux-image-"));
        payload.add(
            config,
            format!("/boot/config-{}", release.unwrap_or(kernel.name())),
        );
    }
    for module in &image.modules {
        let name = module.file_name().unwrap_or_default();
        payload.add(module, Path::new("/vm/modules").join(name));
    }
    let initramfs = initramfs::build(&payload, &busybox, &token, &initrd.0)?;

    let spec = qemu::Spec {
        kernel,
        qemu: &qemu,
        vmlinuz: &image.vmlinuz,
        initrd: &initrd.0,
        memory_mib: payload.memory_mib.max(4 * (initramfs >> 20)),
        processors: payload.processors,
        console: folder.join("console.log"),
        boot_limit: payload.boot_limit,
    };
    let mut recorder = console::Recorder::new(&token, &payload.commands);
    let mut started = Instant::now();
    let mut boot = qemu::run(&spec, &mut recorder, &payload.commands, done);
    if let Err(Error::Boot {
        ending: qemu::Ending::Died,
        ..
    }) = &boot
    {
        // Nothing of the payload has run yet: emulation fails now and then, a second time it counts.
        say("the guest died while booting; once more");
        started = Instant::now();
        boot = qemu::run(&spec, &mut recorder, &payload.commands, done);
    }
    let boot = boot?;
    let (release, warnings, results) = recorder.finish();
    Ok(Outcome {
        kernel,
        package: image.package,
        release,
        boot,
        total: started.elapsed(),
        initramfs,
        results,
        warnings,
        console: spec.console,
    })
}

/// Where kernels and logs lie: in cargo's target folder.
fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target"),
        PathBuf::from,
    );
    std::path::absolute(&target).unwrap_or(target).join("vm")
}

/// Makes the frame token of each boot another one, so that no program can print it by accident.
fn nanoseconds() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos())
}

/// Removes what runs that were killed left in `folder`. Each such file is named for its process.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let owner = path.file_name().and_then(|name| {
            name.to_str()?
                .strip_prefix("initramfs-")?
                .strip_suffix(".cpio")
        });
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Losing a race with another sweep is fine; a leftover only costs disk space.
            let _ = fs::remove_file(&path);
        }
    }
}

/// A file that goes when its user does.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made; a leftover only costs disk space.
        let _ = fs::remove_file(&self.0);
    }
}
