//! Turns what the guest wrote to its second serial port into results.
//!
//! Lines that begin with the boot's token are frames of the guest's first process; everything between
//! `begin` and `end` of a command is its output.

use std::fmt;
use std::iter::Sum;
use std::time::Duration;

use super::payload::GuestCommand;
use super::tools::last_lines;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Exit code 0, and at least one test passed where it runs tests.
    Passed,
    /// This exit code; 128 + the signal's number for a death by signal.
    Failed(i32),
    /// Exit code 0, but a test executable that ran no test.
    NoTests,
    /// Ended after its time limit, by the guest or with the whole guest.
    TimedOut,
    /// The guest died while it ran.
    GuestDied,
    /// The guest was gone before its turn.
    NotRun,
}

/// Counts of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that were ignored.
    pub ignored: u32,
}

/// What one command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// The name given by the caller.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// How long it ran, in guest time.
    pub elapsed: Duration,
    /// Its stdout and stderr, as one text.
    pub output: String,
    /// Processes that it left running, each as `pid name`. They were ended.
    pub left_behind: Vec<String>,
    runs_tests: bool,
}

impl CommandResult {
    /// The tests it counted itself, or itself as one test. A command that failed has at least one
    /// failure.
    pub fn tally(&self) -> Tally {
        let passed = self.status == Status::Passed;
        let mut tally = match tests_in(&self.output) {
            Some(tally) if self.runs_tests => tally,
            _ => Tally {
                passed: u32::from(passed),
                ..Tally::default()
            },
        };
        if !passed {
            tally.failed = tally.failed.max(1);
        }
        tally
    }
}

impl fmt::Display for CommandResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        write!(f, "{}: {}, {seconds:.1} s", self.name, self.status)?;
        if !self.left_behind.is_empty() {
            write!(f, ", left running: {}", self.left_behind.join(", "))?;
        }
        write!(f, ": {}", self.tally())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Passed => f.write_str("ok"),
            Status::Failed(code) => write!(f, "FAILED (exit code {code})"),
            Status::NoTests => f.write_str("FAILED (ran no test)"),
            Status::TimedOut => f.write_str("FAILED (time limit)"),
            Status::GuestDied => f.write_str("FAILED (the guest died)"),
            Status::NotRun => f.write_str("FAILED (not run, the guest was gone)"),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ignored > 0 {
            write!(f, "{} ignored, ", self.ignored)?;
        }
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Tally {
        tallies.fold(Tally::default(), |sum, tally| Tally {
            passed: sum.passed + tally.passed,
            failed: sum.failed + tally.failed,
            ignored: sum.ignored + tally.ignored,
        })
    }
}

/// Adds up the `test result: ok. 3 passed; 0 failed; 1 ignored; …` lines of a text; none if it has none.
fn tests_in(output: &str) -> Option<Tally> {
    let mut tallies = output.lines().filter_map(test_result).peekable();
    tallies.peek()?;
    Some(tallies.sum())
}

fn test_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

/// What a line of the guest meant, as far as the one who waits must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Output, or a frame that changes no deadline.
    None,
    /// The first process is ready.
    Ready,
    /// The command of this index runs.
    Began(usize),
    /// The command of this index ended.
    Ended(usize),
    /// All commands are done; the guest powers off.
    Bye,
}

/// Collects the lines of one boot.
pub struct Recorder {
    token: String,
    release: String,
    warnings: Vec<String>,
    results: Vec<CommandResult>,
    limits: Vec<Duration>,
    running: Option<Running>,
}

struct Running {
    index: usize,
    began: Duration,
    output: Vec<u8>,
}

impl Recorder {
    /// A recorder of frames that begin with `token`, for these commands.
    pub fn new(token: &str, commands: &[GuestCommand]) -> Self {
        let results = commands.iter().map(|command| CommandResult {
            name: command.name.clone(),
            status: Status::NotRun,
            elapsed: Duration::ZERO,
            output: String::new(),
            left_behind: Vec::new(),
            runs_tests: command.runs_tests,
        });
        Recorder {
            token: format!("{token} "),
            release: String::new(),
            warnings: Vec::new(),
            results: results.collect(),
            limits: commands.iter().map(|command| command.limit).collect(),
            running: None,
        }
    }

