//! Notes of a core file: registers, mapped files and the rest of what is no memory.
//!
//! Layouts are those of Linux on 64-bit machines (`struct elf_prstatus` and `struct elf_prpsinfo` in
//! include/linux/elfcore.h, fs/binfmt_elf.c), written out by hand.

use crate::model::{Backing, PAGE_SIZE, ProcessState, ThreadState};
use object::elf;

/// Length of the legacy area that an x86-64 extended state begins with: the layout of `NT_PRFPREG`.
const LEGACY_STATE: usize = 512;
/// Where the legacy area names the components that the system has enabled (XCR0), for debuggers.
const ENABLED: usize = 464;
/// Where the components that are not in their initial state are named.
const IN_USE: usize = 512;
/// AMX tile configuration and tile data.
const TILES: u64 = 1 << 17 | 1 << 18;
/// Protection keys.
const KEYS: u64 = 1 << 9;
/// Where the protection keys end, and the components before them, on every processor that has tiles.
const AFTER_KEYS: usize = 2696;
const BEFORE_KEYS: usize = 2688;
/// Length of a `siginfo_t`.
const SIGINFO: usize = 128;
/// Longest argument text in `struct elf_prpsinfo`, its end mark included.
const ARGUMENTS: usize = 80;
/// Longest command name there.
const COMMAND: usize = 16;

/// Bytes put one after the other, little-endian.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn i32(self, value: i32) -> Self {
        self.u32(value as u32)
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Text cut to `len` bytes, the last of them 0.
    fn text(self, text: &[u8], len: usize) -> Self {
        let text = &text[..text.len().min(len - 1)];
        self.raw(text).zeros(len - text.len())
    }
}

/// All notes of a process, as the content of a `PT_NOTE` segment. `machine` is ELF's `e_machine`.
pub(super) fn notes(state: &ProcessState, machine: u16) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, thread) in state.threads.iter().enumerate() {
        // Each NT_PRSTATUS begins a thread; what belongs to the process comes with the first.
        note(
            &mut out,
            b"CORE",
            elf::NT_PRSTATUS.0,
            &prstatus(state, thread),
        );
        if n == 0 {
            note(&mut out, b"CORE", elf::NT_PRPSINFO.0, &prpsinfo(state));
            note(&mut out, b"CORE", elf::NT_SIGINFO.0, &[0; SIGINFO]);
            note(&mut out, b"CORE", elf::NT_AUXV.0, &auxv(state));
            note(&mut out, b"CORE", elf::NT_FILE.0, &mapped_files(state));
        }
        extended(&mut out, thread, machine);
    }
    out
}

fn extended(out: &mut Vec<u8>, thread: &ThreadState, machine: u16) {
    if machine != elf::EM_X86_64.0 {
        if !thread.fp.is_empty() {
            note(out, b"CORE", elf::NT_PRFPREG.0, &thread.fp);
        }
        return;
    }
    if let Some(legacy) = thread.fp.get(..LEGACY_STATE) {
        note(out, b"CORE", elf::NT_PRFPREG.0, legacy);
        note(
            out,
            b"LINUX",
            elf::NT_X86_XSTATE.0,
            &without_unused_tiles(&thread.fp),
        );
    }
}

