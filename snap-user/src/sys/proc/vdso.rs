//! The page groups that the kernel gives to each process: code (`vdso(7)`), and the data that it reads.

use super::maps;
use crate::model::{PageRange, Vma};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Longest code that is read: it has 8 KiB on today's kernels.
const LONGEST: u64 = 1 << 20;

/// The vdso of this process, which is that of every 64-bit process under this kernel since it was booted, with
/// its build id.
pub fn own_vdso() -> Option<&'static (Vec<u8>, Vec<u8>)> {
    static OWN: OnceLock<Option<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    OWN.get_or_init(read).as_ref()
}

fn read() -> Option<(Vec<u8>, Vec<u8>)> {
    use object::Object;
    let maps = maps(std::process::id() as i32).ok()?;
    let range = maps.iter().find(|vma| vma.is_vdso())?.range;
    if range.len() > LONGEST {
        return None;
    }
    let mut bytes = vec![0; range.len() as usize];
    let memory = File::open("/proc/self/mem").ok()?;
    memory.read_exact_at(&mut bytes, range.start).ok()?;
    let id = object::File::parse(&*bytes)
        .ok()?
        .build_id()
        .ok()??
        .to_vec();
    Some((bytes, id))
}

/// Names and places of the kernel's code and its data among these mappings, ascending.
pub fn kernel_mappings(maps: &[Vma]) -> Vec<(String, PageRange)> {
    maps.iter()
        .filter_map(|vma| Some((vma.kernel_part()?.to_owned(), vma.range)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_one_with_a_build_id() {
        let (bytes, id) = own_vdso().expect("a vdso");
        assert!(bytes.starts_with(b"\x7fELF") && id.len() >= 8);
    }
}
