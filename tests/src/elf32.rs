//! A 32-bit program that does nothing but wait, made here: a compiler for one is seldom there.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::background::Background;
use crate::footprint::state_of;

/// Where it is loaded.
const BASE: u32 = 0x0804_8000;
/// Bytes of the header, and of its only segment's.
const HEADERS: u32 = 52 + 32;
/// `mov eax, 29 (pause); int 0x80; jmp` back to the start.
const CODE: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];

/// The program, waiting in pause(2). Killed when dropped.
pub struct Paused {
    process: Background,
    _folder: TempDir,
}

impl Paused {
    /// Starts it, and waits until it waits; an error where the kernel does not run it.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-elf32-").tempdir()?;
        let whole = folder.path().join("whole");
        let file = folder.path().join("paused");
        std::fs::write(&whole, elf())?;
        // Never open for writing in this process: see there.
        crate::paths::copy_program(&whole, &file)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        let mut process = Background::start(Command::new(&file))?;
        let end = Instant::now() + Duration::from_secs(60);
        while state_of(process.pid()) != 'S' {
            ensure!(process.running()?, "the kernel ends a 32-bit program");
            ensure!(Instant::now() < end, "a 32-bit program does not wait");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self {
            process,
            _folder: folder,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }
}

/// Header, program header, code: elf(5), 32-bit, little-endian, for i386, with one segment to read and execute.
fn elf() -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
    file.resize(16, 0);
    let size = HEADERS + CODE.len() as u32;
    let half = |file: &mut Vec<u8>, words: &[u16]| {
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    let full = |file: &mut Vec<u8>, words: &[u32]| {
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    // ET_EXEC, EM_386; version, entry, program headers at 52, no sections, no flags.
    half(&mut file, &[2, 3]);
    full(&mut file, &[1, BASE + HEADERS, 52, 0, 0]);
    // Sizes of the header and of a program header, one of those, no sections.
    half(&mut file, &[52, 32, 1, 0, 0, 0]);
    // PT_LOAD of all of the file, PF_R | PF_X, in pages.
    full(&mut file, &[1, 0, BASE, BASE, size, size, 5, 0x1000]);
    file.extend(CODE);
    file
}
