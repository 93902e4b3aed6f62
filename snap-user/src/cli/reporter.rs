//! Tells what a watch does while it goes on, and what it did.

use super::args::{Live, When};
use super::context::{Context, stdout, write_json};
use super::exit::Exit;
use super::render::{human, taken};
use super::status::Status;
use crate::session::{Ended, Progress, Summary, Taken};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// Takes in what a watch reports: a status line and messages on standard error, with `--json` one object a
/// line on standard output.
pub struct Reporter<'a> {
    context: &'a Context,
    status: Status,
    json: bool,
    /// Nobody reads standard output any more.
    closed: bool,
    start: Instant,
    taken: u64,
    bytes: u64,
    late: u64,
    unsaved: BTreeSet<String>,
}

/// A line of JSON: the event's name, and its data beside it.
#[derive(Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    data: &'a T,
}

impl<'a> Reporter<'a> {
    /// `shared`: someone else, the command that `run` started, writes to the terminal as well.
    pub fn new(context: &'a Context, live: Live, json: bool, shared: bool) -> Self {
        let on = match live.progress {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                let to_terminal = io::stdout().is_terminal();
                io::stderr().is_terminal() && !((shared || json) && to_terminal)
            }
        };
        Self {
            context,
            status: Status::new(on && !context.is_quiet()),
            json,
            closed: false,
            start: Instant::now(),
            taken: 0,
            bytes: 0,
            late: 0,
            unsaved: BTreeSet::new(),
        }
    }

    /// Something happened.
    pub fn report(&mut self, progress: &Progress) {
        if self.json {
            self.line(progress);
        }
        match progress {
            Progress::Attached {
                pid,
                comm,
                tracker,
                faults,
                notes,
            } => {
                let faults = match faults {
                    Some(source) => format!("fault log from {source}"),
                    None => "no fault log".into(),
                };
                let comm = human::clean(comm);
                self.context.tell(&format!(
                    "watching process {pid} ({comm}): tracker {tracker}, {faults}"
                ));
                for note in notes {
                    self.warn(note);
                }
            }
            Progress::Taken(taken) => self.taken(taken),
            Progress::Failed { why } => {
                let text = format!("snapshot failed, its pages go into the next one: {why}");
                self.context.complain(&text);
            }
            Progress::Late { by } => {
                self.late += 1;
                tracing::info!(
                    "a snapshot begins {} late: storing the ones before takes longer than the interval",
                    human::nanos(by.as_nanos() as u64)
                );
            }
            Progress::RolledBack(done) => {
                for line in taken::rolled_back(done) {
                    self.context.tell(&line);
                }
            }
        }
    }

    fn taken(&mut self, one: &Taken) {
        self.taken += 1;
        self.bytes += one.file_bytes;
        for what in &one.unsupported {
            if self.unsaved.insert(what.clone()) {
                self.warn(what);
            }
        }
        let text = taken::taken(one);
        tracing::info!("{text}");
        let late = match self.late {
            0 => String::new(),
            n => format!(", {n} late"),
        };
        self.status.update(&format!(
            "{}, {}, {}{late} | {text}",
            human::duration(self.start.elapsed()),
            human::count(self.taken, "snapshot"),
            human::bytes(self.bytes),
        ));
    }

    fn warn(&self, text: &str) {
        let style = self.context.err_style();
        let text = human::clean(text);
        self.context
            .tell(&format!("{} {text}", style.yellow("note:")));
    }

    fn line(&mut self, progress: &Progress) {
        if self.closed {
            return;
        }
        let mut out = stdout();
        let written = match progress {
            Progress::Attached {
                pid,
                comm,
                tracker,
                faults,
                notes,
            } => write_json(
                &mut out,
                &json!({"event": "attached", "pid": pid, "comm": comm, "tracker": tracker.to_string(),
                    "faults": faults, "notes": notes}),
            ),
            Progress::Taken(data) => write_json(
                &mut out,
                &Event {
                    event: "taken",
                    data,
                },
            ),
            Progress::Failed { why } => {
                write_json(&mut out, &json!({"event": "failed", "why": why}))
            }
            Progress::Late { by } => write_json(
                &mut out,
                &json!({"event": "late", "by_ns": by.as_nanos() as u64}),
            ),
            Progress::RolledBack(data) => write_json(
                &mut out,
                &Event {
                    event: "rolled_back",
                    data,
                },
            ),
        };
        if let Err(error) = written.and_then(|()| out.flush()) {
            self.closed = true;
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.context.complain(&format!("standard output: {error}"));
            }
            // There is no one to watch for: end as Ctrl-C would, so that the process is let go properly.
            if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT) {
                tracing::warn!("cannot end the watch: {error}");
            }
        }
    }

    /// It is over. Says what came of it, and how ksnap should end.
    pub fn finish(mut self, pid: Option<i32>, summary: &Summary) -> Exit {
        if self.json && !self.closed {
            let mut out = stdout();
            // The exit code tells the same to whoever does not read on.
            let _ = write_json(&mut out, &summary_json(summary)).and_then(|()| out.flush());
        }
        self.status = Status::new(false);
        for line in summary_text(pid, summary, self.late) {
            self.context.tell(&line);
        }
        match self.closed {
            true => Exit::Done,
            false => exit(summary, self.unsaved.is_empty()),
        }
    }
}

