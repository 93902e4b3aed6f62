//! Who may read what is sealed: recipients, identities, and the keys of sessions.

use super::age_file::Closed;
use super::error::SealError;
use crate::image::SessionId;
use crate::store::error::StoreError;
use age::x25519;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Longest file with keys that is read.
const LONGEST: u64 = 1 << 20;
/// Bytes of the key of a session.
const KEY: usize = 32;
/// Goes into every key that is made from that of a session.
const CONTEXT: &str = "ksnap 2026-11-26 sealed file 1";

/// The key of a session.
pub(in crate::store) struct SessionKey {
    session: SessionId,
    bytes: [u8; 32],
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKey({})", self.session)
    }
}

impl SessionKey {
    pub(in crate::store) fn new(session: SessionId, bytes: [u8; 32]) -> Self {
        Self { session, bytes }
    }

    /// The key of one file.
    pub(super) fn for_file(&self, salt: &[u8; 32], purpose: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.bytes);
        hasher.update(&self.session.0);
        hasher.update(salt);
        hasher.update(purpose.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Random bytes of the operating system.
pub(super) fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(bytes)
}

/// The public keys for which sessions are sealed; none: they are not.
#[derive(Clone, Debug, Default)]
pub struct Recipients(pub(super) Vec<x25519::Recipient>);

/// The private keys that open sealed sessions.
#[derive(Clone, Default)]
pub struct Identities(pub(super) Vec<x25519::Identity>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

fn bad(what: &str, why: impl Into<String>) -> StoreError {
    StoreError::BadKey {
        what: what.to_owned(),
        why: why.into(),
    }
}

/// The lines of a file that say something.
fn lines(path: &Path) -> Result<Vec<String>, StoreError> {
    let shown = path.display().to_string();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_string(&mut text))
        .map_err(|error| bad(&shown, format!("the file cannot be read: {error}")))?;
    if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN") {
        return Err(bad(
            &shown,
            "the file is encrypted or of another kind: decrypt it first, or name one that age-keygen wrote",
        ));
    }
    let words = text.lines().map(str::trim);
    let words = words.filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(words.map(str::to_owned).collect())
}

impl Recipients {
    /// From what the user names: keys, or files with keys.
    pub fn parse<T: AsRef<str>>(named: &[T]) -> Result<Self, StoreError> {
        let mut all = Vec::new();
        for name in named.iter().map(AsRef::as_ref) {
            if name.starts_with("age1") {
                all.push(recipient(name, name)?);
                continue;
            }
            if name.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                return Err(bad(
                    "a recipient",
                    "it is a private key, which others can see in the list of processes: name the public one that age-keygen -y writes",
                ));
            }
            let found = lines(Path::new(name)).map_err(|error| match error {
                StoreError::BadKey { why, .. } => bad(
                    name,
                    format!(
                        "a recipient is a key, age1…, or a file with such keys, one a line; {why}"
                    ),
                ),
                error => error,
            })?;
            if found.is_empty() {
                return Err(bad(name, "the file has no key in it"));
            }
            for line in found {
                all.push(recipient(name, &line)?);
            }
        }
        all.sort_by_key(ToString::to_string);
        all.dedup();
        Ok(Self(all))
    }

    /// Sessions are sealed.
    pub fn is_some(&self) -> bool {
        !self.0.is_empty()
    }

    /// The keys as text, in an order that does not depend on how they were named.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

fn recipient(named: &str, key: &str) -> Result<x25519::Recipient, StoreError> {
    if !key.starts_with("age1") {
        // Not told: in a file with private keys that is one of them.
        return Err(bad(
            named,
            "a line of it is no public key of age, age1…; keys of plugins and of ssh are not taken; of a file with private keys, age-keygen -y writes the public ones",
        ));
    }
    key.parse().map_err(|why: &str| {
        bad(
            named,
            format!("{key:?} is no public key of age, age1… ({why}); keys of plugins and of ssh are not taken"),
        )
    })
}

impl Identities {
    /// From a file with AGE-SECRET-KEY lines, as age-keygen writes.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let mut all = Vec::new();
        for line in lines(path)? {
            // What is in it is not told: it may be a key with a typing error.
            let parsed = line.parse::<x25519::Identity>();
            all.push(parsed.map_err(|_| {
                bad(
                    &shown,
                    "a line of it is no AGE-SECRET-KEY-1…; keys of plugins and of ssh are not taken",
                )
            })?);
        }
        match all.is_empty() {
            true => Err(bad(&shown, "the file has no AGE-SECRET-KEY-1… in it")),
            false => Ok(Self(all)),
        }
    }

    /// A new private key, and the public one that belongs to it.
    #[cfg(test)]
    pub(crate) fn generate() -> (Self, Recipients) {
        let identity = x25519::Identity::generate();
        let recipient = identity.to_public();
        (Self(vec![identity]), Recipients(vec![recipient]))
    }

    /// Decrypts the key of a session. `path` is told in errors.
    fn unwrap(&self, session: SessionId, path: &Path, bytes: &[u8]) -> io::Result<SessionKey> {
        let closed = |closed: Closed| closed.of_session(path);
        let key = self.decrypt(bytes, KEY).map_err(closed)?;
        let len = key.len();
        let bytes = key
            .try_into()
            .map_err(|_| closed(Closed::Damaged(format!("it holds {len} bytes, not {KEY}"))))?;
        Ok(SessionKey::new(session, bytes))
    }
}

/// What a process may read of sealed sessions, and for whom it seals those that it begins.
#[derive(Debug, Default)]
pub struct Keys {
    identities: Identities,
    recipients: Recipients,
    /// Sessions that were opened or begun. As long as the process lives it can read them, also one that it began
    /// without being able to open it again.
    known: Mutex<HashMap<SessionId, Arc<SessionKey>>>,
}

