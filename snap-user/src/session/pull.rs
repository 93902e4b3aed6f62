//! `pull`: object storage → a snapshot of the store, or those of a tree of processes and then the tree. Each page is compared
//! with its hash when it comes, and again when it is put into the snapshot, which is published as a whole.

use super::bucket_keys::Ring;
use super::bucket_list::{Chosen, choose, find, what};
use super::pull_coming::Coming;
use super::types::hex;
use super::{Result, SessionError};
use crate::bucket::{Bucket, BucketError, Index, TreeHead};
use crate::image::{Arch, Manifest, SessionId};
use crate::model::{ProcessTree, SnapshotId};
use crate::restore::fault;
use crate::store::{Disk, Keys, Session, SnapshotMeta, Store, StoreError, tree_from_text};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulling {
    /// Chunks that have come.
    pub done: u64,
    /// Chunks that have to come.
    pub chunks: u64,
    /// Bytes that have come.
    pub bytes: u64,
}

/// A snapshot that has been pulled, or a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Its name in the bucket.
    #[serde(serialize_with = "hex")]
    pub id: SnapshotId,
    /// Where it came from.
    pub url: String,
    /// Its name in this store.
    #[serde(serialize_with = "hex")]
    pub stored_id: SnapshotId,
    /// Its sequence number in this store.
    pub seq: u32,
    /// It was in this store already: nothing was done.
    pub was_there: bool,
    /// Its process; of a tree the first one.
    pub pid: i32,
    /// The process's name.
    pub comm: String,
    /// Processes: more than one for a tree.
    pub processes: u32,
    /// Pages of all of them.
    pub pages: u64,
    /// Chunks that came.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Length of its file, or of those of all processes.
    pub file_bytes: u64,
    /// The public keys that it is sealed for in this store; none: it is plain.
    pub sealed_for: Vec<String>,
    /// What there is to say of it. Sentences.
    pub notes: Vec<String>,
    /// How long it took, in nanoseconds.
    pub took_ns: u64,
}

/// Pulls a snapshot, or a tree: `latest`, or one by its id. One that is sealed there is sealed here for the same keys, unless
/// this process seals for others; never plain. Where somebody else has made its key there, it is sealed for those alone of
/// them whose private keys this process has.
///
/// # Errors
/// Then nothing of it is in the store; pages that have come are kept, unless they are to be sealed, and the next attempt goes
/// on with them.
pub fn pull(
    dir: &Path,
    url: &str,
    reference: &str,
    report: &mut dyn FnMut(&Pulling),
) -> Result<Pulled> {
    pull_with(&Keys::of_process(), dir, url, reference, report)
}

/// [`pull`] with other keys than those of the process.
pub(super) fn pull_with(
    keys: &Arc<Keys>,
    dir: &Path,
    url: &str,
    reference: &str,
    report: &mut dyn FnMut(&Pulling),
) -> Result<Pulled> {
    let start = Instant::now();
    let bucket = Bucket::open(url)?;
    let names = find(bucket.url(), &bucket.snapshots()?, reference)?;
    let store = Store::open_or_create_with_keys(Arc::new(Disk), Arc::clone(keys), dir)?;
    let mut ring = Ring::new(&bucket, keys);
    let chosen = choose(&bucket, &mut ring, &names)?;
    let (store, note) = sealed_as_there(store, &ring, &chosen)?;
    let here = Here::look(&store)?;
    let notes: Vec<String> = note.into_iter().collect();
    let about = what(&chosen.name, &bucket);
    if let Some(mut pulled) = here.already_there(&store, &bucket, &chosen, &about)? {
        pulled.notes = notes;
        pulled.took_ns = start.elapsed().as_nanos() as u64;
        return Ok(pulled);
    }
    let Chosen {
        name, head, key, ..
    } = chosen;
    let whole = bucket.whole(&name, head, key.as_ref())?;
    let tree = whole.tree.map(|head| tree_of(&about, &head)).transpose()?;
    let parts = parts(whole.indexes, &about)?;
    let transfer = format!("bucket {} {}", bucket.url(), name.id);
    let mut coming = Coming::begin(&store, &transfer, &parts)?;
    coming.fetch(&bucket, &name, key.as_ref(), &parts, report)?;
    fault::point("pull-publishing");
    let stored = publish(&mut coming, &store, &here, &parts, tree)?;
    let pulling = coming.finish();
    Ok(Pulled {
        id: name.id,
        url: bucket.url().to_owned(),
        stored_id: stored[0].id,
        seq: stored[0].seq,
        was_there: false,
        pid: parts[0].index.header.common.pid,
        comm: parts[0].index.header.common.comm.clone(),
        processes: parts.len() as u32,
        pages: parts
            .iter()
            .map(|part| part.index.header.common.pages)
            .sum(),
        chunks: pulling.done,
        bytes: pulling.bytes,
        file_bytes: stored.iter().map(|one| one.file_bytes).sum(),
        sealed_for: store.session_info(stored[0].session)?.recipients,
        notes,
        took_ns: start.elapsed().as_nanos() as u64,
    })
}

