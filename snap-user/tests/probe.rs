//! The probes on the running kernel, against victims in processes of their own.

mod probe_support;
mod skip;

use probe_support::{PAGES, Victim, act, drain_until, faults, probes, probes_with};
use snap_user::model::{PAGE_SIZE, PageRange};
use snap_user::probe::{Drained, Event, FaultSource, MappingKind, ProbeOptions};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The victims, which are this binary as well.
#[test]
fn victim() {
    act();
}

#[test]
fn every_freshly_written_page_has_a_fault_event_of_the_thread_that_wrote_it() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("writer");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    victim.go();
    victim.hear();

    let wanted: BTreeSet<u64> = PageRange::new(at, at + PAGES * PAGE_SIZE).iter().collect();
    let events = drain_until(&mut probes, |events| {
        wanted.is_subset(&faults(events, victim.pid()))
    });
    let seen = faults(&events, victim.pid());
    let missing: Vec<&u64> = wanted.difference(&seen).collect();
    assert!(
        missing.is_empty(),
        "{missing:x?} of {PAGES} pages are missing"
    );

    let threads = snap_user::sys::proc::threads(victim.pid() as i32).unwrap();
    let mut last = 0;
    for event in &events {
        if let Event::Fault {
            page,
            user,
            remote,
            ip,
            time_ns,
            tid,
            ..
        } = event
            && wanted.contains(page)
        {
            assert!(*user && !*remote && *ip != 0, "{event:?}");
            assert!(
                threads.contains(&(*tid as i32)) && *time_ns >= last,
                "{event:?}"
            );
            last = *time_ns;
        }
    }
}

#[test]
fn a_forked_child_is_tracked_from_its_first_write() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("forker");
    let at = victim.hear()[0];
    probes.track(victim.pid()).unwrap();
    victim.go();
    let child = victim.hear()[0] as u32;

    let ended = |events: &[Event]| {
        events
            .iter()
            .any(|e| matches!(e, Event::Exit { tgid, last: true, .. } if *tgid == child))
            && events
                .iter()
                .any(|e| matches!(e, Event::ThreadStart { .. }))
    };
    let events = drain_until(&mut probes, ended);
    assert!(ended(&events), "{:?}", events.last());
    let fork = events.iter().position(|e| {
        matches!(e, Event::Fork { parent, child: c, shares_memory: false, .. }
            if *parent == victim.pid() && *c == child)
    });
    let first = events
        .iter()
        .position(|e| matches!(e, Event::Fault { tgid, .. } if *tgid == child));
    assert!(fork.unwrap() < first.unwrap());
    let wanted: BTreeSet<u64> = PageRange::new(at, at + PAGES * PAGE_SIZE).iter().collect();
    assert!(wanted.is_subset(&faults(&events, child)));
    assert_eq!(
        probes.tracked().collect::<Vec<_>>(),
        [victim.pid()],
        "the child has ended"
    );
}

#[test]
fn mapping_changes_arrive_in_order_with_their_ranges() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("mapper");
    victim.hear();
    probes.track(victim.pid()).unwrap();
    victim.go();
    let told = victim.hear();
    let (at, moved) = (told[0], told[1]);

    let size = 8 * PAGE_SIZE;
    let whole = Some(PageRange::new(at, at + size));
    let half = Some(PageRange::new(at, at + size / 2));
    let grown = Some(PageRange::new(moved, moved + 4 * size));
    let dontneed = MappingKind::Madvise(libc::MADV_DONTNEED);
    let nohuge = MappingKind::Madvise(libc::MADV_NOHUGEPAGE);
    let wanted = [
        (MappingKind::Mmap, None, whole),
        (nohuge, whole, whole),
        (MappingKind::Mprotect, half, half),
        (dontneed, whole, whole),
        (MappingKind::Mprotect, whole, whole),
        (MappingKind::Mremap, whole, grown),
        (MappingKind::Munmap, grown, None),
    ];
    let changes = |events: &[Event]| -> Vec<_> {
        let change = |event: &Event| match event {
            Event::Mapping { tgid, change, .. } if *tgid == victim.pid() => {
                Some((change.kind, change.old, change.new))
            }
            _ => None,
        };
        events.iter().filter_map(change).collect()
    };
    let found = |events: &[Event]| changes(events).windows(7).any(|seven| seven == wanted);
    let events = drain_until(&mut probes, found);
    assert!(found(&events), "{:x?}", changes(&events));
}

