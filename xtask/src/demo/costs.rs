//! The cost table: `ksnap profile`, through the ksnap that watches the program.

use anyhow::{Context, Result, ensure};
use tests::Ksnap;

/// How long it measures.
const TIME: &str = "2s";

/// Has it measure for a while, and prints what it says.
pub fn show(ksnap: &Ksnap, pid: i32) -> Result<()> {
    println!("  `ksnap profile {pid} --for {TIME}`, while the snapshots go on:");
    println!();
    let profile = ksnap
        .ok(&["profile", &pid.to_string(), "--for", TIME])
        .context("ksnap profile failed")?;
    ensure!(
        profile.contains("process stopped"),
        "ksnap profile measured nothing: {profile}"
    );
    for line in profile.trim().lines() {
        println!("{}", format!("  {line}").trim_end());
    }
    Ok(())
}
