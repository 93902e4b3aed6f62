//! `ksnap verify`

use super::args::Verify;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render::human::{clean, count};
use crate::session;

/// Checks what is stored.
pub fn verify(context: &Context, args: &Verify) -> Result<Exit, CliError> {
    let found = session::verify(&context.store()?, args.reference.as_deref())?;
    context.print(args.json, &found, |out, style| {
        let checked = format!(
            "{} and {} checked",
            count(found.snapshots, "snapshot"),
            count(found.pages, "page")
        );
        if found.clean {
            return writeln!(out, "{}: {checked}", style.green("whole"));
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
    Ok(match found.clean {
        true => Exit::Done,
        false => Exit::Corrupt,
    })
}
