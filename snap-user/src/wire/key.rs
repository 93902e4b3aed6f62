//! Public and private keys, and the folder that they are in.
//!
//! `key` has the private key, `trusted` a line for each public key that may talk to this user, with a name. Both are
//! for their owner alone, and appear under their names whole or not at all. Who changes `trusted` locks the folder.

use super::{Result, WireError};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

const KEY_FILE: &str = "key";
const TRUSTED_FILE: &str = "trusted";
const KEY_HEAD: &str = "ksnap private key 1";
/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// What comes before an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const ALGORITHM: &str = "ed25519:";

/// Who a peer is: an Ed25519 public key. As text `ed25519:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// As TLS has it (RFC 7250).
    pub(super) fn spki(&self) -> Vec<u8> {
        [&SPKI[..], &self.0].concat()
    }

    /// From what TLS has; `None` for a key of another kind.
    pub(super) fn from_spki(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&SPKI)?;
        Some(Self(key.try_into().ok()?))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALGORITHM)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let digits = text.trim();
        let digits = digits.strip_prefix(ALGORITHM).unwrap_or(digits);
        unhex(digits)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| {
                format!("a key is {ALGORITHM} and 64 hex digits, as `ksnap key show` prints it")
            })
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok())
        .collect()
}

/// A private key with its public one.
pub struct KeyPair {
    pkcs8: Vec<u8>,
    /// Who it makes its owner.
    pub public: PublicKey,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A new one.
    pub fn generate() -> Option<Self> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?;
        Self::from_pkcs8(document.as_ref().to_vec())
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pkcs8, public })
    }

    /// From the text of the file.
    #[doc(hidden)]
    pub fn from_text(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(KEY_HEAD)?;
        unhex(digits.trim()).and_then(Self::from_pkcs8)
    }

    /// The text of the file.
    #[doc(hidden)]
    pub fn to_text(&self) -> String {
        let digits: String = self.pkcs8.iter().map(|b| format!("{b:02x}")).collect();
        format!("{KEY_HEAD}\n{digits}\n")
    }

    pub(super) fn private(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pkcs8.clone().into()
    }
}

/// A key that may talk to this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Whose.
    pub key: PublicKey,
    /// What the user calls it; empty for none.
    pub name: String,
}

/// A line of the file of the trusted keys, as it is there.
struct Line {
    text: String,
    /// Nothing in one that is empty or a remark.
    trusted: Option<Trusted>,
}

impl Line {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let line = text.trim();
        let trusted = match line.is_empty() || line.starts_with('#') {
            true => None,
            false => {
                let (key, name) = line.split_once(' ').unwrap_or((line, ""));
                Some(Trusted {
                    key: key.parse()?,
                    name: name.trim().to_owned(),
                })
            }
        };
        Ok(Self {
            text: text.to_owned(),
            trusted,
        })
    }

    fn of(trusted: &Trusted) -> Self {
        let text = format!("{} {}", trusted.key, trusted.name);
        Self {
            text: text.trim_end().to_owned(),
            trusted: Some(trusted.clone()),
        }
    }
}

/// The lines of the file of the trusted keys.
fn lines_of(text: &str) -> std::result::Result<Vec<Line>, String> {
    let lines = text.lines().zip(1..);
    lines
        .map(|(text, number)| Line::parse(text).map_err(|why| format!("line {number}: {why}")))
        .collect()
}

/// The keys in the text of that file.
#[doc(hidden)]
pub fn trusted_in(text: &str) -> std::result::Result<Vec<Trusted>, String> {
    let lines = lines_of(text)?.into_iter();
    Ok(lines.filter_map(|line| line.trusted).collect())
}

/// The folder of the keys.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
}

/// Where keys are: `KSNAP_CONFIG`, else `/etc/ksnap` for root and the user's configuration folder
/// (`$XDG_CONFIG_HOME/ksnap`, `~/.config/ksnap`) for anyone else. `None` when nothing says where.
pub fn default_dir(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    let path = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(dir) = path("KSNAP_CONFIG") {
        return Some(dir);
    }
    if is_root {
        return Some(PathBuf::from("/etc/ksnap"));
    }
    path("XDG_CONFIG_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| path("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("ksnap"))
}

