//! Snapshots of a running process, one after the other, until something ends it.

use super::control::{Reply, Request};
use super::pacer::Pacer;
use super::service::Command;
use super::{Ended, Engine, Progress, Result, Schedule, SessionError, Summary, Taken, Trouble};
use crate::model::SnapshotId;
use crate::restore::RestoreError;
use crate::sys::renice;
use hdrhistogram::Histogram;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often events are taken in while nothing else happens: well before the ring buffer fills.
const TICK: Duration = Duration::from_millis(20);
/// By how much the tracer's thread comes before others, where that is allowed.
const TRACER_STEPS: i32 = -10;
/// How often a snapshot on its way is looked after.
const SETTLE_TICK: Duration = Duration::from_millis(2);
/// How long a snapshot that is asked for waits until there is room.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What has happened so far.
struct Tally {
    taken: u64,
    failed: u64,
    first: Option<SnapshotId>,
    last: Option<SnapshotId>,
    bytes: u64,
    stops: Histogram<u64>,
    start: Instant,
}

impl Tally {
    fn new() -> Self {
        Self {
            taken: 0,
            failed: 0,
            first: None,
            last: None,
            bytes: 0,
            stops: Histogram::new(3).expect("three digits are allowed"),
            start: Instant::now(),
        }
    }

    fn take(&mut self, taken: &Taken) {
        self.taken += 1;
        self.first.get_or_insert(taken.id);
        self.last = Some(taken.id);
        self.bytes += taken.file_bytes;
        let _ = self.stops.record(taken.costs.phases.stop_ns.max(1));
    }

    fn end(self, ended: Ended, mixed: bool) -> Summary {
        Summary {
            taken: self.taken,
            failed: self.failed,
            first: self.first,
            last: self.last,
            bytes: self.bytes,
            stop_p50_ns: self.stops.value_at_quantile(0.5),
            stop_p99_ns: self.stops.value_at_quantile(0.99),
            stop_max_ns: self.stops.max(),
            lasted: self.start.elapsed(),
            ended,
            mixed,
        }
    }
}

