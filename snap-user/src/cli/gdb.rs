//! `ksnap gdb`

use super::args::Gdb;
use super::context::Context;
use super::exit::{CliError, Exit};
use crate::session::{self, SessionError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Opens a snapshot in a debugger, which takes this process over.
pub fn gdb(context: &Context, args: &Gdb) -> Result<Exit, CliError> {
    let (file, core) = session::unnamed_core(&context.store()?, &args.reference)?;
    context.tell(&format!(
        "{} (@{}) of process {}",
        core.snapshot.id.short(),
        core.snapshot.seq,
        core.snapshot.pid
    ));
    // The descriptor is the only name that the file has, so it must outlive the exec.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())
        .map_err(|error| SessionError::io("pass the core file on")(error.into()))?;
    let mut command = Command::new(&args.gdb);
    if let Some(exe) = &core.exe {
        command.arg(exe);
    }
    command
        .arg(format!("--core=/proc/self/fd/{}", file.as_raw_fd()))
        .args(&args.arguments);
    let error = command.exec();
    let what = format!("start {}", args.gdb.display());
    Err(SessionError::io(what)(match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            error.kind(),
            "not found: apt-get install gdb, or name one with --gdb; \
             `ksnap export --core` writes a file for any other debugger",
        ),
        _ => error,
    })
    .into())
}
