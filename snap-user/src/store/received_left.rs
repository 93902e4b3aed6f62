//! What attempts at a transfer have left: the records in a file, and how long the files are kept.

use crate::codec::{Encoding, LONGEST};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How the names of these files end.
pub(super) const SUFFIX: &str = ".pages";
/// Hash, encoding, length.
pub(super) const HEAD: usize = 32 + 1 + 2;
/// In place of the hash of a record that was found damaged. No page has it.
const FORGOTTEN: [u8; 32] = [0; 32];
/// Read ahead in a file of records: many of them, where pages are small.
const BUFFER: usize = 256 << 10;
/// How long pages of a transfer that did not go on are kept.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most bytes that transfers which did not go on may take; the oldest go first.
const MOST_BYTES: u64 = 16 << 30;

/// Where a page is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) file: u32,
    pub(super) at: u64,
    pub(super) len: u16,
    pub(super) encoding: Encoding,
}

/// A file that an attempt has left.
pub(super) struct Left {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    age: Duration,
}

/// What attempts have left, the newest first.
pub(super) fn files(folder: &Path) -> Vec<Left> {
    let now = SystemTime::now();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<Left> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let meta = entry.metadata().ok()?;
            name.ends_with(SUFFIX).then(|| Left {
                name,
                path: entry.path(),
                bytes: meta.len(),
                age: now
                    .duration_since(meta.modified().unwrap_or(now))
                    .unwrap_or_default(),
            })
        })
        .collect();
    all.sort_by_key(|left| left.age);
    all
}

/// What has not been written to for so long is not on its way any more.
const WRITTEN: Duration = Duration::from_secs(600);

/// Removes what nobody came back for, or with `dry_run` nothing. Gives how many bytes that are.
pub(super) fn evict(files: &[Left], in_use: &str, dry_run: bool) -> u64 {
    let (mut total, mut freed) = (0, 0);
    for left in files {
        total += left.bytes;
        // What is being written is young. Whoever still has a removed file open goes on with it.
        let is_old = left.age > KEPT || total > MOST_BYTES && left.age > WRITTEN;
        if !left.name.starts_with(in_use)
            && is_old
            && (dry_run || std::fs::remove_file(&left.path).is_ok())
        {
            freed += left.bytes;
        }
    }
    freed
}

/// What is in front of the bytes of a page.
pub(super) fn head(hash: &[u8; 32], encoding: Encoding, bytes: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..32].copy_from_slice(hash);
    head[32] = encoding.tag();
    head[33..].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
    head
}

/// Finds the records of a file, up to the first that is not whole.
pub(super) fn records(
    file: &File,
    number: u32,
    each: &mut dyn FnMut([u8; 32], Place),
) -> io::Result<()> {
    let len = file.metadata()?.len();
    records_in(BufReader::with_capacity(BUFFER, file), len, number, each)
}

/// The same of whatever gives the bytes of a file of this length.
pub(super) fn records_in(
    mut input: impl BufRead + Seek,
    len: u64,
    number: u32,
    each: &mut dyn FnMut([u8; 32], Place),
) -> io::Result<()> {
    let mut at = 0;
    let mut head = [0; HEAD];
    while at + HEAD as u64 <= len {
        input.read_exact(&mut head)?;
        let Some((hash, place)) = record(&head, number, at, len) else {
            break;
        };
        input.seek_relative(place.len.into())?;
        at = place.at + u64::from(place.len);
        if hash != FORGOTTEN {
            each(hash, place);
        }
    }
    Ok(())
}

/// Has nobody find a record again.
pub(super) fn forget(file: &File, place: Place) -> io::Result<()> {
    file.write_all_at(&FORGOTTEN, place.at - HEAD as u64)
}

/// A record, if its head can be one and its bytes lie within the file.
fn record(head: &[u8; HEAD], file: u32, at: u64, len: u64) -> Option<([u8; 32], Place)> {
    let hash = *head.first_chunk()?;
    let encoding = Encoding::from_tag(head[32]).filter(|e| !e.needs_previous())?;
    let bytes = u16::from_le_bytes([head[33], head[34]]);
    let at = at + HEAD as u64;
    (usize::from(bytes) <= LONGEST && at + u64::from(bytes) <= len).then_some((
        hash,
        Place {
            file,
            at,
            len: bytes,
            encoding,
        },
    ))
}
