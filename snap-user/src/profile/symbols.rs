//! Names of instruction addresses.

use crate::model::{Backing, Vma};
use blazesym::symbolize::source::{Elf, Kernel, Process, Source};
use blazesym::symbolize::{Input, Sym, Symbolized, Symbolizer};
use blazesym::{MaybeDefault, Pid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What an instruction address is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// The function, demangled; none when there are no symbols for the address.
    pub function: Option<String>,
    /// Bytes from the start of the function; without one, from the start of the file, or of the
    /// mapping when there is no file behind it.
    pub offset: u64,
    /// The file that the code was mapped from; `[kernel]`, `[vdso]`, `[jit?]` for code in
    /// anonymous memory, `[unmapped]`, or `[none]` where no instruction is known.
    pub module: String,
    /// Source file, from debug information.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
}

impl fmt::Display for Symbol {
    /// `function+0x1f (module)`, or `module+0x12ab`; with `at file:line` where it is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module = self.module.rsplit('/').next().unwrap_or(&self.module);
        match &self.function {
            Some(function) => write!(f, "{function}+{:#x} ({module})", self.offset)?,
            None if self.module == NOWHERE => f.write_str("no instruction (get_user_pages)")?,
            None if self.offset == 0 => f.write_str(module)?,
            None => write!(f, "{module}+{:#x}", self.offset)?,
        }
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            let file = file.rsplit('/').next().unwrap_or(file);
            write!(f, " at {file}:{line}")?;
        }
        Ok(())
    }
}

const KERNEL: &str = "[kernel]";
/// Longer than any function of the kernel.
const KERNEL_FUNCTION: usize = 1 << 20;
const NOWHERE: &str = "[none]";
const KALLSYMS: &str = "/proc/kallsyms";

/// Where to look an address up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// An ELF file, by offset in it.
    File(PathBuf),
    /// The live process: the vDSO, and the map that a just-in-time compiler leaves in
    /// `/tmp/perf-PID.map`.
    Process,
    Kernel,
}

/// The names of `ips`, instruction addresses of process `pid`, in their order. `vmas`: its
/// mappings, ascending. An address that has no name has a symbol without a function. Also works
/// for a process that has ended, as long as its files are there.
pub fn symbolize(pid: i32, vmas: &[Vma], ips: &[u64]) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::with_capacity(ips.len());
    let mut wanted: BTreeMap<Place, Vec<(usize, u64)>> = BTreeMap::new();
    for (index, &ip) in ips.iter().enumerate() {
        let (symbol, place) = classify(pid, vmas, ip);
        symbols.push(symbol);
        if let Some((place, address)) = place {
            wanted.entry(place).or_default().push((index, address));
        }
    }
    let symbolizer = Symbolizer::new();
    for (place, wanted) in wanted {
        let addresses: Vec<u64> = wanted.iter().map(|w| w.1).collect();
        for ((index, _), sym) in wanted
            .iter()
            .zip(look_up(&symbolizer, pid, &place, &addresses))
        {
            if let Some(sym) = sym {
                name(&mut symbols[*index], &sym);
            }
        }
    }
    symbols
}

/// What is known without symbols, and where to look for more.
fn classify(pid: i32, vmas: &[Vma], ip: u64) -> (Symbol, Option<(Place, u64)>) {
    let unnamed = |module: &str, offset| Symbol {
        module: module.to_owned(),
        offset,
        ..Symbol::default()
    };
    if ip == 0 {
        return (unnamed(NOWHERE, 0), None);
    }
    let after = vmas.partition_point(|v| v.range.start <= ip);
    let vma = after
        .checked_sub(1)
        .map(|at| &vmas[at])
        .filter(|v| v.range.contains(ip));
    let Some(vma) = vma else {
        // The kernel has the upper half of the address space, on every architecture we know.
        return if ip >> 63 != 0 {
            let place = kallsyms_are_readable().then_some((Place::Kernel, ip));
            (unnamed(KERNEL, 0), place)
        } else {
            (unnamed("[unmapped]", ip), None)
        };
    };
    let into = ip - vma.range.start;
    match &vma.backing {
        Backing::File {
            path,
            deleted,
            offset,
            ..
        } => (
            unnamed(path, offset + into),
            code_file(pid, vma, path, *deleted).map(|file| (Place::File(file), offset + into)),
        ),
        Backing::Special(name) => (
            unnamed(&format!("[{name}]"), into),
            Some((Place::Process, ip)),
        ),
        Backing::Anonymous { name: Some(name) } => (
            unnamed(&format!("[anon:{name}]"), into),
            Some((Place::Process, ip)),
        ),
        Backing::Anonymous { name: None } | Backing::Heap | Backing::Stack => {
            (unnamed("[jit?]", into), Some((Place::Process, ip)))
        }
    }
}

