//! Writes that no page fault announces are hazards, with whose memory and which part of it they may change.

mod probe_support;
mod skip;

use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use probe_support::{Victim, act, drain_until, probes, probes_with};
use snap_user::model::{PAGE_SIZE, PageRange};
use snap_user::probe::{Event, HazardKind, ProbeOptions};
use std::io::IoSlice;

/// The victims, which are this binary as well.
#[test]
fn victim() {
    act();
}

/// As a debugger does, past the page tables of the victim.
fn write_into(victim: &Victim, at: u64) {
    let pid = Pid::from_raw(victim.pid() as i32);
    let remote = [RemoteIoVec {
        base: at as usize,
        len: 4,
    }];
    let written = process_vm_writev(pid, &[IoSlice::new(b"text")], &remote);
    assert_eq!(written, Ok(4));
}

#[test]
fn a_write_by_another_process_is_a_remote_fault_or_a_hazard() {
    // Nobody's id: this process is the stranger here.
    let Some(mut probes) = probes_with(&ProbeOptions {
        own_tgid: 0,
        ..Default::default()
    }) else {
        return;
    };
    let mut victim = Victim::start("idle");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    write_into(&victim, at);

    let (locks, faults_too) = (probes.sees_page_locks(), probes.sees_gup_writes());
    let told = |events: &[Event]| {
        let hazard = |wanted: HazardKind, process: Option<u32>| {
            events.iter().any(|e| {
                matches!(e, Event::Hazard { kind, tgid, .. } if *kind == wanted && *tgid == process)
            })
        };
        let fault = events.iter().any(|e| {
            matches!(e, Event::Fault { page, remote: true, tgid, .. } if *page == at && *tgid == victim.pid())
        });
        let lock = hazard(HazardKind::PageLock { syscall: None }, Some(victim.pid()));
        (fault || !faults_too) && (lock || !locks) && hazard(HazardKind::RemoteWrite, None)
    };
    let events = drain_until(&mut probes, told);
    assert!(told(&events), "{events:?}");
}

#[test]
fn ksnap_s_own_writes_are_no_hazard() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("idle");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    write_into(&victim, at);
    let mine = |event: &Event| matches!(event, Event::Hazard { tid, .. } if *tid == nix::unistd::gettid().as_raw() as u32);
    let mut events = Vec::new();
    probes.drain(|event| events.push(*event));
    assert!(!events.iter().any(mine), "{events:?}");
}

#[test]
fn direct_reads_are_hazards_with_the_range_of_each_buffer() {
    let Some(mut probes) = probes() else { return };
    // Beside this program: /tmp is often a file system without O_DIRECT.
    let folder = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(folder.parent().unwrap()).unwrap();
    std::fs::write(file.path(), [7; 6 * PAGE_SIZE as usize]).unwrap();
    let direct = {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(file.path())
    };
    if let Err(error) = direct {
        skip::skip(
            &format!("O_DIRECT on {} ({error})", file.path().display()),
            "build on a file system that has it: set CARGO_TARGET_DIR",
        );
        return;
    }
    let mut victim = Victim::start_on("direct-reader", file.path());
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    victim.go();
    assert_eq!(victim.hear(), [5 * PAGE_SIZE], "the reads worked");

    let range = |page: u64, pages: u64| {
        PageRange::new(at + page * PAGE_SIZE, at + (page + pages) * PAGE_SIZE)
    };
    let wanted = [range(0, 2), range(2, 1), range(4, 2)];
    let ranges = |events: &[Event]| -> Vec<PageRange> {
        let range = |event: &Event| match event {
            Event::Hazard {
                kind: HazardKind::DirectRead,
                tgid,
                range,
                ..
            } => {
                assert_eq!(*tgid, Some(victim.pid()));
                *range
            }
            _ => None,
        };
        events.iter().filter_map(range).collect()
    };
    let events = drain_until(&mut probes, |events| ranges(events).len() >= wanted.len());
    assert_eq!(ranges(&events), wanted);
    // tmpfs takes O_DIRECT and copies all the same: then there are fault events instead.
    let file_system = nix::sys::statfs::statfs(file.path())
        .unwrap()
        .filesystem_type();
    if probes.sees_page_locks() && file_system != nix::sys::statfs::TMPFS_MAGIC {
        let lock = HazardKind::PageLock {
            syscall: Some(libc::SYS_pread64 as u32),
        };
        let is_lock = |e: &Event| matches!(e, Event::Hazard { kind, .. } if *kind == lock);
        assert!(events.iter().any(is_lock), "the lock is seen: {events:?}");
    }
}
