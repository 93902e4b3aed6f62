//! An iterator program, and the links by which the kernel runs it for one process at a time.

use super::error::ProbeError;
use super::programs::{chain, from_program};
use crate::sys;
use aya::programs::{Iter, Program};
use aya::{Btf, Ebpf};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes for a few threads, or a thousand descriptors; grows with what the kernel has to say.
const BUFFER: usize = 64 << 10;

/// A loaded iterator.
pub(super) struct Iterator {
    program: OwnedFd,
    /// By the process that each is for.
    links: BTreeMap<i32, OwnedFd>,
    buffer: Vec<u8>,
}

impl Iterator {
    /// Loads the program of this name; `target` is what it goes through, as the kernel names it.
    pub(super) fn load(
        ebpf: &mut Ebpf,
        btf: &Btf,
        name: &'static str,
        target: &str,
    ) -> Result<Self, ProbeError> {
        let kernel = |call: &'static str, detail: String| ProbeError::Kernel {
            call,
            target: name.to_owned(),
            detail,
        };
        let Some(Program::Iter(program)) = ebpf.program_mut(name) else {
            return Err(ProbeError::BadObject {
                detail: format!("it has no iterator {name}"),
            });
        };
        Iter::load(program, target, btf)
            .map_err(|error| from_program(error, "bpf(BPF_PROG_LOAD)", name))?;
        let fd = program
            .fd()
            .map_err(|error| kernel("bpf(BPF_PROG_LOAD)", chain(&error)))?
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| kernel("fcntl(F_DUPFD_CLOEXEC)", error.to_string()))?;
        Ok(Self {
            program: fd,
            links: BTreeMap::new(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Process `pid` is of no interest any more.
    pub(super) fn forget(&mut self, pid: i32) {
        self.links.remove(&pid);
    }

    /// Has the kernel write its records about process `pid`.
    pub(super) fn run(&mut self, pid: i32) -> Result<&[u8], ProbeError> {
        let kernel = |call: &'static str, detail: String| ProbeError::Kernel {
            call,
            target: format!("process {pid}"),
            detail,
        };
        let of = |error: sys::SysError| kernel(error.call, error.to_string());
        let link = match self.links.entry(pid) {
            Entry::Occupied(link) => link.into_mut(),
            Entry::Vacant(place) => {
                place.insert(sys::task_iterator(self.program.as_fd(), pid).map_err(of)?)
            }
        };
        let mut file = sys::run_iterator(link).map_err(of)?;
        let mut used = 0;
        loop {
            if self.buffer.len() - used < BUFFER / 2 {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            match file.read(&mut self.buffer[used..]) {
                Ok(0) => break,
                Ok(got) => used += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(kernel("read of an iterator", error.to_string())),
            }
        }
        Ok(&self.buffer[..used])
    }
}