/// A way to the mapped file itself: the path means something else in another mount namespace, and
/// nothing when the file was deleted. `map_files` needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE
/// (`proc_pid_map_files(5)`).
fn code_file(pid: i32, vma: &Vma, path: &str, deleted: bool) -> Option<PathBuf> {
    let mapped = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        vma.range.start, vma.range.end
    );
    let by_path = [format!("/proc/{pid}/root{path}"), path.to_owned()];
    let candidates = by_path
        .into_iter()
        .filter(|_| !deleted)
        .chain(std::iter::once(mapped));
    candidates.map(PathBuf::from).find(|file| is_elf(file))
}

/// Starts with the magic of ELF: data files are mapped as well, and devices must not be read.
fn is_elf(file: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    file.is_file()
        && std::fs::File::open(file)
            .and_then(|mut f| f.read_exact(&mut magic))
            .is_ok()
        && magic == *b"\x7fELF"
}

/// The kernel shows its addresses (`kptr_restrict` in sysctl/kernel); it prints zeroes otherwise.
fn kallsyms_are_readable() -> bool {
    use std::io::{BufRead, BufReader};
    let Ok(file) = std::fs::File::open(KALLSYMS) else {
        return false;
    };
    BufReader::new(file)
        .lines()
        .take(64)
        .map_while(Result::ok)
        .any(|line| line.bytes().take_while(|b| *b != b' ').any(|b| b != b'0'))
}

fn look_up<'s>(
    symbolizer: &'s Symbolizer,
    pid: i32,
    place: &Place,
    addresses: &[u64],
) -> Vec<Option<Sym<'s>>> {
    let attempt = |source: Source<'_>, input| {
        let found = symbolizer.symbolize(&source, input);
        found.map(|all| all.into_iter().map(Symbolized::into_sym).collect())
    };
    let found: Result<Vec<_>, blazesym::Error> = match place {
        Place::File(path) => {
            let elf = |debug_syms| {
                let mut elf = Elf::new(path);
                elf.debug_syms = debug_syms;
                attempt(Source::Elf(elf), Input::FileOffset(addresses))
            };
            // Debug information that cannot be read must not cost the function's name.
            elf(true).or_else(|error| {
                tracing::debug!("debug information of {}: {error}", path.display());
                elf(false)
            })
        }
        Place::Process => {
            let mut process = Process::new(Pid::from(pid.cast_unsigned()));
            process.map_files = false;
            attempt(Source::Process(process), Input::AbsAddr(addresses))
        }
        Place::Kernel => {
            let kernel = Kernel {
                kallsyms: MaybeDefault::Some(PathBuf::from(KALLSYMS)),
                vmlinux: MaybeDefault::None,
                debug_syms: false,
                ..Kernel::default()
            };
            attempt(Source::Kernel(kernel), Input::AbsAddr(addresses))
        }
    };
    found.unwrap_or_else(|error| {
        tracing::debug!("symbols of {place:?}: {error}");
        addresses.iter().map(|_| None).collect()
    })
}

fn name(symbol: &mut Symbol, sym: &Sym<'_>) {
    // The kernel's list has no sizes: what lies behind a symbol need not belong to it.
    if symbol.module == KERNEL && sym.offset > KERNEL_FUNCTION {
        return;
    }
    symbol.function = Some(sym.name.to_string());
    symbol.offset = sym.offset as u64;
    if let Some(code) = &sym.code_info {
        symbol.file = Some(code.to_path().display().to_string());
        symbol.line = code.line;
    }
}

#[cfg(test)]
mod tests;
