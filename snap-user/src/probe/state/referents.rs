//! From the records of descriptors to what they refer to.

use crate::model::Referent;
use snap_common::FILE_WORDS;
use zerocopy::FromBytes;

/// What each descriptor refers to, ascending by number.
///
/// # Errors
/// The stream is not what this kernel's program writes.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<(i32, Referent)>, &'static str> {
    let len = size_of::<[u64; FILE_WORDS]>();
    let mut found = Vec::with_capacity(bytes.len() / len);
    for record in bytes.chunks(len) {
        let [fd, file, inode, number, operations] =
            <[u64; FILE_WORDS]>::read_from_bytes(record).map_err(|_| "a descriptor")?;
        let fd = i32::try_from(fd).map_err(|_| "the number of a descriptor")?;
        let referent = Referent {
            file,
            inode,
            number,
            operations,
        };
        found.push((fd, referent));
    }
    found.sort_unstable_by_key(|(fd, _)| *fd);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_sorted_and_a_cut_record_is_an_error() {
        let mut stream = Vec::new();
        for fd in [7u64, 3] {
            for word in [fd, 10 * fd, 20 * fd, 30 * fd, 40 * fd] {
                stream.extend(word.to_ne_bytes());
            }
        }
        let found = decode(&stream).unwrap();
        assert_eq!(found.iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(
            found[0].1,
            Referent {
                file: 30,
                inode: 60,
                number: 90,
                operations: 120
            }
        );
        for len in (1..stream.len()).filter(|len| len % 40 != 0) {
            assert!(decode(&stream[..len]).is_err());
        }
        stream[..8].fill(0xff);
        assert!(decode(&stream).is_err(), "no descriptor has that number");
    }
}
