//! Small files: read whole, and published in one step.

use super::error::StoreError;
use super::files::Files;
use super::names::TEMP_PREFIX;
use std::path::Path;

/// Longest marker or session file that is read.
const MAX_TEXT: u64 = 16 << 20;

pub(super) fn read_text(files: &dyn Files, path: &Path) -> Result<String, StoreError> {
    let bytes = read_bytes(files, path)?;
    String::from_utf8(bytes).map_err(|_| StoreError::corrupt(path, "text", "not UTF-8"))
}

pub(super) fn read_bytes(files: &dyn Files, path: &Path) -> Result<Vec<u8>, StoreError> {
    let file = files.open(path).map_err(StoreError::io("open", path))?;
    let len = file.len().map_err(StoreError::io("stat", path))?;
    if len > MAX_TEXT {
        return Err(StoreError::corrupt(path, "text", format!("{len} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)
        .map_err(StoreError::io("read", path))?;
    Ok(bytes)
}

/// Writes a small file under a temporary name, syncs it, renames it into place and syncs the folder.
pub(super) fn publish_text(
    files: &dyn Files,
    dir: &Path,
    name: &str,
    text: &str,
) -> Result<(), StoreError> {
    let temp = dir.join(format!("{TEMP_PREFIX}{}-{name}", std::process::id()));
    publish_bytes(files, &temp, &dir.join(name), text.as_bytes())?;
    files
        .sync_dir(dir)
        .map_err(StoreError::io("sync folder", dir))
}

/// Writes a small file as `temp`, syncs it and renames it to `path`. Nothing of it stays where that fails.
pub(super) fn publish_bytes(
    files: &dyn Files,
    temp: &Path,
    path: &Path,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let _ = files.remove_file(temp);
    let written = files
        .create(temp)
        .map_err(StoreError::io("create", temp))
        .and_then(|mut file| {
            file.write_all_at(bytes, 0)
                .map_err(StoreError::io("write", temp))?;
            file.sync().map_err(StoreError::io("sync", temp))
        })
        .and_then(|()| {
            files
                .rename(temp, path)
                .map_err(StoreError::io("publish", path))
        });
    if written.is_err() {
        let _ = files.remove_file(temp);
    }
    written
}
