//! The messages. A body of any bytes decodes to a message or an error, and takes memory in proportion to its length.

use super::bytes::{Reader, put_text};
use super::peer::Peer;
use super::{Result, WireError};
use crate::codec::Encoding;
use crate::model::{PAGE_SIZE, PageRange, SnapshotId, SnapshotKind};

/// Pages in one offer, at most.
pub const MAX_OFFER: usize = 4096;
/// Ranges in one message, at most.
pub const MAX_RANGES: usize = 16384;
/// Bytes of process state in one message, at most.
pub const MAX_STATE: usize = 512 << 10;

const MAX_PATH: usize = 4096;
const MAX_COMM: usize = 64;
const MAX_WHY: usize = 4096;
const MAX_NOTES: usize = 256;
const MAX_NOTE: usize = 1024;

/// A snapshot is about to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// With all pages, or with what changed since the snapshot that this connection stored last.
    pub kind: SnapshotKind,
    /// Its name where it comes from.
    pub id: SnapshotId,
    /// Wall-clock time, nanoseconds since 1970.
    pub time_ns: u64,
    /// Process id where it comes from.
    pub pid: i32,
    /// Start time of the process in clock ticks since boot: tells it from a later one with its id.
    pub start_time: u64,
    /// Pages that are going to be offered.
    pub pages: u64,
    /// It, or one after it, is to be brought back.
    pub restore: bool,
    /// Its pages are fetched when it is: until then they are only listed.
    pub lazy: bool,
    /// Command name.
    pub comm: String,
    /// Path of the executable.
    pub exe: String,
}

/// A page by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Its address.
    pub addr: u64,
    /// BLAKE3 of its 4096 bytes.
    pub hash: [u8; 32],
}

/// A page as the codec has encoded it, by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// How.
    pub encoding: Encoding,
    /// Its bytes, 4096 at most.
    pub bytes: Vec<u8>,
}

/// A snapshot that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name where it is now.
    pub id: SnapshotId,
    /// Its sequence number.
    pub seq: u32,
    /// Length of its file.
    pub file_bytes: u64,
}

/// Which ids a process is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pids {
    /// Its own where they are free, else its own in a namespace.
    Any,
    /// Its own.
    Same,
    /// New ones.
    New,
    /// Its own, in a PID namespace.
    Namespace,
}

/// How the snapshot that was stored last is to be brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which ids.
    pub pids: Pids,
    /// Fill all memory before the first instruction.
    pub eager: bool,
    /// Go on when a mapped file is another one than it was.
    pub allow_changed_files: bool,
    /// A network of its own.
    pub network: bool,
}

/// A process that was brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its id as the target sees it.
    pub pid: i32,
    /// Its id as it sees itself.
    pub own_pid: i32,
    /// From the order to its first instruction, in nanoseconds.
    pub took_ns: u64,
    /// What differs from what it was, a sentence each.
    pub notes: Vec<String>,
}

/// What goes over a connection. The source asks and sends, the target answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Source: the first message.
    Hello(Peer),
    /// Target: its answer.
    Welcome(Peer),
    /// Either: the last message, why it ends here.
    Refused(String),
    /// Either: nothing yet, it is being worked on.
    Alive,
    /// Source: a snapshot begins.
    Begin(Begin),
    /// Source: pages, ascending.
    Offer(Vec<Offered>),
    /// Target: the places in an offer whose pages it does not have, ascending.
    Want(Vec<u16>),
    /// Source: pages that were wanted, or fetched, in that order.
    Pages(Vec<Encoded>),
    /// Source: what the snapshot before has and this one has not.
    Dropped(Vec<PageRange>),
    /// Source: a part of the process state.
    State(Vec<u8>),
    /// Source: that was all; BLAKE3 of everything.
    Publish([u8; 32]),
    /// Target: the snapshot is stored, whole and durable.
    Stored(Stored),
    /// Source: bring it back.
    Restore(Order),
    /// Target: it runs.
    Running(Running),
    /// Target: and does not need the program that brought it back any more.
    Settled,
    /// Source: all is done.
    Done,
    /// Target: the snapshot is known, and its pages are going to be fetched.
    Listed,
    /// Target: pages of the snapshot that was listed last, which are sent in this order.
    Fetch(Vec<u64>),
}

