//! Mappings: `/proc/PID/maps`, flags from `smaps`, build ids from the files behind.

use super::{Result, bad, read};
use crate::model::{Backing, PageRange, Protection, Vma};
use std::collections::HashMap;

/// The mappings of a process, ascending. Read inside the stop: no allocation beyond the result's own.
pub fn maps(pid: i32) -> Result<Vec<Vma>> {
    let path = format!("/proc/{pid}/maps");
    let text = read(path.clone())?;
    text.split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse(line).ok_or_else(|| bad(&path, "mapping that can be read")))
        .collect()
}

fn hex(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()
}

fn parse(line: &[u8]) -> Option<Vma> {
    let mut words = line.splitn(6, |&b| b == b' ');
    let mut range = words.next()?.split(|&b| b == b'-');
    let range = PageRange {
        start: hex(range.next()?)?,
        end: hex(range.next()?)?,
    };
    let perms = words.next()?;
    let offset = hex(words.next()?)?;
    let mut dev = words.next()?.split(|&b| b == b':');
    let dev = (hex(dev.next()?)? as u32, hex(dev.next()?)? as u32);
    let inode: u64 = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let name = words.next().unwrap_or_default().trim_ascii_start();
    Some(Vma {
        range,
        prot: Protection {
            read: perms.first() == Some(&b'r'),
            write: perms.get(1) == Some(&b'w'),
            exec: perms.get(2) == Some(&b'x'),
        },
        shared: perms.get(3) == Some(&b's'),
        backing: backing(name, offset, dev, inode),
        flags: Vec::new(),
        build_id: None,
    })
}

fn backing(name: &[u8], offset: u64, dev: (u32, u32), inode: u64) -> Backing {
    let text = String::from_utf8_lossy(&unescape(name)).into_owned();
    if inode == 0 && dev == (0, 0) {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        return match inner {
            None => Backing::Anonymous { name: None },
            Some("heap") => Backing::Heap,
            Some("stack") => Backing::Stack,
            Some(named) if named.starts_with("anon:") => Backing::Anonymous {
                name: Some(named["anon:".len()..].to_owned()),
            },
            Some(special) => Backing::Special(special.to_owned()),
        };
    }
    let (path, deleted) = match text.strip_suffix(" (deleted)") {
        Some(path) => (path.to_owned(), true),
        None => (text, false),
    };
    Backing::File {
        path,
        deleted,
        dev,
        inode,
        offset,
    }
}

/// The kernel writes a newline in a name as `\012`, and nothing else so.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

/// What `smaps` tells of mappings, by their first addresses: two-letter flags (`VmFlags`), and the protection
/// key where it is not 0.
pub type Described = (HashMap<u64, Vec<String>>, HashMap<u64, u32>);

/// Reads what `smaps` tells of mappings. Walks page tables: never inside the stop.
pub fn vm_flags(pid: i32) -> Result<Described> {
    let text = read(format!("/proc/{pid}/smaps"))?;
    let (mut flags, mut keys) = (HashMap::new(), HashMap::new());
    let mut start = 0;
    for line in text.split(|&b| b == b'\n') {
        if let Some(list) = line.strip_prefix(b"VmFlags:") {
            let words = String::from_utf8_lossy(list);
            flags.insert(
                start,
                words.split_ascii_whitespace().map(str::to_owned).collect(),
            );
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            let key = String::from_utf8_lossy(key).trim().parse().unwrap_or(0);
            if key != 0 {
                keys.insert(start, key);
            }
        } else if let Some(vma) = parse(line) {
            start = vma.range.start;
        }
    }
    Ok((flags, keys))
}

/// The GNU build id of an ELF file, if it is one and has one.
pub fn build_id(path: &str) -> Option<Vec<u8>> {
    use object::Object;
    // Notes lie in the first pages of a file; the sections at its end are not needed.
    let file = std::fs::File::open(path).ok()?;
    let cache = object::ReadCache::new(file);
    let elf = object::File::parse(&cache).ok()?;
    elf.build_id().ok().flatten().map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        let vma = parse(b"7f0a2c000000-7f0a2c021000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!(vma.backing, Backing::Anonymous { name: None });
        assert!(vma.is_private_anonymous() && vma.prot.write && !vma.prot.exec);

        let vma = parse(b"7f0a2c000000-7f0a2c021000 rw-p 00000000 00:00 0                          [anon:my heap]").unwrap();
        assert_eq!(
            vma.backing,
            Backing::Anonymous {
                name: Some("my heap".into())
            }
        );

        let vma =
            parse(b"7ffd1b5f9000-7ffd1b61a000 rw-p 00000000 00:00 0          [stack]").unwrap();
        assert_eq!(vma.backing, Backing::Stack);

        let vma =
            parse(b"7ffd1b7d1000-7ffd1b7d3000 r-xp 00000000 00:00 0          [vdso]").unwrap();
        assert!(vma.is_special());

        let vma =
            parse(b"7f00-8000 rw-s 00002000 00:01 1027                       /dev/zero (deleted)");
        assert!(vma.is_some());

        let vma = parse(b"7f0000001000-7f0000003000 r--s 00002000 08:01 77     /tmp/with space\\012line (deleted)").unwrap();
        assert_eq!(
            vma.backing,
            Backing::File {
                path: "/tmp/with space\nline".into(),
                deleted: true,
                dev: (8, 1),
                inode: 77,
                offset: 0x2000
            }
        );
        assert!(vma.shared && !vma.is_private_file());
    }

    #[test]
    fn this_process_has_a_stack_and_a_build_id_somewhere() {
        let pid = std::process::id() as i32;
        let maps = maps(pid).unwrap();
        assert!(maps.windows(2).all(|w| w[0].range.end <= w[1].range.start));
        assert!(maps.iter().any(|v| v.backing == Backing::Stack));
        let (flags, _) = vm_flags(pid).unwrap();
        assert!(flags.values().any(|f| f.iter().any(|w| w == "rd")));
        assert!(build_id("/proc/self/exe").is_some());
    }
}