/// The store, sealing what comes for those for whom it is sealed there, unless the user has named others; and what there is to
/// say of that.
fn sealed_as_there(
    store: Store,
    ring: &Ring<'_>,
    chosen: &Chosen,
) -> Result<(Store, Option<String>)> {
    let key = chosen.key.as_ref().filter(|_| !store.seals());
    let Some(key) = key else {
        return Ok((store, None));
    };
    let (recipients, others) = ring.trusted(key)?;
    let note = (others > 0).then(|| {
        let whom = match others {
            1 => "another public key".into(),
            n => format!("{n} other public keys"),
        };
        format!(
            "there it is sealed for {whom} too, with a key that none of your identities has made, and anybody may have named them: here it is sealed for yours alone; name all with --encrypt-to if you want them"
        )
    });
    Ok((store.sealing_for(recipients)?, note))
}

/// A process that is pulled.
pub(super) struct Part {
    pub(super) index: Index,
    pub(super) manifest: Manifest,
}

/// Looks at what is to come before anything comes that may be of no use.
pub(super) fn parts(indexes: Vec<Index>, about: &str) -> Result<Vec<Part>> {
    let mut parts = Vec::with_capacity(indexes.len());
    for index in indexes {
        if Arch::native().is_some_and(|arch| arch as u16 != index.header.common.arch) {
            return Err(SessionError::Remote(format!(
                "{about} is of a machine of another kind, and cannot be used here: pull it on one of its own"
            )));
        }
        let manifest = Manifest::from_bytes(index.manifest()).map_err(|e| {
            SessionError::Remote(format!("the process state of {about} cannot be read: {e}"))
        })?;
        parts.push(Part { index, manifest });
    }
    Ok(parts)
}

/// The record of a tree, which is as a store has it.
fn tree_of(about: &str, head: &TreeHead) -> Result<ProcessTree> {
    let damaged = |why: String| BucketError::Corrupt {
        object: about.to_owned(),
        why: format!("its record of processes: {why}. Push it again from a store that has it"),
    };
    let text = std::str::from_utf8(&head.record).map_err(|_| damaged("not UTF-8".into()))?;
    let tree = tree_from_text(Path::new(about), text).map_err(|error| match error {
        StoreError::Corrupt { source, .. } => damaged(source.to_string()).into(),
        other => SessionError::from(other),
    })?;
    let named = tree.members.iter().map(|member| member.id);
    match named.eq(head.members.iter().map(|member| member.id)) {
        true => Ok(tree),
        false => Err(damaged("it names other snapshots than there are".into()).into()),
    }
}

/// A snapshot of this store.
#[derive(Clone, Copy)]
struct Stored {
    id: SnapshotId,
    session: SessionId,
    seq: u32,
    file_bytes: u64,
}

impl Stored {
    fn of(meta: &SnapshotMeta) -> Self {
        Self {
            id: meta.id,
            session: meta.session,
            seq: meta.seq,
            file_bytes: meta.file_bytes,
        }
    }
}

