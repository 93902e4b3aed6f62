//! Trees of processes: which snapshots were taken at one moment, and how their processes belong together.
//!
//! A record names its members, and is published when all of them are there: a tree is whole or is not there at
//! all. It carries the name of its root's snapshot, and goes with that; until then its members stay.

use super::chain::SessionFiles;
use super::directory::Store;
use super::error::StoreError;
use super::names::TEMP_PREFIX;
use super::text::{publish_bytes, read_bytes};
use crate::image::SessionId;
use crate::model::{ProcessTree, SharedFile, SnapshotId, TreeMember, Zombie};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

const FOLDER: &str = "trees";
const MAGIC: &str = "ksnap tree";
const VERSION: u32 = 1;
/// Version of a record of which only a line is clear, and the rest sealed.
const SEALED: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Stored {
    time_ns: u64,
    stop_ns: u64,
    members: Vec<StoredMember>,
    zombies: Vec<StoredZombie>,
    shared: Vec<Vec<(u32, u32)>>,
}

#[derive(Serialize, Deserialize)]
struct StoredMember {
    id: String,
    pid: i32,
    parent: Option<u32>,
    group: i32,
    session: i32,
    stopped: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    foreground: Option<i32>,
}

#[derive(Serialize, Deserialize)]
struct StoredZombie {
    pid: i32,
    own_pid: i32,
    parent: u32,
    comm: String,
    group: i32,
    session: i32,
    status: i32,
}

/// The text of a record: a line with a checksum of what follows it, then JSON.
fn encode(tree: &ProcessTree) -> String {
    let stored = Stored {
        time_ns: tree.time_ns,
        stop_ns: tree.stop_ns,
        members: tree
            .members
            .iter()
            .map(|member| StoredMember {
                id: member.id.to_string(),
                pid: member.pid,
                parent: member.parent,
                group: member.group,
                session: member.session,
                stopped: member.stopped,
                foreground: member.foreground,
            })
            .collect(),
        zombies: tree
            .zombies
            .iter()
            .map(|zombie| StoredZombie {
                pid: zombie.pid,
                own_pid: zombie.own_pid,
                parent: zombie.parent,
                comm: zombie.comm.clone(),
                group: zombie.group,
                session: zombie.session,
                status: zombie.status,
            })
            .collect(),
        shared: tree
            .shared
            .iter()
            .map(|places| places.iter().map(|p| (p.member, p.file)).collect())
            .collect(),
    };
    let body = serde_json::to_string(&stored).expect("plain data becomes JSON");
    let sum = crc32c::crc32c(body.as_bytes());
    format!("{MAGIC} {VERSION} {sum:08x}\n{body}\n")
}

/// Reads a record back, and checks that what it names is in it.
fn decode(path: &Path, text: &str) -> Result<ProcessTree, StoreError> {
    let damaged = |why: String| StoreError::corrupt(path, "tree", why);
    let (head, body) = text
        .split_once('\n')
        .ok_or_else(|| damaged("it has no first line".into()))?;
    let words: Vec<&str> = head.split(' ').collect();
    let ["ksnap", "tree", version, sum] = words[..] else {
        return Err(damaged(format!("it begins with {head:?}")));
    };
    match version.parse::<u32>() {
        Ok(VERSION) => {}
        Ok(found) if found > VERSION => {
            return Err(StoreError::NewerVersion {
                path: path.to_owned(),
                found,
                supported: VERSION,
            });
        }
        _ => return Err(damaged(format!("version {version:?}"))),
    }
    let body = body.strip_suffix('\n').unwrap_or(body);
    if u32::from_str_radix(sum, 16).ok() != Some(crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("its checksum does not match".into()));
    }
    let stored: Stored = serde_json::from_str(body).map_err(|e| damaged(e.to_string()))?;
    let count = stored.members.len() as u32;
    let mut members = Vec::with_capacity(stored.members.len());
    for (at, member) in stored.members.into_iter().enumerate() {
        let is_root = at == 0;
        let fits = match member.parent {
            None => is_root,
            Some(parent) => !is_root && (parent as usize) < at,
        };
        if !fits {
            return Err(damaged(format!(
                "the parent of process {} is not before it",
                member.pid
            )));
        }
        members.push(TreeMember {
            id: SnapshotId::from_hex(&member.id).ok_or_else(|| damaged(member.id.clone()))?,
            pid: member.pid,
            parent: member.parent,
            group: member.group,
            session: member.session,
            stopped: member.stopped,
            foreground: member.foreground,
        });
    }
    let strays = stored.zombies.iter().any(|zombie| zombie.parent >= count)
        || stored.shared.iter().flatten().any(|(m, _)| *m >= count);
    if members.is_empty() || strays {
        return Err(damaged("it names processes that are not in it".into()));
    }
    Ok(ProcessTree {
        time_ns: stored.time_ns,
        stop_ns: stored.stop_ns,
        members,
        zombies: stored
            .zombies
            .into_iter()
            .map(|zombie| Zombie {
                pid: zombie.pid,
                own_pid: zombie.own_pid,
                parent: zombie.parent,
                comm: zombie.comm,
                group: zombie.group,
                session: zombie.session,
                status: zombie.status,
            })
            .collect(),
        shared: stored
            .shared
            .into_iter()
            .map(|places| {
                places
                    .into_iter()
                    .map(|(member, file)| SharedFile { member, file })
                    .collect()
            })
            .collect(),
    })
}

