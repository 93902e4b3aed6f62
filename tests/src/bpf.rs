//! Which BPF programs are loaded in the kernel, to find those that a killed ksnap left behind.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Result, bail};

// enum bpf_cmd, include/uapi/linux/bpf.h
const PROG_GET_NEXT_ID: i32 = 11;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// Program id → name (at most 15 bytes). Needs root. A program goes a moment after its last descriptor, link or
/// pin does: ask again before calling it left behind.
pub fn programs() -> Result<BTreeMap<u32, String>> {
    let mut programs = BTreeMap::new();
    // start_id, next_id, open_flags
    let mut next = [0u32; 3];
    loop {
        if bpf(PROG_GET_NEXT_ID, &mut next) < 0 {
            return match std::io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(programs),
                error => bail!("list BPF programs: {error}"),
            };
        }
        next[0] = next[1];
        // Gone in the meantime, perhaps.
        if let Some(name) = name(next[1]) {
            programs.insert(next[1], name);
        }
    }
}

fn name(id: u32) -> Option<String> {
    let fd = bpf(PROG_GET_FD_BY_ID, &mut [id, 0, 0]);
    if fd < 0 {
        return None;
    }
    // SAFETY: just made, and owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // struct bpf_prog_info up to its name, which is at 64.
    let mut info = [0u8; 80];
    let at = info.as_mut_ptr() as u64;
    // bpf_fd, info_len, info
    let mut ask = [
        fd.as_raw_fd() as u32,
        info.len() as u32,
        at as u32,
        (at >> 32) as u32,
    ];
    if bpf(OBJ_GET_INFO_BY_FD, &mut ask) < 0 {
        return None;
    }
    let name = std::hint::black_box(&info)[64..]
        .split(|byte| *byte == 0)
        .next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn bpf<const WORDS: usize>(command: i32, attributes: &mut [u32; WORDS]) -> i64 {
    #[repr(C, align(8))]
    struct Aligned<const WORDS: usize>([u32; WORDS]);
    let mut aligned = Aligned(*attributes);
    // SAFETY: the attributes are valid for their size; pointers inside are to live buffers of the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut aligned, 4 * WORDS) };
    *attributes = aligned.0;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROG_LOAD: i32 = 5;
    const SOCKET_FILTER: u32 = 1;

    /// Loads `return 0` as a socket filter of this name.
    fn load(name: &[u8; 8]) -> Option<OwnedFd> {
        let code: [u64; 2] = [0xb7, 0x95];
        let (at, licence) = (code.as_ptr() as u64, c"GPL".as_ptr() as u64);
        let half = |from: usize| {
            u32::from_ne_bytes([name[from], name[from + 1], name[from + 2], name[from + 3]])
        };
        // prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags, prog_name
        let mut load = [
            SOCKET_FILTER,
            2,
            at as u32,
            (at >> 32) as u32,
            licence as u32,
            (licence >> 32) as u32,
            0,
            0,
            0,
            0,
            0,
            0,
            half(0),
            half(4),
            0,
            0,
        ];
        let fd = bpf(PROG_LOAD, &mut load);
        // SAFETY: just made, and owned by nobody else.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    #[test]
    fn a_program_left_behind_is_found_while_it_is_there() {
        crate::require!(Root, Bpf);
        let is_there = || programs().unwrap().values().any(|name| name == "victimpg");
        assert!(!is_there());
        let Some(program) = load(b"victimpg") else {
            panic!("cannot load a program as root")
        };
        assert!(is_there());
        drop(program);
        let gone = (0..6000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !is_there()
        });
        assert!(gone);
    }
}
