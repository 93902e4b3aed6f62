//! Records of trees ↔ bytes: text with a checksum, or a clear line and that text sealed.

use super::error::StoreError;
use crate::image::SessionId;
use crate::model::{ProcessTree, SharedFile, SnapshotId, TreeMember, Zombie};
use serde::{Deserialize, Serialize};
use std::path::Path;

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
pub fn encode(tree: &ProcessTree) -> String {
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

/// Reads a record back, and checks that what it names is in it. Errors name `path`.
pub fn decode(path: &Path, text: &str) -> Result<ProcessTree, StoreError> {
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
                supported: SEALED,
            });
        }
        _ => return Err(damaged(format!("version {version:?}"))),
    }
    let body = body.strip_suffix('\n').unwrap_or(body);
    if sum != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
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
pub(super) fn clear_line(session: SessionId, members: &[SnapshotId]) -> String {
    let mut body = session.to_string();
    for member in members {
        body.push(' ');
        body.push_str(&member.to_string());
    }
    let sum = crc32c::crc32c(body.as_bytes());
    format!("{MAGIC} {SEALED} {sum:08x} {body}")
}

/// A record as it lies there.
pub(super) enum Record<'a> {
    Clear(&'a str),
    Sealed {
        line: &'a str,
        session: SessionId,
        members: Vec<SnapshotId>,
        rest: &'a [u8],
    },
}

pub(super) fn take_apart<'a>(path: &Path, bytes: &'a [u8]) -> Result<Record<'a>, StoreError> {
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
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                // Else it is refused before it comes here.
                if let Ok(changed) = String::from_utf8(bytes) {
                    assert!(decode(path, &changed).is_err(), "bit {bit} of byte {at}");
                }
            }
            // The line end at the very end is nobody's.
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
