use super::*;
use crate::model::PageRange;
use crate::profile::{
    HotInstruction, HotMapping, Overhead, PageStats, PhaseTimes, ProbeCost, Symbol,
};

fn times(p50_ns: u64) -> Times {
    Times {
        count: 40,
        total_ns: p50_ns * 44,
        p50_ns,
        p90_ns: p50_ns * 2,
        p99_ns: p50_ns * 5,
        max_ns: p50_ns * 7,
    }
}

fn size(mean: f64, max: u64) -> Size {
    Size { mean, max }
}

fn report() -> Report {
    Report {
        snapshots: 40,
        full_scans: 1,
        tracker: "wp".into(),
        elapsed_ns: 4_020_000_000,
        target_cpu_ns: 2_300_000_000,
        stop: times(812_000),
        stop_seen: Some(times(790_400)),
        phases: PhaseTimes {
            precopy: times(3_100_000),
            pauses: times(1_200_000),
            freeze: times(71_000),
            scan: times(102_000),
            copy: times(512_345),
            state: times(96_000),
            thaw: times(999),
            encode: times(9_994_999),
            write: times(2_000_000),
            sync: times(31_000_000),
        },
        pages: PageStats {
            resident: size(262_144.4, 262_500),
            scanned: size(9_000.0, 262_500),
            dirty: size(5_210.5, 14_002),
            copied: size(6_000.0, 16_000),
            copied_stopped: size(410.0, 1_003),
            changed: size(5_100.0, 14_000),
        },
        bytes_in: 983_040_000,
        bytes_out: 201_326_592,
        ratio: Some(4.88),
        ring_drops: 0,
        faults: 208_420,
        fault_source: FaultSource::Logged,
        fault_cost_ns: 1_430,
        overhead: Overhead::new(
            35_728_000,
            298_040_600,
            41_684_000,
            2_300_000_000,
            4_020_000_000,
        ),
        probes: vec![ProbeCost {
            name: "page_fault_user".into(),
            runs: 210_000,
            time_ns: 41_684_000,
        }],
        mappings: vec![
            HotMapping {
                range: PageRange::new(0x7000_0000_0000, 0x7000_4000_0000),
                name: "[anonymous]".into(),
                mapped: true,
                faults: 200_000,
                share: 0.9596,
            },
            HotMapping {
                range: PageRange::new(0x5000_0000, 0x5002_1000),
                name: "[heap]".into(),
                mapped: true,
                faults: 8_000,
                share: 0.0384,
            },
        ],
        unplaced_faults: 0,
        instructions: vec![
            HotInstruction {
                ip: 0x7f00_1234,
                faults: 190_000,
                faults_at_most: 190_000,
                share: 0.9116,
                symbol: Some(Symbol {
                    function: Some("__memmove_avx_unaligned_erms".into()),
                    offset: 0x1f4,
                    module: "/usr/lib/x86_64-linux-gnu/libc.so.6".into(),
                    file: None,
                    line: None,
                }),
            },
            HotInstruction {
                ip: 0x40_1234,
                faults: 9_000,
                faults_at_most: 9_000,
                share: 0.0432,
                symbol: None,
            },
        ],
        threads: Vec::new(),
    }
}

#[test]
fn what_cost_more_than_a_process_runs_is_more_than_all_of_its_time() {
    let report = Report {
        overhead: Overhead::new(45_524_000, 0, 0, 1_000_000, 4_020_000_000),
        ..report()
    };
    let text = report.text();
    let line = text.lines().find(|line| line.contains("being stopped"));
    let line = line.expect("a line on stops");
    assert!(
        line.contains("1.1 %") && line.ends_with("> 100 %"),
        "{line}"
    );
}

#[test]
fn the_table_reads_like_this() {
    let expected = include_str!("expected.txt");
    let text = report().text();
    assert_eq!(text, expected, "\n--- got ---\n{text}");
}

#[test]
fn the_table_stays_narrow_and_short_whatever_the_numbers() {
    let mut large = report();
    large.stop = times(u64::MAX / 400);
    large.pages.resident = size(1e9, 1 << 30);
    large.mappings[0].name = "/a/very/long/path".repeat(20);
    large.instructions[0].symbol.as_mut().unwrap().function = Some("f::<T>".repeat(50));
    large.mappings = vec![large.mappings[0].clone(); 20];
    large.instructions = vec![large.instructions[0].clone(); 20];
    for report in [report(), large, Report::default()] {
        let text = report.text();
        assert!(text.lines().count() <= 34, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn what_is_not_known_is_left_out_or_dashed() {
    let text = Report::default().text();
    assert!(!text.contains("scheduler"), "{text}");
    assert!(!text.contains("Who writes"), "{text}");
    assert!(text.contains("–"), "{text}");
}

#[test]
fn numbers_have_their_units_and_three_digits() {
    let got: Vec<String> = [
        0,
        999,
        1_000,
        9_994_999,
        99_949_000,
        1_500_000_000,
        3_600_000_000_000,
    ]
    .map(duration)
    .to_vec();
    assert_eq!(
        got,
        [
            "0 ns", "999 ns", "1.00 µs", "9.99 ms", "99.9 ms", "1.50 s", "3600 s"
        ]
    );
    assert_eq!(
        [0, 1, 1023, 4096, 5 << 20, 3 << 30].map(bytes).to_vec(),
        [
            "no bytes",
            "1 byte",
            "1,023 bytes",
            "4.00 KiB",
            "5.00 MiB",
            "3.00 GiB"
        ]
    );
    assert_eq!(
        [1, 999, 1_000, 1_234_567].map(grouped).to_vec(),
        ["1", "999", "1,000", "1,234,567"]
    );
}
