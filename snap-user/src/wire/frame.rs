//! A message on a stream: length of the body (4 bytes), type (1 byte), body.

use super::message::Message;
use super::{Result, WireError};
use std::io::{self, Read};

/// Longest body, in bytes: what a peer can have this side hold for one message.
pub const MAX_BODY: usize = 1 << 20;
/// Length of what is in front of a body.
const HEAD: usize = 5;

/// Why no message was read.
#[derive(Debug)]
pub(super) enum Unread {
    /// Nothing came, or not all of what is in front of a body.
    Head(io::Error),
    /// Of a body of so many bytes not all came.
    Body(usize, io::Error),
    /// What came is no message.
    Malformed(WireError),
}

/// A message as it goes over the network.
pub fn encode_frame(message: &Message) -> Vec<u8> {
    let mut out = vec![0; HEAD];
    let tag = message.encode(&mut out);
    let len = out.len() - HEAD;
    debug_assert!(len <= MAX_BODY, "{len} bytes in message {tag}");
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out[4] = tag;
    out
}

/// Reads a message. Memory is taken only for a body within [`MAX_BODY`]; `begun` has its length before it is read.
pub(super) fn read<R: Read>(
    input: &mut R,
    begun: impl FnOnce(&mut R, usize),
) -> std::result::Result<Message, Unread> {
    let mut head = [0; HEAD];
    input.read_exact(&mut head).map_err(Unread::Head)?;
    let [a, b, c, d, tag] = head;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX_BODY {
        return Err(Unread::Malformed(WireError::Malformed(format!(
            "a body of {len} bytes, {MAX_BODY} at most"
        ))));
    }
    begun(input, len);
    let mut body = vec![0; len];
    input
        .read_exact(&mut body)
        .map_err(|e| Unread::Body(len, e))?;
    Message::decode(tag, &body).map_err(Unread::Malformed)
}

/// Reads a message from bytes, or whatever else needs no deadline.
pub fn read_frame(input: &mut impl Read) -> Result<Message> {
    read(input, |_, _| {}).map_err(|e| match e {
        Unread::Head(source) | Unread::Body(_, source) => WireError::Io {
            what: "read a message".into(),
            source,
        },
        Unread::Malformed(error) => error,
    })
}
