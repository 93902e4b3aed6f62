//! Small JSON files with a checksum: still JSON, and a bit that is flipped anywhere in them is found.
//!
//! The first line is an opening brace and the member `crc`, which is of everything behind that line. Files of before
//! there was a checksum do not begin so: they are read as they are, but with a member that is not known they are
//! damaged, so that a fault in the first line does not make a file pass for one of those.

use super::error::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

const BEGIN: &str = "{\"crc\": \"";
const END: &str = "\",";

/// The text of a file. The value has at least one member.
pub(super) fn encode(value: &impl Serialize) -> String {
    let body = serde_json::to_string_pretty(value).expect("plain data becomes JSON");
    let rest = body.strip_prefix("{\n").expect("an object with members");
    let rest = format!("{rest}\n");
    format!("{BEGIN}{}{END}\n{rest}", sum(&rest))
}

fn sum(text: &str) -> String {
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// A text has a checksum: what is read from it is what was written.
pub(super) fn has_sum(text: &str) -> bool {
    text.starts_with(BEGIN)
}

/// Reads a file back; `part` names what it is.
///
/// # Errors
/// Its checksum does not match, or it is not what it should be.
pub(super) fn decode<T: Serialize + DeserializeOwned>(
    path: &Path,
    part: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    let damaged = |why: String| StoreError::corrupt(path, part, why);
    let read = |text: &str| serde_json::from_str(text).map_err(|error| damaged(error.to_string()));
    let Some(rest) = text.strip_prefix(BEGIN) else {
        return unchecked(&damaged, text);
    };
    let (found, rest) = rest
        .split_once('\n')
        .and_then(|(line, rest)| Some((line.strip_suffix(END)?, rest)))
        .ok_or_else(|| damaged("it ends in its first line".into()))?;
    if found != sum(rest) {
        return Err(damaged("its checksum does not match".into()));
    }
    read(&format!("{{{rest}"))
}

/// Reads a file of before there was a checksum.
fn unchecked<T: Serialize + DeserializeOwned>(
    damaged: &dyn Fn(String) -> StoreError,
    text: &str,
) -> Result<T, StoreError> {
    let read: Value = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
    let value: T =
        serde_json::from_value(read.clone()).map_err(|error| damaged(error.to_string()))?;
    let back = serde_json::to_value(&value).expect("plain data becomes JSON");
    // What is left out when it is empty was not empty where it is there, and so is written again.
    let strange = read.as_object().and_then(|members| {
        let mut names = members.keys();
        names.find(|name| back.get(name).is_none())
    });
    match strange {
        Some(name) => Err(damaged(format!("{name:?} is nothing that belongs there"))),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Continuation, SessionInfo};

    fn info() -> SessionInfo {
        SessionInfo {
            pid: 4711,
            start_time: 99,
            comm: "a\"b\n".into(),
            exe: "/usr/bin/ä".into(),
            cmdline: vec!["a".into(), String::new()],
            created_ns: 5,
            continued: vec![Continuation {
                pid: 1,
                ..Continuation::default()
            }],
            ..SessionInfo::default()
        }
    }

    fn read(text: &str) -> Result<SessionInfo, StoreError> {
        decode(Path::new("x"), "session description", text)
    }

    #[test]
    fn each_flipped_bit_and_each_cut_is_found() {
        let text = encode(&info());
        assert_eq!(read(&text).expect("whole"), info());
        serde_json::from_str::<Value>(&text).expect("still JSON");
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                // Else it is refused before it comes here.
                if let Ok(changed) = String::from_utf8(bytes) {
                    assert!(read(&changed).is_err(), "bit {bit} of byte {at}");
                }
            }
            if text.is_char_boundary(at) {
                assert!(read(&text[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn a_file_of_before_there_was_a_checksum_is_read() {
        for text in [
            serde_json::to_string_pretty(&info()),
            serde_json::to_string(&info()),
        ] {
            assert_eq!(read(&text.expect("JSON")).expect("whole"), info());
        }
        // Of before a field was added.
        let oldest = read(r#"{"pid": 7, "comm": "x"}"#).expect("whole");
        assert_eq!((oldest.pid, oldest.comm.as_str()), (7, "x"));
        let error = read(r#"{"pie": 7, "comm": "x"}"#).expect_err("no such member");
        assert!(error.to_string().contains("\"pie\""), "{error}");
    }
}
