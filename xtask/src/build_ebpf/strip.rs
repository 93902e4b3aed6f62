//! Removes what only the linker needed.

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf;

/// The object without DWARF. `.BTF` and `.BTF.ext` stay: the verifier's messages quote from them.
pub fn strip(data: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(data).context("the linker's output is no ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        // Loaders never apply relocations to .BTF: its offsets are relative already.
        section.delete = name.starts_with(".debug_")
            || name.starts_with(".rel.debug_")
            || name.starts_with(".rel.BTF");
    }
    // LLVM keeps the names of sections and symbols in one table, the builder in two.
    if !builder
        .sections
        .iter()
        .any(|section| matches!(section.data, SectionData::SectionString))
    {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    builder.delete_orphan_symbols();
    builder.delete_orphan_relocations();
    builder.set_section_sizes();
    let mut out = Vec::new();
    builder
        .write(&mut out)
        .context("cannot write the stripped object")?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSection};

    #[test]
    fn programs_and_maps_survive_and_debugging_sections_do_not() {
        let mut builder = Builder::new(object::Endianness::Little, true);
        for (name, kind) in [
            (".shstrtab", elf::SHT_STRTAB),
            ("maps", elf::SHT_PROGBITS),
            (".debug_info", elf::SHT_PROGBITS),
        ] {
            let section = builder.sections.add();
            section.name = name.into();
            section.sh_type = kind;
            section.sh_addralign = 1;
            section.data = match kind {
                elf::SHT_STRTAB => SectionData::SectionString,
                _ => SectionData::Data(name.as_bytes().into()),
            };
        }
        let mut file = Vec::new();
        builder.write(&mut file).unwrap();

        let out = strip(&file).unwrap();
        let stripped = object::File::parse(&*out).unwrap();
        assert_eq!(
            stripped.section_by_name("maps").unwrap().data().unwrap(),
            b"maps"
        );
        assert!(stripped.section_by_name(".debug_info").is_none());
        assert_eq!(strip(&out).unwrap(), out, "nothing is left to strip");
    }
}
