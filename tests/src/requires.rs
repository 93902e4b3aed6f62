//! Typed skips: what a test needs, why it is missing, and how to get it.

mod rights;

use std::path::Path;

use crate::{paths, victim};

/// An ordinary user that tests become.
const NOBODY: u32 = 65534;

/// Something that a test needs.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Effective user id 0.
    Root,
    /// The `ksnap` binary of this build.
    Ksnap,
    /// A program on PATH.
    Program(&'static str),
    /// A kernel facility that finds dirty pages: `wp`, `soft-dirty` or `hash`.
    Tracker(&'static str),
    /// A kernel that lacks one of these facilities.
    NoTracker(&'static [&'static str]),
    /// An x86 feature such as `avx2`, or `avx512f`.
    Cpu(&'static str),
    /// A kernel of at least this version.
    Kernel(u32, u32),
    /// A C library that has registered rseq.
    Rseq,
    /// Pages of hugetlbfs.
    Hugetlb,
    /// The right to mount file systems.
    Mount,
    /// The right to swap to a file, on a file system that allows it.
    Swap,
    /// Network namespaces.
    Machines,
    /// `tc netem`.
    Netem,
    /// User namespaces, and the programs that make and enter them.
    UserNamespace,
    /// Threads of the kernel among the processes.
    KernelThreads,
    /// A kernel that runs 32-bit programs.
    Ia32,
    /// The `xtask` binary of this build.
    Xtask,
    /// An S3 server, `moto_server`.
    S3,
    /// An Azure Blob server, `azurite-blob`.
    Azure,
    /// A Google Cloud Storage server, `fake-gcs-server`.
    Google,
    /// A server of PostgreSQL and its programs.
    Postgres,
    /// A build folder from which other users can run programs.
    BuildForAll,
    /// The right to load BPF programs, and to list those that are loaded.
    Bpf,
    /// The probes, which see writes and save pages.
    Probes,
    /// The right to open files by their handles.
    FileHandles,
    /// The right to open raw sockets.
    RawSockets,
    /// The right to see the open files of all processes.
    AllProcesses,
    /// The right to raise the priority of a thread.
    Priorities,
    /// The right to become another user.
    OtherUsers,
    /// The right to choose the ids of new processes and threads.
    ChosenIds,
    /// The right to make a time namespace, and a kernel that has them.
    TimeNamespace,
}

impl Need {
    /// Nothing if it is there, else what is missing and how to get it.
    pub fn missing(self) -> Option<(String, String)> {
        let (there, what, how) = match self {
            Self::Root => (
                rights::is_root(),
                "root".to_owned(),
                "run the tests as root".to_owned(),
            ),
            Self::Ksnap => match paths::ksnap() {
                Ok(_) => (true, String::new(), String::new()),
                Err(error) => (
                    false,
                    error.to_string(),
                    "cargo build -p snap-user".to_owned(),
                ),
            },
            Self::Program(name) => (
                paths::program(name).is_some(),
                format!("the program {name}"),
                format!("apt-get install {}", package(name)),
            ),
            Self::Tracker(kind) => (
                tracker::works(kind),
                format!("the {kind} tracker"),
                tracker::how(kind).to_owned(),
            ),
            Self::NoTracker(kinds) => (
                !kinds.iter().all(|kind| tracker::works(kind)),
                format!("a kernel without one of the trackers {}", kinds.join(" and ")),
                "cargo xtask test --vm has one".to_owned(),
            ),
            Self::Cpu(feature) => (
                has_feature(feature),
                format!("the CPU feature {feature}"),
                "run on an x86-64 processor that has it".to_owned(),
            ),
            Self::Kernel(major, minor) => (
                kernel() >= (major, minor),
                format!("Linux {major}.{minor}"),
                "cargo xtask test --vm".to_owned(),
            ),
            Self::UserNamespace => (
                paths::program("nsenter").is_some() && rights::can_unshare_users(),
                "user namespaces".to_owned(),
                "apt-get install util-linux, and raise user.max_user_namespaces (sysctl)".to_owned(),
            ),
            Self::Swap => match crate::swap::Swap::on(1) {
                Ok(_) => (true, String::new(), String::new()),
                Err(why) => (
                    false,
                    format!("swapping to a file ({why:#})"),
                    "run the tests as root, with TMPDIR on a file system that allows it".to_owned(),
                ),
            },
            Self::KernelThreads => (
                // kthreadd, unless this is a PID namespace of its own.
                std::fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim() == "kthreadd"),
                "kernel threads".to_owned(),
                "run the tests outside of containers, or cargo xtask test --vm".to_owned(),
            ),
            Self::Ia32 => (
                crate::elf32::Paused::start().is_ok(),
                "a kernel that runs 32-bit programs".to_owned(),
                "use an x86-64 kernel with CONFIG_IA32_EMULATION, without ia32_emulation=off".to_owned(),
            ),
            Self::Xtask => (
                paths::binaries().is_ok_and(|folder| folder.join("xtask").is_file()),
                "the xtask of this build".to_owned(),
                "cargo build -p xtask".to_owned(),
            ),
            Self::S3 => (
                crate::Moto::program().is_some(),
                "the program moto_server".to_owned(),
                "apt-get install python3-venv; python3 -m venv target/moto && target/moto/bin/pip install 'moto[server,s3]==5.*'".to_owned(),
            ),
            Self::Azure => (
                crate::Azurite::program().is_some(),
                "the program azurite-blob".to_owned(),
                "install npm; npm install --prefix target/azurite azurite@3".to_owned(),
            ),
            Self::Google => (
                crate::Google::program().is_some(),
                "the program fake-gcs-server".to_owned(),
                "apt-get install python3-pip; pip install --require-hashes --target target/fake-gcs \
                 -r xtask/src/test/fake-gcs.txt"
                    .to_owned(),
            ),
            Self::Postgres => (
                crate::postgres::Postgres::programs().is_some(),
                "PostgreSQL".to_owned(),
                "apt-get install postgresql".to_owned(),
            ),
            Self::BuildForAll => (
                rights::build_is_open(),
                "a build folder that other users can enter".to_owned(),
                "chmod o+x it and the folders above it, or set CARGO_TARGET_DIR".to_owned(),
            ),
            Self::Bpf => (
                crate::bpf::programs().is_ok(),
                "the right to list BPF programs".to_owned(),
                "run the tests as root outside of user namespaces".to_owned(),
            ),
            Self::Probes => (
                rights::can_load_probes(),
                "the probes".to_owned(),
                "run the tests as root outside of user and PID namespaces; `ksnap doctor` says more".to_owned(),
            ),
            Self::FileHandles => (
                rights::can_open_by_handle(),
                "the right to open files by handle (CAP_DAC_READ_SEARCH)".to_owned(),
                "run the tests as root outside of user namespaces".to_owned(),
            ),
            Self::RawSockets => (
                rights::can_open_raw_sockets(),
                "the right to open raw sockets (CAP_NET_RAW)".to_owned(),
                "run the tests as root outside of user namespaces, or in one with a network of its own".to_owned(),
            ),
            Self::AllProcesses => (
                std::fs::read_dir("/proc/1/fd").is_ok(),
                "the right to see the open files of all processes".to_owned(),
                "run the tests as root outside of user namespaces, or in one with a PID namespace of its own".to_owned(),
            ),
            Self::Priorities => (
                rights::can_raise_priority(),
                "the right to raise the priority of a thread (CAP_SYS_NICE)".to_owned(),
                "run the tests as root outside of user namespaces".to_owned(),
            ),
            Self::OtherUsers => (
                rights::is_root() && rights::is_mapped(NOBODY),
                "the right to become another user".to_owned(),
                "run the tests as root outside of user namespaces, or in one that other users are mapped to".to_owned(),
            ),
            Self::ChosenIds => (
                rights::may_choose_ids(),
                "the right to choose the ids of new processes".to_owned(),
                "run the tests as root outside of user namespaces, or in one with a PID namespace of its own \
                 (unshare --map-root-user --pid --fork --mount-proc)"
                    .to_owned(),
            ),
            Self::TimeNamespace => (
                rights::may_shift_clocks(),
                "a time namespace".to_owned(),
                "apt-get install util-linux, and run the tests as root with CAP_SYS_ADMIN and CAP_SYS_TIME".to_owned(),
            ),
            Self::Machines => match crate::Machines::missing() {
                None => (true, String::new(), String::new()),
                Some(why) => (
                    false,
                    format!("network namespaces ({why})"),
                    "apt-get install iproute2 util-linux, and run the tests as root with CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned(),
                ),
            },
            Self::Netem => match crate::Machines::no_netem() {
                None => (true, String::new(), String::new()),
                Some(why) => {
                    let (what, how) = netem(&why);
                    (false, what, how.to_owned())
                }
            },
            Self::Hugetlb => {
                let allowed = Path::new("/proc/sys/vm/nr_overcommit_hugepages");
                let opened = std::fs::File::options().write(true).open(allowed);
                let (what, how) = huge_pages(allowed.exists());
                (opened.is_ok(), what.to_owned(), how.to_owned())
            }
            Self::Mount => (
                rights::can_mount(),
                "the right to mount a file system".to_owned(),
                "run the tests as root with CAP_SYS_ADMIN over this mount namespace".to_owned(),
            ),
            Self::Rseq => (
                victim::rseq::available(),
                "a registered rseq area".to_owned(),
                "use glibc 2.35 or newer, without GLIBC_TUNABLES that turn it off".to_owned(),
            ),
        };
        (!there).then_some((what, how))
    }
}

