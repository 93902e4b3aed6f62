//! What works on this machine.

use super::Style;
use super::human::clean;
use crate::session::{Check, Diagnosis, Outcome};
use std::io::{self, Write};

/// The verdict first, then a line for what works and a paragraph for what does not.
pub fn write(out: &mut dyn Write, style: Style, diagnosis: &Diagnosis) -> io::Result<()> {
    let verdict = clean(&diagnosis.verdict);
    let verdict = match diagnosis.ready {
        true => style.green(&verdict),
        false => style.red(&verdict),
    };
    writeln!(out, "{verdict}")?;
    let user = match diagnosis.uid {
        0 => "root".to_owned(),
        uid => format!("user {uid}"),
    };
    writeln!(
        out,
        "{}\n",
        style.dim(&format!(
            "Linux {}, {}, {user}",
            diagnosis.kernel, diagnosis.arch
        ))
    )?;
    let width = diagnosis
        .checks
        .iter()
        .map(|check| check.title.chars().count())
        .max()
        .unwrap_or(0);
    diagnosis
        .checks
        .iter()
        .try_for_each(|one| check(out, style, one, width))
}

fn check(out: &mut dyn Write, style: Style, check: &Check, width: usize) -> io::Result<()> {
    let title = format!("{:<width$}", check.title);
    let detail = clean(&check.detail);
    // Padded before it is coloured: escape sequences count as characters.
    let word = match check.outcome {
        Outcome::Supported => style.green("supported     "),
        Outcome::Unsupported => style.red("unsupported   "),
        Outcome::CouldNotTell => style.yellow("could not tell"),
    };
    writeln!(out, "{word}  {title}  {}", style.dim(&detail))?;
    if check.outcome == Outcome::Supported {
        return Ok(());
    }
    for (name, text) in [
        ("used for", check.used_for),
        ("without", check.without),
        ("to get it", check.how),
    ] {
        writeln!(out, "                  {name}: {text}")?;
    }
    Ok(())
}
