//! Names of the trackers.

use std::fmt;
use std::str::FromStr;

/// A tracking mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackerKind {
    /// userfaultfd write protection with asynchronous faults, and `PAGEMAP_SCAN` (Linux 6.7).
    WriteProtect,
    /// Soft-dirty bits (`CONFIG_MEM_SOFT_DIRTY`).
    SoftDirty,
    /// Content of every resident page, anywhere.
    Hash,
}

impl TrackerKind {
    /// All, best first.
    pub const ALL: [Self; 3] = [Self::WriteProtect, Self::SoftDirty, Self::Hash];
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteProtect => "wp",
            Self::SoftDirty => "soft-dirty",
            Self::Hash => "hash",
        })
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackerChoice {
    /// The best that works.
    #[default]
    Auto,
    /// This one or none.
    Only(TrackerKind),
}

impl FromStr for TrackerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        TrackerKind::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .map(Self::Only)
            .ok_or_else(|| format!("no tracker '{text}': auto, wp, soft-dirty or hash"))
    }
}
