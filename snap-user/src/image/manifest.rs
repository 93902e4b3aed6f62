//! Process state and costs.

use super::error::ImageError;
use super::header::Header;
use super::index::check_section;
use crate::codec::{compress_block, decompress_block};
use crate::model::{Connection, Costs, Detail, ProcessState};
use serde::{Deserialize, Serialize};

/// Longest manifest, encoded or decoded, in bytes.
pub const MAX_MANIFEST: u64 = 256 << 20;
/// Version of the process state. Version 2 has the attributes of processes and threads, version 3 the contents of files,
/// version 4 the time left of waits, and what mapped files were, version 5 the connections of its TCP sockets behind it, and
/// version 6 its clocks behind those.
pub const STATE_VERSION: u16 = 6;
/// The oldest version that is read.
const OLDEST_VERSION: u16 = 4;
/// From here on with connections.
const CONNECTED_VERSION: u16 = 5;
/// From here on with clocks.
const CLOCKED_VERSION: u16 = 6;
const PREFIX: usize = 8;
const PART: &str = "manifest";

/// Everything that a snapshot records besides pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The process.
    pub state: ProcessState,
    /// What taking the snapshot cost.
    pub costs: Costs,
}

impl Manifest {
    /// Encodes a manifest.
    pub fn encode(state: &ProcessState, costs: &Costs) -> Result<Vec<u8>, ImageError> {
        // Must match the field order of `Manifest`: postcard writes fields in order, without names.
        let failed = |error: postcard::Error| ImageError::corrupt(PART, error.to_string());
        let all = (state, costs, connections(state), state.clocks);
        let plain = postcard::to_stdvec(&all).map_err(failed)?;
        if plain.len() as u64 > MAX_MANIFEST / 2 {
            return Err(ImageError::TooLarge {
                part: PART,
                why: format!("{} bytes", plain.len()),
            });
        }
        let mut out = Vec::with_capacity(plain.len() / 2);
        out.extend_from_slice(&STATE_VERSION.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        out.extend_from_slice(&compress_block(&plain));
        Ok(out)
    }

    /// Decodes a manifest section: checksum, version, length, then content.
    pub fn decode(bytes: &[u8], header: &Header) -> Result<Self, ImageError> {
        check_section(PART, bytes, &header.manifest)?;
        Self::from_bytes(bytes)
    }

    /// Decodes what [`Manifest::encode`] gave, whose bytes are known to be whole.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImageError> {
        let Some((prefix, block)) = bytes.split_first_chunk::<PREFIX>() else {
            return Err(ImageError::corrupt(PART, "shorter than its prefix"));
        };
        let version = u16::from_le_bytes([prefix[0], prefix[1]]);
        if version < OLDEST_VERSION {
            return Err(ImageError::OlderVersion {
                part: PART,
                found: version.into(),
                supported: OLDEST_VERSION.into(),
            });
        }
        if version > STATE_VERSION {
            return Err(ImageError::NewerVersion {
                part: PART,
                found: version.into(),
                supported: STATE_VERSION.into(),
            });
        }
        let len = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
        // An LZ4 block grows 255-fold at most: a small file cannot ask for much memory.
        if u64::from(len) > MAX_MANIFEST || len as usize > block.len().saturating_mul(255) {
            return Err(ImageError::corrupt(PART, format!("{len} decoded bytes")));
        }
        let plain = decompress_block(block, len as usize)
            .map_err(|error| ImageError::corrupt(PART, error.to_string()))?;
        let failed = |error: postcard::Error| ImageError::corrupt(PART, error.to_string());
        let (mut manifest, mut rest): (Self, _) =
            postcard::take_from_bytes(&plain).map_err(failed)?;
        if version >= CONNECTED_VERSION {
            let connections;
            (connections, rest) = postcard::take_from_bytes(rest).map_err(failed)?;
            manifest.connect(connections)?;
        }
        if version >= CLOCKED_VERSION {
            (manifest.state.clocks, rest) = postcard::take_from_bytes(rest).map_err(failed)?;
        }
        if !rest.is_empty() {
            return Err(ImageError::corrupt(
                PART,
                format!("{} bytes too many", rest.len()),
            ));
        }
        // An older ksnap named them otherwise.
        manifest.state.name_timer_threads();
        Ok(manifest)
    }

