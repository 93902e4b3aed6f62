//! `key`: this user's own key, and those of others that may talk to it.

use super::{Result, SessionError};
use crate::wire::{Keys, PublicKey, Trusted, WireError};
use serde::Serialize;
use std::path::PathBuf;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyEntry {
    /// As `key show` prints it.
    pub key: String,
    /// What the user calls it; empty for none.
    pub name: String,
}

/// This user's own key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OwnKey {
    /// To be given to others.
    pub key: String,
    /// The folder with the private key and the trusted ones.
    pub folder: PathBuf,
    /// It was made just now.
    #[serde(skip)]
    pub made: bool,
}

/// The keys of this user.
pub(super) fn keys() -> Result<Keys> {
    let is_root = rustix::process::geteuid().is_root();
    crate::wire::default_dir(|name| std::env::var_os(name), is_root)
        .map(Keys::new)
        .ok_or_else(|| {
            SessionError::Usage("nothing says where keys are: set KSNAP_CONFIG or HOME".into())
        })
}

fn entry(trusted: Trusted) -> KeyEntry {
    KeyEntry {
        key: trusted.key.to_string(),
        name: trusted.name,
    }
}

/// This user's own key, made when it is asked for first.
pub fn own_key() -> Result<OwnKey> {
    let keys = keys()?;
    Ok(OwnKey {
        made: !keys.has_pair()?,
        key: keys.pair()?.public.to_string(),
        folder: keys.dir().to_owned(),
    })
}

/// The keys that may talk to this user.
pub fn trusted_keys() -> Result<Vec<KeyEntry>> {
    Ok(keys()?.trusted()?.into_iter().map(entry).collect())
}

/// Trusts a key from now on, in both directions. Without a name it keeps the one that it has.
pub fn trust_key(key: &str, name: Option<&str>) -> Result<KeyEntry> {
    let key: PublicKey = key.parse().map_err(SessionError::Usage)?;
    let keys = keys()?;
    if keys.pair()?.public == key {
        return Err(SessionError::Usage(
            "that is this user's own key: trust the one that `ksnap key show` prints on the other machine".into(),
        ));
    }
    Ok(entry(keys.trust(key, name)?))
}

/// Trusts a key no more, by its name or itself.
pub fn forget_key(which: &str) -> Result<()> {
    let keys = keys()?;
    match keys.forget(which)? {
        true => Ok(()),
        false => Err(WireError::Key {
            path: keys.dir().join("trusted"),
            why: format!("no key {which} is trusted; `ksnap key list` names them"),
        }
        .into()),
    }
}
