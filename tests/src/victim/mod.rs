//! The victim programs: each holds one kind of kernel state, works on it in a loop, and checks itself.
//!
//! `victim NAME [ARGS]` prepares, prints one line of JSON (`{"ready":true,"pid":…,"poke":{…}}`), works, and
//! answers [`protocol`] requests on stdin. The moment it finds an invariant broken it says which on stderr
//! and exits with [`fault::BROKEN`].
//!
//! # What a rollback does to a victim
//!
//! Memory and registers go back; clocks, pipe contents, queued signals, children and files do not. Every
//! victim keeps its invariants in memory, so they hold on both sides of a rollback. Victims that also count
//! messages through the kernel (`blocked`, `signals`, `fork`, …) demand that none is lost or repeated, unless
//! `--rollbacks` says that the test is going to roll them back.
//!
//! | file | what it is |
//! |---|---|
//! | [`args`], [`protocol`], [`fault`] | command line, line protocol, the one way to fail |
//! | [`workers`], [`pace`], [`rng`] | threads with a heart beat, a work rate, random numbers |
//! | [`page`], [`table`], [`mem`] | self-describing pages, a table of them, mappings |
//! | [`family`] | processes of one victim, and what they share |
//! | the others | one victim each |

pub mod args;
pub mod attributes;
pub mod avx;
pub mod blocked;
pub mod clocks;
pub mod counter;
pub mod deepstack;
pub mod dontneed;
pub mod exec;
pub mod family;
pub mod fault;
pub mod filemap;
pub mod files;
pub mod fork;
pub mod gup;
pub mod hugepages;
pub mod maps;
pub mod mem;
pub mod pace;
pub mod page;
pub mod private;
pub mod protocol;
pub mod rng;
pub mod rseq;
pub mod session;
pub mod shared;
pub mod signals;
pub mod simd;
pub mod sparse;
pub mod table;
pub mod threads;
pub mod tree;
pub mod uffd;
pub mod workers;

use anyhow::{Result, bail};
use args::Args;
use protocol::Started;

type Start = fn(&Args) -> Result<Started>;

/// Every victim: its name, what it holds, and how it starts.
pub const VICTIMS: &[(&str, &str, Start)] = &[
    (
        "counter",
        "a large table, several threads, AVX registers, a counter",
        counter::start,
    ),
    ("threads", "threads coming and going", threads::start),
    (
        "maps",
        "mmap, munmap, mremap, mprotect and brk churn",
        maps::start,
    ),
    (
        "dontneed",
        "memory that goes away without a write",
        dontneed::start,
    ),
    (
        "fork",
        "children that write copy-on-write memory",
        fork::start,
    ),
    ("exec", "a program that re-executes itself", exec::start),
    (
        "deepstack",
        "deep recursion on two stacks",
        deepstack::start,
    ),
    ("hugepages", "transparent huge pages", hugepages::start),
    (
        "shared",
        "memory shared with a second process",
        shared::start,
    ),
    (
        "filemap",
        "private and shared mappings of files",
        filemap::start,
    ),
    (
        "blocked",
        "asleep in one kind of system call",
        blocked::start,
    ),
    (
        "signals",
        "a storm of signals, all accounted for",
        signals::start,
    ),
    (
        "avx",
        "busy threads with known vector registers",
        avx::start,
    ),
    ("rseq", "restartable sequences", rseq::start),
    ("clocks", "the time, asked for in every way", clocks::start),
    (
        "gup",
        "memory that the kernel writes past the page tables",
        gup::start,
    ),
    (
        "attributes",
        "signal dispositions, timers, ids, limits, scheduling",
        attributes::start,
    ),
    (
        "files",
        "open files of one kind, all that a program sees of them",
        files::start,
    ),
    ("sparse", "much address space and few pages", sparse::start),
    ("uffd", "a record of its own writes", uffd::start),
    (
        "tree",
        "a parent, a child, a grandchild and a zombie",
        tree::start,
    ),
    (
        "session",
        "a session with its terminal and the one who holds that",
        session::start,
    ),
];

/// The whole program: parses the command line, starts the victim and serves the protocol until `quit`.
pub fn main() -> ! {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => usage(&format!("{error:#}")),
    };
    fault::name_program(&args.name);
    // A panic in any thread is a broken victim, not a thread less.
    std::panic::set_hook(Box::new(|panic| fault::broken(panic)));
    let started = find(&args.name)
        .and_then(|start| start(&args))
        .and_then(|started| {
            args.all_used()?;
            Ok(started)
        });
    match started {
        Ok(started) => protocol::run(&args.name, started),
        Err(error) => usage(&format!("{error:#}")),
    }
}

fn find(name: &str) -> Result<Start> {
    match VICTIMS.iter().find(|victim| victim.0 == name) {
        Some(victim) => Ok(victim.2),
        None => bail!("there is no victim called {name:?}"),
    }
}

fn usage(problem: &str) -> ! {
    eprintln!("victim: {problem}\n\nusage: victim NAME [ARGS]\n");
    for (name, about, _) in VICTIMS {
        eprintln!("  {name:10} {about}");
    }
    std::process::exit(fault::USAGE)
}
