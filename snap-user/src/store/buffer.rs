//! Bytes on their way into a file, where direct I/O can take them from.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Page data is handed to the operating system in pieces of this many blocks: 1 MiB.
const BLOCKS: usize = 256;

/// A piece of memory that direct I/O accepts on every common device.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Block([u8; 4096]);

/// A buffer of 1 MiB, allocated on first use.
#[derive(Default)]
pub(super) struct WriteBuffer {
    blocks: Vec<Block>,
    filled: usize,
}

impl std::fmt::Debug for WriteBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteBuffer({} bytes)", self.filled)
    }
}

impl WriteBuffer {
    /// Takes as many bytes as there is room for; says how many.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> usize {
        if self.blocks.is_empty() {
            self.blocks = vec![Block([0; 4096]); BLOCKS];
        }
        let room = &mut self.blocks.as_mut_slice().as_mut_bytes()[self.filled..];
        let taken = bytes.len().min(room.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// What it holds.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.blocks.as_slice().as_bytes()[..self.filled]
    }

    /// No more goes in.
    pub(super) fn is_full(&self) -> bool {
        self.filled == BLOCKS * size_of::<Block>()
    }

    /// Empties it, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }
}