fn malformed(why: impl Into<String>) -> WireError {
    WireError::Malformed(why.into())
}

impl Message {
    /// Its name, for messages to people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refused(_) => "Refused",
            Self::Alive => "Alive",
            Self::Begin(_) => "Begin",
            Self::Offer(_) => "Offer",
            Self::Want(_) => "Want",
            Self::Pages(_) => "Pages",
            Self::Dropped(_) => "Dropped",
            Self::State(_) => "State",
            Self::Publish(_) => "Publish",
            Self::Stored(_) => "Stored",
            Self::Restore(_) => "Restore",
            Self::Running(_) => "Running",
            Self::Settled => "Settled",
            Self::Done => "Done",
            Self::Listed => "Listed",
            Self::Fetch(_) => "Fetch",
        }
    }

    /// Appends the body; gives the type.
    pub fn encode(&self, out: &mut Vec<u8>) -> u8 {
        let count = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as u32).to_le_bytes());
        match self {
            Self::Hello(peer) => {
                peer.encode(out);
                1
            }
            Self::Welcome(peer) => {
                peer.encode(out);
                2
            }
            Self::Refused(why) => {
                put_text(out, why, MAX_WHY);
                3
            }
            Self::Alive => 4,
            Self::Begin(begin) => {
                out.push(u8::from(begin.kind == SnapshotKind::Delta));
                out.extend_from_slice(&begin.id.0);
                out.extend_from_slice(&begin.time_ns.to_le_bytes());
                out.extend_from_slice(&begin.pid.to_le_bytes());
                out.extend_from_slice(&begin.start_time.to_le_bytes());
                out.extend_from_slice(&begin.pages.to_le_bytes());
                out.push(begin.restore.into());
                out.push(begin.lazy.into());
                put_text(out, &begin.comm, MAX_COMM);
                put_text(out, &begin.exe, MAX_PATH);
                5
            }
            Self::Offer(pages) => {
                count(out, pages.len());
                for page in pages {
                    out.extend_from_slice(&page.addr.to_le_bytes());
                    out.extend_from_slice(&page.hash);
                }
                6
            }
            Self::Want(places) => {
                count(out, places.len());
                places
                    .iter()
                    .for_each(|place| out.extend_from_slice(&place.to_le_bytes()));
                7
            }
            Self::Pages(pages) => {
                count(out, pages.len());
                for page in pages {
                    out.push(page.encoding.tag());
                    out.extend_from_slice(&(page.bytes.len() as u16).to_le_bytes());
                    out.extend_from_slice(&page.bytes);
                }
                8
            }
            Self::Dropped(ranges) => {
                count(out, ranges.len());
                for range in ranges {
                    out.extend_from_slice(&range.start.to_le_bytes());
                    out.extend_from_slice(&range.end.to_le_bytes());
                }
                9
            }
            Self::State(bytes) => {
                out.extend_from_slice(bytes);
                10
            }
            Self::Publish(digest) => {
                out.extend_from_slice(digest);
                11
            }
            Self::Stored(stored) => {
                out.extend_from_slice(&stored.id.0);
                out.extend_from_slice(&stored.seq.to_le_bytes());
                out.extend_from_slice(&stored.file_bytes.to_le_bytes());
                12
            }
            Self::Restore(order) => {
                out.push(match order.pids {
                    Pids::Any => 0,
                    Pids::Same => 1,
                    Pids::New => 2,
                    Pids::Namespace => 3,
                });
                for flag in [order.eager, order.allow_changed_files, order.network] {
                    out.push(flag.into());
                }
                13
            }
            Self::Running(running) => {
                out.extend_from_slice(&running.pid.to_le_bytes());
                out.extend_from_slice(&running.own_pid.to_le_bytes());
                out.extend_from_slice(&running.took_ns.to_le_bytes());
                let notes = &running.notes[..running.notes.len().min(MAX_NOTES)];
                count(out, notes.len());
                notes.iter().for_each(|note| put_text(out, note, MAX_NOTE));
                14
            }
            Self::Settled => 15,
            Self::Done => 16,
            Self::Listed => 17,
            Self::Fetch(addrs) => {
                count(out, addrs.len());
                addrs
                    .iter()
                    .for_each(|addr| out.extend_from_slice(&addr.to_le_bytes()));
                18
            }
        }
    }

    /// Takes a body apart.
    pub fn decode(tag: u8, body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let message = Self::read(tag, &mut reader)?;
        reader.end()?;
        Ok(message)
    }

    fn read(tag: u8, reader: &mut Reader<'_>) -> Result<Self> {
        Ok(match tag {
            1 => Self::Hello(Peer::decode(reader)?),
            2 => Self::Welcome(Peer::decode(reader)?),
            3 => Self::Refused(reader.text(MAX_WHY, "the reason")?),
            4 => Self::Alive,
            5 => Self::Begin(Begin {
                kind: match reader.flag("the kind")? {
                    true => SnapshotKind::Delta,
                    false => SnapshotKind::Base,
                },
                id: SnapshotId(reader.array("the id")?),
                time_ns: reader.u64("the time")?,
                pid: reader.u32("the process id")?.cast_signed(),
                start_time: reader.u64("the start time")?,
                pages: reader.u64("the number of pages")?,
                restore: reader.flag("a flag")?,
                lazy: reader.flag("a flag")?,
                comm: reader.text(MAX_COMM, "the command name")?,
                exe: reader.text(MAX_PATH, "the executable")?,
            }),
            6 => Self::Offer(read_offer(reader)?),
            7 => Self::Want(read_places(reader)?),
            8 => Self::Pages(read_pages(reader)?),
            9 => Self::Dropped(read_ranges(reader)?),
            10 => match reader.rest() {
                bytes if bytes.len() > MAX_STATE => {
                    return Err(malformed(format!("{} bytes of state", bytes.len())));
                }
                bytes => Self::State(bytes.to_vec()),
            },
            11 => Self::Publish(reader.array("the hash")?),
            12 => Self::Stored(Stored {
                id: SnapshotId(reader.array("the id")?),
                seq: reader.u32("the sequence number")?,
                file_bytes: reader.u64("the length")?,
            }),
            13 => Self::Restore(Order {
                pids: match reader.u8("the choice of ids")? {
                    0 => Pids::Any,
                    1 => Pids::Same,
                    2 => Pids::New,
                    3 => Pids::Namespace,
                    other => return Err(malformed(format!("choice {other} of ids"))),
                },
                eager: reader.flag("a flag")?,
                allow_changed_files: reader.flag("a flag")?,
                network: reader.flag("a flag")?,
            }),
            14 => {
                let mut running = Running {
                    pid: reader.u32("the process id")?.cast_signed(),
                    own_pid: reader.u32("the process id")?.cast_signed(),
                    took_ns: reader.u64("the time")?,
                    notes: Vec::new(),
                };
                for _ in 0..reader.count(MAX_NOTES, "notes")? {
                    running.notes.push(reader.text(MAX_NOTE, "a note")?);
                }
                Self::Running(running)
            }
            15 => Self::Settled,
            16 => Self::Done,
            17 => Self::Listed,
            18 => {
                let mut addrs = Vec::new();
                for _ in 0..reader.count(MAX_OFFER, "pages")? {
                    addrs.push(reader.u64("an address")?);
                }
                Self::Fetch(addrs)
            }
            other => return Err(malformed(format!("type {other}"))),
        })
    }
}

