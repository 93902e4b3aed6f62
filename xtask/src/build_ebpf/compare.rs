//! Is a rebuilt object the committed one?

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionIndex, SymbolFlags, SymbolIndex};
use std::collections::{BTreeMap, BTreeSet};

/// Sections whose content other toolchains must reproduce too: maps, license, ABI version.
const EXACT: [&str; 3] = ["maps", "license", "ksnap_abi"];

/// Says how the two relate. Equal bytes are required of the toolchain that the committed object was
/// built with. Another one may choose other instructions; then programs, maps, globals, license and
/// ABI version must agree, and the differences are listed.
///
/// # Errors
/// When they differ in what they must not.
pub fn report(
    committed: &[u8],
    rebuilt: &[u8],
    same_toolchain: bool,
    recorded: &str,
) -> Result<()> {
    if committed == rebuilt {
        println!("ok: the committed object is byte for byte what its sources make");
        return Ok(());
    }
    let old = Summary::of(committed).context("the committed object")?;
    let new = Summary::of(rebuilt).context("the rebuilt object")?;
    let differing = old.differing_sections(&new);
    if same_toolchain && old.differs_in_names_alone(&new) {
        println!(
            "ok: the committed object is byte for byte what its sources make, but for names of functions that the \
             compiler makes of where they are built"
        );
        return Ok(());
    }
    if same_toolchain {
        bail!(
            "the committed object is not what its sources make with the same toolchain; differing \
             sections: {}. Run cargo xtask build-ebpf and commit snap-ebpf/prebuilt",
            list(&differing)
        );
    }
    println!("the committed object was built with {recorded}, this is another toolchain");
    println!("differing sections: {}", list(&differing));
    let wrong = old.mismatches(&new);
    if !wrong.is_empty() {
        bail!(
            "objects of two toolchains must agree in these, and do not: {}",
            wrong.join("; ")
        );
    }
    println!(
        "ok: {} programs, {} globals, maps, license and ABI version agree",
        old.programs.len(),
        old.globals.len()
    );
    Ok(())
}

