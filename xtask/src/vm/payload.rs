//! What a caller wants in the guest, and run there.

use std::path::PathBuf;
use std::time::Duration;

/// Files and commands for one boot.
#[derive(Debug, Clone)]
pub struct Payload {
    pub(super) files: Vec<HostFile>,
    pub(super) env: Vec<(String, String)>,
    pub(super) commands: Vec<GuestCommand>,
    /// Guest memory; made larger where the files need it.
    pub memory_mib: u64,
    /// Guest processors. More than the host has makes the guest slower.
    pub processors: u32,
    /// How long the guest may take to reach its first command.
    pub boot_limit: Duration,
}

/// A file or folder of the host and its place in the guest.
#[derive(Debug, Clone)]
pub(super) struct HostFile {
    pub host: PathBuf,
    pub guest: PathBuf,
}

impl Default for Payload {
    fn default() -> Self {
        Payload {
            files: Vec::new(),
            env: Vec::new(),
            commands: Vec::new(),
            memory_mib: 2048,
            // Attaching a probe patches kernel code that another processor may be executing. Under QEMU's
            // emulation that goes wrong now and then (oops at the patched instruction).
            processors: 1,
            // About 10 s on an idle machine; builds beside it may take the processors away.
            boot_limit: Duration::from_secs(180),
        }
    }
}

impl Payload {
    /// An empty payload of 2 GiB and 1 processor.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a file or a folder with all it holds at `guest`, an absolute path. Shared libraries of
    /// programs come along; what they open by themselves at run time must be added.
    pub fn add(&mut self, host: impl Into<PathBuf>, guest: impl Into<PathBuf>) -> &mut Self {
        self.files.push(HostFile {
            host: host.into(),
            guest: guest.into(),
        });
        self
    }

    /// Puts a file or folder at the path that it has on the host, for programs that were compiled
    /// with that path inside.
    pub fn add_in_place(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        let path = path.into();
        self.add(path.clone(), path)
    }

    /// Sets an environment variable for all commands.
    pub fn env(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Adds a command; they run one after the other, as root, each left-over process being ended
    /// before the next.
    pub fn command(&mut self, command: GuestCommand) -> &mut Self {
        self.commands.push(command);
        self
    }
}

/// A command line for the guest.
#[derive(Debug, Clone)]
pub struct GuestCommand {
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) folder: PathBuf,
    pub(super) limit: Duration,
    pub(super) runs_tests: bool,
}

impl GuestCommand {
    /// A program with its arguments that passes if it exits with 0 within a minute of guest time.
    pub fn new<S: Into<String>>(
        name: impl Into<String>,
        argv: impl IntoIterator<Item = S>,
    ) -> Self {
        GuestCommand {
            name: name.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            folder: "/".into(),
            limit: Duration::from_secs(60),
            runs_tests: false,
        }
    }

    /// An executable made by `cargo test --no-run`: its own count of tests is the result, and having
    /// run no test at all is a failure.
    pub fn tests<S: Into<String>>(
        name: impl Into<String>,
        executable: impl Into<String>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let argv = std::iter::once(executable.into()).chain(arguments.into_iter().map(Into::into));
        GuestCommand {
            runs_tests: true,
            ..Self::new(name, argv)
        }
    }

    /// Runs it in this guest folder instead of `/`.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Ends it as failed after this much guest time, in whole seconds.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}