/// The clear line of a sealed record: its root's session, whose key it is sealed with, and its members, so that it is
/// known without the key what must not be removed.
fn clear_line(session: SessionId, members: &[SnapshotId]) -> String {
    let mut body = session.to_string();
    for member in members {
        body.push(' ');
        body.push_str(&member.to_string());
    }
    let sum = crc32c::crc32c(body.as_bytes());
    format!("{MAGIC} {SEALED} {sum:08x} {body}")
}

/// A record as it lies there.
enum Record<'a> {
    Clear(&'a str),
    Sealed {
        line: &'a str,
        session: SessionId,
        members: Vec<SnapshotId>,
        rest: &'a [u8],
    },
}

fn take_apart<'a>(path: &Path, bytes: &'a [u8]) -> Result<Record<'a>, StoreError> {
    let damaged = |why: &str| StoreError::corrupt(path, "tree", why);
    if !bytes.starts_with(format!("{MAGIC} {SEALED} ").as_bytes()) {
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("not UTF-8"))?;
        return Ok(Record::Clear(text));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (line, rest) = bytes.split_at(end.ok_or_else(|| damaged("it has no first line"))?);
    let line = std::str::from_utf8(line).map_err(|_| damaged("not UTF-8"))?;
    let mut words = line.split(' ').skip(4);
    let session = words.next().and_then(SessionId::from_hex);
    let members: Option<Vec<_>> = words.map(SnapshotId::from_hex).collect();
    match (session, members) {
        (Some(session), Some(members)) if clear_line(session, &members) == line => {
            Ok(Record::Sealed {
                line,
                session,
                members,
                rest: &rest[1..],
            })
        }
        _ => Err(damaged("its checksum does not match")),
    }
}

impl Store {
    fn tree_dir(&self) -> PathBuf {
        self.dir.join(FOLDER)
    }

    pub(super) fn tree_path(&self, root: SnapshotId) -> PathBuf {
        self.tree_dir().join(root.to_string())
    }