fn list(names: &BTreeSet<String>) -> String {
    match names.is_empty() {
        true => "none (the ELF headers or symbol order differ)".to_owned(),
        false => names
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

struct Summary {
    sections: BTreeMap<String, Vec<u8>>,
    programs: BTreeSet<String>,
    /// Names and sizes of what the loader sets.
    globals: BTreeMap<String, u64>,
    /// All symbols in their order. A function that only a pointer leads to keeps its name, and one that is exported the
    /// kernel refuses as a callback.
    symbols: Vec<Symbol>,
}

#[derive(PartialEq)]
struct Symbol {
    name: String,
    section: Option<usize>,
    address: u64,
    size: u64,
    /// Type, binding and visibility.
    flags: SymbolFlags<SectionIndex, SymbolIndex>,
}

/// The name of a symbol without what stands for the crate's place: cargo makes that of the flags, which have paths
/// (the disambiguator in "Symbol Mangling" of the rustc book).
fn without_place(name: &str) -> String {
    let parts = name.strip_prefix("_R").and_then(|_| {
        let (before, rest) = name.split_once("Cs")?;
        let (_, after) = rest.split_once('_')?;
        Some(format!("{before}C{after}"))
    });
    parts.unwrap_or_else(|| name.to_owned())
}

impl Summary {
    fn of(data: &[u8]) -> Result<Self> {
        let file = object::File::parse(data)?;
        let mut sections = BTreeMap::new();
        let mut programs = BTreeSet::new();
        for section in file.sections() {
            let name = section.name()?.to_owned();
            if name.starts_with("tp_btf/") || name.starts_with("fentry/") {
                programs.insert(name.clone());
            }
            sections.insert(name, section.data()?.to_vec());
        }
        let mut globals = BTreeMap::new();
        let mut symbols = Vec::new();
        for symbol in file.symbols() {
            symbols.push(Symbol {
                name: without_place(symbol.name()?),
                section: symbol.section_index().map(|index| index.0),
                address: symbol.address(),
                size: symbol.size(),
                flags: symbol.flags(),
            });
            let Some(index) = symbol.section_index() else {
                continue;
            };
            let name = symbol.name()?;
            let set_by_loader = name
                .chars()
                .all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit());
            if file.section_by_index(index)?.name()? == ".rodata"
                && set_by_loader
                && !name.is_empty()
            {
                globals.insert(name.to_owned(), symbol.size());
            }
        }
        Ok(Self {
            sections,
            programs,
            globals,
            symbols,
        })
    }

    fn differs_in_names_alone(&self, other: &Self) -> bool {
        let of_names = |name: &String| name == ".strtab" || name == ".symtab";
        let sections = self.differing_sections(other);
        !sections.is_empty() && sections.iter().all(of_names) && self.symbols == other.symbols
    }

    fn differing_sections(&self, other: &Self) -> BTreeSet<String> {
        let names = self.sections.keys().chain(other.sections.keys());
        names
            .filter(|name| self.sections.get(*name) != other.sections.get(*name))
            .cloned()
            .collect()
    }

    fn mismatches(&self, other: &Self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.programs != other.programs {
            wrong.push(format!(
                "programs: {:?} and {:?}",
                self.programs, other.programs
            ));
        }
        if self.globals != other.globals {
            wrong.push(format!(
                "globals: {:?} and {:?}",
                self.globals, other.globals
            ));
        }
        for name in EXACT {
            if self.sections.get(name) != other.sections.get(name) {
                wrong.push(format!("section {name}"));
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn committed() -> Vec<u8> {
        fs::read(super::super::Layout::here().object()).unwrap()
    }

    /// The object with one byte of a section changed.
    fn changed(name: &str) -> Vec<u8> {
        let mut data = committed();
        let file = object::File::parse(&*data).unwrap();
        let (at, _) = file.section_by_name(name).unwrap().file_range().unwrap();
        data[at as usize] ^= 1;
        data
    }

    #[test]
    fn the_same_bytes_are_the_same_object() {
        report(&committed(), &committed(), true, "x").unwrap();
    }

    #[test]
    fn names_may_differ_in_where_they_were_built_and_in_nothing_else() {
        let data = committed();
        let at = data.windows(7).position(|w| w == b"_RNvNtC").unwrap() + 8;
        let mut elsewhere = data.clone();
        elsewhere[at] = if data[at] == b'a' { b'b' } else { b'a' };
        report(&data, &elsewhere, true, "x").unwrap();
        let mut other = data.clone();
        let name = data.windows(9).rposition(|w| w == b"save_next").unwrap();
        other[name] = b'x';
        report(&data, &other, true, "x").unwrap_err();
        assert_eq!(
            without_place("_RNvNtCs1aB2_5ksnap4save4next"),
            "_RNvNtC5ksnap4save4next"
        );
    }

    #[test]
    fn a_function_that_is_exported_in_one_of_them_is_another_object() {
        let data = committed();
        let file = object::File::parse(&*data).unwrap();
        let symbol = file
            .symbols()
            .find(|symbol| symbol.name().is_ok_and(|name| name.starts_with("_RNv")))
            .unwrap();
        let (table, _) = file
            .section_by_name(".symtab")
            .unwrap()
            .file_range()
            .unwrap();
        // `Elf64_Sym` (elf(5)) has 24 bytes, and `st_info` behind the four of its name; the binding is in its upper half.
        let at = table as usize + symbol.index().0 * 24 + 4;
        let mut other = data.clone();
        other[at] ^= 0xf0;
        report(&data, &other, true, "x").unwrap_err();
        let mut exported = data.clone();
        exported[at] ^= 0x10;
        report(&data, &exported, true, "x").unwrap_err();
    }

    #[test]
    fn one_changed_instruction_is_found_and_named() {
        let error = report(&committed(), &changed("tp_btf/sys_exit"), true, "x").unwrap_err();
        assert!(error.to_string().contains("tp_btf/sys_exit"), "{error}");
    }

    #[test]
    fn another_toolchain_may_differ_in_instructions_but_not_in_maps_or_abi() {
        report(&committed(), &changed("tp_btf/sys_exit"), false, "x").unwrap();
        for name in EXACT {
            let error = report(&committed(), &changed(name), false, "x").unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn the_object_has_the_programs_and_globals_that_the_loader_names() {
        let summary = Summary::of(&committed()).unwrap();
        assert!(
            summary.programs.contains("tp_btf/sched_process_fork"),
            "{:?}",
            summary.programs
        );
        assert_eq!(
            summary.globals.get("OFF_TASK_TGID"),
            Some(&4),
            "{:?}",
            summary.globals
        );
        assert!(
            !summary
                .sections
                .keys()
                .any(|name| name.starts_with(".debug"))
        );
    }
}
