//! Exit codes, and which one an error gets.

use crate::session::{SessionError, Trouble};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

/// How ksnap ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say the rest")]
pub enum Exit {
    Done,
    Failed,
    Usage,
    /// Captured, but something could not be saved.
    Incomplete,
    NoStore,
    Locked,
    KernelLacks,
    Permission,
    Vanished,
    Corrupt,
    Interrupted,
    /// The exit code of the command that `run` started.
    Command(u8),
}

impl Exit {
    /// The number. `main`'s help lists them.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Incomplete => 3,
            Self::NoStore => 10,
            Self::Locked => 11,
            Self::KernelLacks => 12,
            Self::Permission => 13,
            Self::Vanished => 14,
            Self::Corrupt => 15,
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }

    /// What a shell would say of a command that ended so.
    pub fn of_command(status: ExitStatus) -> Self {
        let signalled = status.signal().map(|signal| 128 + signal);
        let code = status.code().or(signalled).unwrap_or(1);
        Self::Command(code as u8)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl From<Trouble> for Exit {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Failed => Self::Failed,
            Trouble::Usage => Self::Usage,
            Trouble::NoStore => Self::NoStore,
            Trouble::Locked => Self::Locked,
            Trouble::KernelLacks => Self::KernelLacks,
            Trouble::Permission => Self::Permission,
            Trouble::Vanished => Self::Vanished,
            Trouble::Corrupt => Self::Corrupt,
        }
    }
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Standard output failed.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// Refused without the user's consent.
    #[error("{0}")]
    Refused(String),
    /// The user said no.
    #[error("nothing was done")]
    Declined,
}

impl CliError {
    /// The exit code it gets. A reader that closed its end early, as `head` does, has what it wanted.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Session(error) => error.trouble().into(),
            Self::Output(_) if self.is_closed_pipe() => Exit::Done,
            Self::Output(_) | Self::Declined => Exit::Failed,
            Self::Refused(_) => Exit::Usage,
        }
    }

    /// Whoever read standard output has gone.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ends_as_a_shell_would_say() {
        // Wait statuses: exit code in the second byte, signal in the first (wait(2)).
        let of = |raw| Exit::of_command(ExitStatus::from_raw(raw)).code();
        assert_eq!(of(0), 0);
        assert_eq!(of(7 << 8), 7);
        assert_eq!(of(9), 137);
        assert_eq!(of(15 | 0x80), 143);
    }

    #[test]
    fn errors_have_the_documented_codes() {
        let usage = CliError::from(SessionError::Usage("no".into()));
        assert_eq!(usage.exit().code(), 2);
        let closed = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(closed.exit().code(), 0);
        let full = CliError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit().code(), 1);
        let codes: Vec<u8> = [
            Trouble::Failed,
            Trouble::Usage,
            Trouble::NoStore,
            Trouble::Locked,
            Trouble::KernelLacks,
            Trouble::Permission,
            Trouble::Vanished,
            Trouble::Corrupt,
        ]
        .into_iter()
        .map(|trouble| Exit::from(trouble).code())
        .collect();
        assert_eq!(codes, [1, 2, 10, 11, 12, 13, 14, 15]);
    }
}
