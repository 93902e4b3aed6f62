//! Copying a target's memory from outside: process_vm_readv(2), process_vm_writev(2), /proc/PID/mem.

use super::{Result, SysError};
use crate::model::{PAGE_SIZE, Page, PageRange};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// iovecs in one call (`IOV_MAX`).
const BATCH: usize = 1024;

/// A page that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadFault {
    /// Its address.
    pub addr: u64,
}

fn iovec(base: usize, len: u64) -> libc::iovec {
    libc::iovec {
        iov_base: base as *mut libc::c_void,
        iov_len: len as usize,
    }
}

/// Bytes that process_vm_readv(2) or process_vm_writev(2) moved: none where the first page is refused.
fn moved(call: &'static str, pid: i32, returned: isize) -> Result<usize> {
    match returned {
        -1 => match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EFAULT) => Ok(0),
            _ => Err(SysError::last(call, format_args!("process {pid}"))),
        },
        bytes => Ok(bytes as usize),
    }
}

/// Reads `ranges`, one after the other, into the start of `buffer`. Returns the bytes read: less
/// than asked for when a page in the middle cannot be read, which is then the page right behind.
fn read_some(pid: i32, ranges: &[libc::iovec], buffer: &mut [u8]) -> Result<usize> {
    let local = iovec(buffer.as_mut_ptr() as usize, buffer.len() as u64);
    // SAFETY: the local iovec is exactly `buffer`; the remote ones are addresses in another
    // process, which the kernel checks.
    let n = unsafe {
        libc::process_vm_readv(
            pid,
            &local,
            1,
            ranges.as_ptr(),
            ranges.len() as libc::c_ulong,
            0,
        )
    };
    moved("process_vm_readv", pid, n)
}

/// Reads whole `ranges` of the process, one after the other, into `buffer`, whose length is their sum.
///
/// Pages without read permission are read through `/proc/PID/mem`. Pages that are not there at all
/// are left as zeroes and returned.
pub fn read_ranges(pid: i32, ranges: &[PageRange], buffer: &mut [u8]) -> Result<Vec<ReadFault>> {
    debug_assert_eq!(
        ranges.iter().map(PageRange::len).sum::<u64>(),
        buffer.len() as u64
    );
    let mut faults = Vec::new();
    let mut mem: Option<File> = None;
    let mut offset = 0usize;
    let mut rest: std::collections::VecDeque<PageRange> =
        ranges.iter().copied().filter(|r| !r.is_empty()).collect();
    let mut iovecs = Vec::with_capacity(rest.len().min(BATCH));
    while !rest.is_empty() {
        iovecs.clear();
        iovecs.extend(
            rest.iter()
                .take(BATCH)
                .map(|r| iovec(r.start as usize, r.len())),
        );
        let want: usize = iovecs.iter().map(|v| v.iov_len).sum();
        let got = read_some(pid, &iovecs, &mut buffer[offset..offset + want])?;
        // A transfer may end inside a page only where the page vanished meanwhile: take it again.
        let mut whole = got as u64 & !(PAGE_SIZE - 1);
        offset += whole as usize;
        while let Some(front) = rest.front_mut().filter(|r| whole >= r.len()) {
            whole -= front.len();
            rest.pop_front();
        }
        if let Some(front) = rest.front_mut() {
            front.start += whole;
            if got < want {
                let page = &mut buffer[offset..offset + PAGE_SIZE as usize];
                let mem = match &mem {
                    Some(file) => file,
                    None => mem.insert(open_mem(pid, false)?),
                };
                if mem.read_exact_at(page, front.start).is_err() {
                    page.fill(0);
                    faults.push(ReadFault { addr: front.start });
                }
                offset += PAGE_SIZE as usize;
                front.start += PAGE_SIZE;
                if front.is_empty() {
                    rest.pop_front();
                }
            }
        }
    }
    Ok(faults)
}

