//! What the object is built from.

use crate::toolchain::BPF_LINKER;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Files and folders, relative to the repository.
const INPUTS: [&str; 6] = [
    "snap-common/Cargo.toml",
    "snap-common/src",
    "snap-ebpf/.cargo/config.toml",
    "snap-ebpf/Cargo.lock",
    "snap-ebpf/Cargo.toml",
    "snap-ebpf/src",
];

/// Keys of the workspace that snap-common's manifest inherits.
const WORKSPACE: &str =
    "[workspace]\nresolver = \"3\"\nmembers = [\"snap-common\"]\nexclude = [\"snap-ebpf\"]\n";

/// Every input file, sorted, relative to the repository.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(root, Path::new(input), &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(root: &Path, path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let full = root.join(path);
    if !full.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&full).with_context(|| format!("cannot read {}", full.display()))? {
        collect(root, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

/// A hash over names and contents of all inputs and over the linker's version.
pub fn hash(root: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for file in files(root)? {
        let full = root.join(&file);
        add(file.to_string_lossy().as_bytes());
        add(&fs::read(&full).with_context(|| format!("cannot read {}", full.display()))?);
    }
    add(BPF_LINKER.as_bytes());
    add(shared_tables(root)?.as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// Copies all inputs into an empty folder, with a workspace manifest that has just what they inherit.
pub fn copy(root: &Path, folder: &Path) -> Result<()> {
    for file in files(root)? {
        let (from, to) = (root.join(&file), folder.join(&file));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    let manifest = format!("{WORKSPACE}\n{}", shared_tables(root)?);
    fs::write(folder.join("Cargo.toml"), manifest).context("cannot write the workspace manifest")
}

/// The tables of the root manifest that members inherit and that say nothing of dependencies.
fn shared_tables(root: &Path) -> Result<String> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let mut keep = false;
    let mut tables = String::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            keep = line.starts_with("[workspace.package]") || line.starts_with("[workspace.lints");
        }
        if keep {
            tables.push_str(line);
            tables.push('\n');
        }
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        copy(&super::super::Layout::here().root, folder.path()).unwrap();
        folder
    }

    #[test]
    fn a_copy_has_the_hash_of_the_original() {
        let here = super::super::Layout::here().root;
        assert_eq!(hash(sample().path()).unwrap(), hash(&here).unwrap());
    }

    #[test]
    fn a_changed_a_new_and_a_renamed_file_change_the_hash() {
        let folder = sample();
        let at = |name: &str| folder.path().join("snap-ebpf/src").join(name);
        let mut seen = vec![hash(folder.path()).unwrap()];
        fs::write(at("stop.rs"), "// other").unwrap();
        seen.push(hash(folder.path()).unwrap());
        fs::write(at("new.rs"), "// new").unwrap();
        seen.push(hash(folder.path()).unwrap());
        fs::rename(at("new.rs"), at("newer.rs")).unwrap();
        seen.push(hash(folder.path()).unwrap());
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 4);
    }
}
