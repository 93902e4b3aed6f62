//! How small pages become and how fast: ksnap's encoding beside others, on memory of real programs and on patterns.
//!
//! The pages are collected here; they are encoded by a program of its own (`codec_bench/`), built for release.

mod capture;
mod programs;

use crate::cargo::{self, Profile};
use crate::host;
use crate::table::{Table, heading, thousands};
use anyhow::{Context, Result, bail, ensure};
use capture::Pages;
use programs::Program;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Between two looks at a program's memory.
const EVERY: Duration = Duration::from_millis(100);
/// Changed pages taken from a program.
const PAGES: usize = 12_000;
/// Looks at a program.
const ROUNDS: usize = 8;

/// The outcome: one object for each set of pages, and what could not be had.
pub struct Report {
    sets: Vec<Value>,
    skipped: Vec<String>,
}

/// Collects pages and measures.
pub fn measure() -> Result<Report> {
    build()?;
    let folder = tempfile::Builder::new().prefix("ksnap-pages-").tempdir()?;
    let mut skipped = Vec::new();
    for program in Program::ALL {
        if let Some(missing) = program.missing() {
            skipped.push(format!("{program}: missing {missing}"));
            continue;
        }
        eprintln!("pages of {program} under load");
        let pages = collect(program).with_context(|| format!("pages of {program}"))?;
        pages.write(&folder.path().join(program.to_string()))?;
    }
    eprintln!("encoding and decoding");
    let sets = run(folder.path())?;
    Ok(Report { sets, skipped })
}

fn build() -> Result<()> {
    let status = cargo::cargo(&[
        "build",
        "--quiet",
        "--release",
        "--package",
        "xtask",
        "--features",
        "codec-bench",
        "--bin",
        "codec-bench",
    ])
    .status()
    .context("cargo cannot be started")?;
    ensure!(status.success(), "codec-bench was not built");
    Ok(())
}

fn collect(program: Program) -> Result<Pages> {
    let running = program.start()?;
    let mut pages = Pages::new(running.pid(), PAGES)?;
    for round in 0..ROUNDS {
        std::thread::sleep(EVERY);
        // The share of each look, so that none fills the set alone.
        pages.look(PAGES * (round + 1) / ROUNDS)?;
    }
    ensure!(!pages.is_empty(), "nothing in its memory changed");
    Ok(pages)
}

fn run(folder: &Path) -> Result<Vec<Value>> {
    let output = std::process::Command::new(cargo::binary(Profile::Release, "codec-bench"))
        .arg(folder)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("codec-bench cannot be started")?;
    if !output.status.success() {
        bail!("codec-bench ended with {}", output.status);
    }
    let lines = String::from_utf8(output.stdout)?;
    let parse = |line: &str| serde_json::from_str(line).context("codec-bench printed no JSON");
    lines.lines().map(parse).collect()
}

/// The encoders, in the order of the columns.
const CODECS: [&str; 4] = ["ksnap", "lz4", "zstd-1", "xbzrle"];

fn number(set: &Value, codec: &str, name: &str) -> f64 {
    set["codecs"][codec][name].as_f64().unwrap_or(0.0)
}

fn pages(set: &Value) -> f64 {
    set["pages"].as_f64().unwrap_or(1.0)
}

/// Millions of pages in a second.
fn rate(set: &Value, ns: f64) -> String {
    format!("{:.2}", pages(set) * 1e3 / ns.max(1.0))
}

/// All sets that came from programs, in one.
fn total(sets: &[Value]) -> Value {
    let captured = || sets.iter().filter(|set| set["captured"] == true);
    let sum = |get: &dyn Fn(&Value) -> f64| captured().map(get).sum::<f64>();
    let mut codecs = serde_json::Map::new();
    for codec in CODECS {
        let part = |name: &str| sum(&|set| number(set, codec, name));
        codecs.insert(
            codec.into(),
            json!({
                "bytes": part("bytes"), "encode_ns": part("encode_ns"), "decode_ns": part("decode_ns"),
            }),
        );
    }
    json!({
        "set": "all programs",
        "pages": sum(&pages),
        "memcpy_ns": sum(&|set| set["memcpy_ns"].as_f64().unwrap_or(0.0)),
        "codecs": codecs,
    })
}

impl Report {
    /// One object.
    pub fn json(&self) -> Value {
        json!({
            "bench": "codec",
            "kernel": host::kernel(),
            "every_ms": EVERY.as_millis() as u64,
            "sets": self.sets,
            "total": total(&self.sets),
            "skipped": self.skipped,
        })
    }

    /// Two tables.
    pub fn text(&self) -> String {
        let mut sets = self.sets.clone();
        let programs = sets.iter().filter(|set| set["captured"] == true).count();
        sets.insert(programs, total(&self.sets));
        let mut text = format!(
            "{}\nPages that changed within {} ms in programs under load, and patterns; each was encoded with what it\n\
             was before at hand, by those that use it. On one core, pages and results in the cache.\n\n",
            heading("bench codec"),
            EVERY.as_millis()
        );
        let mut table = Table::new([
            "bytes a page",
            "pages",
            "new",
            "ksnap",
            "lz4",
            "zstd -1",
            "xbzrle",
            "smallest",
        ]);
        for set in &sets {
            let sizes = CODECS.map(|codec| number(set, codec, "bytes") / pages(set));
            let others = sizes[1..].iter().copied().fold(f64::INFINITY, f64::min);
            let [ksnap, lz4, zstd, xbzrle] = sizes.map(|size| format!("{size:.1}"));
            table.row([
                set["set"].as_str().unwrap_or_default().to_owned(),
                thousands(pages(set) as u64),
                set["new"].as_u64().map_or_else(String::new, thousands),
                ksnap,
                lz4,
                zstd,
                xbzrle,
                if sizes[0] < others {
                    "ksnap"
                } else {
                    "another"
                }
                .into(),
            ]);
        }
        text += &table.lines();
        let mut table = Table::new([
            "million pages/s",
            "encode: ksnap",
            "lz4",
            "zstd -1",
            "xbzrle",
            "decode: ksnap",
            "lz4",
            "zstd -1",
            "xbzrle",
            "memcpy",
        ]);
        for set in &sets {
            let column = |codec, name| rate(set, number(set, codec, name));
            table.row([
                set["set"].as_str().unwrap_or_default().to_owned(),
                column("ksnap", "encode_ns"),
                column("lz4", "encode_ns"),
                column("zstd-1", "encode_ns"),
                column("xbzrle", "encode_ns"),
                column("ksnap", "decode_ns"),
                column("lz4", "decode_ns"),
                column("zstd-1", "decode_ns"),
                column("xbzrle", "decode_ns"),
                rate(set, set["memcpy_ns"].as_f64().unwrap_or(0.0)),
            ]);
        }
        text.push('\n');
        text += &table.lines();
        for skipped in &self.skipped {
            text += &format!("  SKIP {skipped}\n");
        }
        text
    }
}