    /// Publishes a tree, all of whose members must be there. From then on none of them is removed before its root.
    pub fn publish_tree(&self, tree: &ProcessTree) -> Result<(), StoreError> {
        let root = tree.members.first().ok_or_else(|| StoreError::Misuse {
            why: "a tree has at least one process".into(),
        })?;
        let dir = self.tree_dir();
        match self.files.create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create folder", &dir)(error));
            }
            _ => {}
        }
        // With the lock held: they may have been removed until now, and cannot be any more.
        let _guard = self.lock_tags()?;
        let there = self.all_ids()?;
        if let Some(lost) = tree.members.iter().find(|one| !there.contains(&one.id)) {
            return Err(StoreError::NotFound {
                what: format!("snapshot {} in {}", lost.id, self.dir.display()),
            });
        }
        let bytes = self.encode_tree(tree)?;
        let name = root.id.to_string();
        let temp = dir.join(format!("{TEMP_PREFIX}{}-{name}", std::process::id()));
        publish_bytes(&*self.files, &temp, &dir.join(name), &bytes)?;
        self.files
            .sync_dir(&dir)
            .map_err(StoreError::io("sync folder", &dir))?;
        self.files
            .sync_dir(&self.dir)
            .map_err(StoreError::io("sync folder", &self.dir))
    }

    /// The record of a tree: sealed where its root is.
    fn encode_tree(&self, tree: &ProcessTree) -> Result<Vec<u8>, StoreError> {
        let text = encode(tree).into_bytes();
        let members: Vec<SnapshotId> = tree.members.iter().map(|member| member.id).collect();
        let key = match self.session_with(members[0])? {
            Some(session) => self.session_key(session)?.map(|key| (session, key)),
            None => None,
        };
        let Some((session, key)) = key else {
            return Ok(text);
        };
        let line = clear_line(session, &members);
        let sealed = key.seal(&line, &text);
        let sealed = sealed.map_err(StoreError::io("seal", &self.tree_path(members[0])))?;
        let mut bytes = line.into_bytes();
        bytes.push(b'\n');
        bytes.extend_from_slice(&sealed);
        Ok(bytes)
    }

    fn read_tree(&self, root: SnapshotId) -> Result<Option<Vec<u8>>, StoreError> {
        match read_bytes(&*self.files, &self.tree_path(root)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The tree whose root this snapshot is of, if it is of one.
    pub fn tree(&self, root: SnapshotId) -> Result<Option<ProcessTree>, StoreError> {
        let path = self.tree_path(root);
        let Some(bytes) = self.read_tree(root)? else {
            return Ok(None);
        };
        let (session, line, rest, members) = match take_apart(&path, &bytes)? {
            Record::Clear(text) => return decode(&path, text).map(Some),
            Record::Sealed {
                line,
                session,
                members,
                rest,
            } => (session, line, rest, members),
        };
        let damaged = |why: &str| StoreError::corrupt(&path, "tree", why);
        let key = self
            .session_key(session)?
            .ok_or_else(|| damaged("it is sealed, and its root's session is not"))?;
        let text = key
            .unseal(line, rest.to_vec())
            .map_err(StoreError::io("read", &path))?;
        let text = String::from_utf8(text).map_err(|_| damaged("not UTF-8"))?;
        let tree = decode(&path, &text)?;
        match tree.members.iter().map(|member| member.id).eq(members) {
            true => Ok(Some(tree)),
            false => Err(damaged("its first line names other snapshots")),
        }
    }

    /// The snapshots of a tree, its root first; none where there is no such tree. Takes no key.
    fn tree_members(&self, root: SnapshotId) -> Result<Vec<SnapshotId>, StoreError> {
        let path = self.tree_path(root);
        let Some(bytes) = self.read_tree(root)? else {
            return Ok(Vec::new());
        };
        match take_apart(&path, &bytes)? {
            Record::Sealed { members, .. } => Ok(members),
            Record::Clear(text) => {
                let tree = decode(&path, text)?;
                Ok(tree.members.iter().map(|member| member.id).collect())
            }
        }
    }

    /// The roots of all trees, by the names of their records.
    pub fn tree_roots(&self) -> Result<Vec<SnapshotId>, StoreError> {
        let dir = self.tree_dir();
        let names = match self.files.names(&dir) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("list", &dir)(error)),
        };
        let published = names.iter().filter(|name| !name.starts_with(TEMP_PREFIX));
        Ok(published
            .filter_map(|name| SnapshotId::from_hex(name))
            .collect())
    }

    /// Copies the records of trees whose snapshots the other store has by now. Gives what was not copied, and why; a
    /// sentence each.
    pub fn copy_trees(&self, to: &Store) -> Vec<String> {
        let lists = || -> Result<_, StoreError> {
            Ok((self.tree_roots()?, to.tree_roots()?, to.all_ids()?))
        };
        let (roots, known, there) = match lists() {
            Ok(lists) => lists,
            Err(error) => return vec![not_copied(&error)],
        };
        let wanted = |root: &&SnapshotId| there.contains(*root) && !known.contains(root);
        let mut notes = Vec::new();
        for root in roots.iter().filter(wanted) {
            let copied = self.tree(*root).and_then(|tree| match tree {
                Some(tree) => to.publish_tree(&tree),
                None => Ok(()),
            });
            match copied {
                // A member was removed by the rules of either store, or is yet to come.
                Err(error) if !error.is_missing() => notes.push(not_copied(&error)),
                _ => {}
            }
        }
        notes
    }

    /// Snapshots that trees need, their roots aside. A record that cannot be read is an error here: what it
    /// protects is not known.
    pub(super) fn in_trees(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        let mut members = HashSet::new();
        let roots = self.tree_roots()?;
        if roots.is_empty() {
            return Ok(members);
        }
        let there = self.all_ids()?;
        for root in roots.into_iter().filter(|root| there.contains(root)) {
            members.extend(self.tree_members(root)?.into_iter().skip(1));
        }
        Ok(members)
    }

    /// Removes the records of trees whose root is gone: best effort, they protect nothing.
    pub(super) fn sweep_trees(&self) {
        let (Ok(roots), Ok(there)) = (self.tree_roots(), self.all_ids()) else {
            return;
        };
        for root in roots.iter().filter(|root| !there.contains(root)) {
            let _ = self.files.remove_file(&self.tree_path(*root));
        }
    }

    /// Every snapshot that is there, also those that a power failure may have torn: until someone has looked, they are
    /// not gone.
    pub(super) fn all_ids(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        let mut ids = HashSet::new();
        for session in self.session_ids()? {
            let dir = self.session_path(session);
            match SessionFiles::list_with_suspects(&self.files, &self.cache, session, &dir) {
                Ok(files) => ids.extend(files.listing().by_seq.values().copied()),
                // Removed meanwhile, and its snapshots with it.
                Err(_) if self.is_session_gone(session) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ids)
    }
}