/// An extended state without the AMX tiles of a thread that does not use them: 8 KiB of zeroes for each thread,
/// in a layout that debuggers do not expect.
fn without_unused_tiles(state: &[u8]) -> Vec<u8> {
    let mut state = state.to_vec();
    let word = |at: usize| {
        let bytes = state.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if let (Some(enabled), Some(in_use)) = (word(ENABLED), word(IN_USE))
        && enabled & TILES != 0
        && in_use & TILES == 0
        && state.len() > AFTER_KEYS
    {
        state.truncate(match enabled & KEYS {
            0 => BEFORE_KEYS,
            _ => AFTER_KEYS,
        });
        state[ENABLED..ENABLED + 8].copy_from_slice(&(enabled & !TILES).to_le_bytes());
    }
    state
}

/// One note: lengths and type, the owner's name, the content; both padded to 4 bytes.
fn note(out: &mut Vec<u8>, owner: &[u8], kind: u32, content: &[u8]) {
    let header = Bytes::default()
        .u32(owner.len() as u32 + 1)
        .u32(content.len() as u32)
        .u32(kind);
    out.extend_from_slice(&header.0);
    out.extend_from_slice(owner);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn prstatus(state: &ProcessState, thread: &ThreadState) -> Vec<u8> {
    let pending = thread
        .pending
        .iter()
        .filter(|signal| (1..=64).contains(&signal.signo))
        .fold(0, |set, signal| set | 1u64 << (signal.signo - 1));
    let mut out = Bytes::default()
        // No signal ended it: number, code, errno, and the current one.
        .zeros(16)
        .u64(pending)
        .u64(thread.sigmask)
        .i32(thread.tid)
        .i32(state.ppid)
        .i32(state.attributes.group)
        .i32(state.attributes.session)
        // Four times: user, system, and those of ended children.
        .zeros(64)
        .raw(&thread.gp)
        .i32(i32::from(!thread.fp.is_empty()))
        .0;
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

fn prpsinfo(state: &ProcessState) -> Vec<u8> {
    let arguments = state.cmdline.join(&b' ');
    // 0 where they were not recorded.
    let leader = state.threads.first();
    let (uid, gid) = leader
        .and_then(|thread| thread.attributes.credentials.as_ref())
        .map_or((0, 0), |of| (of.uids[0], of.gids[0]));
    Bytes::default()
        // State "R", not a zombie, nice 0.
        .raw(&[0, b'R', 0, 0])
        .u32(0)
        // Flags.
        .u64(0)
        .u32(uid)
        .u32(gid)
        .i32(state.pid)
        .i32(state.ppid)
        .i32(state.attributes.group)
        .i32(state.attributes.session)
        .text(state.comm.as_bytes(), COMMAND)
        .text(&arguments, ARGUMENTS)
        .0
}

fn auxv(state: &ProcessState) -> Vec<u8> {
    const END: (u64, u64) = (0, 0);
    let entries = state.auxv.iter().filter(|entry| entry.0 != END.0);
    entries
        .chain([&END])
        .fold(Bytes::default(), |out, (kind, value)| {
            out.u64(*kind).u64(*value)
        })
        .0
}

/// `NT_FILE`: number, unit of offsets, a triple for each mapping of a file, then their names.
fn mapped_files(state: &ProcessState) -> Vec<u8> {
    let files: Vec<_> = state
        .vmas
        .iter()
        .filter_map(|vma| match &vma.backing {
            Backing::File {
                path,
                deleted,
                offset,
                ..
            } => Some((vma.range, offset / PAGE_SIZE, path, *deleted)),
            _ => None,
        })
        .collect();
    let mut out = Bytes::default().u64(files.len() as u64).u64(PAGE_SIZE);
    for (range, offset, ..) in &files {
        out = out.u64(range.start).u64(range.end).u64(*offset);
    }
    for (_, _, path, deleted) in &files {
        let mark: &[u8] = if *deleted { b" (deleted)" } else { b"" };
        out = out.raw(path.as_bytes()).raw(mark).zeros(1);
    }
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PendingSignal;

    fn thread() -> ThreadState {
        ThreadState {
            tid: 77,
            gp: (0..216).map(|n| n as u8).collect(),
            fp: vec![8; 2696],
            sigmask: 0x1122,
            pending: vec![PendingSignal {
                signo: 10,
                shared: false,
                siginfo: vec![0; 128],
            }],
            ..ThreadState::default()
        }
    }

    fn state() -> ProcessState {
        ProcessState {
            pid: 77,
            ppid: 1,
            comm: "a name of more than sixteen bytes".into(),
            cmdline: vec![b"prog".to_vec(), vec![b'x'; 200]],
            threads: vec![
                thread(),
                ThreadState {
                    tid: 78,
                    ..thread()
                },
            ],
            auxv: vec![(6, 4096), (0, 0)],
            ..ProcessState::default()
        }
    }

    #[test]
    fn the_kernels_structures_have_their_sizes_and_places() {
        let status = prstatus(&state(), &thread());
        assert_eq!(status.len(), 336);
        assert_eq!(status[16..24], (1u64 << 9).to_le_bytes());
        assert_eq!(status[24..32], 0x1122u64.to_le_bytes());
        assert_eq!(status[32..36], 77i32.to_le_bytes());
        assert_eq!(status[112..328], thread().gp[..]);
        assert_eq!(status[328], 1);
        let info = prpsinfo(&state());
        assert_eq!(info.len(), 136);
        assert_eq!(&info[40..56], b"a name of more \0");
        assert!(info[56..].starts_with(b"prog xxx") && info[135] == 0);
        assert_eq!(auxv(&state()).len(), 32);
    }

    #[test]
    fn tiles_are_left_out_unless_in_use() {
        let mut state = vec![7; 11_008];
        state[ENABLED..ENABLED + 8].copy_from_slice(&0x6_02e7u64.to_le_bytes());
        state[IN_USE..IN_USE + 8].copy_from_slice(&0x2e7u64.to_le_bytes());
        let short = without_unused_tiles(&state);
        assert_eq!(short.len(), 2696);
        assert_eq!(short[ENABLED..ENABLED + 8], 0x2e7u64.to_le_bytes());
        assert_eq!(short[IN_USE..], state[IN_USE..2696]);
        state[ENABLED..ENABLED + 8].copy_from_slice(&0x6_00e7u64.to_le_bytes());
        assert_eq!(without_unused_tiles(&state).len(), 2688);
        state[IN_USE..IN_USE + 8].copy_from_slice(&0x4_0003u64.to_le_bytes());
        assert_eq!(without_unused_tiles(&state), state);
        assert_eq!(without_unused_tiles(&[1; 600]), [1; 600]);
    }

    #[test]
    fn each_thread_begins_with_its_status() {
        use object::endian::LittleEndian;
        use object::read::elf::NoteIterator;
        let bytes = notes(&state(), elf::EM_X86_64.0);
        let mut iterator =
            NoteIterator::<elf::FileHeader64<LittleEndian>>::new(LittleEndian, 4, &bytes)
                .expect("notes");
        let mut kinds = Vec::new();
        while let Some(note) = iterator.next().expect("whole") {
            let kind = note.n_type(LittleEndian);
            if kind == elf::NT_X86_XSTATE {
                assert_eq!((note.name(), note.desc().len()), (&b"LINUX"[..], 2696));
            } else {
                assert_eq!(note.name(), b"CORE");
            }
            kinds.push(kind);
        }
        let first = [
            elf::NT_PRSTATUS,
            elf::NT_PRPSINFO,
            elf::NT_SIGINFO,
            elf::NT_AUXV,
            elf::NT_FILE,
            elf::NT_PRFPREG,
            elf::NT_X86_XSTATE,
        ];
        let second = [elf::NT_PRSTATUS, elf::NT_PRFPREG, elf::NT_X86_XSTATE];
        let want = [&first[..], &second].concat();
        assert_eq!(kinds, want);
    }
}
