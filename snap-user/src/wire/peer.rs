//! What a peer says of itself, and why two do not fit each other.

use super::bytes::{Reader, put_text};
use super::{Result, WireError};

/// Version of the protocol.
pub const PROTOCOL: u16 = 2;

const MAX_FEATURES: usize = 1024;
const MAX_FEATURE: usize = 64;
const MAX_KERNEL: usize = 256;

/// What a peer says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Version of the protocol.
    pub protocol: u16,
    /// Version of the image format that it reads and writes.
    pub format: u16,
    /// Version of the process state that it reads and writes.
    pub state: u16,
    /// Machine, by ELF's number (`e_machine`).
    pub arch: u16,
    /// Bytes in a page.
    pub page_size: u32,
    /// Release of its kernel.
    pub kernel: String,
    /// What its processor has that programs can use, by the kernel's names in `/proc/cpuinfo`.
    pub features: Vec<String>,
}

impl Peer {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.protocol, self.format, self.state, self.arch] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.page_size.to_le_bytes());
        put_text(out, &self.kernel, MAX_KERNEL);
        let features = &self.features[..self.features.len().min(MAX_FEATURES)];
        out.extend_from_slice(&(features.len() as u32).to_le_bytes());
        for feature in features {
            put_text(out, feature, MAX_FEATURE);
        }
    }

    /// Of another version of the protocol only the version is read: what follows may be laid out differently.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let protocol = reader.u16("the protocol's version")?;
        if protocol != PROTOCOL {
            reader.rest();
            return Ok(Self {
                protocol,
                ..Self::default()
            });
        }
        let mut peer = Self {
            protocol,
            format: reader.u16("the format's version")?,
            state: reader.u16("the state's version")?,
            arch: reader.u16("the machine")?,
            page_size: reader.u32("the page size")?,
            kernel: reader.text(MAX_KERNEL, "the kernel's release")?,
            features: Vec::new(),
        };
        for _ in 0..reader.count(MAX_FEATURES, "processor features")? {
            peer.features
                .push(reader.text(MAX_FEATURE, "a processor feature")?);
        }
        Ok(peer)
    }

    /// Whether a process of this machine can go on on another one.
    ///
    /// # Errors
    /// A sentence for both sides that says what is different, and what to do.
    pub fn can_move_to(&self, target: &Self) -> Result<()> {
        let unfit = |why: String| Err(WireError::Unfit(why));
        let versions = [
            ("the protocol", self.protocol, target.protocol),
            ("the image format", self.format, target.format),
            ("the process state", self.state, target.state),
        ];
        for (what, source, target) in versions {
            if source != target {
                let older = if source < target { "source" } else { "target" };
                return unfit(format!(
                    "the source has version {source} of {what} and the target version {target}: install the same ksnap on the {older}"
                ));
            }
        }
        if self.arch != target.arch {
            return unfit(format!(
                "the source is {} and the target {}: a process cannot go on on another architecture",
                machine(self.arch),
                machine(target.arch)
            ));
        }
        if self.page_size != target.page_size {
            return unfit(format!(
                "the source has pages of {} bytes and the target of {}",
                self.page_size, target.page_size
            ));
        }
        let missing: Vec<&str> = self
            .features
            .iter()
            .filter(|feature| !target.features.contains(feature))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return unfit(format!(
                "the target's processor lacks what the source's has, and the process may be using: {}",
                missing.join(", ")
            ));
        }
        Ok(())
    }
}

/// Name of a machine.
fn machine(number: u16) -> String {
    match number {
        62 => "x86-64".into(),
        183 => "aarch64".into(),
        other => format!("machine {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer {
            protocol: PROTOCOL,
            format: 1,
            state: 3,
            arch: 62,
            page_size: 4096,
            kernel: "6.18.0".into(),
            features: vec!["avx2".into(), "popcnt".into()],
        }
    }

    fn refusal(change: impl FnOnce(&mut Peer)) -> String {
        let mut target = peer();
        change(&mut target);
        match peer().can_move_to(&target) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(refusal(|_| {}), "");
        assert_eq!(refusal(|p| p.features.push("avx512f".into())), "");
        assert!(refusal(|p| p.arch = 183).contains("aarch64"));
        assert!(refusal(|p| p.features = vec!["popcnt".into()]).contains("avx2"));
        assert!(refusal(|p| p.format = 0).contains("ksnap on the target"));
        assert!(refusal(|p| p.state = 4).contains("ksnap on the source"));
        assert!(refusal(|p| p.protocol = PROTOCOL + 1).contains("protocol"));
        assert!(refusal(|p| p.page_size = 16384).contains("16384"));
    }

    #[test]
    fn of_another_protocol_only_the_version_is_read() {
        let mut bytes = 9u16.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"whatever a later version says");
        let read = Peer::decode(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(read.protocol, 9);
    }
}
