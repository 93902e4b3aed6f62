//! Process state and costs.

use super::error::ImageError;
use super::header::Header;
use super::index::check_section;
use crate::codec::{compress_block, decompress_block};
use crate::model::{Costs, ProcessState};
use serde::{Deserialize, Serialize};

/// Longest manifest, encoded or decoded, in bytes.
pub const MAX_MANIFEST: u64 = 256 << 20;
/// Version of the process state. Version 2 has the attributes of processes and threads, version 3 the contents of files,
/// version 4 the time left of waits, and what mapped files were.
pub const STATE_VERSION: u16 = 4;
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
        let plain = postcard::to_stdvec(&(state, costs))
            .map_err(|error| ImageError::corrupt(PART, error.to_string()))?;
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
        if version < STATE_VERSION {
            return Err(ImageError::OlderVersion {
                part: PART,
                found: version.into(),
                supported: STATE_VERSION.into(),
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
        let (manifest, rest): (Self, _) = postcard::take_from_bytes(&plain)
            .map_err(|error| ImageError::corrupt(PART, error.to_string()))?;
        if !rest.is_empty() {
            return Err(ImageError::corrupt(
                PART,
                format!("{} bytes too many", rest.len()),
            ));
        }
        Ok(manifest)
    }
}
