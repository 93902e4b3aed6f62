//! Tells what a watch does while it goes on, and what it did.

use super::args::{Live, When};
use super::context::{Context, stdout, write_json};
use super::exit::Exit;
use super::render::{human, summary, taken};
use super::status::Status;
use crate::session::{Ended, Progress, Summary, Watched};
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Takes in what a watch reports: a status line and messages on standard error, with `--json` one object a
/// line on standard output.
pub struct Reporter<'a> {
    context: &'a Context,
    status: Status,
    json: bool,
    /// Nobody reads standard output any more.
    closed: bool,
    start: Instant,
    /// Messages say which process they are about.
    several: bool,
    seen: BTreeMap<i32, Seen>,
}

/// What was seen of one process.
#[derive(Default)]
struct Seen {
    taken: u64,
    bytes: u64,
    late: u64,
    /// Snapshots are held to this interval.
    held: Option<Duration>,
    unsaved: BTreeSet<String>,
    /// On the status line: its latest snapshot.
    latest: String,
    /// And in a few words.
    short: String,
}

/// A text with the latest snapshot of each process behind it: in full where that may be so, else in a few words.
fn with_latest<'a>(
    text: &str,
    seen: impl Iterator<Item = &'a Seen> + Clone,
    in_full: impl Fn(&str) -> bool,
) -> String {
    let with = |of: fn(&Seen) -> &str| {
        let all = seen.clone().map(of).filter(|one| !one.is_empty());
        all.fold(text.to_owned(), |text, one| format!("{text} | {one}"))
    };
    let full = with(|one| &one.latest);
    match in_full(&full) {
        true => full,
        false => with(|one| &one.short),
    }
}

