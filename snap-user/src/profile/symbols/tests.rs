use super::*;
use crate::model::{PageRange, Protection};

/// The mappings of this process that can be executed.
fn own_vmas() -> Vec<Vma> {
    use procfs::process::{MMPermissions, MMapPath};
    procfs::process::Process::myself()
        .and_then(|p| p.maps())
        .expect("the maps of this process are readable")
        .into_iter()
        .filter(|m| m.perms.contains(MMPermissions::EXECUTE))
        .map(|m| Vma {
            range: PageRange::new(m.address.0, m.address.1),
            prot: Protection::default(),
            shared: false,
            backing: match m.pathname {
                MMapPath::Path(path) => Backing::File {
                    path: path.to_str().expect("UTF-8").to_owned(),
                    deleted: false,
                    dev: (0, 0),
                    inode: m.inode,
                    offset: m.offset,
                },
                MMapPath::Vdso => Backing::Special("vdso".into()),
                _ => Backing::Anonymous { name: None },
            },
            flags: Vec::new(),
            build_id: None,
        })
        .collect()
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

#[inline(never)]
fn a_function_with_a_name_of_its_own(n: u64) -> u64 {
    std::hint::black_box(n).wrapping_mul(3)
}

fn own_function() -> u64 {
    a_function_with_a_name_of_its_own as fn(u64) -> u64 as usize as u64
}

#[test]
fn a_function_of_this_program_resolves_to_its_name_file_and_line() {
    let ip = own_function();
    let vmas = own_vmas();
    let symbols = symbolize(own_pid(), &vmas, &[ip, ip + 1]);
    for (symbol, offset) in symbols.iter().zip([0, 1]) {
        let function = symbol.function.as_deref().expect("a name");
        assert!(
            function.ends_with("a_function_with_a_name_of_its_own"),
            "{function}"
        );
        assert_eq!(symbol.offset, offset);
        let own = std::env::current_exe().expect("this program has a path");
        assert_eq!(Path::new(&symbol.module), own);
        assert!(symbol.line.is_some(), "{symbol:?}");
        let file = symbol
            .file
            .as_deref()
            .expect("tests are built with line tables");
        assert!(file.ends_with("profile/symbols/tests.rs"), "{file}");
    }
}

#[test]
fn a_library_resolves_by_its_dynamic_symbols() {
    let ip = libc::getpid as unsafe extern "C" fn() -> i32 as usize as u64;
    let symbol = symbolize(own_pid(), &own_vmas(), &[ip]).remove(0);
    let function = symbol.function.expect("a name");
    assert!(function.contains("getpid"), "{function}");
    assert!(symbol.module.contains("libc"), "{}", symbol.module);
}

#[test]
fn a_process_that_has_ended_is_looked_up_in_its_files() {
    let ip = own_function();
    // No process has this id: ids end far below.
    let symbol = symbolize(i32::MAX, &own_vmas(), &[ip]).remove(0);
    assert!(symbol.function.is_some(), "{symbol:?}");
}

#[test]
fn addresses_without_code_say_where_they_lie() {
    let anonymous = Vma {
        range: PageRange::new(0x10_0000, 0x10_2000),
        prot: Protection::default(),
        shared: false,
        backing: Backing::Anonymous { name: None },
        flags: Vec::new(),
        build_id: None,
    };
    let mut named = anonymous.clone();
    named.range = PageRange::new(0x20_0000, 0x20_1000);
    named.backing = Backing::Anonymous {
        name: Some("code".into()),
    };
    let mut data = anonymous.clone();
    data.range = PageRange::new(0x30_0000, 0x30_1000);
    data.backing = Backing::File {
        path: "/proc/self/status".into(),
        deleted: false,
        dev: (0, 0),
        inode: 1,
        offset: 0x4000,
    };
    let ips = [0x10_1008, 0x20_0010, 0x30_0020, 0x9000, 0];
    let symbols = symbolize(own_pid(), &[anonymous, named, data], &ips);
    let text: Vec<String> = symbols.iter().map(Symbol::to_string).collect();
    assert_eq!(
        text,
        [
            "[jit?]+0x1008",
            "[anon:code]+0x10",
            "status+0x4020",
            "[unmapped]+0x9000",
            "no instruction (get_user_pages)"
        ]
    );
}

#[test]
fn a_kernel_address_is_named_where_the_kernel_shows_its_symbols() {
    let symbol = |ip| symbolize(own_pid(), &[], &[ip]).remove(0);
    let readable = std::fs::read_to_string(KALLSYMS).unwrap_or_default();
    let known = readable.lines().find_map(|line| {
        let mut words = line.split(' ');
        let ip = u64::from_str_radix(words.next()?, 16).ok()?;
        (line.ends_with(" handle_mm_fault") && ip != 0).then_some(ip)
    });
    if let Some(ip) = known {
        let found = symbol(ip + 4);
        assert_eq!(found.to_string(), "handle_mm_fault+0x4 ([kernel])");
        assert_eq!(symbol(u64::MAX - 4096).to_string(), "[kernel]");
    } else {
        assert_eq!(symbol(0xffff_ffff_8100_0000).to_string(), "[kernel]");
    }
}