static OF_PROCESS: OnceLock<Arc<Keys>> = OnceLock::new();

impl Keys {
    /// Keys that open, and keys for which to seal.
    pub fn new(identities: Identities, recipients: Recipients) -> Arc<Self> {
        Arc::new(Self {
            identities,
            recipients,
            known: Mutex::default(),
        })
    }

    /// Has all stores that this process opens from now on use these, unless others are named. They belong to the whole
    /// process, so that no way leads around them: whatever begins a session seals it.
    ///
    /// # Errors
    /// A store was opened before, or others were named: what was to be sealed would not be.
    pub fn set_for_process(keys: Arc<Self>) -> Result<(), StoreError> {
        OF_PROCESS.set(keys).map_err(|_| StoreError::Misuse {
            why: "the keys of a process are named once, before it opens a store".into(),
        })
    }

    /// What [`Keys::set_for_process`] has said, else none.
    pub fn of_process() -> Arc<Self> {
        Arc::clone(OF_PROCESS.get_or_init(Arc::default))
    }

    /// For whom they seal.
    pub fn recipients(&self) -> &Recipients {
        &self.recipients
    }

    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }

    pub(in crate::store) fn known(&self, session: SessionId) -> Option<Arc<SessionKey>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&session).cloned()
    }

    pub(in crate::store) fn learn(&self, key: SessionKey) -> Arc<SessionKey> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Arc::new(key);
        known.insert(key.session, Arc::clone(&key));
        key
    }

    /// A new key for a session, encrypted, if sessions are to be sealed.
    pub(in crate::store) fn begin(&self, session: SessionId) -> io::Result<Option<Vec<u8>>> {
        if !self.recipients.is_some() {
            return Ok(None);
        }
        let key = SessionKey::new(session, random()?);
        let wrapped = self.recipients.encrypt(&key.bytes)?;
        self.learn(key);
        Ok(Some(wrapped))
    }

    /// Opens the key of a session that is there.
    pub(super) fn open(
        &self,
        session: SessionId,
        path: &Path,
        read: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<Arc<SessionKey>> {
        if self.identities.0.is_empty() {
            let path = path.to_owned();
            return Err(SealError::NoIdentity { path }.into());
        }
        let key = self.identities.unwrap(session, path, &read()?)?;
        Ok(self.learn(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn recipients_are_keys_or_files_with_keys() {
        let keys: Vec<String> = (0..3)
            .map(|_| x25519::Identity::generate().to_public().to_string())
            .collect();
        let listed = file(&format!("# both\n{}\n\n  {}\n", keys[0], keys[1]));
        let path = listed.path().to_str().expect("a path");
        let found = Recipients::parse(&[path, &keys[2], &keys[0]]).expect("keys");
        let mut want = keys.clone();
        want.sort();
        assert_eq!(found.names(), want);
        let empty = file("# nothing\n");
        for bad in ["age1nokey", "/nowhere", empty.path().to_str().unwrap()] {
            let error = Recipients::parse(&[bad]).expect_err("no key").to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn private_keys_in_place_of_recipients_are_not_told() {
        let secret = x25519::Identity::generate().to_string();
        let secret = age::secrecy::ExposeSecret::expose_secret(&secret);
        let file = file(&format!(
            "# created: today\n# public key: age1x\n{secret}\n"
        ));
        let path = file.path().to_str().expect("a path");
        for named in [path, secret] {
            let error = Recipients::parse(&[named]).expect_err("private");
            let error = error.to_string();
            assert!(!error.contains(&secret[20..]), "{error}");
            assert!(error.contains("age-keygen -y"), "{error}");
        }
    }

    #[test]
    fn an_identity_that_is_none_is_refused_without_telling_it() {
        let secret = "AGE-SECRET-KEY-1MISTYPED";
        for text in [
            secret,
            "",
            "# public key: age1x\n",
            "age-encryption.org/v1\n",
        ] {
            let file = file(text);
            let error = Identities::read(file.path()).expect_err("no key");
            assert!(!error.to_string().contains(secret), "{error}");
        }
    }

    #[test]
    fn a_wrong_identity_is_told_apart_from_damage() {
        let (right, recipients) = Identities::generate();
        let (wrong, _) = Identities::generate();
        let id = SessionId([3; 16]);
        let key = SessionKey::new(id, [9; 32]);
        let wrapped = recipients.encrypt(&key.bytes).expect("wrapped");
        let path = Path::new("key.age");
        let back = right.unwrap(id, path, &wrapped).expect("unwrapped");
        assert_eq!(back.bytes, key.bytes);
        let why = |identities: &Identities, bytes: &[u8]| {
            let error = identities.unwrap(id, path, bytes).expect_err("an error");
            SealError::behind(&error).cloned().expect("of this kind")
        };
        assert!(matches!(
            why(&wrong, &wrapped),
            SealError::WrongIdentity { .. }
        ));
        let none = Identities::default();
        assert!(matches!(why(&none, &wrapped), SealError::NoIdentity { .. }));
        for at in 0..wrapped.len() {
            let mut bytes = wrapped.clone();
            bytes[at] ^= 1;
            let told = why(&right, &bytes);
            // What is for whom cannot be told from a damaged list of that.
            let fits = matches!(
                told,
                SealError::Damaged { .. } | SealError::WrongIdentity { .. }
            );
            assert!(fits, "byte {at}: {told:?}");
            assert!(right.unwrap(id, path, &wrapped[..at]).is_err(), "{at}");
        }
    }
}