fn read_offer(reader: &mut Reader<'_>) -> Result<Vec<Offered>> {
    let mut pages: Vec<Offered> = Vec::new();
    for _ in 0..reader.count(MAX_OFFER, "pages")? {
        let page = Offered {
            addr: reader.u64("an address")?,
            hash: reader.array("a hash")?,
        };
        // Nor is the last one, which no range of addresses has.
        if !page.addr.is_multiple_of(PAGE_SIZE) || page.addr.checked_add(PAGE_SIZE).is_none() {
            return Err(malformed(format!("{:#x} is no page", page.addr)));
        }
        if pages.last().is_some_and(|last| last.addr >= page.addr) {
            return Err(malformed(format!("page {:#x} is not in order", page.addr)));
        }
        pages.push(page);
    }
    Ok(pages)
}

fn read_places(reader: &mut Reader<'_>) -> Result<Vec<u16>> {
    let mut places: Vec<u16> = Vec::new();
    for _ in 0..reader.count(MAX_OFFER, "places")? {
        let place = reader.u16("a place")?;
        if places.last().is_some_and(|last| *last >= place) {
            return Err(malformed(format!("place {place} is not in order")));
        }
        places.push(place);
    }
    Ok(places)
}

fn read_pages(reader: &mut Reader<'_>) -> Result<Vec<Encoded>> {
    let mut pages = Vec::new();
    for _ in 0..reader.count(MAX_OFFER, "pages")? {
        let tag = reader.u8("an encoding")?;
        let encoding = Encoding::from_tag(tag)
            .filter(|encoding| !encoding.needs_previous() && *encoding != Encoding::Reference)
            .ok_or_else(|| malformed(format!("a page of encoding {tag}")))?;
        let len = usize::from(reader.u16("a length")?);
        if len > PAGE_SIZE as usize {
            return Err(malformed(format!("a page of {len} bytes")));
        }
        pages.push(Encoded {
            encoding,
            bytes: reader.bytes(len, "a page")?.to_vec(),
        });
    }
    Ok(pages)
}

