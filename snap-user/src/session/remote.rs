//! What both sides of a connection need: who this machine is, where the other one is.

use super::{Result, SessionError};
use crate::image::{Arch, FORMAT_VERSION, STATE_VERSION};
use crate::model::PAGE_SIZE;
use crate::sys::proc;
use crate::wire::{Keys, Link, Message, PROTOCOL, Peer, PublicKey, Stored, WireError};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Port that is listened on unless another one is named.
pub const DEFAULT_PORT: u16 = 5762;

/// A snapshot that went from one machine to the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transferred {
    /// Pages that it has, or has other than the one before.
    pub(super) offered: u64,
    /// Pages that the target did not have.
    pub(super) sent: u64,
    /// The snapshot as the target has it, unless it is only listed there.
    pub(super) stored: Option<Stored>,
}

/// What this machine says of itself.
pub(super) fn here() -> Result<Peer> {
    let uname = rustix::system::uname();
    Ok(Peer {
        protocol: PROTOCOL,
        format: FORMAT_VERSION,
        state: STATE_VERSION,
        arch: Arch::native().map_or(0, |arch| arch as u16),
        page_size: PAGE_SIZE as u32,
        kernel: uname.release().to_string_lossy().into_owned(),
        features: proc::processor_features()?,
    })
}

/// Host and port of `HOST`, `HOST:PORT`, `ADDRESS` or `[ADDRESS]:PORT`.
fn split(text: &str) -> Option<(&str, u16)> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = bare {
        return Some((address, DEFAULT_PORT));
    }
    match text.rsplit_once(':') {
        // An IPv6 address has more than one colon.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host, port.parse().ok()?))
        }
        _ => Some((text, DEFAULT_PORT)),
    }
    .filter(|(host, _)| !host.is_empty())
}

/// The host that is named, without its port, and its addresses.
pub(super) fn resolve(text: &str) -> Result<(String, Vec<SocketAddr>)> {
    let (host, port) = split(text).ok_or_else(|| {
        SessionError::Usage(format!(
            "{text:?} is no host: HOST, HOST:PORT or [ADDRESS]:PORT"
        ))
    })?;
    let found = (host, port)
        .to_socket_addrs()
        .map_err(SessionError::io(format!("find host {host}")))?;
    Ok((host.to_owned(), found.collect()))
}

/// Keys that a host may have: the one with its name where there is one, else any that is trusted.
fn keys_of(host: &str, keys: &Keys) -> Result<Vec<PublicKey>> {
    let all = keys.trusted()?;
    let named: Vec<PublicKey> = all
        .iter()
        .filter(|t| t.name == host)
        .map(|t| t.key)
        .collect();
    match named.is_empty() {
        true => Ok(all.into_iter().map(|t| t.key).collect()),
        false => Ok(named),
    }
}

/// Connects to a target, and sees to it that a process of this machine can go on there.
pub(super) fn dial(target: &str, keys: &Keys, stall: Duration) -> Result<Link> {
    let (host, addresses) = resolve(target)?;
    let trusted = keys_of(&host, keys)?;
    if trusted.is_empty() {
        return Err(SessionError::Usage(format!(
            "no key is trusted yet: run `ksnap key show` on {host}, then `ksnap key trust KEY --name {host}` here, and the same the other way round"
        )));
    }
    let own = keys.pair()?;
    let mut link = Link::connect(target, &addresses, &own, trusted, stall)?;
    let here = here()?;
    link.send(&Message::Hello(here.clone()))?;
    match link.receive(stall)? {
        Message::Welcome(there) => here.can_move_to(&there)?,
        other => return Err(link.unexpected(&other, "Welcome").into()),
    }
    Ok(link)
}

/// Lets a source in whose processes can go on here.
pub(super) fn greet(link: &mut Link) -> Result<()> {
    let here = here()?;
    match link.receive(link.stall())? {
        Message::Hello(there) => there.can_move_to(&here)?,
        other => return Err(link.unexpected(&other, "Hello").into()),
    }
    Ok(link.send(&Message::Welcome(here))?)
}

/// Whether another attempt can go on where this one ended.
pub(super) fn is_lost(error: &SessionError) -> bool {
    matches!(error, SessionError::Wire(error) if WireError::is_lost(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        assert_eq!(split("b"), Some(("b", DEFAULT_PORT)));
        assert_eq!(split("b.example:7"), Some(("b.example", 7)));
        assert_eq!(split("::1"), Some(("::1", DEFAULT_PORT)));
        assert_eq!(split("[::1]"), Some(("::1", DEFAULT_PORT)));
        assert_eq!(split("[::1]:7"), Some(("::1", 7)));
        assert_eq!(split("10.0.0.2:99999"), None);
        assert_eq!(split(":7"), None);
    }

    #[test]
    fn a_named_host_has_to_have_its_own_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::new(folder.path().to_owned());
        let key = |n: u8| PublicKey([n; 32]);
        keys.trust(key(1), Some("b")).unwrap();
        keys.trust(key(2), Some("c")).unwrap();
        assert_eq!(keys_of("b", &keys).unwrap(), [key(1)]);
        assert_eq!(keys_of("elsewhere", &keys).unwrap(), [key(1), key(2)]);
    }

    #[test]
    fn a_process_can_go_on_on_the_same_machine() {
        let here = here().unwrap();
        assert!(here.can_move_to(&here).is_ok());
        assert!(!here.features.is_empty());
    }
}