impl Keys {
    /// The keys in a folder, which need not be there yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn bad(&self, name: &str, why: impl Into<String>) -> WireError {
        WireError::Key {
            path: self.dir.join(name),
            why: why.into(),
        }
    }

    /// Whether there is a pair already.
    pub fn has_pair(&self) -> Result<bool> {
        Ok(self.read_pair()?.is_some())
    }

    /// This user's own pair, made when it is asked for first.
    pub fn pair(&self) -> Result<KeyPair> {
        if let Some(pair) = self.read_pair()? {
            return Ok(pair);
        }
        let pair = KeyPair::generate()
            .ok_or_else(|| self.bad(KEY_FILE, "the kernel gives no random numbers for a key"))?;
        self.write(KEY_FILE, &pair.to_text(), false)?;
        // Another process may have been first.
        self.read_pair()?
            .ok_or_else(|| self.bad(KEY_FILE, "it is gone again"))
    }

    fn read_pair(&self) -> Result<Option<KeyPair>> {
        let Some((text, mode)) = self.read(KEY_FILE)? else {
            return Ok(None);
        };
        if mode & 0o077 != 0 {
            return Err(self.bad(
                KEY_FILE,
                format!(
                    "others than its owner may use this private key (mode {:o}): chmod 600 it, or remove it and trust a new one if they may have read it",
                    mode & 0o777
                ),
            ));
        }
        KeyPair::from_text(&text)
            .map(Some)
            .ok_or_else(|| {
                self.bad(
                    KEY_FILE,
                    "it is no private key of ksnap: bring it back from a copy, or remove it for a new one",
                )
            })
    }

    /// The keys that may talk to this user.
    pub fn trusted(&self) -> Result<Vec<Trusted>> {
        let lines = self.read_trusted()?.into_iter();
        Ok(lines.filter_map(|line| line.trusted).collect())
    }

    fn read_trusted(&self) -> Result<Vec<Line>> {
        let Some((text, mode)) = self.read(TRUSTED_FILE)? else {
            return Ok(Vec::new());
        };
        if mode & 0o022 != 0 {
            return Err(self.bad(
                TRUSTED_FILE,
                "others than its owner may add keys to it: chmod 600 it, and look through it",
            ));
        }
        lines_of(&text).map_err(|why| self.bad(TRUSTED_FILE, why))
    }

    /// Trusts a key, under a name that no other key has; one that is trusted already gets the name. Without one it
    /// keeps the name that it has.
    pub fn trust(&self, key: PublicKey, name: Option<&str>) -> Result<Trusted> {
        if let Some(name) = name
            && (name.chars().any(char::is_control) || name.trim() != name)
        {
            return Err(self.bad(TRUSTED_FILE, format!("{name:?} is no name for a key")));
        }
        let _lock = self.lock()?;
        let mut lines = self.read_trusted()?;
        let all = || lines.iter().filter_map(|line| line.trusted.as_ref());
        let before = all().find(|t| t.key == key).map(|t| t.name.clone());
        let name = name.map_or(before.unwrap_or_default(), str::to_owned);
        let taken = |t: &&Trusted| t.key != key && t.name == name && !name.is_empty();
        if let Some(other) = all().find(taken) {
            return Err(self.bad(
                TRUSTED_FILE,
                format!(
                    "{name} is the name of {} already: take that one away first (`ksnap key forget {name}`)",
                    other.key
                ),
            ));
        }
        let trusted = Trusted { key, name };
        lines.retain(|line| line.trusted.as_ref().is_none_or(|t| t.key != key));
        lines.push(Line::of(&trusted));
        self.write_trusted(&lines)?;
        Ok(trusted)
    }

    /// Trusts a key no more, by its name or itself. Whether there was one.
    pub fn forget(&self, which: &str) -> Result<bool> {
        if !self.dir.exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let mut lines = self.read_trusted()?;
        let before = lines.len();
        let key: Option<PublicKey> = which.parse().ok();
        let meant = |t: &Trusted| Some(t.key) == key || (!t.name.is_empty() && t.name == which);
        lines.retain(|line| !line.trusted.as_ref().is_some_and(meant));
        let found = lines.len() != before;
        if found {
            self.write_trusted(&lines)?;
        }
        Ok(found)
    }

    fn write_trusted(&self, lines: &[Line]) -> Result<()> {
        let text: String = lines.iter().map(|line| line.text.clone() + "\n").collect();
        self.write(TRUSTED_FILE, &text, true)
    }

    fn make_folder(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
    }

    /// Keeps others from changing the file of the trusted keys, until what is returned is dropped.
    fn lock(&self) -> Result<File> {
        let locked = self.make_folder().and_then(|()| {
            let folder = File::open(&self.dir)?;
            flock(&folder, FlockOperation::LockExclusive)?;
            Ok(folder)
        });
        let path = || self.dir.join(TRUSTED_FILE);
        locked.map_err(|e| WireError::of_key_file(path(), "its folder cannot be locked", &e))
    }

    /// Content and mode; `None` when it is not there.
    fn read(&self, name: &str) -> Result<Option<(String, u32)>> {
        let io = |e: io::Error| self.bad(name, format!("it cannot be read ({e})"));
        let file = match File::open(self.dir.join(name)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
        };
        let mode = file.metadata().map_err(io)?.mode();
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(io)?;
        Ok(Some((text, mode)))
    }

    /// Writes a file, whole or not at all. One that is there already stays unless `replace`.
    fn write(&self, name: &str, text: &str, replace: bool) -> Result<()> {
        let io = |e| WireError::of_key_file(self.dir.join(name), "it cannot be written", &e);
        self.make_folder().map_err(io)?;
        let path = self.dir.join(name);
        let temp = self.dir.join(format!(".tmp-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&temp);
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temp)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            match replace {
                true => std::fs::rename(&temp, &path),
                false => match std::fs::hard_link(&temp, &path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    done => done,
                },
            }
        })();
        let _ = std::fs::remove_file(&temp);
        written.map_err(io)
    }
}

#[cfg(test)]
mod tests;
