//! Memory that direct I/O can take bytes from and put them into.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Page data is handed to the operating system in pieces of this many blocks: 512 KiB.
const BLOCKS: usize = 128;

/// Alignment of memory, offset and length that direct I/O wants; a device's own may be smaller.
pub(super) const ALIGN: usize = 4096;

/// A piece of memory that direct I/O accepts on every common device.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
pub(super) struct Block([u8; ALIGN]);

/// A buffer of 512 KiB, allocated on first use.
#[derive(Default)]
pub struct WriteBuffer {
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
            self.blocks = vec![Block([0; ALIGN]); BLOCKS];
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

    /// Its memory, and how many bytes of it are filled.
    pub(super) fn into_blocks(self) -> (Vec<Block>, usize) {
        (self.blocks, self.filled)
    }

    /// The one that these are of.
    pub(super) fn of_blocks(blocks: Vec<Block>, filled: usize) -> Self {
        Self { blocks, filled }
    }

    /// Empties it, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }
}

/// Room to read into, grown as needed and kept.
#[derive(Default)]
pub(super) struct ReadBuffer {
    blocks: Vec<Block>,
}

impl ReadBuffer {
    /// The first `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        let blocks = len.div_ceil(ALIGN);
        if self.blocks.len() < blocks {
            self.blocks.resize(blocks, Block([0; ALIGN]));
        }
        &mut self.blocks.as_mut_slice().as_mut_bytes()[..len]
    }
}
