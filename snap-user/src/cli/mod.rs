//! Arguments → one session call → output and exit code.
//!
//! | file | what |
//! |---|---|
//! | `args`, `help`, `units` | what can be said on the command line |
//! | one for each command | calls the session and prints what came of it |
//! | `reporter` | tells what a watch does while it goes on |
//! | `context` | options of every command, and the terminal |
//! | `status`, `logging` | standard error: the live line, messages |
//! | `render` | data as text for people |
//! | `keys` | --identity and --encrypt-to |
//! | `exit` | exit codes |

mod args;
#[cfg(feature = "object-storage")]
mod bucket;
mod clone;
mod context;
mod diff;
mod doctor;
mod exit;
mod export;
mod flush;
mod gdb;
mod help;
mod inspect;
mod key;
mod keys;
mod log;
mod logging;
mod profile;
mod prune;
mod render;
mod reporter;
mod restore;
mod rollback;
mod serve;
mod shell;
mod show;
mod snap;
mod status;
mod tag;
mod units;
mod verify;
mod watch;

pub use exit::Exit;

use crate::session;
use args::{Cli, Verb};
use clap::Parser;
use context::Context;
use exit::CliError;
use std::process::ExitCode;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for and go to standard output, with exit code 0. When nobody
            // reads them any more, there is no one to tell.
            let _ = error.print();
            return match error.use_stderr() {
                true => Exit::Usage.into(),
                false => Exit::Done.into(),
            };
        }
    };
    let context = Context::new(cli.global);
    logging::init(&context);
    let exit = dispatch(&context, &cli.verb).unwrap_or_else(|error| {
        if !error.is_closed_pipe() {
            context.complain(&error);
        }
        error.exit()
    });
    exit.into()
}

fn dispatch(context: &Context, verb: &Verb) -> Result<Exit, CliError> {
    if context.is_about_the_store() && !matches!(verb, Verb::Show(_)) {
        return Err(CliError::Refused(
            "--store needs a folder; without one it is for `ksnap show` alone".into(),
        ));
    }
    match verb {
        Verb::Snap(_)
        | Verb::Watch(_)
        | Verb::Restore(_)
        | Verb::Fork(_)
        | Verb::Rollback(_)
        | Verb::Clone(_)
        | Verb::Serve(_) => session::raise_descriptors(),
        _ => {}
    }
    keys::use_keys(context, verb)?;
    match verb {
        Verb::Run(args) => watch::run(context, args),
        Verb::Watch(args) => watch::watch(context, args),
        Verb::Snap(args) => snap::snap(context, args),
        Verb::Inspect(args) => inspect::inspect(context, args),
        Verb::Log(args) => log::log(context, args),
        Verb::Show(args) => show::show(context, args),
        Verb::Flush(args) => flush::flush(context, args),
        Verb::Diff(args) => diff::diff(context, args),
        Verb::Verify(args) => verify::verify(context, args),
        Verb::Restore(args) => restore::restore(context, args),
        Verb::Fork(args) => restore::fork(context, args),
        Verb::Tag(args) => tag::tag(context, args),
        Verb::Prune(args) => prune::prune(context, args),
        Verb::Squash(args) => prune::squash(context, args),
        Verb::Export(args) => export::export(context, args),
        Verb::Gdb(args) => gdb::gdb(context, args),
        Verb::Clone(args) => clone::clone(context, args),
        Verb::Serve(args) => serve::serve(context, args),
        Verb::Key(args) => key::key(context, args),
        #[cfg(feature = "object-storage")]
        Verb::Push(args) => bucket::push(context, args),
        #[cfg(feature = "object-storage")]
        Verb::Pull(args) => bucket::pull(context, args),
        Verb::Rollback(args) => rollback::rollback(context, args),
        Verb::Profile(args) => profile::profile(context, args),
        Verb::Doctor(args) => doctor::doctor(context, args),
        Verb::Completions(args) => shell::completions(args),
        Verb::Man(args) => shell::man(args),
    }
}
