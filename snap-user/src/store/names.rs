//! Names of files and folders.

use crate::image::SessionId;
use crate::model::SnapshotId;
use std::ffi::OsString;
use std::path::PathBuf;

/// Marks a folder as a store and says in which version.
pub(super) const MARKER: &str = "ksnap-store";
/// Describes a session.
pub(super) const SESSION_FILE: &str = "session.json";
/// A session's lock.
pub(super) const LOCK_FILE: &str = "lock";
/// Says that a session has its home in another store, from where snapshots may still come.
pub(super) const COPIED: &str = "copied";
/// Begins the names of files and folders that are not published yet.
pub(super) const TEMP_PREFIX: &str = ".tmp-";

const SUFFIX: &str = ".ksnap";

/// `00000007-<32 hex digits>.ksnap`.
pub(super) fn snapshot_file(seq: u32, id: SnapshotId) -> String {
    format!("{seq:08}-{id}{SUFFIX}")
}

/// Sequence number and id from a snapshot's file name.
pub(super) fn parse_snapshot_file(name: &str) -> Option<(u32, SnapshotId)> {
    let (seq, id) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let (seq, id) = (seq.parse().ok()?, SnapshotId::from_hex(id)?);
    // Under another spelling nobody would find it again.
    (snapshot_file(seq, id) == name).then_some((seq, id))
}

pub(super) const LOAN_SUFFIX: &str = ".kloan";

/// `00000007-001.kloan`: a file that snapshot 7 borrows pages from.
pub(super) fn loan_file(seq: u32, number: u8) -> String {
    format!("{seq:08}-{number:03}{LOAN_SUFFIX}")
}

/// Sequence number of the snapshot, and the number of the file that it borrows from.
pub(super) fn parse_loan_file(name: &str) -> Option<(u32, u8)> {
    let (seq, number) = name.strip_suffix(LOAN_SUFFIX)?.split_once('-')?;
    let (seq, number) = (seq.parse().ok()?, number.parse().ok()?);
    (loan_file(seq, number) == name).then_some((seq, number))
}

/// `00000003.001.kloan`: a file that pack 3 borrows pages from.
pub(super) fn pack_loan_file(generation: u32, number: u8) -> String {
    format!("{generation:08}.{number:03}{LOAN_SUFFIX}")
}

/// Generation of the pack, and the number of the file that it borrows from.
pub(super) fn parse_pack_loan_file(name: &str) -> Option<(u32, u8)> {
    let (generation, number) = name.strip_suffix(LOAN_SUFFIX)?.split_once('.')?;
    let (generation, number) = (generation.parse().ok()?, number.parse().ok()?);
    (pack_loan_file(generation, number) == name).then_some((generation, number))
}

const PACK_SUFFIX: &str = ".kpack";

/// `00000003.kpack`.
pub(super) fn pack_file(generation: u32) -> String {
    format!("{generation:08}{PACK_SUFFIX}")
}

/// Generation from a pack's file name.
pub(super) fn parse_pack_file(name: &str) -> Option<u32> {
    let generation = name.strip_suffix(PACK_SUFFIX)?.parse().ok()?;
    (pack_file(generation) == name).then_some(generation)
}

/// The folder of a session.
pub(super) fn session_dir(id: SessionId) -> String {
    id.to_string()
}

/// Where the store is: `--store`, else `KSNAP_STORE`, else `/var/lib/ksnap` for root and the user's state
/// folder (`$XDG_STATE_HOME/ksnap`, `~/.local/state/ksnap`) for anyone else. `None` when nothing says where.
///
/// Takes what it depends on as arguments; empty variables count as unset, and a relative `XDG_STATE_HOME` is
/// passed over, as the XDG base directory specification asks.
pub fn default_dir(
    option: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> Option<PathBuf> {
    let path = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = option.or_else(|| path("KSNAP_STORE")) {
        return Some(dir);
    }
    if is_root {
        return Some(PathBuf::from("/var/lib/ksnap"));
    }
    path("XDG_STATE_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| path("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("ksnap"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(option: Option<&str>, set: &[(&str, &str)], is_root: bool) -> Option<String> {
        let variable = |name: &str| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        };
        default_dir(option.map(PathBuf::from), variable, is_root)
            .map(|dir| dir.to_string_lossy().into_owned())
    }

    #[test]
    fn the_option_comes_before_the_variable_and_that_before_the_state_folder() {
        let all = [
            ("KSNAP_STORE", "/b"),
            ("XDG_STATE_HOME", "/c"),
            ("HOME", "/d"),
        ];
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(resolve(Some("/a"), &all, true), some("/a"));
        assert_eq!(resolve(None, &all, true), some("/b"));
        assert_eq!(resolve(None, &all[1..], true), some("/var/lib/ksnap"));
        assert_eq!(resolve(None, &all[1..], false), some("/c/ksnap"));
        assert_eq!(
            resolve(None, &all[2..], false),
            some("/d/.local/state/ksnap")
        );
        assert_eq!(resolve(None, &[], false), None);
        let odd = [
            ("KSNAP_STORE", ""),
            ("XDG_STATE_HOME", "rel"),
            ("HOME", "/d"),
        ];
        assert_eq!(resolve(None, &odd, false), some("/d/.local/state/ksnap"));
    }

    #[test]
    fn snapshot_file_names_come_back() {
        let id = SnapshotId([0xa5; 16]);
        let name = snapshot_file(7, id);
        assert_eq!(name, "00000007-a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5.ksnap");
        assert_eq!(parse_snapshot_file(&name), Some((7, id)));
        for other in ["lock", ".tmp-1", "7-a5.ksnap", "session.json", "x-y.ksnap"] {
            assert_eq!(parse_snapshot_file(other), None, "{other}");
        }
        for spelled in [name.trim_start_matches('0'), &name.replace('a', "A")] {
            assert_eq!(parse_snapshot_file(spelled), None, "{spelled}");
        }
    }

    #[test]
    fn loan_file_names_come_back() {
        for (seq, number) in [(1, 1), (7, 255), (u32::MAX, 9)] {
            assert_eq!(
                parse_loan_file(&loan_file(seq, number)),
                Some((seq, number))
            );
            let name = pack_loan_file(seq, number);
            assert_eq!(parse_pack_loan_file(&name), Some((seq, number)));
            assert_eq!(parse_loan_file(&name), None);
        }
        for other in [
            "1-001.kloan",
            "00000001-1.kloan",
            "00000001-256.kloan",
            "00000001.kloan",
            ".tmp-00000001-001.kloan",
        ] {
            assert_eq!(parse_loan_file(other), None, "{other}");
            assert_eq!(parse_pack_loan_file(other), None, "{other}");
        }
    }

    #[test]
    fn pack_file_names_come_back() {
        for generation in [1, 9, u32::MAX] {
            assert_eq!(parse_pack_file(&pack_file(generation)), Some(generation));
        }
        for other in [
            "9.kpack",
            "+0000009.kpack",
            "000000009.kpack",
            "00000009.ksnap",
        ] {
            assert_eq!(parse_pack_file(other), None, "{other}");
        }
    }
}
