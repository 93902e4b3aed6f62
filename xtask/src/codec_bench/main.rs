//! Encodes and decodes sets of pages and prints what it took, a JSON object for each set. Started by
//! `cargo xtask bench codec` with a folder of captured sets.

mod codecs;
mod measure;
mod patterns;
mod xbzrle;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, json};
use std::path::Path;

/// A page.
pub type Page = [u8; 4096];

/// A page that changed, and what it was before; nothing for one that is new.
pub struct Pair {
    /// What it was.
    pub before: Option<Box<Page>>,
    /// What it is.
    pub page: Box<Page>,
}

fn read(path: &Path) -> Result<Vec<Pair>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let mut rest = &bytes[..];
    let mut pairs = Vec::new();
    while let Some((had, mut after)) = rest.split_first() {
        let mut page = || {
            let (page, more) = after.split_first_chunk::<4096>()?;
            after = more;
            Some(Box::new(*page))
        };
        let before = if *had == 1 { Some(page()) } else { None };
        let (before, page) = (before.flatten(), page());
        pairs.push(Pair {
            before,
            page: page.context("the file ends inside a page")?,
        });
        rest = after;
    }
    ensure!(!pairs.is_empty(), "{} is empty", path.display());
    Ok(pairs)
}

fn report(name: &str, captured: bool, pairs: &[Pair]) -> Result<()> {
    let mut codecs = Map::new();
    for mut codec in codecs::all()? {
        let taken = measure::run(&mut *codec, pairs)
            .with_context(|| format!("{} on {name}", codec.name()))?;
        codecs.insert(codec.name().to_owned(), taken.json());
    }
    let new = pairs.iter().filter(|pair| pair.before.is_none()).count();
    println!(
        "{}",
        json!({
            "set": name,
            "captured": captured,
            "pages": pairs.len(),
            "new": new,
            "memcpy_ns": measure::copy(pairs),
            "codecs": codecs,
        })
    );
    Ok(())
}

fn main() -> Result<()> {
    if let Some(folder) = std::env::args_os().nth(1) {
        let mut paths: Vec<_> = std::fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        paths.sort();
        for path in paths {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            report(&name, true, &read(&path)?)?;
        }
    }
    for (name, pairs) in patterns::all() {
        report(name, false, &pairs)?;
    }
    Ok(())
}
