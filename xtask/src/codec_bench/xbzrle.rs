//! XBZRLE, from its description in QEMU's documentation: the page as alternating runs, of bytes that are as they were
//! (their number) and of bytes that are not (their number, and they); numbers as ULEB128.

use crate::Page;

fn put(mut number: usize, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Length of the run from `from` on of bytes that are the same, or are not. Eight at a time where it can.
fn run(page: &Page, before: &Page, from: usize, same: bool) -> usize {
    let mut at = from;
    while at < page.len() {
        if let (Some(new), Some(old)) = (page[at..].first_chunk(), before[at..].first_chunk()) {
            let differs = u64::from_le_bytes(*new) ^ u64::from_le_bytes(*old);
            if same {
                if differs == 0 {
                    at += 8;
                    continue;
                }
                return at + differs.trailing_zeros() as usize / 8 - from;
            }
            // Whether one of the eight bytes is zero.
            let zero =
                differs.wrapping_sub(0x0101_0101_0101_0101) & !differs & 0x8080_8080_8080_8080;
            if zero == 0 {
                at += 8;
                continue;
            }
            return at + zero.trailing_zeros() as usize / 8 - from;
        }
        if (page[at] == before[at]) != same {
            break;
        }
        at += 1;
    }
    at - from
}

/// Appends the page.
pub fn encode(page: &Page, before: &Page, out: &mut Vec<u8>) {
    let mut at = 0;
    loop {
        let same = run(page, before, at, true);
        at += same;
        if at == page.len() {
            return;
        }
        put(same, out);
        let differs = run(page, before, at, false);
        put(differs, out);
        out.extend_from_slice(&page[at..at + differs]);
        at += differs;
    }
}

/// Applies it to the page before; `None` for bytes that are not of this kind.
pub fn decode(mut bytes: &[u8], page: &mut Page) -> Option<()> {
    let mut at = 0;
    while !bytes.is_empty() {
        at += take(&mut bytes)?;
        let len = take(&mut bytes)?;
        let (run, rest) = bytes.split_at_checked(len)?;
        page.get_mut(at..at + len)?.copy_from_slice(run);
        at += len;
        bytes = rest;
    }
    Some(())
}
