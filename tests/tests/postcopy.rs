//! Copying behind the stop: what the process writes meanwhile is saved as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Ksnap, Victim, Watch, effort, require};

/// How long a watch of a second or two may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Watches a victim under audit, and gives for each time that it was copied behind a stop how many pages were saved,
/// unless it was in vain.
fn saved(name: &str, args: &[&str], options: &[&str]) -> Result<Vec<u64>> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn(name, args)?;
    let count = effort::times(30);
    let number = count.to_string();
    let options = [
        &["--every", "20ms", "--count", &number, "--audit", "-vv"],
        options,
    ]
    .concat();
    let watched = Watch::start(&ksnap, victim.pid(), &options)?.finish(LIMIT);
    let watched = victim.blame(watched)?;
    victim.blame(watched.took(count))?;
    victim.check()?;
    victim.quit()?;
    let lines = watched.stderr.lines();
    let lines = lines.filter(|l| l.contains("copied behind the stop") && l.contains("whole=true"));
    lines
        .map(|line| {
            let (_, rest) = line.split_once("saved=").context("no number of pages")?;
            let number = rest.split_whitespace().next().unwrap_or_default();
            number.parse().with_context(|| line.to_owned())
        })
        .collect()
}

#[test]
fn a_busy_process_is_copied_while_it_writes() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"));
    let saved = saved("counter", &["--mib", "64"], &[])?;
    ensure!(
        saved.len() >= effort::times(30) / 2 && saved.iter().sum::<u64>() > 0,
        "pages saved, each time: {saved:?}"
    );
    Ok(())
}

#[test]
fn what_does_not_fit_the_buffers_is_compared_while_it_is_written() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"));
    let saved = saved("counter", &["--mib", "64"], &["--memory", "8M"])?;
    ensure!(!saved.is_empty(), "never copied behind a stop");
    Ok(())
}

#[test]
fn memory_that_is_given_back_meanwhile_is_saved_or_copied_anew() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"));
    for victim in ["dontneed", "maps", "fork", "gup"] {
        saved(victim, &[], &[])?;
    }
    Ok(())
}