/// A line of JSON: the event's name, its process, and its data beside it.
#[derive(Serialize)]
struct Event<'a, T> {
    event: &'static str,
    pid: i32,
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
            several: false,
            seen: BTreeMap::new(),
        }
    }

    /// Several processes are watched: messages say which one they are about.
    pub fn of_several(mut self, several: bool) -> Self {
        self.several = several;
        self
    }

    /// Something happened to a process.
    pub fn report(&mut self, pid: i32, progress: &Progress) {
        if self.json {
            self.line(pid, progress);
        }
        match progress {
            Progress::Attached {
                comm,
                below,
                tracker,
                faults,
                notes,
                ..
            } => {
                let below = match below {
                    0 => String::new(),
                    n => format!(" and {n} below it"),
                };
                let faults = match faults {
                    Some(source) => format!("fault log from {source}"),
                    None => "no fault log".into(),
                };
                let comm = human::clean(comm);
                self.context.tell(&format!(
                    "watching process {pid} ({comm}){below}: tracker {tracker}, {faults}"
                ));
                for note in notes {
                    self.warn(pid, note);
                }
            }
            Progress::Taken(one) => {
                let short = taken::short(pid, one.seq, one.costs.phases.stop_ns);
                self.taken(
                    pid,
                    (taken::taken(one), short),
                    one.file_bytes,
                    &one.unsupported,
                );
            }
            Progress::TakenTree(tree) => {
                let short = taken::short(pid, tree.processes[0].taken.seq, tree.stop_ns);
                let line = taken::tree_in_short(tree);
                self.taken(pid, (line, short), tree.file_bytes(), &tree.unsupported);
            }
            Progress::Failed { why } => {
                let about = self.about(pid);
                let text = format!("{about}snapshot failed, its pages go into the next one: {why}");
                self.context.complain(&text);
            }
            Progress::Late { by } => {
                self.seen(pid).late += 1;
                tracing::info!(
                    "{}a snapshot begins {} late: storing the ones before takes longer than the interval",
                    self.about(pid),
                    human::nanos(by.as_nanos() as u64)
                );
            }
            Progress::Held { every } => {
                let first = self.seen(pid).held.replace(*every).is_none();
                let text = format!(
                    "{}a snapshot every {} now, so that they cost the process no more than --max-overhead allows",
                    self.about(pid),
                    human::duration(*every)
                );
                match first {
                    true => self.context.tell(&text),
                    false => tracing::info!("{text}"),
                }
            }
            Progress::RolledBack(done) => {
                let about = self.about(pid);
                for (n, line) in taken::rolled_back(pid, done).iter().enumerate() {
                    let about = if n == 0 { about.as_str() } else { "" };
                    self.context.tell(&format!("{about}{line}"));
                }
            }
            Progress::RolledBackTree(done) => {
                for line in taken::rolled_back_tree(done) {
                    self.context.tell(&line);
                }
            }
            Progress::Mixed { why } => {
                let about = self.about(pid);
                let text = format!(
                    "{about}{why}; no snapshots of it are taken until a rollback has succeeded"
                );
                self.context.complain(&text);
            }
        }
    }

    fn seen(&mut self, pid: i32) -> &mut Seen {
        self.seen.entry(pid).or_default()
    }

    /// Before a message where it is not clear which process is meant.
    fn about(&self, pid: i32) -> String {
        match self.several {
            true => format!("process {pid}: "),
            false => String::new(),
        }
    }

    /// A snapshot was taken: a line on it, and the same in a few words.
    fn taken(&mut self, pid: i32, told: (String, String), bytes: u64, unsupported: &[String]) {
        let (text, short) = told;
        tracing::info!("{}{text}", self.about(pid));
        let seen = self.seen(pid);
        seen.taken += 1;
        seen.bytes += bytes;
        (seen.latest, seen.short) = (text, short);
        let new = unsupported.iter();
        let new: Vec<&String> = new
            .filter(|what| seen.unsaved.insert((*what).clone()))
            .collect();
        new.into_iter().for_each(|what| self.warn(pid, what));
        self.draw();
    }

    /// The status line: how much there is of all together, then the latest of each.
    fn draw(&mut self) {
        let all = self.seen.values();
        let (taken, bytes, late) = all.fold((0, 0, 0), |(taken, bytes, late), one| {
            (taken + one.taken, bytes + one.bytes, late + one.late)
        });
        let mut text = format!(
            "{}, {}, {}",
            human::duration(self.start.elapsed()),
            human::count(taken, "snapshot"),
            human::bytes(bytes),
        );
        if late > 0 {
            let _ = write!(text, ", {late} late");
        }
        if let Some(every) = self.seen.values().filter_map(|one| one.held).max() {
            let _ = write!(text, ", held to one every {}", human::duration(every));
        }
        let in_full = |text: &str| !self.several && self.status.has_room_for(text);
        let text = with_latest(&text, self.seen.values(), in_full);
        self.status.update(&text);
    }

    fn warn(&self, pid: i32, text: &str) {
        let style = self.context.err_style();
        let (about, text) = (self.about(pid), human::clean(text));
        self.context
            .tell(&format!("{} {about}{text}", style.yellow("note:")));
    }

    fn line(&mut self, pid: i32, progress: &Progress) {
        if self.closed {
            return;
        }
        let mut out = stdout();
        let written = match progress {
            Progress::Attached {
                comm,
                below,
                tracker,
                faults,
                notes,
                ..
            } => write_json(
                &mut out,
                &json!({"event": "attached", "pid": pid, "comm": comm, "below": below,
                    "tracker": tracker.to_string(), "faults": faults, "notes": notes}),
            ),
            Progress::Taken(data) => write_json(
                &mut out,
                &Event {
                    event: "taken",
                    pid,
                    data,
                },
            ),
            Progress::TakenTree(data) => write_json(
                &mut out,
                &Event {
                    event: "taken_tree",
                    pid,
                    data,
                },
            ),
            Progress::Failed { why } => write_json(
                &mut out,
                &json!({"event": "failed", "pid": pid, "why": why}),
            ),
            Progress::Mixed { why } => {
                write_json(&mut out, &json!({"event": "mixed", "pid": pid, "why": why}))
            }
            Progress::Late { by } => write_json(
                &mut out,
                &json!({"event": "late", "pid": pid, "by_ns": by.as_nanos() as u64}),
            ),
            Progress::Held { every } => write_json(
                &mut out,
                &json!({"event": "held", "pid": pid, "every_ns": every.as_nanos() as u64}),
            ),
            Progress::RolledBack(data) => write_json(
                &mut out,
                &Event {
                    event: "rolled_back",
                    pid,
                    data,
                },
            ),
            Progress::RolledBackTree(data) => write_json(
                &mut out,
                &Event {
                    event: "rolled_back_tree",
                    pid,
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

    /// The watching of one process is over. Says what came of it, and how ksnap should end. Without `pid` it is
    /// the command of `run`.
    pub fn finish(mut self, pid: Option<i32>, summary: &Summary) -> Exit {
        let shown = pid.or_else(|| self.seen.keys().next().copied());
        if self.json && !self.closed {
            let mut out = stdout();
            // The exit code tells the same to whoever does not read on.
            let _ = write_json(&mut out, &summary::json(shown.unwrap_or(0), summary))
                .and_then(|()| out.flush());
        }
        self.status = Status::new(false);
        let seen = shown
            .and_then(|pid| self.seen.remove(&pid))
            .unwrap_or_default();
        for line in summary::text(pid, summary, seen.late) {
            self.context.tell(&line);
        }
        match self.closed {
            true => Exit::Done,
            false => exit(summary, seen.unsaved.is_empty()),
        }
    }

    /// The watching of several processes is over.
    pub fn finish_all(mut self, all: &[Watched]) -> Exit {
        if self.json && !self.closed {
            let mut out = stdout();
            let lines = all.iter().try_for_each(|one| match &one.outcome {
                Ok(summary) => write_json(&mut out, &summary::json(one.pid, summary)),
                Err(e) => write_json(
                    &mut out,
                    &json!({"event": "error", "pid": one.pid, "why": e.to_string()}),
                ),
            });
            let _ = lines.and_then(|()| out.flush());
        }
        self.status = Status::new(false);
        for one in all {
            if let Err(e) = &one.outcome {
                let why = e.to_string();
                let about = match why.starts_with(&format!("process {} ", one.pid)) {
                    true => String::new(),
                    false => self.about(one.pid),
                };
                self.context.complain(&format!("{about}{why}"));
            }
        }
        let rows: Vec<summary::Row<'_>> = all
            .iter()
            .map(|one| summary::Row {
                watched: one,
                late: self.seen.get(&one.pid).map_or(0, |seen| seen.late),
            })
            .collect();
        let mut table = Vec::new();
        let _ = summary::table(&rows, &mut table, self.context.err_style());
        let text = String::from_utf8_lossy(&table);
        self.context.tell(text.trim_end_matches('\n'));
        let exits = all.iter().map(|one| match &one.outcome {
            Ok(summary) => {
                let seen = self.seen.get(&one.pid);
                exit(summary, seen.is_none_or(|seen| seen.unsaved.is_empty()))
            }
            Err(e) => Exit::from(e.trouble()),
        });
        match self.closed {
            true => Exit::Done,
            false => exit_of_all(&exits.collect::<Vec<_>>()),
        }
    }
}

fn exit(summary: &Summary, all_saved: bool) -> Exit {
    match summary.ended {
        Ended::Interrupted | Ended::Terminated => Exit::Interrupted,
        _ if summary.taken == 0 && summary.failed > 0 => Exit::Failed,
        Ended::TargetExited(_) if summary.taken == 0 => Exit::Vanished,
        _ if summary.failed > 0 || !all_saved || summary.is_left_mixed() => Exit::Incomplete,
        _ => Exit::Done,
    }
}

/// How to end after several: as after one where all went alike, as interrupted where that ended some,
/// incomplete where some went worse than others.
fn exit_of_all(all: &[Exit]) -> Exit {
    match all {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => *first,
        _ if all.contains(&Exit::Interrupted) => Exit::Interrupted,
        _ => Exit::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::summary::tests::summary;

    #[test]
    fn the_latest_snapshot_is_told_in_few_words_where_there_is_no_room() {
        let one = |latest: &str, short: &str| Seen {
            latest: latest.into(),
            short: short.into(),
            ..Seen::default()
        };
        let seen = [one("at length", "brief"), Seen::default()];
        let line = |columns| with_latest("1 s", seen.iter(), |text| text.len() <= columns);
        assert_eq!(line(15), "1 s | at length");
        assert_eq!(line(14), "1 s | brief");
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
    fn the_exit_code_of_several_says_whether_all_went_well() {
        let of = |all: &[Exit]| exit_of_all(all).code();
        assert_eq!(of(&[Exit::Done, Exit::Done]), 0);
        assert_eq!(of(&[Exit::Vanished, Exit::Vanished]), 14);
        assert_eq!(of(&[Exit::Done, Exit::Vanished, Exit::Done]), 3);
        assert_eq!(of(&[Exit::Locked, Exit::Permission]), 3);
        assert_eq!(of(&[Exit::Done, Exit::Interrupted]), 130);
    }
}
