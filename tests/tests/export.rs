//! `ksnap export --core` and `ksnap gdb`: any snapshot in a debugger.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::footprint::{call_of, threads_of};
use tests::{Background, Ksnap, require};

const LIMIT: Duration = Duration::from_secs(60);

/// What pause(3) of the C library calls.
#[cfg(target_arch = "x86_64")]
const PAUSE: i64 = libc::SYS_pause;
#[cfg(not(target_arch = "x86_64"))]
const PAUSE: i64 = libc::SYS_ppoll;

/// Four threads, each deep in functions of its own name, and a global that grows on request.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

volatile unsigned long generation = 1000;
unsigned long *far_away;
static pthread_barrier_t ready;

static void wait_here(int depth) {
    char local[64];
    snprintf(local, sizeof local, "depth %d", depth);
    if (depth > 0) { wait_here(depth - 1); __asm__ volatile("" :: "r"(local)); return; }
    pthread_barrier_wait(&ready);
    for (;;) pause();
}

static void *alpha_worker(void *argument) { wait_here(3); return argument; }
static void *beta_worker(void *argument) { wait_here(7); return argument; }
static void *gamma_spins(void *argument) {
    volatile unsigned long turns = 0;
    pthread_barrier_wait(&ready);
    for (;;) turns++;
    return argument;
}

