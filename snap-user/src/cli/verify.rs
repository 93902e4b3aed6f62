//! `ksnap verify`

use super::args::Verify;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{clean, count};
use crate::session;

/// Checks what is stored.
pub fn verify(context: &Context, args: &Verify) -> Result<Exit, CliError> {
    if args.rebuild {
        let rebuilt = session::rebuild(&context.store()?)?;
        context.tell(&format!(
            "{} in the lists of headers of {}",
            count(rebuilt.snapshots, "snapshot"),
            count(rebuilt.sessions, "session")
        ));
        for note in &rebuilt.notes {
            context.tell(&clean(note));
        }
    }
    let found = session::verify(&context.store()?, args.reference.as_deref())?;
    for note in &found.notes {
        context.tell(&clean(note));
    }
    context.print(args.json, &found, |out, style| {
        let checked = format!(
            "{} and {} checked",
            count(found.snapshots, "snapshot"),
            count(found.pages, "page")
        );
        let sealed = match found.unchecked {
            0 => String::new(),
            n => format!(
                "; {} could not be, without the key",
                count(n, "sealed snapshot")
            ),
        };
        let checked = format!("{checked}{sealed}");
        if found.clean {
            return writeln!(out, "{}: {checked}", style.green("whole"));
        }
        if found.problems.is_empty() {
            return writeln!(out, "{}: {checked}", style.yellow("not all checked"));
        }
        let problems = count(found.problems.len() as u64, "problem");
        writeln!(out, "{}: {problems}; {checked}", style.red("damaged"))?;
        for problem in &found.problems {
            let id = problem.id.map_or("-".into(), |id| id.short());
            let what = clean(&problem.what);
            // Most errors name the file themselves.
            let path = problem.path.display().to_string();
            match what.contains(&path) {
                true => writeln!(out, "  {id}  {what}")?,
                false => writeln!(out, "  {id}  {}: {what}", clean(&path))?,
            }
        }
        Ok(())
    })?;
    Ok(match found.problems.is_empty() {
        false => Exit::Corrupt,
        // What was not looked at must not pass for whole.
        true if found.unchecked > 0 => Exit::Permission,
        true => Exit::Done,
    })
}
