//! `ksnap completions` and `ksnap man`

use super::args::{Cli, Completions, Man};
use super::context::stdout;
use super::exit::{CliError, Exit};
use clap::CommandFactory;
use std::io::Write;

/// Prints completions for a shell.
pub fn completions(args: &Completions) -> Result<Exit, CliError> {
    // The generator panics when it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ksnap", &mut script);
    let mut out = stdout();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Prints a manual page.
pub fn man(args: &Man) -> Result<Exit, CliError> {
    let mut root = Cli::command();
    root.build();
    let command = match &args.command {
        None => root,
        Some(name) => root
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| CliError::Refused(format!("no command '{name}': see `ksnap --help`")))?,
    };
    let mut out = stdout();
    clap_mangen::Man::new(command).render(&mut out)?;
    out.flush()?;
    Ok(Exit::Done)
}
