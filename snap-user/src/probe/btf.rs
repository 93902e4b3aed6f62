//! Where the running kernel keeps the fields that the programs read.
//!
//! A reader of the BPF Type Format (Documentation/bpf/btf.rst) that knows as much of it as finding
//! struct members takes.

/// What a malformed blob is answered with: the part that is wrong.
pub type BtfResult<T> = Result<T, &'static str>;

const MAGIC: u16 = 0xeb9f;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// How deep members and modifiers may nest before the blob counts as malformed.
const MAX_DEPTH: u32 = 32;

/// A parsed blob. Type ids index `types`; id 0 is void.
pub struct KernelTypes {
    data: Vec<u8>,
    strings: usize,
    strings_end: usize,
    /// Where each type's record starts in `data`.
    types: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Record {
    name: u32,
    kind: u32,
    members: usize,
    bitfields: bool,
    /// Size or type id, by kind.
    size_or_type: u32,
    /// What follows the record.
    extra: usize,
}

impl KernelTypes {
    /// Reads a blob in the byte order of this machine, as /sys/kernel/btf/vmlinux is.
    pub fn parse(data: Vec<u8>) -> BtfResult<Self> {
        if u16_at(&data, 0)? != MAGIC {
            return Err("the magic number");
        }
        let header = u32_at(&data, 4)? as usize;
        let part = |at: usize| -> BtfResult<(usize, usize)> {
            let start = header
                .checked_add(u32_at(&data, at)? as usize)
                .ok_or("the header")?;
            let end = start
                .checked_add(u32_at(&data, at + 4)? as usize)
                .ok_or("the header")?;
            if end > data.len() {
                return Err("the length of a section");
            }
            Ok((start, end))
        };
        let (mut at, end) = part(8)?;
        let (strings, strings_end) = part(16)?;
        let mut types = vec![usize::MAX];
        while at < end {
            types.push(at);
            let record = record_at(&data, at)?;
            let extra = match record.kind {
                PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => 12 * record.members,
                ENUM | FUNC_PROTO => 8 * record.members,
                _ => return Err("a type of unknown kind"),
            };
            at = record.extra + extra;
        }
        if at != end {
            return Err("the end of the types");
        }
        Ok(Self {
            data,
            strings,
            strings_end,
            types,
        })
    }

    /// Offset in bytes of a field, given as `struct.field` or `struct.field.field`; members of
    /// anonymous structs and unions count as members of the enclosing one, as in C.
    /// `None` when there is no such field, or it is a bit-field.
    pub fn offset(&self, path: &str) -> BtfResult<Option<u32>> {
        let bits = self.bits(path)?;
        Ok(bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8))
    }

    /// The same in bits, of bit-fields too.
    pub fn bits(&self, path: &str) -> BtfResult<Option<u32>> {
        let mut names = path.split('.');
        let Some(first) = names.next() else {
            return Ok(None);
        };
        let Some(mut id) = self.find(STRUCT, first)? else {
            return Ok(None);
        };
        let mut bits = 0;
        for name in names {
            let Some(inner) = self.resolve(id)? else {
                return Ok(None);
            };
            let Some((member, offset)) = self.member(inner, name, 0)? else {
                return Ok(None);
            };
            id = member;
            bits += offset;
        }
        Ok(Some(bits))
    }

    /// Number of arguments of a raw tracepoint, without the context pointer that comes first.
    /// `None` when the kernel has no such tracepoint.
    pub fn tracepoint_args(&self, name: &str) -> BtfResult<Option<usize>> {
        let Some(id) = self.find(TYPEDEF, &format!("btf_trace_{name}"))? else {
            return Ok(None);
        };
        let pointer = self.record(self.record(id)?.size_or_type)?;
        let proto = self.record(pointer.size_or_type)?;
        if pointer.kind != PTR || proto.kind != FUNC_PROTO {
            return Err("a tracepoint's prototype");
        }
        Ok(Some(proto.members.saturating_sub(1)))
    }