#[test]
fn a_ring_that_is_too_small_counts_what_it_loses() {
    let Some(mut probes) = probes_with(&ProbeOptions {
        ring_bytes: 4096,
        ..Default::default()
    }) else {
        return;
    };
    let mut victim = Victim::start("writer");
    victim.hear();
    assert_eq!(
        probes.drain(|_| {}),
        Drained {
            events: 0,
            drops_total: 0
        }
    );
    probes.track(victim.pid()).unwrap();
    victim.go();
    victim.hear();
    let drained = probes.drain(|_| {});
    assert!(drained.drops_total > 0 && drained.events > 0, "{drained:?}");
    assert!(drained.events + drained.drops_total >= PAGES, "{drained:?}");
}

#[test]
fn a_ptrace_stop_is_timed_as_the_thread_saw_it() {
    use nix::sys::{ptrace, wait};
    let Some(mut probes) = probes() else { return };
    if !probes.times_stops() {
        skip::skip(
            "the state of a task in sched_switch",
            "use Linux 5.18 or newer",
        );
        return;
    }
    let mut victim = Victim::start("idle");
    victim.hear();
    probes.track(victim.pid()).unwrap();
    let pid = nix::unistd::Pid::from_raw(victim.pid() as i32);
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    let pause = Duration::from_millis(30);
    let begun = Instant::now();
    ptrace::interrupt(pid).unwrap();
    wait::waitpid(pid, None).unwrap();
    std::thread::sleep(pause);
    ptrace::detach(pid, None).unwrap();

    let stop = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::Stopped {
                tgid,
                tid,
                start_ns,
                end_ns,
            } if *tgid == victim.pid() => Some((*tid, Duration::from_nanos(end_ns - start_ns))),
            _ => None,
        })
    };
    let events = drain_until(&mut probes, |events| stop(events).is_some());
    let (tid, length) = stop(&events).expect("an event for the stop");
    assert_eq!(tid, victim.pid());
    // It began and ended while this one looked.
    assert!(length >= pause && length < begun.elapsed(), "{length:?}");
}

#[test]
fn programs_are_attached_only_while_something_is_tracked_and_gone_afterwards() {
    let Some(mut probes) = probes() else { return };
    let victim = Victim::start("idle");
    assert!(!probes.is_attached());
    probes.track(victim.pid()).unwrap();
    assert!(probes.is_attached());
    probes.untrack(victim.pid()).unwrap();
    assert!(!probes.is_attached());

    probes.track(victim.pid()).unwrap();
    drop(victim);
    drain_until(&mut probes, |events| {
        events
            .iter()
            .any(|e| matches!(e, Event::Exit { last: true, .. }))
    });
    assert!(!probes.is_attached(), "the last target has ended");
}

/// Which of these programs the kernel still has.
fn still_loaded(ids: &[u64]) -> usize {
    aya::programs::loaded_programs()
        .filter(|program| {
            program
                .as_ref()
                .is_ok_and(|p| ids.contains(&u64::from(p.id())))
        })
        .count()
}

#[test]
fn a_killed_ksnap_leaves_no_program_behind() {
    if probes().is_none() {
        return;
    }
    let mut watcher = Victim::start("watcher");
    let ids = watcher.hear();
    assert!(ids.len() >= 6);
    assert_eq!(still_loaded(&ids), ids.len());
    watcher.child.kill().unwrap();
    watcher.child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // The kernel frees programs after a grace period.
    while still_loaded(&ids) > 0 {
        assert!(
            Instant::now() < deadline,
            "{} programs are left",
            still_loaded(&ids)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn statistics_count_runs_and_time() {
    let Some(mut probes) = probes() else { return };
    let mut victim = Victim::start("writer");
    victim.hear();
    probes.count_costs(true).unwrap();
    probes.track(victim.pid()).unwrap();
    victim.go();
    victim.hear();
    let stats = probes.program_stats().unwrap();
    let of = |name: &str| stats.iter().find(|s| s.name == name).copied();
    let fault = match probes.fault_source() {
        FaultSource::HandleMmFault => of("handle_mm_fault"),
        FaultSource::Tracepoints => of("page_fault_user"),
    }
    .unwrap();
    assert!(
        fault.run_count >= PAGES && !fault.run_time.is_zero(),
        "{stats:?}"
    );
    assert!(of("sys_exit").unwrap().run_count > 0, "{stats:?}");
}