    /// Takes in one line, with its line end if it had one.
    pub fn line(&mut self, line: &[u8]) -> Progress {
        let Some(frame) = line.strip_prefix(self.token.as_bytes()) else {
            if let Some(running) = &mut self.running {
                running.output.extend_from_slice(line);
            }
            return Progress::None;
        };
        let frame = String::from_utf8_lossy(frame);
        self.frame(frame.trim_end()).unwrap_or(Progress::None)
    }

    /// None for a frame that is cut or makes no sense.
    fn frame(&mut self, frame: &str) -> Option<Progress> {
        let (word, rest) = frame.split_once(' ').unwrap_or((frame, ""));
        let mut fields = rest.splitn(3, ' ');
        match word {
            "hello" => {
                self.release = fields.next()?.into();
                Some(Progress::Ready)
            }
            "warning" => {
                self.warnings.push(rest.into());
                Some(Progress::None)
            }
            "begin" => {
                let index = self.index(fields.next()?)?;
                let began = seconds(fields.next()?)?;
                self.running = Some(Running {
                    index,
                    began,
                    output: Vec::new(),
                });
                Some(Progress::Began(index))
            }
            "left" => {
                let index = self.index(fields.next()?)?;
                let process = format!("{} {}", fields.next()?, fields.next()?);
                self.results[index].left_behind.push(process);
                Some(Progress::None)
            }
            "end" => {
                let index = self.index(fields.next()?)?;
                let code: i32 = fields.next()?.parse().ok()?;
                let ended = seconds(fields.next()?)?;
                let running = self.running.take_if(|running| running.index == index)?;
                self.end(running, code, ended);
                Some(Progress::Ended(index))
            }
            "bye" => Some(Progress::Bye),
            _ => None,
        }
    }

    fn index(&self, field: &str) -> Option<usize> {
        field
            .parse()
            .ok()
            .filter(|index| *index < self.results.len())
    }

    fn end(&mut self, running: Running, code: i32, ended: Duration) {
        let limit = self.limits[running.index];
        let result = &mut self.results[running.index];
        result.elapsed = ended.saturating_sub(running.began);
        result.output = text(&running.output);
        let ran_tests = || tests_in(&result.output).is_some_and(|tally| tally.passed > 0);
        result.status = match code {
            0 if result.runs_tests && !ran_tests() => Status::NoTests,
            0 => Status::Passed,
            // By the guest's timeout: SIGTERM, or SIGKILL five seconds later.
            137 | 143 if result.elapsed >= limit => Status::TimedOut,
            code => Status::Failed(code),
        };
    }

    /// The result of a command that ended.
    pub fn result(&self, index: usize) -> &CommandResult {
        &self.results[index]
    }

    /// Gives the command that was running when the guest went away its end.
    pub fn lost(&mut self, status: Status) {
        if let Some(running) = self.running.take() {
            self.results[running.index].output = text(&running.output);
            self.results[running.index].status = status;
        }
    }

    /// The guest's `uname -r`, its warnings and the results.
    pub fn finish(self) -> (String, Vec<String>, Vec<CommandResult>) {
        (self.release, self.warnings, self.results)
    }
}

/// The guest ends each command's output with one line end of its own, so that a frame always begins
/// a line.
fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output.strip_suffix(b"\n").unwrap_or(output)).into_owned()
}

/// Reads the first field of `/proc/uptime`.
fn seconds(field: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(field.parse().ok()?).ok()
}

