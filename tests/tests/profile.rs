//! `ksnap profile` names who dirties the most, in its order.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Background, Ksnap, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Two functions in two threads, each of which writes to a mapping of its own: the first to nine times as many pages.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define MUCH 900
#define LITTLE 100

static char *memory;
static int tids[2];
static pthread_barrier_t barrier;

__attribute__((noinline)) static void writes_much(char *at, int n) {
    for (int page = 0; page < MUCH; page++) at[page * PAGE] = n;
}

__attribute__((noinline)) static void writes_little(char *at, int n) {
    for (int page = 0; page < LITTLE; page++) at[page * PAGE] = n;
}

static void *often(void *unused) {
    tids[0] = syscall(SYS_gettid);
    pthread_barrier_wait(&barrier);
    for (int n = 1;; n++) {
        writes_much(memory, n);
        usleep(1000);
    }
}

static void *seldom(void *unused) {
    tids[1] = syscall(SYS_gettid);
    pthread_barrier_wait(&barrier);
    for (int n = 1;; n++) {
        writes_little(memory + (MUCH + 1) * PAGE, n);
        usleep(1000);
    }
}

int main(void) {
    pthread_t threads[2];
    // With a page between them they are two mappings.
    memory = mmap(0, (MUCH + 1 + LITTLE) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(memory + MUCH * PAGE, PAGE, PROT_NONE);
    pthread_barrier_init(&barrier, 0, 3);
    pthread_create(&threads[0], 0, often, 0);
    pthread_create(&threads[1], 0, seldom, 0);
    pthread_barrier_wait(&barrier);
    printf("%lu %lu %d %d\n", (uintptr_t)memory, (uintptr_t)memory + (MUCH + 1) * PAGE, tids[0], tids[1]);
    fflush(stdout);
    pause();
}
"#;

fn build() -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let (source, binary) = (folder.path().join("writer.c"), folder.path().join("writer"));
    std::fs::write(&source, PROGRAM)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-g", "-O1", "-pthread", "-o"]);
    let built = compiler.args([&binary, &source]).output()?;
    ensure!(built.status.success(), "{built:?}");
    Ok((folder, binary))
}

/// The first two of a list, each with its share.
fn first_two(report: &Value, list: &str) -> Result<[(Value, f64); 2]> {
    let entry = |at: usize| -> Result<(Value, f64)> {
        let entry = &report[list][at];
        let share = entry["share"].as_f64();
        let share = share.with_context(|| format!("{list}: {report}"))?;
        Ok((entry.clone(), share))
    };
    Ok([entry(0)?, entry(1)?])
}

#[test]
fn who_dirties_the_most_is_first() -> Result<()> {
    require!(Root, Ksnap, Probes, Program("cc"));
    let ksnap = Ksnap::new()?;
    let (_folder, binary) = build()?;
    let mut writer = Background::start(Command::new(binary))?;
    let line = writer.line(LIMIT)?.context("it said nothing")?;
    let said: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let pid = writer.pid().to_string();
    let report = ["profile", &pid, "--every", "20ms", "--for", "1s"];
    let report = ksnap.json(&report)?.remove(0);
    let functions = ["writes_much", "writes_little"];
    let named = |n: usize, list: &str, entry: &Value| match list {
        "mappings" => entry["range"]["start"] == said[n],
        "threads" => entry["tid"] == said[2 + n],
        _ => entry["symbol"]["function"] == functions[n] && entry["symbol"]["line"].is_u64(),
    };
    for list in ["mappings", "instructions", "threads"] {
        let [(much, most), (little, rest)] = first_two(&report, list)?;
        let order = named(0, list, &much) && named(1, list, &little);
        ensure!(order, "{list}: {much} before {little}, of {said:?}");
        // Nine to one, less what is written elsewhere, and what a snapshot finds half written.
        ensure!(
            (0.7..=0.95).contains(&most) && (0.04..=0.25).contains(&rest),
            "{list}: {most} and {rest}"
        );
    }
    Ok(())
}