/// Whether the test is to be skipped; prints why. With `KSNAP_TESTS_STRICT=1` a skip is a failure.
pub fn skips(test: &str, needs: &[Need]) -> bool {
    let Some((what, how)) = needs.iter().find_map(|need| need.missing()) else {
        return false;
    };
    let line = format!("SKIP {}: missing {what}; {how}", named(test));
    assert!(
        std::env::var_os("KSNAP_TESTS_STRICT").is_none_or(|value| value != "1"),
        "{line} (strict)"
    );
    // Straight to the descriptor: the test harness hides what a passing test prints.
    let text = format!("{line}\n");
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    true
}

/// The test that is under way, where `function` may be a part of several: the harness names threads by tests.
fn named(function: &str) -> String {
    let executable = function.split("::").next().unwrap_or_default();
    match std::thread::current().name() {
        Some(test) if test != "main" => format!("{executable}::{test}"),
        _ => function.to_owned(),
    }
}

/// What a skipped test returns.
pub trait Skipped {
    /// A pass.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Returns from the test, with a printed skip, unless everything named is there:
/// `require!(Root, Program("redis-server"), Tracker("wp"))`. The variants are those of [`Need`].
#[macro_export]
macro_rules! require {
    ($($need:expr),+ $(,)?) => {{
        #[allow(unused_imports)]
        use $crate::requires::Need::*;
        fn here() {}
        let test = std::any::type_name_of_val(&here);
        let test = test.strip_suffix("::here").unwrap_or(test);
        if $crate::requires::skips(test, &[$($need),+]) {
            return $crate::requires::Skipped::skipped();
        }
    }};
}

/// What is missing where `tc netem` fails, and how to get it: kernels come without it, and whatever else keeps it from
/// working is named as what it is.
fn netem(why: &str) -> (String, &'static str) {
    match why.contains("Specified qdisc kind is unknown") {
        true => (
            format!("netem in the kernel ({why})"),
            "take a kernel with CONFIG_NET_SCH_NETEM",
        ),
        false => (
            format!("tc netem ({why})"),
            "apt-get install iproute2, and run the tests as root with CAP_NET_ADMIN",
        ),
    }
}

/// What is missing where huge pages cannot be allowed, and how to get it.
fn huge_pages(has_some: bool) -> (&'static str, &'static str) {
    match has_some {
        false => ("huge pages", "use a kernel with CONFIG_HUGETLBFS"),
        true => (
            "the right to allow huge pages",
            "run the tests as root outside of user namespaces",
        ),
    }
}

fn package(program: &str) -> &str {
    match program {
        "redis-server" => "redis-server",
        "redis-benchmark" | "redis-cli" => "redis-tools",
        "python3" => "python3",
        "nginx" => "nginx-core",
        "node" => "nodejs",
        "java" | "javac" => "default-jdk-headless",
        "prlimit" | "setpriv" | "unshare" | "ipcrm" => "util-linux",
        "readelf" => "binutils",
        "cc" => "gcc",
        other => other,
    }
}

#[cfg(target_arch = "x86_64")]
fn has_feature(name: &str) -> bool {
    std::fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == name))
}

