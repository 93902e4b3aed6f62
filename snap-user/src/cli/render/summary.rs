//! What a watch did, when it is over.

use super::Style;
use super::human;
use super::table::{Align, Table};
use crate::session::{Ended, Summary, Watched};
use serde_json::json;
use std::io::{self, Write};

/// The line of JSON on one process.
pub fn json(pid: i32, summary: &Summary) -> serde_json::Value {
    let (ended, code) = match summary.ended {
        Ended::Count => ("count", None),
        Ended::Time => ("time", None),
        Ended::Interrupted => ("interrupted", None),
        Ended::Terminated => ("terminated", None),
        Ended::TargetExited(code) => ("target_exited", code),
    };
    json!({
        "event": "ended",
        "pid": pid,
        "ended": ended,
        "target_exit_code": code,
        "taken": summary.taken,
        "failed": summary.failed,
        "first": summary.first.map(|id| id.to_string()),
        "last": summary.last.map(|id| id.to_string()),
        "bytes": summary.bytes,
        "stop_p50_ns": summary.stop_p50_ns,
        "stop_p99_ns": summary.stop_p99_ns,
        "stop_max_ns": summary.stop_max_ns,
        "lasted_ns": summary.lasted.as_nanos() as u64,
        "mixed": summary.is_left_mixed(),
    })
}

/// Lines on one process; without `pid` it is the command of `run`.
pub fn text(pid: Option<i32>, summary: &Summary, late: u64) -> Vec<String> {
    let who = pid.map_or("the command".into(), |pid| format!("process {pid}"));
    let runs_on = match summary.is_left_mixed() {
        true => "stays stopped",
        false => "runs on",
    };
    let ended = match summary.ended {
        Ended::Count | Ended::Time => format!("{who} {runs_on}"),
        Ended::Interrupted => format!("interrupted; {who} {runs_on}"),
        Ended::Terminated => format!("told to end; {who} {runs_on}"),
        Ended::TargetExited(Some(code)) => format!("{who} ended with exit code {code}"),
        Ended::TargetExited(None) => format!("{who} ended"),
    };
    // The command of `run` has ended by the time of the summary, whatever ended the watching.
    let ended = match (pid, summary.ended) {
        (None, Ended::Count | Ended::Time) => None,
        (None, Ended::Interrupted) => Some("interrupted".to_owned()),
        (None, Ended::Terminated) => Some("told to end".to_owned()),
        _ => Some(ended),
    };
    let mut lines = vec![format!(
        "{} in {}, {}{}",
        human::count(summary.taken, "snapshot"),
        human::duration(summary.lasted),
        human::bytes(summary.bytes),
        ended.map_or(String::new(), |ended| format!("; {ended}"))
    )];
    if summary.taken > 0 {
        lines.push(format!(
            "stopped for {} (half of them at most), {} (99 of 100), {} (longest)",
            human::nanos(summary.stop_p50_ns),
            human::nanos(summary.stop_p99_ns),
            human::nanos(summary.stop_max_ns)
        ));
    }
    if let (Some(first), Some(last)) = (summary.first, summary.last) {
        lines.push(format!("first {}, last {}", first.short(), last.short()));
    }
    if summary.failed > 0 {
        lines.push(format!(
            "{} failed",
            human::count(summary.failed, "snapshot")
        ));
    }
    if summary.is_left_mixed() {
        lines.push(format!(
            "{who} is stopped in the middle of a rollback that failed; no snapshots were taken since: roll it back again"
        ));
    }
    if late > 0 {
        lines.push(format!(
            "{} late: storing takes longer than the interval; see `ksnap show`, or use a longer --every",
            human::count(late, "snapshot")
        ));
    }
    lines
}

/// One line of the table of several processes.
pub struct Row<'a> {
    /// The process, and what came of it.
    pub watched: &'a Watched,
    /// Snapshots that began late.
    pub late: u64,
}

