//! Copying behind the stop: what the process writes meanwhile is saved as it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Ksnap, Victim, Watch, effort, require};

/// How long a watch of a second or two may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// One time that a snapshot was copied behind its stop, and not in vain.
#[derive(Debug)]
struct Behind {
    pages: u64,
    /// How many of them the process wrote meanwhile.
    saved: u64,
}

/// Watches a victim under audit, and tells when it was copied behind a stop.
fn watched(name: &str, args: &[&str], options: &[&str]) -> Result<Vec<Behind>> {
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
            let number = |name: &str| -> Result<u64> {
                let (_, rest) = line.split_once(name).context("no such number")?;
                let word = rest.split_whitespace().next().unwrap_or_default();
                word.parse().with_context(|| line.to_owned())
            };
            Ok(Behind {
                pages: number("pages=")?,
                saved: number("saved=")?,
            })
        })
        .collect()
}

#[test]
fn a_busy_process_is_copied_while_it_writes() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"), Probes);
    let behind = watched("counter", &["--mib", "64"], &[])?;
    ensure!(
        behind.len() >= effort::times(30) / 2 && behind.iter().any(|b| b.saved > 0),
        "{behind:?}"
    );
    Ok(())
}

#[test]
fn what_does_not_fit_the_buffers_is_compared_while_it_is_written() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"), Probes);
    let behind = watched("counter", &["--mib", "64"], &["--memory", "8M"])?;
    // Eight buffers of a MiB each.
    ensure!(behind.iter().any(|b| b.pages > 2048), "{behind:?}");
    Ok(())
}

#[test]
fn memory_that_is_given_back_meanwhile_is_saved_or_copied_anew() -> Result<()> {
    require!(Root, Ksnap, Tracker("wp"), Probes);
    for victim in ["dontneed", "maps", "fork"] {
        let behind = watched(victim, &[], &[])?;
        ensure!(!behind.is_empty(), "{victim} never");
    }
    // Writes by get_user_pages spoil it, or are hazards that last.
    watched("gup", &[], &[]).map(drop)
}
