//! Names that people give to snapshots. A tag protects its snapshot from being removed by rule.

use super::checked;
use super::directory::Store;
use super::error::StoreError;
use super::files::{LockGuard, Locking};
use super::meta::SnapshotMeta;
use super::names::TEMP_PREFIX;
use super::session::now_ns;
use super::text::{publish_text, read_text};
use super::verify::{Problem, Report};
use crate::model::SnapshotId;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FOLDER: &str = "tags";
const LOCK: &str = ".lock";
/// Longest name.
const LONGEST: usize = 64;
/// How often and how long a lock that is held for moments only is waited for: 10 s in all.
const TRIES: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(10);

/// A name of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The name.
    pub name: String,
    /// What it names.
    pub id: SnapshotId,
    /// When it was given, nanoseconds since 1970.
    pub created_ns: u64,
    /// It has a checksum: it is what was written.
    is_sure: bool,
}

/// A file's name, and what it says.
type Read = (String, Result<Tag, StoreError>);

#[derive(Serialize, Deserialize)]
struct Stored {
    id: String,
    created_ns: u64,
}

/// Says what is wrong with a name, if anything is.
fn objection(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    if name.is_empty() || name.len() > LONGEST || !name.chars().all(plain) {
        return Some(format!(
            "a tag has 1 to {LONGEST} letters, digits, '.', '-', '_' or '+'"
        ));
    }
    if name.starts_with(['.', '-', '+']) {
        return Some("a tag begins with a letter, a digit or '_'".into());
    }
    let is_id = name.len() >= 4 && name.bytes().all(|b| b.is_ascii_hexdigit());
    if name == "latest" || is_id {
        return Some("it could be taken for another reference".into());
    }
    None
}

/// Reads a tag from the text of its file.
pub(super) fn decode(path: &Path, name: &str, text: &str) -> Result<Tag, StoreError> {
    let stored: Stored = checked::decode(path, "tag", text)?;
    let id = SnapshotId::from_hex(&stored.id)
        .ok_or_else(|| StoreError::corrupt(path, "tag", stored.id.clone()))?;
    Ok(Tag {
        name: name.to_owned(),
        id,
        created_ns: stored.created_ns,
        is_sure: checked::has_sum(text),
    })
}

fn bad(name: &str, why: String) -> StoreError {
    StoreError::BadReference {
        reference: name.to_owned(),
        why,
    }
}

impl Store {
    fn tag_dir(&self) -> PathBuf {
        self.dir.join(FOLDER)
    }

    /// Held while a tag is set, and while snapshots are being removed: what is tagged is not removed, and what is
    /// removed is not tagged.
    pub(super) fn lock_tags(&self) -> Result<LockGuard, StoreError> {
        self.try_lock_tags(TRIES)
    }