#[cfg(not(target_arch = "x86_64"))]
fn has_feature(_name: &str) -> bool {
    false
}

fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse().ok());
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}

mod tracker {
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::fs::FileExt;

    use crate::victim::mem::Mapping;

    const USER_MODE_ONLY: i32 = 1;
    const API: u64 = 0xaa;
    // _IOWR(0xAA, 0x3F, struct uffdio_api), include/uapi/linux/userfaultfd.h
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    const WP_ASYNC: u64 = 1 << 15;

    pub fn works(kind: &str) -> bool {
        match kind {
            "wp" => wp_async(),
            "soft-dirty" => soft_dirty(),
            _ => kind == "hash",
        }
    }

    pub fn how(kind: &str) -> &'static str {
        match kind {
            "wp" => "use Linux 6.7 or newer, with CONFIG_USERFAULTFD (or cargo xtask test --vm)",
            "soft-dirty" => {
                "use a kernel with CONFIG_MEM_SOFT_DIRTY (cargo xtask test --vm has one)"
            }
            _ => "there is no tracker of that name",
        }
    }

    fn wp_async() -> bool {
        // SAFETY: userfaultfd takes flags and gives a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | USER_MODE_ONLY) };
        if fd < 0 {
            return false;
        }
        // SAFETY: just made, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = [API, WP_ASYNC, 0];
        // SAFETY: struct uffdio_api is three u64: api, features, ioctls.
        unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(&fd),
                UFFDIO_API,
                api.as_mut_ptr(),
            ) == 0
        }
    }

    /// A round trip: on kernels without it, the write to clear_refs succeeds and does nothing.
    fn soft_dirty() -> bool {
        let Ok(page) = Mapping::private(4096) else {
            return false;
        };
        let bit = || -> Option<bool> {
            let mut entry = [0; 8];
            let file = std::fs::File::open("/proc/self/pagemap").ok()?;
            file.read_exact_at(&mut entry, page.at() as u64 / 4096 * 8)
                .ok()?;
            Some(u64::from_le_bytes(entry) >> 55 & 1 == 1)
        };
        // SAFETY: the page is this function's own.
        unsafe { page.at().write_volatile(1) };
        if std::fs::write("/proc/self/clear_refs", "4").is_err() || bit() != Some(false) {
            return false;
        }
        // SAFETY: as above.
        unsafe { page.at().write_volatile(2) };
        bit() == Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_names_the_test_whatever_function_finds_it() {
        let name = named("crate::some::helper");
        let own = "requires::tests::a_skip_names_the_test_whatever_function_finds_it";
        assert_eq!(name, format!("crate::{own}"));
    }

    #[test]
    fn what_a_kernel_lacks_is_told_from_what_is_not_allowed() {
        let unknown = "tc: Error: Specified qdisc kind is unknown.";
        assert!(netem(unknown).0.starts_with("netem in the kernel (tc: "));
        for other in ["Operation not permitted", "cannot start tc"] {
            let (what, _) = netem(other);
            assert_eq!(what, format!("tc netem ({other})"));
        }
        assert_eq!(huge_pages(false).0, "huge pages");
        assert!(huge_pages(true).0.starts_with("the right to "));
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let (what, how) = Need::Program("no-such-program-anywhere").missing().unwrap();
        assert!(what.contains("no-such-program-anywhere") && how.contains("install"));
        // As apt-get has it, whose packages mostly have other names than these programs.
        for (program, its) in [
            ("prlimit", "util-linux"),
            ("readelf", "binutils"),
            ("cc", "gcc"),
            ("gdb", "gdb"),
        ] {
            assert_eq!(package(program), its);
        }
        assert!(Need::Kernel(2, 6).missing().is_none());
        assert!(Need::Kernel(999, 0).missing().is_some());
        assert!(Need::Tracker("no such").missing().is_some());
    }
}
