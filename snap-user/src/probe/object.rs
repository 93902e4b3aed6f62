//! The embedded eBPF object.

use super::error::ProbeError;
use object::{Object, ObjectSection};
use snap_common::{ABI_SECTION, ABI_VERSION};

/// The object, aligned as an ELF file must be.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ksnap.bpf.o"));

/// Refuses an object whose records this program would misread.
pub fn check(data: &[u8]) -> Result<(), ProbeError> {
    let bad = |detail: String| ProbeError::BadObject { detail };
    let file = object::File::parse(data).map_err(|error| bad(error.to_string()))?;
    let section = file
        .section_by_name(ABI_SECTION)
        .ok_or_else(|| bad(format!("it has no section {ABI_SECTION}")))?;
    let bytes = section.data().map_err(|error| bad(error.to_string()))?;
    let version = bytes
        .try_into()
        .map(u32::from_le_bytes)
        .map_err(|_| bad(format!("section {ABI_SECTION} has {} bytes", bytes.len())))?;
    if version != ABI_VERSION {
        return Err(ProbeError::AbiMismatch {
            found: version,
            expected: ABI_VERSION,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_speaks_this_abi() {
        check(OBJECT).unwrap();
    }

    #[test]
    fn an_object_of_another_abi_is_refused_with_both_versions() {
        let file = object::File::parse(OBJECT).unwrap();
        let section = file.section_by_name(ABI_SECTION).unwrap();
        let (at, _) = section.file_range().unwrap();
        let mut other = OBJECT.to_vec();
        other[at as usize] = 200;
        assert!(matches!(
            check(&other),
            Err(ProbeError::AbiMismatch {
                found: 200,
                expected: ABI_VERSION
            })
        ));
    }

    #[test]
    fn garbage_is_a_damaged_object() {
        assert!(matches!(
            check(b"not an object"),
            Err(ProbeError::BadObject { .. })
        ));
    }
}
