//! Small things in age files, encrypted to recipients and opened with identities; and marks by which the holder of an
//! identity knows what was made with it.

use super::error::SealError;
use super::keys::{Identities, Keys, Recipients};
use crate::store::error::StoreError;
use age::secrecy::ExposeSecret;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// Goes into the key that is made of an identity to mark things with.
const CONTEXT: &str = "ksnap 2026-11-27 mark of an identity 1";

/// Why an age file cannot be opened.
#[derive(Debug)]
pub(super) enum Closed {
    /// Nobody has named a key.
    NoIdentity,
    /// None of the keys that were named is the one.
    WrongIdentity,
    /// The bytes are not what was written.
    Damaged(String),
}

impl Closed {
    /// As an error of the layer of files, about the key of a session.
    pub(super) fn of_session(self, path: &Path) -> SealError {
        let path = path.to_owned();
        match self {
            Self::NoIdentity => SealError::NoIdentity { path },
            Self::WrongIdentity => SealError::WrongIdentity { path },
            Self::Damaged(why) => SealError::Damaged {
                part: "key of the session",
                why: format!("{}: {why}", path.display()),
            },
        }
    }
}

impl Recipients {
    /// From keys as text, as sessions name those that they are sealed for; never from files.
    pub fn from_names(names: &[String]) -> Result<Self, StoreError> {
        match names.iter().find(|name| !name.starts_with("age1")) {
            None => Self::parse(names),
            Some(name) => Err(StoreError::BadKey {
                what: format!("{name:?}"),
                why: "it is no public key of age, age1…".into(),
            }),
        }
    }

    /// An age file that they can open.
    pub fn encrypt(&self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let recipients = self.0.iter().map(|one| one as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        let mut out = Vec::new();
        let mut writer = encryptor.wrap_output(&mut out)?;
        writer.write_all(plain)?;
        writer.finish()?;
        Ok(out)
    }
}

impl Identities {
    /// Opens an age file that holds so many bytes at most.
    pub(super) fn decrypt(&self, bytes: &[u8], most: usize) -> Result<Vec<u8>, Closed> {
        if self.0.is_empty() {
            return Err(Closed::NoIdentity);
        }
        let damaged = |why: String| Closed::Damaged(why);
        let decryptor = age::Decryptor::new(bytes).map_err(|e| damaged(e.to_string()))?;
        let identities = self.0.iter().map(|one| one as &dyn age::Identity);
        let mut reader = decryptor.decrypt(identities).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => Closed::WrongIdentity,
            error => damaged(error.to_string()),
        })?;
        let mut plain = Vec::new();
        let read = (&mut reader).take(most as u64 + 1).read_to_end(&mut plain);
        read.map_err(|e| damaged(e.to_string()))?;
        match plain.len() <= most {
            true => Ok(plain),
            false => Err(damaged(format!("it holds more than {most} bytes"))),
        }
    }
}

impl Keys {
    /// Whether there is any to open something with.
    pub fn has_identity(&self) -> bool {
        !self.identities().0.is_empty()
    }

    /// The public keys, as text, of those whose private ones were named.
    pub fn own_names(&self) -> Vec<String> {
        let identities = self.identities().0.iter();
        identities
            .map(|identity| identity.to_public().to_string())
            .collect()
    }

    /// Opens an age file that holds so many bytes at most. `what` is told in errors.
    ///
    /// # Errors
    /// As for a sealed session: no key was named, none of them opens it, or it is damaged.
    pub fn open_age_file(
        &self,
        what: &str,
        bytes: &[u8],
        most: usize,
    ) -> Result<Vec<u8>, StoreError> {
        let what = what.to_owned();
        self.identities()
            .decrypt(bytes, most)
            .map_err(|closed| match closed {
                Closed::NoIdentity => StoreError::Sealed { what },
                Closed::WrongIdentity => StoreError::WrongIdentity {
                    what,
                    stored: false,
                },
                Closed::Damaged(why) => StoreError::corrupt(Path::new(&what), "age file", why),
            })
    }

    /// A mark of something for each identity, with its public key as text: only who has the identity can make it, or
    /// see whether it is right.
    pub fn marks(&self, of: &[u8]) -> Vec<(String, [u8; 32])> {
        let identities = self.identities().0.iter();
        identities
            .map(|identity| {
                let secret = identity.to_string();
                let key = blake3::derive_key(CONTEXT, secret.expose_secret().as_bytes());
                let mark = blake3::keyed_hash(&key, of);
                (identity.to_public().to_string(), *mark.as_bytes())
            })
            .collect()
    }

    /// The same keys to open with, and others to seal for.
    pub fn sealing_for(&self, recipients: Recipients) -> Arc<Self> {
        Self::new(self.identities().clone(), recipients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encrypted_is_opened_by_its_recipients_alone_and_no_longer_than_said() {
        let (own, recipients) = Identities::generate();
        let (other, _) = Identities::generate();
        let file = recipients.encrypt(b"small").expect("encrypted");
        let keys = |identities| Keys::new(identities, Recipients::default());
        let open = |keys: &Keys, most| keys.open_age_file("it", &file, most);
        let own = keys(own);
        assert_eq!(open(&own, 5).expect("opened"), b"small");
        let why = open(&own, 4).expect_err("too long").to_string();
        assert!(why.contains("more than 4 bytes"), "{why}");
        let wrong = open(&keys(other), 5).expect_err("not theirs");
        assert!(matches!(wrong, StoreError::WrongIdentity { what, stored: false } if what == "it"));
        let none = open(&keys(Identities::default()), 5).expect_err("nobody");
        assert!(matches!(none, StoreError::Sealed { .. }));
    }

    #[test]
    fn a_mark_is_of_one_identity_and_of_what_it_marks() {
        let (own, recipients) = Identities::generate();
        let (other, _) = Identities::generate();
        let keys = |identities| Keys::new(identities, Recipients::default());
        let (own, other) = (keys(own), keys(other));
        let mark = own.marks(b"this").remove(0);
        assert_eq!(mark.0, recipients.names()[0]);
        assert_eq!(own.marks(b"this"), std::slice::from_ref(&mark));
        assert_ne!(own.marks(b"that")[0].1, mark.1);
        assert_ne!(other.marks(b"this")[0].1, mark.1);
    }

    #[test]
    fn keys_as_text_are_never_taken_for_files() {
        let (_, recipients) = Identities::generate();
        let names = recipients.names();
        assert_eq!(Recipients::from_names(&names).expect("keys").names(), names);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &names[0]).expect("written");
        let path = file.path().display().to_string();
        let error = Recipients::from_names(&[path]).expect_err("a file");
        assert!(matches!(error, StoreError::BadKey { .. }));
    }
}