    /// As [`Store::lock_tags`], for so many tries.
    pub(super) fn try_lock_tags(&self, tries: u32) -> Result<LockGuard, StoreError> {
        let dir = self.tag_dir();
        match self.files.create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create folder", &dir)(error));
            }
            _ => {}
        }
        let path = dir.join(LOCK);
        for _ in 0..tries {
            match self
                .files
                .lock(&path)
                .map_err(StoreError::io("lock", &path))?
            {
                Locking::Held(guard) => {
                    self.remove_unnamed();
                    return Ok(guard);
                }
                Locking::Busy { .. } => std::thread::sleep(PAUSE),
            }
        }
        Err(StoreError::TagsBusy { path })
    }

    /// Removes tags and records of trees that have no name yet: whoever writes one holds the lock, so that those which are
    /// there now are of writers that died. Best effort, a reader passes over them.
    fn remove_unnamed(&self) {
        for dir in [self.tag_dir(), self.tree_dir()] {
            let names = self.files.names(&dir).unwrap_or_default();
            for name in names.iter().filter(|name| name.starts_with(TEMP_PREFIX)) {
                let _ = self.files.remove_file(&dir.join(name));
            }
        }
    }

    /// All tags that can be read, by name; others are passed over, with a warning ([`Store::damaged_tags`]).
    pub fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        let mut tags = Vec::new();
        for (name, read) in self.read_tags()? {
            match read {
                Ok(tag) => tags.push(tag),
                Err(error) => tracing::warn!("tag {name}: {error}"),
            }
        }
        Ok(tags)
    }

    /// Names of tags that cannot be read, and why.
    pub fn damaged_tags(&self) -> Result<Vec<(String, StoreError)>, StoreError> {
        let tags = self.read_tags()?.into_iter();
        Ok(tags
            .filter_map(|(name, read)| Some((name, read.err()?)))
            .collect())
    }

    /// Every file that may be a tag, by name, and what it says.
    fn read_tags(&self) -> Result<Vec<Read>, StoreError> {
        let dir = self.tag_dir();
        let mut names = match self.files.names(&dir) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("list", &dir)(error)),
        };
        names.sort_unstable();
        let mut tags = Vec::new();
        for name in names.into_iter().filter(|name| !name.starts_with('.')) {
            let read = match objection(&name) {
                Some(why) => {
                    let why = format!("its name is that of no tag ({why}): remove the file");
                    Err(StoreError::corrupt(&dir.join(&name), "tag", why))
                }
                // Taken away since the folder was listed.
                None => match self.tag(&name).transpose() {
                    Some(read) => read,
                    None => continue,
                },
            };
            tags.push((name, read));
        }
        Ok(tags)
    }

    /// What a tag names; `None` when there is no such tag.
    pub fn tag(&self, name: &str) -> Result<Option<Tag>, StoreError> {
        if objection(name).is_some() {
            return Ok(None);
        }
        let path = self.tag_path(name);
        let text = match read_text(&*self.files, &path) {
            Ok(text) => text,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        };
        decode(&path, name, &text).map(Some)
    }

    /// Names a snapshot, which must be there. A name that is taken is moved only with `replace`.
    pub fn set_tag(&self, name: &str, id: SnapshotId, replace: bool) -> Result<Tag, StoreError> {
        if let Some(why) = objection(name) {
            return Err(bad(name, why));
        }
        let _guard = self.lock_tags()?;
        // With the lock held: it may have been removed until now, and cannot be any more.
        self.snapshot(id)?;
        if !replace
            && let Some(tag) = self.tag(name)?
            && tag.id != id
        {
            return Err(bad(
                name,
                format!(
                    "it is the name of {} already: replace it with --force",
                    tag.id.short()
                ),
            ));
        }
        let tag = Tag {
            name: name.to_owned(),
            id,
            created_ns: now_ns(),
            is_sure: true,
        };
        let stored = Stored {
            id: id.to_string(),
            created_ns: tag.created_ns,
        };
        let text = checked::encode(&stored);
        publish_text(&*self.files, &self.tag_dir(), name, &text)?;
        Ok(tag)
    }

    /// Takes a name away; its snapshot stays until a rule removes it. Gives what it named, `None` where that could not be
    /// read.
    pub fn delete_tag(&self, name: &str) -> Result<Option<Tag>, StoreError> {
        let tag = match self.tag(name) {
            Ok(None) => {
                return Err(StoreError::NotFound {
                    what: format!("tag {name}"),
                });
            }
            Ok(tag) => tag,
            Err(StoreError::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        let path = self.tag_path(name);
        self.files
            .remove_file(&path)
            .map_err(StoreError::io("remove", &path))?;
        let dir = self.tag_dir();
        self.files
            .sync_dir(&dir)
            .map_err(StoreError::io("sync folder", &dir))?;
        Ok(tag)
    }

    /// Snapshots that have a name.
    ///
    /// # Errors
    /// A tag cannot be read, or has no checksum and names nothing that is there: what it is to protect is not known then.
    /// One with a checksum whose snapshot is gone has nothing to protect.
    pub fn tagged(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        self.tagged_beside(&[])
    }

    /// As [`Store::tagged`], where these snapshots are known to be there: the store is listed for those of others only.
    pub(super) fn tagged_beside(
        &self,
        known: &[SnapshotMeta],
    ) -> Result<HashSet<SnapshotId>, StoreError> {
        let mut tags = Vec::new();
        for (name, read) in self.read_tags()? {
            tags.push(read.map_err(|error| StoreError::BadTag {
                name,
                why: error.to_string(),
            })?);
        }
        let is_known = |tag: &Tag| known.iter().any(|meta| meta.id == tag.id);
        let is_doubtful = |tag: &&Tag| !is_known(tag) && !tag.is_sure;
        let others: Vec<Tag> = tags.iter().filter(is_doubtful).cloned().collect();
        if let Some(tag) = self.lost_tags(&others)?.first() {
            return Err(StoreError::BadTag {
                name: tag.name.clone(),
                why: names_nothing(tag),
            });
        }
        Ok(tags.into_iter().map(|tag| tag.id).collect())
    }

    /// Those of these tags whose snapshot is not there.
    fn lost_tags(&self, tags: &[Tag]) -> Result<Vec<Tag>, StoreError> {
        if tags.is_empty() {
            return Ok(Vec::new());
        }
        let there = self.all_ids()?;
        let lost = tags.iter().filter(|tag| !there.contains(&tag.id));
        // Not one that was taken away meanwhile, and its snapshot after it.
        let stays = |tag: &&Tag| matches!(self.tag(&tag.name), Ok(Some(now)) if now == **tag);
        Ok(lost.filter(stays).cloned().collect())
    }

    /// Looks at tags: what is wrong with them, and what does no harm.
    pub(super) fn verify_tags(&self, report: &mut Report) -> Result<(), StoreError> {
        let mut tags = Vec::new();
        let problem = |path, what| Problem {
            id: None,
            path,
            what,
        };
        for (name, read) in self.read_tags()? {
            match read {
                Ok(tag) => tags.push(tag),
                Err(error) => {
                    let problem = problem(self.tag_path(&name), error.to_string());
                    report.problems.push(problem);
                }
            }
        }
        for tag in self.lost_tags(&tags)? {
            let what = format!("tag {}: {}", tag.name, names_nothing(&tag));
            match tag.is_sure {
                true => report.notes.push(format!("{what} any more")),
                false => report
                    .problems
                    .push(problem(self.tag_path(&tag.name), what)),
            }
        }
        Ok(())
    }

    fn tag_path(&self, name: &str) -> PathBuf {
        self.tag_dir().join(name)
    }
}

fn names_nothing(tag: &Tag) -> String {
    format!("it names snapshot {}, which is not there", tag.id)
}

#[cfg(test)]
mod tests {
    use super::objection;

    #[test]
    fn names_that_could_mean_something_else_are_refused() {
        for good in ["before-upgrade", "v1.2", "abc", "run_7+x", "_x", "Latest"] {
            assert_eq!(objection(good), None, "{good}");
        }
        for bad in [
            "", "latest", "beef", "0123abcd", "@1", "a~1", "a/b", "..", "-x", "ä", "a b",
        ] {
            assert!(objection(bad).is_some(), "{bad}");
        }
        assert!(objection(&"x".repeat(65)).is_some());
    }
}
