//! `ksnap snap`

use super::args::Snap;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::keys;
use super::render::human::clean;
use super::render::taken;
use crate::session::{self, Filling, Options, Rules, Then};
use std::path::Path;

/// Takes one snapshot.
pub fn snap(context: &Context, args: &Snap) -> Result<Exit, CliError> {
    let pids = processes(args)?;
    let filling = Filling::Processes(&pids);
    let (store, keep) = context.store_to_fill(filling, Rules::default())?;
    keys::tell(context, &store, &pids)?;
    let options = Options {
        keep,
        then: match (args.kill, args.stop) {
            (true, _) if args.tcp => Then::KillKeeping,
            (true, _) => Then::Kill,
            (_, true) => Then::Stop,
            _ => Then::GoOn,
        },
        ..args.taking.options()
    };
    if args.tree {
        return tree(context, args, &store, &options);
    }
    if args.strict {
        session::refuse_incomplete(args.pid, options.probes)?;
    }
    let done = session::snap(&store, args.pid, &options)?;
    context.print(args.json, &done, |out, _| {
        writeln!(out, "{}", taken::taken(&done))
    })?;
    tell(context, &done.notes, &done.unsupported);
    if let Some(kept) = &done.kept {
        context.tell(&taken::kept(kept, &done.id));
    }
    Ok(match done.unsupported.is_empty() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

/// Says how it was taken, and what is not in it.
fn tell(context: &Context, notes: &[String], unsupported: &[String]) {
    for note in notes {
        context.tell(&clean(note));
    }
    for what in unsupported {
        context.tell(&format!("not saved: {}", clean(what)));
    }
}

/// Whose snapshots are going to be in the store: all of these share its room.
fn processes(args: &Snap) -> Result<Vec<i32>, CliError> {
    Ok(match args.tree {
        true => session::look_at_tree(args.pid)?,
        false => vec![args.pid],
    })
}

/// Takes one snapshot of a process and all of its descendants.
fn tree(context: &Context, args: &Snap, store: &Path, options: &Options) -> Result<Exit, CliError> {
    if args.strict {
        session::refuse_incomplete_tree(args.pid, options.probes)?;
    }
    let done = session::snap_tree(store, args.pid, options)?;
    context.print(args.json, &done, |out, _| {
        taken::tree(&done)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    })?;
    tell(context, &done.notes, &done.unsupported);
    if let Some(kept) = &done.kept {
        context.tell(&taken::kept(kept, &done.id));
    }
    Ok(match done.unsupported.is_empty() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Verb};
    use super::*;
    use clap::Parser;
    use std::process::{Child, Stdio};

    struct Shell(Child);

    impl Drop for Shell {
        fn drop(&mut self) {
            // The end of its input ends cat, and so the shell.
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    #[test]
    fn all_processes_of_a_tree_share_the_room() {
        let mut shell = std::process::Command::new("sh");
        let shell = shell.args(["-c", "cat; true"]).stdin(Stdio::piped());
        let shell = Shell(shell.spawn().expect("a shell"));
        let pid = shell.0.id() as i32;
        let of = |options: &[&str]| {
            let pid = pid.to_string();
            let words = [&["ksnap", "snap", &pid], options].concat();
            match Cli::try_parse_from(words).expect("a command").verb {
                Verb::Snap(args) => processes(&args).expect("they are there"),
                other => panic!("{other:?}"),
            }
        };
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while of(&["--tree"]).len() < 2 {
            assert!(std::time::Instant::now() < end, "it has no child");
            std::thread::yield_now();
        }
        assert_eq!(of(&["--tree"])[0], pid);
        assert_eq!(of(&[]), [pid]);
    }
}