int main(void) {
    pthread_t threads[3];
    pthread_barrier_init(&ready, NULL, 4);
    /* Terabytes reserved, little used: no file of that length may come of it. */
    char *wide = mmap(NULL, 1UL << 42, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    far_away = (unsigned long *)(wide + (1UL << 41));
    *far_away = 77;
    pthread_create(&threads[0], NULL, alpha_worker, NULL);
    pthread_create(&threads[1], NULL, beta_worker, NULL);
    pthread_create(&threads[2], NULL, gamma_spins, NULL);
    pthread_barrier_wait(&ready);
    puts("ready");
    fflush(stdout);
    while (getchar() == '\n') {
        generation++;
        *far_away *= 3;
        puts("done");
        fflush(stdout);
    }
    return 0;
}
"#;

struct Program {
    process: Background,
    binary: PathBuf,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (source, binary) = (folder.path().join("deep.c"), folder.path().join("deep"));
        std::fs::write(&source, PROGRAM)?;
        let built = Command::new("cc")
            .args(["-g", "-O0", "-pthread", "-Wl,--build-id", "-o"])
            .args([&binary, &source])
            .output()?;
        ensure!(built.status.success(), "{built:?}");
        let mut program = Self {
            process: Background::start(Command::new(&binary))?,
            binary,
            _folder: folder,
        };
        program.says("ready")?;
        // Two threads that may not have come to their pause yet.
        let end = Instant::now() + LIMIT;
        let pauses = |tid: &i32| call_of(*tid).is_some_and(|(call, _)| call == PAUSE);
        while threads_of(program.process.pid())?
            .into_iter()
            .filter(pauses)
            .count()
            < 2
        {
            ensure!(Instant::now() < end, "its threads do not pause");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(program)
    }

    fn says(&mut self, word: &str) -> Result<()> {
        let line = self.process.line(LIMIT)?;
        ensure!(line.as_deref() == Some(word), "{line:?}");
        Ok(())
    }

    fn next_generation(&mut self) -> Result<()> {
        use std::io::Write;
        self.process.stdin()?.write_all(b"\n")?;
        self.says("done")
    }
}

/// Runs gdb without a terminal and without anyone's settings.
fn gdb(arguments: &[&str]) -> Result<String> {
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-iex", "set debuginfod enabled off"])
        .args(arguments)
        .output()
        .context("gdb")?;
    Ok(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// The frames of each thread, by the function that it began with.
fn frames<'a>(text: &'a str, root: &str) -> Result<Vec<&'a str>> {
    text.split("\nThread ")
        .skip(1)
        .map(|thread| thread.lines().filter(|line| line.starts_with('#')))
        .map(|frames| frames.collect::<Vec<_>>())
        .find(|frames| frames.iter().any(|line| line.contains(root)))
        .with_context(|| format!("no thread in {root}: {text}"))
}

fn has_all_backtraces(text: &str) -> Result<()> {
    for (root, depth) in [("alpha_worker", 4), ("beta_worker", 8)] {
        let frames = frames(text, root)?;
        let inner = frames.iter().filter(|line| line.contains("wait_here"));
        ensure!(inner.count() == depth, "{root}: {text}");
        // The innermost frame is in the C library, whose code is in its file alone.
        ensure!(frames[0].contains("pause"), "{root}: {text}");
    }
    ensure!(!frames(text, "gamma_spins")?.is_empty());
    ensure!(
        frames(text, "main")?
            .iter()
            .any(|line| line.contains("deep.c"))
    );
    Ok(())
}

#[test]
fn gdb_sees_every_thread_and_the_values_of_each_snapshot() -> Result<()> {
    require!(Root, Ksnap, Program("gdb"), Program("cc"));
    let ksnap = Ksnap::new()?;
    let mut program = Program::start()?;
    let pid = program.process.pid().to_string();
    let mut values = Vec::new();
    let mut far = 77u64;
    for generation in 1000..1004 {
        ksnap.ok(&["snap", &pid, "--audit"])?;
        values.push((generation, far));
        program.next_generation()?;
        far *= 3;
    }
    let binary = program.binary.to_str().context("a path")?.to_owned();
    for (n, (generation, far)) in values.iter().enumerate() {
        let core = program.binary.with_extension(format!("core{n}"));
        let core = core.to_str().context("a path")?;
        let reference = format!("@{}", n + 1);
        let told = ksnap
            .json(&["export", &reference, "--core", core])?
            .remove(0);
        ensure!(told["threads"] == 4, "{told}");
        ensure!(told["exe"] == binary.as_str(), "{told}");
        let text = gdb(&[
            &binary,
            core,
            "-ex",
            "thread apply all backtrace",
            "-ex",
            "print generation",
            "-ex",
            "print *far_away",
            "-ex",
            "print ((char *)far_away)[-0x40000000]",
        ])?;
        has_all_backtraces(&text)?;
        for complaint in ["Unexpected size", "Failed to read", "may not match"] {
            ensure!(!text.contains(complaint), "{text}");
        }
        for want in [
            format!("$1 = {generation}"),
            format!("$2 = {far}"),
            // Reserved and never touched.
            "$3 = 0".into(),
        ] {
            ensure!(text.contains(&want), "no {want}: {text}");
        }
        is_sparse(core, &told)?;
    }
    // Through the verb, which leaves nothing behind.
    let temporary = tempfile::tempdir()?;
    let mut command = ksnap.command();
    command
        .env("TMPDIR", temporary.path())
        .args(["gdb", "@2", "--", "-nx", "-batch"])
        .args(["-iex", "set debuginfod enabled off"])
        .args([
            "-ex",
            "print generation",
            "-ex",
            "thread apply all backtrace",
        ]);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("$1 = 1001"),
        "{output:?}"
    );
    has_all_backtraces(&text)?;
    ensure!(std::fs::read_dir(temporary.path())?.next().is_none());
    // The program itself felt nothing of all this.
    program.next_generation()
}

/// Two terabytes lie before the page far away; only what has content takes room.
fn is_sparse(core: &str, told: &serde_json::Value) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(core)?;
    let (bytes, written) = (told["bytes"].as_u64(), told["written"].as_u64());
    ensure!(bytes == Some(found.len()), "{told} {found:?}");
    ensure!(found.len() < 1 << 30, "{found:?}");
    // Rounded up to blocks for each piece.
    let most = written.context("no count")? + (64 << 10) * 16;
    ensure!(found.blocks() * 512 <= most, "{told} {found:?}");
    ensure!(found.mode() & 0o777 == 0o600, "{found:?}");
    Ok(())
}