    /// True when the kernel has a function of this name that programs could attach to.
    pub fn has_function(&self, name: &str) -> BtfResult<bool> {
        Ok(self.find(FUNC, name)?.is_some())
    }

    fn find(&self, kind: u32, name: &str) -> BtfResult<Option<u32>> {
        for (id, at) in self.types.iter().enumerate().skip(1) {
            let record = record_at(&self.data, *at)?;
            if record.kind == kind && self.is_named(record.name, name) {
                return Ok(Some(id as u32));
            }
        }
        Ok(None)
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        self.data[self.strings..self.strings_end]
            .get(offset as usize..)
            .and_then(|rest| rest.get(..=name.len()))
            .is_some_and(|text| text[..name.len()] == *name.as_bytes() && text[name.len()] == 0)
    }

    fn record(&self, id: u32) -> BtfResult<Record> {
        let at = self.types.get(id as usize).filter(|at| **at != usize::MAX);
        record_at(&self.data, *at.ok_or("a reference to a type")?)
    }

    /// The struct or union behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> BtfResult<Option<u32>> {
        for _ in 0..MAX_DEPTH {
            if id == 0 {
                return Ok(None);
            }
            let record = self.record(id)?;
            match record.kind {
                STRUCT | UNION => return Ok(Some(id)),
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = record.size_or_type,
                _ => return Ok(None),
            }
        }
        Err("a chain of types without end")
    }

    /// Type and bit offset of a member.
    fn member(&self, id: u32, name: &str, depth: u32) -> BtfResult<Option<(u32, u32)>> {
        if depth > MAX_DEPTH {
            return Err("structs nested without end");
        }
        let record = self.record(id)?;
        for index in 0..record.members {
            let at = record.extra + 12 * index;
            let member_name = u32_at(&self.data, at)?;
            let kind = u32_at(&self.data, at + 4)?;
            let offset = u32_at(&self.data, at + 8)?;
            let bits = if record.bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            if self.is_named(member_name, name) {
                return Ok(Some((kind, bits)));
            }
            if self.is_named(member_name, "")
                && let Some(inner) = self.resolve(kind)?
                && let Some((kind, inner_bits)) = self.member(inner, name, depth + 1)?
            {
                return Ok(Some((kind, bits + inner_bits)));
            }
        }
        Ok(None)
    }
}

fn record_at(data: &[u8], at: usize) -> BtfResult<Record> {
    let info = u32_at(data, at + 4)?;
    Ok(Record {
        name: u32_at(data, at)?,
        kind: (info >> 24) & 0x1f,
        members: (info & 0xffff) as usize,
        bitfields: info >> 31 != 0,
        size_or_type: u32_at(data, at + 8)?,
        extra: at + 12,
    })
}

fn u16_at(data: &[u8], at: usize) -> BtfResult<u16> {
    data.get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u16::from_ne_bytes(*bytes))
        .ok_or("the length of the data")
}

