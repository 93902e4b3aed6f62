//! `ksnap doctor`, in a few lines.

use crate::host;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::Ksnap;

/// Says what works here, and what does not and matters.
///
/// # Errors
/// When ksnap cannot do its main job on this machine.
pub fn show(ksnap: &Ksnap) -> Result<()> {
    let finished = ksnap.run(&["doctor", "--json"])?;
    let doctor: Value = serde_json::from_str(finished.stdout.trim())
        .with_context(|| format!("ksnap doctor failed: {}", finished.stderr.trim()))?;
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    if doctor["ready"] != true {
        bail!(
            "{}. `cargo xtask run -- doctor` says how to get what is missing",
            text(&doctor["verdict"])
        );
    }
    println!("  {}.", text(&doctor["verdict"]));
    let supported = |name: &str| {
        doctor["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|check| check["name"] == name && check["outcome"] == "supported")
    };
    println!(
        "  Linux {}, {}. `cargo xtask run -- doctor` lists each feature.",
        text(&doctor["kernel"]),
        text(&doctor["arch"])
    );
    if !host::is_root() {
        let fault_log = match supported("probes") {
            true => "",
            false => " no fault log from eBPF, so each stop scans all memory;",
        };
        println!(
            "  Without root:{fault_log} only processes of your own. Everything below works all the same."
        );
    }
    Ok(())
}