/// What is in the store that is sealed as what comes would be.
struct Here {
    /// From which snapshot sessions were pulled, if they were.
    pulled: HashMap<SessionId, String>,
    list: Vec<SnapshotMeta>,
    /// First processes of trees.
    roots: HashSet<SnapshotId>,
}

impl Here {
    fn look(store: &Store) -> Result<Self> {
        let sessions = store.sessions()?.into_iter();
        // What is sealed for somebody else is of no use to those for whom this is to be sealed.
        let fitting = sessions.filter(|(_, info)| info.fits(store));
        let pulled: HashMap<_, _> = fitting.map(|(id, info)| (id, info.pulled)).collect();
        let mut list = store.list()?;
        list.retain(|meta| pulled.contains_key(&meta.session));
        Ok(Self {
            pulled,
            list,
            roots: store.tree_roots()?.into_iter().collect(),
        })
    }

    /// The snapshot in the store that is this one in the bucket: it was pushed from here, or pulled before.
    fn find(&self, id: SnapshotId) -> Option<&SnapshotMeta> {
        let name = id.to_string();
        // Of a session that was pulled, the first one; a process that was brought back may have added others.
        let is_it = |meta: &&SnapshotMeta| {
            meta.id == id || (meta.seq == 1 && self.pulled.get(&meta.session) == Some(&name))
        };
        let found = self.list.iter().filter(is_it);
        // One that a killed pull of a tree has left has none.
        found.min_by_key(|meta| (!self.roots.contains(&meta.id), meta.id != id))
    }

    /// What is said of one that is there, of which nothing has to come.
    fn already_there(
        &self,
        store: &Store,
        bucket: &Bucket,
        Chosen { name, tree, .. }: &Chosen,
        about: &str,
    ) -> Result<Option<Pulled>> {
        let Some(meta) = self.find(name.id) else {
            return Ok(None);
        };
        let members = match store.tree(meta.id)? {
            Some(tree) => tree.members.iter().map(|member| member.id).collect(),
            // It may have come without the others, by a pull that was killed.
            None if *tree => return Ok(None),
            None => vec![meta.id],
        };
        let members: Vec<&SnapshotMeta> = self
            .list
            .iter()
            .filter(|meta| members.contains(&meta.id))
            .collect();
        tracing::debug!("{about} is in the store already");
        Ok(Some(Pulled {
            id: name.id,
            url: bucket.url().to_owned(),
            stored_id: meta.id,
            seq: meta.seq,
            was_there: true,
            pid: meta.pid,
            comm: meta.comm.clone(),
            processes: members.len() as u32,
            pages: members.iter().map(|meta| meta.pages).sum(),
            chunks: 0,
            bytes: 0,
            file_bytes: members.iter().map(|meta| meta.file_bytes).sum(),
            sealed_for: store.session_info(meta.session)?.recipients,
            notes: Vec::new(),
            took_ns: 0,
        }))
    }
}

/// Publishes what has come, and the tree when all of it is there. What was published is removed again where that fails.
fn publish(
    coming: &mut Coming,
    store: &Store,
    here: &Here,
    parts: &[Part],
    tree: Option<ProcessTree>,
) -> Result<Vec<Stored>> {
    // As long as these are held nobody else removes from them.
    let mut sessions: Vec<Session> = Vec::new();
    let all = || -> Result<Vec<Stored>> {
        let mut stored = Vec::with_capacity(parts.len());
        for part in parts {
            // By an earlier attempt, which was killed before the tree was there.
            let there = here.find(part.index.header.common.id);
            if let Some(meta) = there {
                stored.push(Stored::of(meta));
                continue;
            }
            let (session, published) = coming.publish(store, part)?;
            stored.push(Stored {
                id: published.id,
                session: session.id(),
                seq: published.seq,
                file_bytes: published.bytes,
            });
            sessions.push(session);
            fault::point("pull-next-process");
        }
        if let Some(mut tree) = tree {
            for (member, stored) in tree.members.iter_mut().zip(&stored) {
                member.id = stored.id;
            }
            store.publish_tree(&tree)?;
        }
        Ok(stored)
    };
    let stored = all();
    if stored.is_err() {
        sessions.into_iter().for_each(Session::discard);
    }
    stored
}
