use super::*;
use crate::model::{Backing, PAGE_SIZE, PageRange, Protection};
use proptest::prelude::*;

fn vma(start: u64, pages: u64, backing: Backing) -> Vma {
    Vma {
        range: PageRange::new(start, start + pages * PAGE_SIZE),
        prot: Protection::default(),
        shared: false,
        backing,
        flags: Vec::new(),
        build_id: None,
    }
}

fn costs(stop_ns: u64, dirty: u64) -> Costs {
    Costs {
        phases: Phases {
            stop_ns,
            scan_ns: stop_ns / 2,
            ..Phases::default()
        },
        pages: PageCounts {
            dirty,
            resident: 1000,
            ..PageCounts::default()
        },
        tracker: "wp".into(),
        target_cpu_ns: 1_000_000,
        bytes_in: 8192,
        bytes_out: 2048,
        ..Costs::default()
    }
}

#[test]
fn a_report_adds_up_what_the_snapshots_cost() {
    let mut recorder = Recorder::new();
    recorder.elapsed(100_000_000);
    recorder.fault_cost(2_000);
    recorder.snapshot(&Costs {
        full_scan: true,
        ..costs(4_000_000, 1000)
    });
    recorder.snapshot(&Costs {
        stop_seen_ns: Some(3_000_000),
        faults: 40,
        ring_drops: 2,
        ..costs(2_000_000, 50)
    });
    let report = recorder.report(&[]);
    assert_eq!(
        (report.snapshots, report.full_scans, report.ring_drops),
        (2, 1, 2)
    );
    assert_eq!(
        (report.stop.max_ns, report.stop.total_ns),
        (4_000_000, 6_000_000)
    );
    assert_eq!(
        report.stop_seen.map(|t| (t.count, t.max_ns)),
        Some((1, 3_000_000))
    );
    assert_eq!(report.phases.scan.total_ns, 3_000_000);
    assert_eq!(
        (report.pages.dirty.mean, report.pages.dirty.max),
        (525.0, 1000)
    );
    assert_eq!(report.ratio, Some(4.0));
    // The scheduler's word where there is one, else ksnap's clock.
    assert_eq!(report.overhead.stop.time_ns, 7_000_000);
    assert_eq!(report.overhead.stop.of_elapsed, Some(0.07));
    assert_eq!(
        (report.faults, report.fault_source),
        (40, FaultSource::Logged)
    );
    assert_eq!(report.overhead.faults.time_ns, 80_000);
    assert_eq!(report.overhead.faults.of_cpu, Some(0.04));
}

#[test]
fn without_probes_dirty_pages_stand_for_faults_and_hashing_has_none() {
    let mut recorder = Recorder::new();
    recorder.snapshot(&costs(1, 1000));
    recorder.snapshot(&costs(1, 50));
    let report = recorder.report(&[]);
    assert_eq!(
        (report.faults, report.fault_source),
        (50, FaultSource::DirtyPages)
    );
    recorder.snapshot(&Costs {
        tracker: "hash".into(),
        ..costs(1, 50)
    });
    let report = recorder.report(&[]);
    assert_eq!((report.faults, report.fault_source), (0, FaultSource::None));
}

#[test]
fn probes_and_cpu_time_count_from_their_first_reading() {
    let mut recorder = Recorder::new();
    recorder.snapshot(&costs(1, 1));
    assert_eq!(recorder.report(&[]).target_cpu_ns, 1_000_000);
    for (runs, ns, cpu) in [(100, 5_000, 70), (150, 9_000, 40_000_070)] {
        recorder.probe_time("sys_enter", runs, ns);
        recorder.target_cpu(cpu);
    }
    recorder.probe_time("page_fault_user", 7, 700);
    let report = recorder.report(&[]);
    assert_eq!(report.target_cpu_ns, 40_000_000);
    assert_eq!(
        (report.probes[0].runs, report.probes[0].time_ns),
        (50, 4_000)
    );
    assert_eq!(report.overhead.probes.time_ns, 4_000);
    assert_eq!(report.overhead.probes.of_cpu, Some(0.0001));
}

#[test]
fn a_report_survives_the_way_through_json() {
    let mut recorder = Recorder::new();
    recorder.snapshot(&costs(3_000_000, 9));
    recorder.fault(Fault {
        page: 0x5000,
        ip: 0x40_1000,
        tid: 3,
    });
    recorder.probe_time("exit", 1, 1);
    let mut report = recorder.report(&[vma(0x5000, 1, Backing::Heap)]);
    report.symbolize(i32::MAX, &[]);
    let json = serde_json::to_string(&report).expect("plain data");
    assert_eq!(
        serde_json::from_str::<Report>(&json).expect("the same data"),
        report
    );
}

proptest! {
    #[test]
    fn faults_by_mapping_instruction_and_thread_each_add_up(
        faults in proptest::collection::vec((0u64..32, 0u64..6, 1i32..5), 0..500)
    ) {
        let vmas = [
            vma(0, 8, Backing::Heap),
            vma(8 * PAGE_SIZE, 8, Backing::Stack),
            vma(20 * PAGE_SIZE, 8, Backing::Anonymous { name: None }),
        ];
        let mut recorder = Recorder::new();
        recorder.mappings(&vmas);
        recorder.faults(faults.iter().map(|&(page, ip, tid)| Fault { page: page * PAGE_SIZE, ip, tid }));
        let report = recorder.report(&vmas);
        let all = faults.len() as u64;
        let in_heap = faults.iter().filter(|f| f.0 < 8).count() as u64;
        prop_assert_eq!(report.mappings.iter().map(|m| m.faults).sum::<u64>() + report.unplaced_faults, all);
        let heap: u64 = report.mappings.iter().filter(|m| m.name == "[heap]").map(|m| m.faults).sum();
        prop_assert_eq!(heap, in_heap);
        prop_assert_eq!(report.instructions.iter().map(|i| i.faults).sum::<u64>(), all);
        prop_assert_eq!(report.threads.iter().map(|t| t.faults).sum::<u64>(), all);
        prop_assert!(report.threads.windows(2).all(|w| w[0].faults >= w[1].faults));
        prop_assert_eq!(report.faults, all);
    }
}
