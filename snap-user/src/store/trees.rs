//! Trees of processes: which snapshots were taken at one moment, and how their processes belong together.
//!
//! A record names its members, and is published when all of them are there: a tree is whole or is not there at
//! all. It carries the name of its root's snapshot, and goes with that; until then its members stay.

use super::chain::SessionFiles;
use super::directory::Store;
use super::error::StoreError;
use super::names::TEMP_PREFIX;
use super::text::{publish_bytes, read_bytes};
use super::tree_record::{Record, clear_line, decode, encode, take_apart};
use crate::model::{ProcessTree, SnapshotId};
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

const FOLDER: &str = "trees";

impl Store {
    pub(super) fn tree_dir(&self) -> PathBuf {
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
            return Err(self.no_snapshot(lost.id));
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
        let session = self
            .session_with(members[0])?
            .ok_or_else(|| self.no_snapshot(members[0]))?;
        let Some(key) = self.session_key(session)? else {
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
        let damaged = |why: &str| StoreError::corrupt(&path, "tree", why);
        let of_root = |tree: ProcessTree| match tree.members[0].id == root {
            true => Ok(Some(tree)),
            false => Err(damaged("it is of another snapshot than its name says")),
        };
        let (session, line, rest, members) = match take_apart(&path, &bytes)? {
            Record::Clear(text) => return of_root(decode(&path, text)?),
            Record::Sealed {
                line,
                session,
                members,
                rest,
            } => (session, line, rest, members),
        };
        let key = self
            .session_key(session)?
            .ok_or_else(|| damaged("it is sealed, and its root's session is not"))?;
        let text = key
            .unseal(line, rest.to_vec())
            .map_err(StoreError::io("read", &path))?;
        let text = String::from_utf8(text).map_err(|_| damaged("not UTF-8"))?;
        let tree = decode(&path, &text)?;
        match tree.members.iter().map(|member| member.id).eq(members) {
            true => of_root(tree),
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

    /// The newest tree of a process, by its root.
    pub fn latest_tree(&self, pid: i32) -> Result<Option<SnapshotId>, StoreError> {
        let mut roots = Vec::new();
        for root in self.tree_roots()? {
            let tree = self.tree(root)?;
            roots.extend(tree.filter(|tree| tree.members[0].pid == pid).map(|_| root));
        }
        if roots.len() < 2 {
            return Ok(roots.pop());
        }
        // By age, not by the clock, which may have been set back.
        let list = self.list()?;
        let ids = list.iter().rev().map(|meta| meta.id);
        Ok(ids.into_iter().find(|id| roots.contains(id)))
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

    /// Snapshots that have a tag or belong to a tree, roots among them.
    pub fn named_or_in_trees(&self) -> Result<HashSet<SnapshotId>, StoreError> {
        let mut ids = self.tagged()?;
        ids.extend(self.in_trees()?);
        ids.extend(self.tree_roots()?);
        Ok(ids)
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