/// Takes snapshots as scheduled and answers commands, on the tracer's thread.
pub(super) fn drive(
    engine: &mut Engine,
    schedule: &Schedule,
    commands: &Receiver<Command>,
    report: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    let mut tally = Tally::new();
    // The faster the copying ahead, the fewer pages are left for the stop. The threads that encode
    // were started before, and stay behind the target.
    renice(TRACER_STEPS);
    report(&Progress::Attached {
        pid: engine.target().pid,
        comm: engine.target().comm.clone(),
        tracker: engine.tracker(),
        faults: engine.fault_source(),
        notes: engine.notes(),
    });
    engine.pace(schedule.every);
    let mut pacer = Pacer::new(schedule);
    let mut was_late = false;
    // Who waits for a profile, and until when.
    let mut profile: Option<(Instant, oneshot::Sender<Reply>)> = None;
    // Snapshots that were asked for and wait for room, and until when.
    let mut asked: VecDeque<(Instant, Request, oneshot::Sender<Reply>)> = VecDeque::new();
    let ended = loop {
        if let Some(outcome) = engine.try_settle()
            && let Some(ended) = told(outcome, &mut tally, &mut pacer, report)?
        {
            break ended;
        }
        while let Some((until, ..)) = asked.front()
            && (!engine.is_busy() && engine.keeper.has_room() || *until <= Instant::now())
            && let Some((_, request, answer)) = asked.pop_front()
        {
            let (reply, failed) = answer_to(engine, &request, &mut tally, &mut pacer, report)?;
            let _ = answer.send(reply);
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let now = Instant::now();
        if schedule.lasting.is_some_and(|l| tally.start.elapsed() >= l) {
            break Ended::Time;
        }
        if !engine.is_busy()
            && schedule
                .count
                .is_some_and(|c| tally.taken + tally.failed >= c)
        {
            break Ended::Count;
        }
        if now >= pacer.due() && !engine.mixed {
            if engine.is_busy() || !engine.keeper.has_room() {
                // Storing takes longer than the interval: the next one waits, and that is said once.
                was_late = true;
            } else {
                if std::mem::take(&mut was_late) {
                    report(&Progress::Late {
                        by: now - pacer.due(),
                    });
                }
                pacer.begin_due();
                if let Err(e) = engine.snapshot()
                    && let Some(ended) = told(Err(e), &mut tally, &mut pacer, report)?
                {
                    break ended;
                }
                // Commands come next, or they would never have their turn when snapshots take longer than
                // the interval.
            }
        }
        if let Some((_, answer)) = profile.take_if(|(end, _)| *end <= now) {
            let _ = answer.send(Reply::Profile(Box::new(engine.end_profile())));
        }
        let tick = if engine.is_busy() { SETTLE_TICK } else { TICK };
        let wait = match engine.is_busy() || engine.mixed || !engine.keeper.has_room() {
            true => tick,
            false => pacer
                .due()
                .saturating_duration_since(Instant::now())
                .min(tick),
        };
        match commands.recv_timeout(wait) {
            Ok(Command::Stop(ended)) => break ended,
            Err(RecvTimeoutError::Disconnected) => break Ended::Interrupted,
            Ok(Command::TargetExited) => break Ended::TargetExited(None),
            Ok(Command::Ask(Request::Profile { lasting_ms }, answer)) => {
                engine.start_profile();
                profile = Some((Instant::now() + Duration::from_millis(lasting_ms), answer));
            }
            // On a thread of its own: the next snapshot does not wait for it.
            Ok(Command::Ask(Request::Prune { what, dry_run }, answer)) => {
                engine.keeper.ask(what, dry_run, answer);
            }
            Ok(Command::Ask(request @ Request::Snap { .. }, answer)) => {
                asked.push_back((Instant::now() + ROOM_PATIENCE, request, answer));
            }
            Ok(Command::Ask(request, answer)) => {
                let (reply, _) = answer_to(engine, &request, &mut tally, &mut pacer, report)?;
                let _ = answer.send(reply);
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(e) = engine.tick()
                    && let Some(ended) = told(Err(e), &mut tally, &mut pacer, report)?
                {
                    break ended;
                }
            }
        }
    };
    if ended == Ended::Terminated {
        // What lies in memory is about to be written to the disk: there is no time to tidy it.
        engine.keeper.leave();
    }
    if let Some(outcome) = engine.settle() {
        told(outcome, &mut tally, &mut pacer, report)?;
    }
    if let Some((_, answer)) = profile {
        let _ = answer.send(Reply::Profile(Box::new(engine.end_profile())));
    }
    Ok(tally.end(ended, engine.mixed))
}

/// Reports an outcome. `Some` when it ends the watching, an error when it must not go on.
fn told(
    outcome: Result<Taken>,
    tally: &mut Tally,
    pacer: &mut Pacer,
    report: &mut dyn FnMut(&Progress),
) -> Result<Option<Ended>> {
    match outcome {
        Ok(taken) => {
            if let Some(every) = pacer.stored(&taken) {
                report(&Progress::Held { every });
            }
            tally.take(&taken);
            report(&Progress::Taken(taken));
            Ok(None)
        }
        Err(e) if e.trouble() == Trouble::Vanished => Ok(Some(Ended::TargetExited(None))),
        Err(e @ SessionError::Audit { .. }) => Err(e),
        // What fails at the very first will fail again.
        Err(e) if tally.taken == 0 && tally.failed == 0 => Err(e),
        Err(e) => {
            tally.failed += 1;
            report(&Progress::Failed { why: e.to_string() });
            Ok(None)
        }
    }
}

/// The answer, and what has to end the watch when it is given.
fn answer_to(
    engine: &mut Engine,
    request: &Request,
    tally: &mut Tally,
    pacer: &mut Pacer,
    report: &mut dyn FnMut(&Progress),
) -> Result<(Reply, Option<SessionError>)> {
    if let Some(outcome) = engine.settle() {
        told(outcome, tally, pacer, report)?;
    }
    let mut failed = None;
    let reply = match request {
        Request::Profile { .. } | Request::Prune { .. } => {
            unreachable!("answered when it is over")
        }
        Request::Snap {
            then,
            also,
            recipients,
        } => match refusal(engine, recipients) {
            Some(why) => Reply::Failed(why),
            None => {
                pacer.begin();
                let usual = engine.options;
                engine.options.audit |= also.audit;
                engine.options.files |= also.files;
                let begun = engine.snapshot_then(*then);
                engine.options = usual;
                let outcome = match begun {
                    Ok(()) => engine.settle().unwrap_or_else(|| {
                        Err(SessionError::Control {
                            why: "took no snapshot".into(),
                        })
                    }),
                    Err(e) => Err(e),
                };
                match outcome {
                    Ok(taken) => {
                        told(Ok(taken.clone()), tally, pacer, report)?;
                        Reply::Taken(Box::new(taken))
                    }
                    Err(e) => {
                        let reply = Reply::Failed(e.to_string());
                        // What comes after it would build on what is wrong.
                        failed = matches!(e, SessionError::Audit { .. }).then_some(e);
                        reply
                    }
                }
            }
        },
        Request::Rollback { to } => match engine.rollback_to(to) {
            Ok(done) => {
                report(&Progress::RolledBack(done.clone()));
                Reply::RolledBack(done)
            }
            Err(e) => {
                let why = e.to_string();
                if matches!(e, SessionError::Restore(RestoreError::Halfway { .. })) {
                    report(&Progress::Mixed { why: why.clone() });
                }
                Reply::Failed(why)
            }
        },
    };
    Ok((reply, failed))
}

/// Why a snapshot that is asked for is not taken, though others are.
fn refusal(engine: &Engine, recipients: &[String]) -> Option<String> {
    if !engine.keeper.has_room() {
        return Some(
            "no room for another snapshot until older ones are merged, which needs room itself: free some, or prune \
             or flush what is there"
                .into(),
        );
    }
    if recipients.is_empty() {
        return None;
    }
    match engine.recipients() {
        Ok(own) if own == recipients => None,
        Ok(_) => Some(
            "its snapshots are not sealed for the keys of --encrypt-to: leave that option out, or end that watch and \
             give it to a new one"
                .into(),
        ),
        Err(e) => Some(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::control::Also;
    use super::super::{Options, Then, TrackerChoice, TrackerKind};
    use super::*;
    use crate::store::Store;
    use std::path::Path;
    use std::process::Command;

    /// A watch of a process that sleeps, until `work` is done.
    fn watching<T>(work: impl FnOnce(&Path, &mut Engine, &mut Pacer) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(folder.path()).unwrap();
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        let options = Options {
            tracker: TrackerChoice::Only(TrackerKind::Hash),
            probes: false,
            ..Options::default()
        };
        let mut engine = Engine::attach(&store, sleeper.id() as i32, &options).unwrap();
        let mut pacer = Pacer::new(&Schedule {
            every: Duration::from_millis(1),
            count: None,
            lasting: None,
            max_overhead: None,
        });
        let done = work(folder.path(), &mut engine, &mut pacer);
        drop(engine);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        done
    }

    fn snap(recipients: &[&str]) -> Request {
        Request::Snap {
            then: Then::GoOn,
            also: Also::default(),
            recipients: recipients.iter().map(|key| (*key).to_owned()).collect(),
        }
    }

    #[test]
    fn a_watch_goes_on_when_the_keys_of_its_session_cannot_be_read() {
        let (reply, failed) = watching(|store, engine, pacer| {
            let session = store.join(engine.session().to_string());
            std::fs::remove_file(session.join("session.json")).unwrap();
            let request = snap(&["age1"]);
            answer_to(engine, &request, &mut Tally::new(), pacer, &mut |_| {}).unwrap()
        });
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
        assert!(failed.is_none(), "{failed:?}");
    }

    #[test]
    fn the_next_snapshot_is_due_after_the_beginning_of_one_that_is_asked_for() {
        let (done, asked, due) = watching(|_, engine, pacer| {
            let asked = Instant::now();
            assert!(pacer.due() <= asked);
            let mut tally = Tally::new();
            let done = answer_to(engine, &snap(&[]), &mut tally, pacer, &mut |_| {});
            (done, asked, pacer.due())
        });
        let (reply, failed) = done.unwrap();
        assert!(
            matches!(reply, Reply::Taken(_)) && failed.is_none(),
            "{reply:?}"
        );
        assert!(due >= asked);
    }
}