fn u32_at(data: &[u8], at: usize) -> BtfResult<u32> {
    data.get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u32::from_ne_bytes(*bytes))
        .ok_or("the length of the data")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a blob type by type; ids start at 1.
    struct Blob {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Blob {
        fn new() -> Self {
            Self {
                types: Vec::new(),
                strings: vec![0],
            }
        }

        fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend_from_slice(text.as_bytes());
            self.strings.push(0);
            at
        }

        fn add(
            &mut self,
            name: &str,
            kind: u32,
            count: u32,
            bitfields: bool,
            size: u32,
            extra: &[u32],
        ) {
            let name = self.string(name);
            let info = u32::from(bitfields) << 31 | kind << 24 | count;
            for word in [name, info, size].iter().chain(extra) {
                self.types.extend_from_slice(&word.to_ne_bytes());
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let mut out = Vec::new();
            out.extend_from_slice(&MAGIC.to_ne_bytes());
            out.extend_from_slice(&[1, 0]);
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for word in [24, 0, types, types, strings] {
                out.extend_from_slice(&u32::to_ne_bytes(word));
            }
            out.extend_from_slice(&self.types);
            out.extend_from_slice(&self.strings);
            out
        }
    }

    /// struct inner { u32 a; u32 status; };  typedef struct inner inner_t;
    /// struct outer { u32 first; union { u32 x; struct inner { .. } } ; inner_t named; u32 low: 3; };
    fn sample() -> Blob {
        let mut blob = Blob::new();
        blob.add("u32", INT, 0, false, 4, &[32]);
        let (a, status) = (blob.string("a"), blob.string("status"));
        blob.add("inner", STRUCT, 2, false, 8, &[a, 1, 0, status, 1, 32]);
        blob.add("inner_t", TYPEDEF, 0, false, 2, &[]);
        let x = blob.string("x");
        blob.add("", UNION, 2, false, 8, &[x, 1, 0, 0, 2, 0]);
        let (first, named, low) = (
            blob.string("first"),
            blob.string("named"),
            blob.string("low"),
        );
        blob.add(
            "outer",
            STRUCT,
            4,
            true,
            32,
            &[first, 1, 0, 0, 4, 32, named, 3, 96, low, 1, 3 << 24 | 163],
        );
        blob.add("", FUNC_PROTO, 3, false, 0, &[0, 0, 0, 1, 0, 1]);
        blob.add("", PTR, 0, false, 6, &[]);
        blob.add("btf_trace_thing", TYPEDEF, 0, false, 7, &[]);
        blob.add("do_thing", FUNC, 0, false, 6, &[]);
        blob
    }

    #[test]
    fn members_are_found_directly_in_anonymous_unions_and_through_typedefs() {
        let types = KernelTypes::parse(sample().bytes()).unwrap();
        assert_eq!(types.offset("inner.status"), Ok(Some(4)));
        assert_eq!(types.offset("outer.first"), Ok(Some(0)));
        assert_eq!(types.offset("outer.x"), Ok(Some(4)));
        assert_eq!(
            types.offset("outer.status"),
            Ok(Some(8)),
            "two anonymous levels down"
        );
        assert_eq!(types.offset("outer.named.status"), Ok(Some(16)));
    }

    #[test]
    fn what_is_not_there_or_has_no_byte_offset_is_none() {
        let types = KernelTypes::parse(sample().bytes()).unwrap();
        assert_eq!(types.offset("outer.nothing"), Ok(None));
        assert_eq!(types.offset("nothing.first"), Ok(None));
        assert_eq!(types.offset("outer.low"), Ok(None), "a bit-field");
        assert_eq!(types.offset("outer.first.deeper"), Ok(None));
        assert_eq!(
            types.offset("oute.first"),
            Ok(None),
            "a prefix is not the name"
        );
    }

    #[test]
    fn tracepoints_tell_their_arguments_and_functions_their_presence() {
        let types = KernelTypes::parse(sample().bytes()).unwrap();
        assert_eq!(types.tracepoint_args("thing"), Ok(Some(2)));
        assert_eq!(types.tracepoint_args("other"), Ok(None));
        assert_eq!(types.has_function("do_thing"), Ok(true));
        assert_eq!(types.has_function("thing"), Ok(false));
    }

    #[test]
    fn every_truncation_and_a_wrong_kind_are_errors_not_panics() {
        let good = sample().bytes();
        for length in 0..good.len() {
            assert!(
                KernelTypes::parse(good[..length].to_vec()).is_err(),
                "cut to {length}"
            );
        }
        let mut blob = Blob::new();
        blob.add("odd", 30, 0, false, 0, &[]);
        assert_eq!(
            KernelTypes::parse(blob.bytes()).err(),
            Some("a type of unknown kind")
        );
    }

    #[test]
    fn a_typedef_of_itself_is_an_error() {
        let mut blob = Blob::new();
        let m = blob.string("m");
        blob.add("s", STRUCT, 1, false, 4, &[m, 2, 0]);
        blob.add("loop", TYPEDEF, 0, false, 2, &[]);
        let types = KernelTypes::parse(blob.bytes()).unwrap();
        assert!(types.offset("s.m.x").is_err());
    }
}
