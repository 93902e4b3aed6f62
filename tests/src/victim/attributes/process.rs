//! What all threads of a process share.

use super::{Item, call, prctl, same};
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::mem::zeroed;

/// A file of /proc/self that holds a number.
fn file(name: &str, base: u32) -> Result<u64, String> {
    let path = format!("/proc/self/{name}");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    u64::from_str_radix(text.trim(), base).map_err(|e| format!("{path}: {e}"))
}

fn write(name: &str, content: &str) -> Result<(), String> {
    let path = format!("/proc/self/{name}");
    let told = |e| format!("{path}: {e}");
    match std::fs::write(&path, content) {
        // The files of a process that may not be dumped are root's.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let before = prctl(libc::PR_GET_DUMPABLE, [0; 4])?;
            prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0])?;
            let written = std::fs::write(&path, content).map_err(told);
            prctl(libc::PR_SET_DUMPABLE, [before, 0, 0, 0])?;
            written
        }
        done => done.map_err(told),
    }
}

fn soft_limit(name: &'static str, which: u32, want: fn(u64) -> u64) -> Item {
    let get = move || -> Result<libc::rlimit, String> {
        // SAFETY: a zeroed structure that the call fills.
        unsafe {
            let mut limit: libc::rlimit = zeroed();
            call("getrlimit", libc::getrlimit(which as _, &mut limit).into())?;
            Ok(limit)
        }
    };
    Item::number(
        name,
        want,
        move |to| {
            let limit = libc::rlimit {
                rlim_cur: to,
                ..get()?
            };
            // SAFETY: a live structure.
            call(
                "setrlimit",
                unsafe { libc::setrlimit(which as _, &limit) }.into(),
            )
            .map(drop)
        },
        move || Ok(get()?.rlim_cur),
    )
}

fn flag(round: u64) -> u64 {
    round / 2 % 2
}

/// The items.
pub fn items(_: u64) -> Result<Vec<Item>> {
    let folder = std::env::temp_dir();
    let places: Vec<_> = (0..3).map(|n| folder.join(format!("place-{n}"))).collect();
    for place in &places {
        std::fs::create_dir_all(place).with_context(|| format!("{}", place.display()))?;
    }
    let there = places.clone();
    Ok(vec![
        Item::number(
            "the umask",
            |round| round * 7 % 0o1000,
            // SAFETY: takes an integer.
            |to| {
                // SAFETY: takes an integer.
                unsafe { libc::umask(to as libc::mode_t) };
                Ok(())
            },
            || {
                let status =
                    std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
                let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
                let digits = line.ok_or("no umask")?.trim();
                u64::from_str_radix(digits, 8).map_err(|e| e.to_string())
            },
        ),
        Item::new(
            "the working directory",
            move |round| {
                let to = &places[(round % 3) as usize];
                std::env::set_current_dir(to).map_err(|e| e.to_string())
            },
            move |round| {
                let now = std::env::current_dir().map_err(|e| e.to_string())?;
                same(&now, &there[(round % 3) as usize])
            },
        ),
        soft_limit("RLIMIT_CORE", libc::RLIMIT_CORE, |round| round % 9 * 4096),
        soft_limit("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING, |round| {
            100 + round % 50
        }),
        Item::number(
            "what a core dump has",
            |round| 0x33 ^ (round % 8),
            |to| write("coredump_filter", &to.to_string()),
            || file("coredump_filter", 16),
        ),
        Item::number(
            "oom_score_adj",
            |round| 100 + round % 100,
            |to| write("oom_score_adj", &to.to_string()),
            || file("oom_score_adj", 10),
        ),
        Item::number(
            "being a subreaper",
            flag,
            |to| prctl(libc::PR_SET_CHILD_SUBREAPER, [to, 0, 0, 0]).map(drop),
            || {
                let mut now = 0i32;
                prctl(libc::PR_GET_CHILD_SUBREAPER, [&raw mut now as u64, 0, 0, 0])?;
                Ok(now as u64)
            },
        ),
        Item::number(
            "whether huge pages are disabled",
            flag,
            |to| prctl(libc::PR_SET_THP_DISABLE, [to, 0, 0, 0]).map(drop),
            || prctl(libc::PR_GET_THP_DISABLE, [0; 4]),
        ),
        Item::number(
            "whether it may be dumped",
            flag,
            |to| prctl(libc::PR_SET_DUMPABLE, [to, 0, 0, 0]).map(drop),
            || prctl(libc::PR_GET_DUMPABLE, [0; 4]),
        ),
    ])
}
