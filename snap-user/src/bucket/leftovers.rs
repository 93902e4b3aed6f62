//! What writers that were killed have left in a folder: files of an object that was being written, which no listing
//! has. A service drops such things itself.

use super::name::{CHUNKS, CLOCK, DOOMED, KEYS, MARKER, SNAPSHOTS, SWEPT};
use super::{Bucket, BucketError, Result};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// A file that was to become an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// When it was written to last, in milliseconds since 1970.
    pub modified_ms: i64,
}

impl Bucket {
    /// Files that were to become objects; they may still be being written. Only a folder has any.
    pub fn leftovers(&self) -> Result<Vec<Leftover>> {
        let Some(folder) = self.url().strip_prefix("file://").map(Path::new) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let failed = |path: &Path, error: &io::Error| self.failed("list", path, error);
        // The rest of what is in it is not ksnap's.
        let own = |name: &str| [CLOCK, MARKER].contains(&name);
        let top = unfinished(folder, own, &mut Vec::new(), &mut found);
        top.map_err(|error| failed(folder, &error))?;
        let mut folders: Vec<PathBuf> = [CHUNKS, SNAPSHOTS, KEYS, DOOMED, SWEPT]
            .iter()
            .map(|name| folder.join(name))
            .collect();
        while let Some(folder) = folders.pop() {
            let looked = unfinished(&folder, |_| true, &mut folders, &mut found);
            looked.map_err(|error| failed(&folder, &error))?;
        }
        Ok(found)
    }

    /// Removes one. Also where it is gone, or an object by now.
    pub fn remove_leftover(&self, leftover: &Leftover) -> Result<()> {
        match std::fs::remove_file(&leftover.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.failed("delete", &leftover.path, &error))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, call: &'static str, path: &Path, error: &io::Error) -> BucketError {
        BucketError::Service {
            call,
            object: format!("file://{}", path.display()),
            why: error.to_string(),
            denied: error.kind() == ErrorKind::PermissionDenied,
        }
    }
}

/// Finds such files in a folder, of objects that are ksnap's by their names, and the folders in it.
fn unfinished(
    folder: &Path,
    is_own: impl Fn(&str) -> bool,
    folders: &mut Vec<PathBuf>,
    found: &mut Vec<Leftover>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let meta = match entry.metadata() {
            // Renamed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if meta.is_dir() {
            folders.push(entry.path());
        } else if meta.is_file()
            && object_of(&entry.file_name().to_string_lossy()).is_some_and(&is_own)
        {
            let modified = meta.modified()?.duration_since(UNIX_EPOCH);
            found.push(Leftover {
                path: entry.path(),
                len: meta.len(),
                modified_ms: modified.map_or(0, |since| since.as_millis() as i64),
            });
        }
    }
    Ok(())
}

/// Of `NAME#N`, which the library writes before it renames that to `NAME`: that name, which never has a `#`.
fn object_of(name: &str) -> Option<&str> {
    let (object, number) = name.rsplit_once('#')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (is_number && !object.is_empty()).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_objects_are_told_by_their_names() {
        for (name, object) in [
            ("clock#1", Some("clock")),
            ("0a#27", Some("0a")),
            ("clock", None),
            ("clock#", None),
            ("#1", None),
            ("notes#one", None),
        ] {
            assert_eq!(object_of(name), object, "{name}");
        }
    }
}