/// The end of a console log, for an error message.
pub fn tail(log: &std::path::Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&bytes), 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(
            "@t-1",
            &[
                GuestCommand::new("plain", ["true"]),
                GuestCommand::tests("suite", "/t", ["--test-threads=1"])
                    .limit(Duration::from_secs(9)),
            ],
        )
    }

    fn feed(recorder: &mut Recorder, text: &str) -> Vec<Progress> {
        text.split_inclusive('\n')
            .map(|line| recorder.line(line.as_bytes()))
            .filter(|progress| *progress != Progress::None)
            .collect()
    }

    #[test]
    fn a_whole_boot_is_read() {
        let mut recorder = recorder();
        let progress = feed(
            &mut recorder,
            "noise before\n@t-1 warning mount bpf: no such device\n@t-1 hello 6.1.0-56-amd64 4.20\n\
             @t-1 begin 0 4.25\nhalf a line\n@t-1 left 0 77 sleep\n@t-1 end 0 0 5.50\n\
             @t-1 begin 1 5.60\ntest a ... ok\ntest result: ok. 3 passed; 0 failed; 1 ignored; \
             0 measured; 2 filtered out; finished in 0.10s\n\n@t-1 end 1 0 6.10\n@t-1 bye\n",
        );
        use Progress::*;
        assert_eq!(
            progress,
            [Ready, Began(0), Ended(0), Began(1), Ended(1), Bye]
        );
        let (release, warnings, results) = recorder.finish();
        assert_eq!(release, "6.1.0-56-amd64");
        assert_eq!(warnings, ["mount bpf: no such device"]);
        assert_eq!(results[0].output, "half a line");
        assert_eq!(results[0].elapsed, Duration::from_millis(1250));
        assert_eq!(results[0].left_behind, ["77 sleep"]);
        assert_eq!(
            results[0].to_string(),
            "plain: ok, 1.2 s, left running: 77 sleep: 1 passed, 0 failed"
        );
        assert_eq!(
            results[1].tally(),
            Tally {
                passed: 3,
                failed: 0,
                ignored: 1
            }
        );
        assert_eq!(
            results[1].to_string(),
            "suite: ok, 0.5 s: 1 ignored, 3 passed, 0 failed"
        );
    }

    #[test]
    fn output_that_looks_like_a_frame_of_another_boot_stays_output() {
        let mut recorder = recorder();
        feed(
            &mut recorder,
            "@t-1 begin 0 1.0\n@t-2 end 0 0 1.0\nx @t-1 bye\n\n@t-1 end 0 3 1.5\n",
        );
        assert_eq!(recorder.result(0).output, "@t-2 end 0 0 1.0\nx @t-1 bye\n");
        assert_eq!(recorder.result(0).status, Status::Failed(3));
        assert_eq!(
            recorder.result(0).tally(),
            Tally {
                passed: 0,
                failed: 1,
                ignored: 0
            }
        );
    }

    #[test]
    fn a_suite_that_ran_no_test_or_failed_is_no_success() {
        let run = |text: &str, code: i32| {
            let mut recorder = recorder();
            feed(
                &mut recorder,
                &format!("@t-1 begin 1 1.0\n{text}\n\n@t-1 end 1 {code} 2.0\n"),
            );
            let result = recorder.result(1).clone();
            (result.status, result.tally())
        };
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out";
        assert_eq!(
            run(none, 0),
            (
                Status::NoTests,
                Tally {
                    passed: 0,
                    failed: 1,
                    ignored: 0
                }
            )
        );
        assert_eq!(run("", 0).0, Status::NoTests);
        let two = "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured";
        assert_eq!(
            run(two, 101),
            (
                Status::Failed(101),
                Tally {
                    passed: 5,
                    failed: 2,
                    ignored: 0
                }
            )
        );
        // Killed before it could count.
        assert_eq!(
            run("test a ... ", 139).1,
            Tally {
                passed: 0,
                failed: 1,
                ignored: 0
            }
        );
    }

    #[test]
    fn a_death_by_the_time_limit_is_told_from_other_signals() {
        let ended_at = |time: &str| {
            let mut recorder = recorder();
            feed(
                &mut recorder,
                &format!("@t-1 begin 1 1.0\n\n@t-1 end 1 143 {time}\n"),
            );
            recorder.result(1).status
        };
        assert_eq!(ended_at("10.2"), Status::TimedOut);
        assert_eq!(ended_at("3.0"), Status::Failed(143));
    }

    #[test]
    fn a_guest_that_dies_leaves_what_was_written_and_what_was_not_run() {
        let mut recorder = recorder();
        feed(
            &mut recorder,
            "@t-1 hello 6.12 1.0\n@t-1 begin 0 1.0\nso far\n@t-1 en",
        );
        recorder.lost(Status::GuestDied);
        let (_, _, results) = recorder.finish();
        assert_eq!(results[0].status, Status::GuestDied);
        assert_eq!(results[0].output, "so far");
        assert_eq!(results[1].status, Status::NotRun);
        assert_eq!(
            results
                .iter()
                .map(CommandResult::tally)
                .sum::<Tally>()
                .failed,
            2
        );
    }

    #[test]
    fn frames_that_make_no_sense_change_nothing() {
        let mut recorder = recorder();
        let text = "@t-1 begin 7 1.0\n@t-1 begin x\n@t-1 end 0 0 1.0\n@t-1 end\n@t-1 what\n@t-1 \n";
        assert_eq!(feed(&mut recorder, text), []);
        assert_eq!(recorder.result(0).status, Status::NotRun);
    }
}