fn exit(summary: &Summary, all_saved: bool) -> Exit {
    match summary.ended {
        Ended::Interrupted => Exit::Interrupted,
        _ if summary.taken == 0 && summary.failed > 0 => Exit::Failed,
        Ended::TargetExited(_) if summary.taken == 0 => Exit::Vanished,
        _ if summary.failed > 0 || !all_saved => Exit::Incomplete,
        _ => Exit::Done,
    }
}

fn summary_json(summary: &Summary) -> serde_json::Value {
    let (ended, code) = match summary.ended {
        Ended::Count => ("count", None),
        Ended::Time => ("time", None),
        Ended::Interrupted => ("interrupted", None),
        Ended::TargetExited(code) => ("target_exited", code),
    };
    json!({
        "event": "ended",
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
    })
}

fn summary_text(pid: Option<i32>, summary: &Summary, late: u64) -> Vec<String> {
    let who = pid.map_or("the command".into(), |pid| format!("process {pid}"));
    let ended = match summary.ended {
        Ended::Count | Ended::Time => format!("{who} runs on"),
        Ended::Interrupted => format!("interrupted; {who} runs on"),
        Ended::TargetExited(Some(code)) => format!("{who} ended with exit code {code}"),
        Ended::TargetExited(None) => format!("{who} ended"),
    };
    // The command of `run` has ended by the time of the summary, whatever ended the watching.
    let ended = match (pid, summary.ended) {
        (None, Ended::Count | Ended::Time) => None,
        (None, Ended::Interrupted) => Some("interrupted".to_owned()),
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
    if late > 0 {
        lines.push(format!(
            "{} late: storing takes longer than the interval; see `ksnap show`, or use a longer --every",
            human::count(late, "snapshot")
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SnapshotId;
    use std::time::Duration;

    fn summary(taken: u64, failed: u64, ended: Ended) -> Summary {
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
        }
    }

    #[test]
    fn the_exit_code_says_how_it_went() {
        let of = |taken, failed, ended, saved| exit(&summary(taken, failed, ended), saved).code();
        assert_eq!(of(5, 0, Ended::Count, true), 0);
        assert_eq!(of(5, 1, Ended::Count, true), 3);
        assert_eq!(of(5, 0, Ended::Time, false), 3);
        assert_eq!(of(0, 2, Ended::Time, true), 1);
        assert_eq!(of(5, 0, Ended::Interrupted, true), 130);
        assert_eq!(of(5, 0, Ended::TargetExited(Some(1)), true), 0);
        assert_eq!(of(0, 0, Ended::TargetExited(None), true), 14);
    }

    #[test]
    fn the_summary_names_counts_stops_and_the_end() {
        let lines = summary_text(Some(7), &summary(50, 1, Ended::TargetExited(Some(3))), 2);
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
        let lines = summary_text(None, &summary(1, 0, Ended::Count), 0);
        assert_eq!(lines[0], "1 snapshot in 5.1 s, 3.0 MiB");
    }

    #[test]
    fn the_summary_has_a_stable_json_form() {
        let value = summary_json(&summary(1, 0, Ended::TargetExited(Some(3))));
        assert_eq!(value["event"], "ended");
        assert_eq!(value["ended"], "target_exited");
        assert_eq!(value["target_exit_code"], 3);
        assert_eq!(value["first"], "01010101010101010101010101010101");
        assert_eq!(value["lasted_ns"], 5_100_000_000u64);
    }
}