fn not_copied(error: &StoreError) -> String {
    format!("trees of processes were not all copied: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> ProcessTree {
        let member = |n: u8, parent| TreeMember {
            id: SnapshotId([n; 16]),
            pid: i32::from(n),
            parent,
            group: 4,
            session: 0,
            stopped: n == 2,
            foreground: (n == 3).then_some(7),
        };
        ProcessTree {
            time_ns: 5,
            stop_ns: 6,
            members: vec![member(1, None), member(2, Some(0)), member(3, Some(1))],
            zombies: vec![Zombie {
                pid: 9,
                own_pid: 9,
                parent: 2,
                comm: "a\"b".into(),
                group: 1,
                session: 1,
                status: 0x100,
            }],
            shared: vec![vec![
                SharedFile { member: 0, file: 1 },
                SharedFile { member: 2, file: 7 },
            ]],
        }
    }

    #[test]
    fn a_record_comes_back_and_damage_is_found() {
        let (path, tree) = (Path::new("x"), tree());
        let text = encode(&tree);
        assert_eq!(decode(path, &text).unwrap(), tree);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            let same = decode(path, &changed).is_ok_and(|back| back == tree);
            // The line end at the very end is nobody's.
            assert!(!same || at + 1 == text.len(), "byte {at}");
            assert!(decode(path, &text[..at]).is_err() || at + 1 == text.len());
        }
    }

    #[test]
    fn a_record_without_what_was_added_later_is_read() {
        let mut tree = tree();
        let with = encode(&tree);
        assert!(with.contains("foreground"), "{with}");
        tree.members[2].foreground = None;
        let without = encode(&tree);
        assert!(!without.contains("foreground"), "{without}");
        assert_eq!(decode(Path::new("x"), &without).unwrap(), tree);
    }

    #[test]
    fn members_come_after_their_parents() {
        let mut bad = tree();
        bad.members[1].parent = Some(2);
        assert!(decode(Path::new("x"), &encode(&bad)).is_err());
        let mut bad = tree();
        bad.zombies[0].parent = 3;
        assert!(decode(Path::new("x"), &encode(&bad)).is_err());
        let mut bad = tree();
        bad.members.clear();
        assert!(decode(Path::new("x"), &encode(&bad)).is_err());
    }
}