/// A row for each of several processes.
pub fn table(rows: &[Row<'_>], out: &mut dyn Write, style: Style) -> io::Result<()> {
    let right = |name| (name, Align::Right);
    let mut table = Table::new([
        right("pid"),
        right("snapshots"),
        right("failed"),
        right("late"),
        right("stored"),
        right("stop p50"),
        right("p99"),
        right("longest"),
        ("first", Align::Left),
        ("last", Align::Left),
        ("end", Align::Left),
    ]);
    for Row { watched, late } in rows {
        let pid = watched.pid.to_string();
        let none = || "-".to_owned();
        table.row(match &watched.outcome {
            Err(_) => {
                let mut cells: [String; 11] = std::array::from_fn(|_| none());
                cells[0] = pid;
                cells[10] = "given up, see above".into();
                cells
            }
            Ok(summary) => {
                let stop = |ns| match summary.taken {
                    0 => none(),
                    _ => human::nanos(ns),
                };
                let id = |id: Option<crate::model::SnapshotId>| id.map_or_else(none, |i| i.short());
                [
                    pid,
                    summary.taken.to_string(),
                    summary.failed.to_string(),
                    late.to_string(),
                    human::bytes(summary.bytes),
                    stop(summary.stop_p50_ns),
                    stop(summary.stop_p99_ns),
                    stop(summary.stop_max_ns),
                    id(summary.first),
                    id(summary.last),
                    match summary.ended {
                        _ if summary.is_left_mixed() => {
                            "stopped in the middle of a rollback".into()
                        }
                        Ended::Count | Ended::Time => "runs on".into(),
                        Ended::Interrupted => "interrupted, runs on".into(),
                        Ended::Terminated => "told to end, runs on".into(),
                        Ended::TargetExited(Some(code)) => format!("ended with exit code {code}"),
                        Ended::TargetExited(None) => "ended".into(),
                    },
                ]
            }
        });
    }
    table.write(out, style, "")
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;
    use crate::model::SnapshotId;
    use crate::session::SessionError;
    use std::time::Duration;

    pub(in crate::cli) fn summary(taken: u64, failed: u64, ended: Ended) -> Summary {
        Summary {
            taken,
            failed,
            first: Some(SnapshotId([1; 16])),
            last: Some(SnapshotId([2; 16])),
            bytes: 3 << 20,
            stop_p50_ns: 300_000,
            stop_p99_ns: 1_200_000,
            stop_max_ns: 2_000_000,
            lasted: Duration::from_millis(5100),
            ended,
            mixed: false,
        }
    }

    #[test]
    fn a_process_left_in_the_middle_of_a_rollback_does_not_run_on() {
        let left = |ended| Summary {
            mixed: true,
            ..summary(50, 0, ended)
        };
        let lines = text(Some(7), &left(Ended::Interrupted), 0);
        assert!(lines[0].ends_with("process 7 stays stopped"), "{lines:?}");
        assert!(
            lines[3].contains("in the middle of a rollback"),
            "{lines:?}"
        );
        assert_eq!(json(7, &left(Ended::Time))["mixed"], true);
        let ended = text(Some(7), &left(Ended::TargetExited(None)), 0);
        assert_eq!(ended.len(), 3, "{ended:?}");
    }

    #[test]
    fn the_summary_names_counts_stops_and_the_end() {
        let lines = text(Some(7), &summary(50, 1, Ended::TargetExited(Some(3))), 2);
        assert_eq!(
            lines[0],
            "50 snapshots in 5.1 s, 3.0 MiB; process 7 ended with exit code 3"
        );
        assert!(
            lines[1].contains("300 µs") && lines[1].contains("1.20 ms"),
            "{lines:?}"
        );
        assert_eq!(lines[2], "first 010101010101, last 020202020202");
        assert_eq!(lines[3], "1 snapshot failed");
        assert!(lines[4].starts_with("2 snapshots late"));
        let lines = text(None, &summary(1, 0, Ended::Count), 0);
        assert_eq!(lines[0], "1 snapshot in 5.1 s, 3.0 MiB");
    }

    #[test]
    fn the_summary_has_a_stable_json_form() {
        let value = json(7, &summary(1, 0, Ended::TargetExited(Some(3))));
        assert_eq!(value["event"], "ended");
        assert_eq!(value["pid"], 7);
        assert_eq!(value["ended"], "target_exited");
        assert_eq!(value["target_exit_code"], 3);
        assert_eq!(value["first"], "01010101010101010101010101010101");
        assert_eq!(value["lasted_ns"], 5_100_000_000u64);
    }

    #[test]
    fn several_processes_have_a_row_each() {
        let of = |pid, outcome| Watched { pid, outcome };
        let all = [
            of(7, Ok(summary(50, 1, Ended::Count))),
            of(12, Err(SessionError::Usage("no".into()))),
            of(9, Ok(summary(3, 0, Ended::TargetExited(None)))),
        ];
        let rows: Vec<Row<'_>> = all.iter().map(|watched| Row { watched, late: 2 }).collect();
        let mut out = Vec::new();
        table(&rows, &mut out, Style::new(false)).unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 4, "{out}");
        assert!(
            lines[1].trim_start().starts_with("7 ") && lines[1].ends_with("runs on"),
            "{out}"
        );
        assert!(
            lines[2].trim_start().starts_with("12 ") && lines[2].ends_with("see above"),
            "{out}"
        );
        assert!(
            lines[3].trim_start().starts_with("9 ") && lines[3].ends_with("ended"),
            "{out}"
        );
    }
}