fn read_ranges(reader: &mut Reader<'_>) -> Result<Vec<PageRange>> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for _ in 0..reader.count(MAX_RANGES, "ranges")? {
        let (start, end) = (reader.u64("a range")?, reader.u64("a range")?);
        let pages = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE);
        if !pages || start >= end || ranges.last().is_some_and(|last| last.end > start) {
            return Err(malformed(format!("range {start:#x}-{end:#x}")));
        }
        ranges.push(PageRange { start, end });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_BODY, read_frame};
    use super::*;

    #[test]
    fn the_largest_messages_fit_into_a_body() {
        let offer: Vec<Offered> = (0..MAX_OFFER as u64)
            .map(|n| Offered {
                addr: n * PAGE_SIZE,
                hash: [0; 32],
            })
            .collect();
        let ranges: Vec<PageRange> = (0..MAX_RANGES as u64)
            .map(|n| PageRange::new(2 * n * PAGE_SIZE, (2 * n + 1) * PAGE_SIZE))
            .collect();
        let messages = [
            Message::Offer(offer),
            Message::Dropped(ranges),
            Message::State(vec![0; MAX_STATE]),
        ];
        for message in messages {
            let mut body = Vec::new();
            let tag = message.encode(&mut body);
            assert!(body.len() <= MAX_BODY, "{tag}: {}", body.len());
            assert_eq!(Message::decode(tag, &body).unwrap(), message);
        }
    }

    #[test]
    fn absurd_sizes_are_refused_before_memory_is_taken() {
        let mut head = (MAX_BODY as u32 + 1).to_le_bytes().to_vec();
        head.push(6);
        assert!(read_frame(&mut &head[..]).is_err());
        for tag in [6, 7, 8, 9, 18] {
            assert!(Message::decode(tag, &u32::MAX.to_le_bytes()).is_err());
        }
    }

    #[test]
    fn pages_out_of_order_or_not_aligned_are_refused() {
        let offer = |addrs: &[u64]| {
            let pages = addrs.iter().map(|addr| Offered {
                addr: *addr,
                hash: [0; 32],
            });
            let mut body = Vec::new();
            let tag = Message::Offer(pages.collect()).encode(&mut body);
            Message::decode(tag, &body)
        };
        assert!(offer(&[0x1000, 0x2000]).is_ok());
        assert!(offer(&[0x2000, 0x1000]).is_err());
        assert!(offer(&[0x1000, 0x1000]).is_err());
        assert!(offer(&[0x1008]).is_err());
        assert!(offer(&[0u64.wrapping_sub(PAGE_SIZE)]).is_err());
    }
}
