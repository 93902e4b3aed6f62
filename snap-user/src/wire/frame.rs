//! A message on a stream: length of the body (4 bytes), type (1 byte), body.

use super::message::Message;
use super::{Result, WireError};
use std::io::{self, Read, Write};

/// Longest body, in bytes: what a peer can have this side hold for one message.
pub const MAX_BODY: usize = 1 << 20;
/// Length of what is in front of a body.
pub(super) const HEAD: usize = 5;

/// A message as it goes over the network.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    let mut out = vec![0; HEAD];
    let tag = message.encode(&mut out);
    let len = out.len() - HEAD;
    debug_assert!(len <= MAX_BODY, "{len} bytes in message {tag}");
    out[..4].copy_from_slice(&(len as u32).to_le_bytes());
    out[4] = tag;
    out
}

/// Length and type from what is in front of a body.
pub(super) fn decode_head(head: [u8; HEAD]) -> Result<(usize, u8)> {
    let [a, b, c, d, tag] = head;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    match len > MAX_BODY {
        true => Err(WireError::Malformed(format!(
            "a body of {len} bytes, {MAX_BODY} at most"
        ))),
        false => Ok((len, tag)),
    }
}

/// Writes a message.
pub fn write_frame(out: &mut impl Write, message: &Message) -> io::Result<()> {
    out.write_all(&encode(message))
}

/// Reads a message. Memory is taken only for a body within [`MAX_BODY`].
pub fn read_frame(input: &mut impl Read) -> Result<Message> {
    let io = |source| WireError::Io {
        what: "read a message".into(),
        source,
    };
    let mut head = [0; HEAD];
    input.read_exact(&mut head).map_err(io)?;
    let (len, tag) = decode_head(head)?;
    let mut body = vec![0; len];
    input.read_exact(&mut body).map_err(io)?;
    Message::decode(tag, &body)
}
