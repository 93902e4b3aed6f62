//! What the iterator over descriptors tells of each.

use core::mem::size_of;

/// A descriptor, and the open file that it refers to: addresses in the kernel, which together say whether it is still
/// the same one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRecord {
    /// The descriptor.
    pub fd: u64,
    /// Its `struct file`.
    pub file: u64,
    /// The `struct inode` of that.
    pub inode: u64,
    /// Number of the inode.
    pub number: u64,
    /// The functions that serve it, which tell files of one inode apart, as those of `anon_inode` are.
    pub operations: u64,
}

/// Words of a [`FileRecord`].
pub const FILE_WORDS: usize = 5;

const _: () = assert!(size_of::<FileRecord>() == 8 * FILE_WORDS);