/// Reads the pages at these addresses, one after the other, into `buffer`.
pub fn read_pages(pid: i32, pages: &[u64], buffer: &mut [u8]) -> Result<Vec<ReadFault>> {
    let mut ranges: Vec<PageRange> = Vec::with_capacity(pages.len());
    for &page in pages {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += PAGE_SIZE,
            _ => ranges.push(PageRange {
                start: page,
                end: page + PAGE_SIZE,
            }),
        }
    }
    read_ranges(pid, &ranges, buffer)
}

/// Reads the pages at these addresses, each into a place of its own. Pages that are not there at all
/// are left as zeroes and returned.
pub fn read_pages_into(
    pid: i32,
    pages: &[u64],
    places: &mut [&mut Page],
) -> Result<Vec<ReadFault>> {
    debug_assert_eq!(pages.len(), places.len());
    let mut faults = Vec::new();
    let mut mem: Option<File> = None;
    let mut done = 0;
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    while done < pages.len() {
        let end = pages.len().min(done + BATCH);
        local.clear();
        remote.clear();
        for (page, place) in pages[done..end].iter().zip(&mut places[done..end]) {
            add_to(&mut remote, *page as usize);
            add_to(&mut local, place.as_mut_ptr() as usize);
        }
        // SAFETY: the local iovecs are exactly the places, which are borrowed mutably; the remote
        // ones are addresses in another process, which the kernel checks.
        let n = unsafe {
            libc::process_vm_readv(
                pid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        let got = moved("process_vm_readv", pid, n)?;
        done += got / PAGE_SIZE as usize;
        if done < end {
            // The next one cannot be read this way.
            let mem = match &mem {
                Some(file) => file,
                None => mem.insert(open_mem(pid, false)?),
            };
            if mem.read_exact_at(places[done], pages[done]).is_err() {
                places[done].fill(0);
                faults.push(ReadFault { addr: pages[done] });
            }
            done += 1;
        }
    }
    Ok(faults)
}

/// Reads `buffer.len()` bytes at any address.
pub fn read_bytes(pid: i32, addr: u64, buffer: &mut [u8]) -> Result<()> {
    let remote = [iovec(addr as usize, buffer.len() as u64)];
    if read_some(pid, &remote, buffer)? == buffer.len() {
        return Ok(());
    }
    open_mem(pid, false)?
        .read_exact_at(buffer, addr)
        .map_err(|e| SysError::new("read", format_args!("memory {addr:#x} of process {pid}"), e))
}

fn open_mem(pid: i32, write: bool) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    File::options()
        .read(true)
        .write(write)
        .open(&path)
        .map_err(|e| SysError::new("open", path, e))
}

/// Writes pages to their addresses, ascending, whatever their protection; see [`write_ranges`].
///
/// The kernel takes them from where they lie, so that none is copied together first.
pub fn write_pages(pid: i32, pages: &[(u64, &Page)]) -> Result<()> {
    let mut mem: Option<File> = None;
    let mut rest = pages;
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        local.clear();
        remote.clear();
        for (addr, page) in batch {
            add_to(&mut local, page.as_ptr() as usize);
            add_to(&mut remote, *addr as usize);
        }
        // SAFETY: the local iovecs are whole pages borrowed for the length of the call, and only read; the
        // remote ones are addresses in another process, which the kernel checks. Both are `BATCH` at most.
        let n = unsafe {
            libc::process_vm_writev(
                pid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        let whole = moved("process_vm_writev", pid, n)? / PAGE_SIZE as usize;
        rest = &rest[whole..];
        if whole < batch.len()
            && let Some(((addr, page), after)) = rest.split_first()
        {
            write_through_mem(pid, &mut mem, *addr, *page)?;
            rest = after;
        }
    }
    Ok(())
}

/// Adds a page to an I/O vector, to its last element where it follows on that.
fn add_to(vector: &mut Vec<libc::iovec>, base: usize) {
    match vector.last_mut() {
        Some(last) if last.iov_base as usize + last.iov_len == base => {
            last.iov_len += PAGE_SIZE as usize;
        }
        _ => vector.push(iovec(base, PAGE_SIZE)),
    }
}

/// Writes `bytes` to the process's memory at `ranges`, one after the other, whatever their protection.
///
/// Writable pages go through process_vm_writev; what that refuses goes through `/proc/PID/mem`,
/// which may write read-only private pages for a tracer.
pub fn write_ranges(pid: i32, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
    debug_assert_eq!(
        ranges.iter().map(PageRange::len).sum::<u64>(),
        bytes.len() as u64
    );
    let mut offset = 0usize;
    let mut rest: std::collections::VecDeque<PageRange> =
        ranges.iter().copied().filter(|r| !r.is_empty()).collect();
    let mut mem: Option<File> = None;
    while !rest.is_empty() {
        let iovecs: Vec<_> = rest
            .iter()
            .take(BATCH)
            .map(|r| iovec(r.start as usize, r.len()))
            .collect();
        let want: u64 = iovecs.iter().map(|v| v.iov_len as u64).sum();
        let local = iovec(bytes[offset..].as_ptr() as usize, want);
        // SAFETY: the local iovec lies inside `bytes` (its length is the sum of all ranges) and is
        // only read; the remote ones are addresses in another process, which the kernel checks.
        let n = unsafe {
            libc::process_vm_writev(
                pid,
                &local,
                1,
                iovecs.as_ptr(),
                iovecs.len() as libc::c_ulong,
                0,
            )
        };
        let got = moved("process_vm_writev", pid, n)? as u64;
        let mut whole = got & !(PAGE_SIZE - 1);
        offset += whole as usize;
        while let Some(front) = rest.front().filter(|r| whole >= r.len()) {
            whole -= front.len();
            rest.pop_front();
        }
        if let Some(front) = rest.front_mut() {
            front.start += whole;
            if got < want {
                let page = &bytes[offset..offset + PAGE_SIZE as usize];
                write_through_mem(pid, &mut mem, front.start, page)?;
                offset += PAGE_SIZE as usize;
                front.start += PAGE_SIZE;
                if front.is_empty() {
                    rest.pop_front();
                }
            }
        }
    }
    Ok(())
}

fn write_through_mem(pid: i32, mem: &mut Option<File>, addr: u64, bytes: &[u8]) -> Result<()> {
    let mem = match mem {
        Some(file) => file,
        None => mem.insert(open_mem(pid, true)?),
    };
    mem.write_all_at(bytes, addr).map_err(|e| {
        SysError::new(
            "write",
            format_args!("memory {addr:#x} of process {pid}"),
            e,
        )
    })
}

/// Writes bytes at any address of a stopped tracee, whatever the protection.
pub fn write_bytes(pid: i32, addr: u64, bytes: &[u8]) -> Result<()> {
    write_through_mem(pid, &mut None, addr, bytes)
}

/// Memory with a descriptor and a name for people (memfd_create(2)), `len` bytes of zeroes.
pub fn memfd(name: &str, len: u64) -> Result<OwnedFd> {
    let fail = |call, e| SysError::new(call, format_args!("'{name}'"), e);
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(name, flags).map_err(|e| fail("memfd_create", e))?;
    rustix::fs::ftruncate(&fd, len).map_err(|e| fail("ftruncate", e))?;
    Ok(fd)
}

/// Memory as a shared anonymous mapping has it, `len` bytes of zeroes, with a descriptor to map it by
/// (`/proc/PID/map_files` in proc_pid_map_files(5); needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN).
pub fn shared_memory(len: u64) -> Result<OwnedFd> {
    let len = len.next_multiple_of(PAGE_SIZE);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, unmapped below; nothing refers into it.
    let addr = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, prot, flags, -1, 0) };
    if addr == libc::MAP_FAILED {
        return Err(SysError::last("mmap", "this process"));
    }
    let start = addr as u64;
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + len);
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| SysError::new("open", path, e));
    // SAFETY: the mapping made above; the open file keeps its memory.
    unsafe { libc::munmap(addr, len as usize) };
    opened.map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> i32 {
        std::process::id() as i32
    }

    struct Map(u64, usize);

    impl Map {
        fn new(pages: usize) -> Self {
            let len = pages * PAGE_SIZE as usize;
            // SAFETY: a new anonymous mapping, owned by the value.
            let addr = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(addr, libc::MAP_FAILED);
            Self(addr as u64, len)
        }

        fn page(&self, n: u64) -> u64 {
            self.0 + n * PAGE_SIZE
        }

        fn fill(&self, n: u64, byte: u8) {
            // SAFETY: the page lies inside the mapping, which is writable here.
            unsafe { std::ptr::write_bytes(self.page(n) as *mut u8, byte, PAGE_SIZE as usize) }
        }

        fn protect(&self, n: u64, prot: i32) {
            // SAFETY: the page lies inside the mapping that this value owns.
            let r = unsafe { libc::mprotect(self.page(n) as *mut _, PAGE_SIZE as usize, prot) };
            assert_eq!(r, 0);
        }

        fn unmap(&self, n: u64) {
            // SAFETY: the page lies inside the mapping that this value owns.
            let r = unsafe { libc::munmap(self.page(n) as *mut _, PAGE_SIZE as usize) };
            assert_eq!(r, 0);
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            // SAFETY: unmaps what `new` mapped.
            unsafe { libc::munmap(self.0 as *mut _, self.1) };
        }
    }

    #[test]
    fn reads_pages_without_permission_and_reports_pages_that_are_gone() {
        let map = Map::new(5);
        for n in 0..5 {
            map.fill(n, n as u8 + 1);
        }
        map.protect(1, libc::PROT_NONE);
        map.unmap(3);
        let mut buffer = vec![0xee; 5 * PAGE_SIZE as usize];
        let faults = read_ranges(
            me(),
            &[PageRange::new(map.page(0), map.page(5))],
            &mut buffer,
        )
        .unwrap();
        assert_eq!(faults, [ReadFault { addr: map.page(3) }]);
        let firsts: Vec<u8> = buffer.chunks(PAGE_SIZE as usize).map(|p| p[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 0, 5]);
    }

    #[test]
    fn reads_each_page_into_its_own_place() {
        let map = Map::new(6);
        (0..6).for_each(|n| map.fill(n, n as u8 + 1));
        map.protect(1, libc::PROT_NONE);
        map.unmap(3);
        let order = [5, 1, 3, 0, 4, 2];
        let pages: Vec<u64> = order.iter().map(|n| map.page(*n)).collect();
        let mut buffer = vec![[0xee_u8; PAGE_SIZE as usize]; 6];
        let mut places: Vec<&mut Page> = buffer.iter_mut().rev().collect();
        let faults = read_pages_into(me(), &pages, &mut places).unwrap();
        assert_eq!(faults, [ReadFault { addr: map.page(3) }]);
        let firsts: Vec<u8> = buffer.iter().rev().map(|p| p[0]).collect();
        assert_eq!(firsts, [6, 2, 0, 1, 5, 3]);
    }

    #[test]
    fn writes_read_only_pages_too() {
        let map = Map::new(3);
        map.fill(1, 9);
        map.protect(1, libc::PROT_READ);
        let bytes = vec![0x5a; 3 * PAGE_SIZE as usize];
        write_ranges(me(), &[PageRange::new(map.page(0), map.page(3))], &bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        read_pages(me(), &[map.page(0), map.page(1), map.page(2)], &mut back).unwrap();
        assert!(back == bytes);
    }

    #[test]
    fn more_ranges_than_one_call_takes() {
        let map = Map::new(2 * BATCH + 7);
        let pages: Vec<u64> = (0..map.1 as u64 / PAGE_SIZE)
            .step_by(2)
            .map(|n| map.page(n))
            .collect();
        for (i, n) in (0..map.1 as u64 / PAGE_SIZE).step_by(2).enumerate() {
            map.fill(n, i as u8);
        }
        let mut buffer = vec![0; pages.len() * PAGE_SIZE as usize];
        assert!(read_pages(me(), &pages, &mut buffer).unwrap().is_empty());
        assert!(
            buffer
                .chunks(PAGE_SIZE as usize)
                .enumerate()
                .all(|(i, p)| p[77] == i as u8)
        );
    }
}