#[test]
fn readers_agree_on_the_core_of_a_program_with_open_libraries() -> Result<()> {
    require!(
        Root,
        Ksnap,
        Program("python3"),
        Program("gdb"),
        Program("readelf")
    );
    let ksnap = Ksnap::new()?;
    let mut command = Command::new("python3");
    command.args([
        "-c",
        "import mmap,json,sqlite3,sys; m=mmap.mmap(-1, 1<<20); m[5000:5005]=b'KSNAP'; print('ready', flush=True); sys.stdin.read()",
    ]);
    let mut python = Background::start(command)?;
    ensure!(python.line(LIMIT)?.as_deref() == Some("ready"));
    let folder = tempfile::tempdir()?;
    let core = folder.path().join("core");
    let core = core.to_str().context("a path")?;
    let pid = python.pid().to_string();
    ksnap.ok(&["snap", &pid, "--audit"])?;
    let told = ksnap.json(&["export", "latest", "--core", core])?.remove(0);
    let read = Command::new("readelf")
        .args(["-l", "-n", "-h", core])
        .output()?;
    let text = String::from_utf8_lossy(&read.stdout);
    ensure!(read.status.success() && read.stderr.is_empty(), "{read:?}");
    for part in [
        "CORE (Core file)",
        "NT_PRSTATUS",
        "NT_FILE",
        "NT_AUXV",
        "NT_X86_XSTATE",
    ] {
        ensure!(text.contains(part), "no {part}: {text}");
    }
    let loads = text
        .lines()
        .filter(|line| line.trim_start().starts_with("LOAD"));
    ensure!(
        Some(loads.count() as u64) == told["segments"].as_u64(),
        "{told} {text}"
    );
    let exe = told["exe"].as_str().context("no executable")?;
    let text = gdb(&[exe, core, "-ex", "info sharedlibrary", "-ex", "backtrace"])?;
    ensure!(text.contains("libc.so.6"), "{text}");
    ensure!(text.contains("Py_BytesMain"), "{text}");
    has_shared_memory(core, python.pid())
}

/// Shared anonymous memory is in the core.
fn has_shared_memory(core: &str, pid: i32) -> Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.contains("/dev/zero"))
        .context("no shared memory")?;
    let start = u64::from_str_radix(line.split('-').next().context("no start")?, 16)?;
    let text = gdb(&["-c", core, "-ex", &format!("x/5cb {:#x}", start + 5000)])?;
    ensure!(text.contains("75 'K'") && text.contains("80 'P'"), "{text}");
    Ok(())
}

#[test]
fn an_export_replaces_nothing_unasked_and_leaves_nothing_when_it_fails() -> Result<()> {
    require!(Root, Ksnap, Mount);
    let ksnap = Ksnap::new()?;
    let victim = tests::Victim::spawn("counter", &["--mib", "8"])?;
    ksnap.ok(&["snap", &victim.pid().to_string()])?;
    let folder = tempfile::tempdir()?;
    let core = folder.path().join("core");
    let name = core.to_str().context("a path")?;
    std::fs::write(&core, "precious")?;
    let refused = ksnap.run(&["export", "latest", "--core", name])?;
    ensure!(
        refused.code()? == 2 && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    ensure!(std::fs::read(&core)? == b"precious");
    ksnap.ok(&["export", "latest", "--core", name, "--force"])?;
    ensure!(std::fs::read(&core)?.starts_with(b"\x7fELF"));
    let refused = ksnap.run(&["export", "latest", "--core", "/dev/null", "--force"])?;
    ensure!(
        refused.code()? == 2 && refused.stderr.contains("regular file"),
        "{refused:?}"
    );
    full_disk(&ksnap, folder.path())?;
    victim.quit()
}

/// On a file system of 1 MiB, the export fails, says so, and what was there before is still there.
fn full_disk(ksnap: &Ksnap, folder: &Path) -> Result<()> {
    let small = folder.join("small");
    std::fs::create_dir(&small)?;
    let mut command = Command::new("unshare");
    let script = r#"mount -t tmpfs -o size=1m small "$1" && cd "$1" && echo old > core || exit 99
        shift; "$@" export latest --core core --force; code=$?
        [ "$(cat core)" = old ] && [ "$(ls -A)" = core ] && exit $code; ls -la; exit 98"#;
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&small);
    let tool = ksnap.command();
    command.arg(tool.get_program()).args(tool.get_args());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(text.contains("another file system"), "{text}");
    Ok(())
}