    /// Gives sockets their connections.
    fn connect(&mut self, connections: Vec<(u32, Connection)>) -> Result<(), ImageError> {
        for (at, connection) in connections {
            let file = self.state.files.get_mut(at as usize);
            match file.map(|file| &mut file.detail) {
                Some(Detail::Socket(socket)) => socket.connection = Some(Box::new(connection)),
                _ => {
                    let why = format!("a connection of open file {at}, which is no socket");
                    return Err(ImageError::corrupt(PART, why));
                }
            }
        }
        Ok(())
    }
}

/// The connections that are recorded, by the place of the open file.
fn connections(state: &ProcessState) -> Vec<(u32, &Connection)> {
    let files = state.files.iter().enumerate();
    files
        .filter_map(|(at, file)| match &file.detail {
            Detail::Socket(socket) => Some((at as u32, &**socket.connection.as_ref()?)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::assert_is_golden;
    use crate::model::{Clocks, FileKind, OpenFile, Socket, SocketState};

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/manifest-v6.bin");
    const GOLDEN_5: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/manifest-v5.bin");

    /// A process with a connection, whose records are all different.
    fn state() -> ProcessState {
        let socket = Socket {
            domain: 2,
            ty: 1,
            protocol: 6,
            state: SocketState::Connected,
            local: vec![2, 0, 0x1f, 0x90, 10, 0, 0, 1],
            peer: vec![2, 0, 0xc3, 0x50, 10, 0, 0, 2],
            connection: Some(Box::new(Connection {
                send_seq: 0xffff_fff0,
                send: b"not acknowledged".to_vec(),
                receive_seq: 77,
                receive: b"not read".to_vec(),
                is_ending: true,
                mss: 1460,
                scales: Some((7, 9)),
                sack: true,
                timestamp: Some(0x1234_5678),
                window: [1, 20_000, 30_000, 40_000, 5],
                room: (87_040, 131_072),
                time_ns: 1_764_000_000_123_456_789,
            })),
            ..Socket::default()
        };
        let file = OpenFile {
            kind: FileKind::Socket,
            link: "socket:[99]".into(),
            identity: (8, 99),
            detail: Detail::Socket(Box::new(socket)),
            ..OpenFile::default()
        };
        ProcessState {
            pid: 4242,
            comm: "golden".into(),
            files: vec![OpenFile::default(), file],
            clocks: Some(Clocks {
                boot: [7; 16],
                monotonic_ns: 1_000_000_007,
                boottime_ns: -3,
            }),
            ..ProcessState::default()
        }
    }

    #[test]
    fn what_is_behind_the_rest_comes_back_from_the_golden_file_and_goes_into_it() {
        let made = Manifest::encode(&state(), &Costs::default()).expect("within the limits");
        let golden = std::fs::read(GOLDEN).expect("the golden file");
        let advice = "Version 6 has changed: give it a new number";
        assert_is_golden("manifest-v6.bin", &golden, &made, advice);
        let read = Manifest::from_bytes(&golden).expect("a manifest");
        assert_eq!(read.state, state());
    }

    #[test]
    fn version_5_is_read() {
        let golden = std::fs::read(GOLDEN_5).expect("the golden file");
        let mut then = state();
        then.clocks = None;
        assert_eq!(
            Manifest::from_bytes(&golden).expect("a manifest").state,
            then
        );
    }

    #[test]
    fn a_connection_of_what_is_no_socket_is_damage() {
        let state = state();
        let one = connections(&state)[0].1;
        for at in [0u32, 7] {
            let plain = postcard::to_stdvec(&(&state, Costs::default(), vec![(at, one)]));
            let plain = plain.expect("plain data");
            let mut bytes = CONNECTED_VERSION.to_le_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend((plain.len() as u32).to_le_bytes());
            bytes.extend(compress_block(&plain));
            let error = Manifest::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.contains(&format!("open file {at}")), "{error}");
        }
    }
}
