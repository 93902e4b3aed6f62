//! Snapshots of a running process, one after the other, until something ends it.

use super::control::{Reply, Request};
use super::pacer::Pacer;
use super::service::Command;
use super::subject::{Price, Subject};
use super::{Ended, Progress, Result, Schedule, SessionError, Summary, Trouble};
use crate::image::SessionId;
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

    fn take(&mut self, price: &Price) {
        self.taken += 1;
        self.first.get_or_insert(price.id);
        self.last = Some(price.id);
        self.bytes += price.bytes;
        let _ = self.stops.record(price.costs.phases.stop_ns.max(1));
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
pub(super) fn drive<S: Subject>(
    subject: &mut S,
    schedule: &Schedule,
    commands: &Receiver<Command>,
    report: &mut dyn FnMut(&Progress),
) -> Result<Summary> {
    let mut tally = Tally::new();
    // The faster the copying ahead, the fewer pages are left for the stop. The threads that encode
    // were started before, and stay behind the target.
    renice(TRACER_STEPS);
    report(&subject.attached());
    subject.pace(schedule.every);
    let mut pacer = Pacer::new(schedule);
    let mut was_late = false;
    // Who waits for a profile, and until when.
    let mut profile: Option<(Instant, oneshot::Sender<Reply>)> = None;
    // Snapshots that were asked for and wait for room, and until when.
    let mut asked: VecDeque<(Instant, Request, oneshot::Sender<Reply>)> = VecDeque::new();
    let ended = loop {
        if let Some(outcome) = subject.try_settle()
            && let Some(ended) = told::<S>(outcome, &mut tally, &mut pacer, report)?
        {
            break ended;
        }
        while let Some((until, ..)) = asked.front()
            && (!subject.is_busy() && subject.has_room() || *until <= Instant::now())
            && let Some((_, request, answer)) = asked.pop_front()
        {
            let (reply, failed) = answer_to(subject, &request, &mut tally, &mut pacer, report)?;
            let _ = answer.send(reply);
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let now = Instant::now();
        if schedule.lasting.is_some_and(|l| tally.start.elapsed() >= l) {
            break Ended::Time;
        }
        if !subject.is_busy()
            && schedule
                .count
                .is_some_and(|c| tally.taken + tally.failed >= c)
        {
            break Ended::Count;
        }
        if now >= pacer.due() && !subject.is_mixed() {
            if subject.is_busy() || !subject.has_room() {
                // Storing takes longer than the interval: the next one waits, and that is said once.
                was_late = true;
            } else {
                if std::mem::take(&mut was_late) {
                    report(&Progress::Late {
                        by: now - pacer.due(),
                    });
                }
                pacer.begin_due();
                if let Err(e) = subject.begin()
                    && let Some(ended) = told::<S>(Err(e), &mut tally, &mut pacer, report)?
                {
                    break ended;
                }
                // Commands come next, or they would never have their turn when snapshots take longer than
                // the interval.
            }
        }
        if let Some((_, answer)) = profile.take_if(|(end, _)| *end <= now) {
            let _ = answer.send(end_profile(subject));
        }
        let tick = if subject.is_busy() { SETTLE_TICK } else { TICK };
        let wait = match subject.is_busy() || subject.is_mixed() || !subject.has_room() {
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
            Ok(Command::Ask(Request::Profile { lasting_ms }, answer)) => match subject.profiled() {
                Ok(engine) => {
                    engine.start_profile();
                    profile = Some((Instant::now() + Duration::from_millis(lasting_ms), answer));
                }
                Err(why) => {
                    let _ = answer.send(Reply::Failed(why));
                }
            },
            // On a thread of its own: the next snapshot does not wait for it.
            Ok(Command::Ask(
                Request::Prune {
                    what,
                    dry_run,
                    session,
                },
                answer,
            )) => {
                let of = session.as_deref().and_then(SessionId::from_hex);
                match subject.keeper(of) {
                    Some(keeper) => keeper.ask(what, dry_run, answer),
                    None => {
                        let why = "the process has just ended, or come: try again".to_owned();
                        let _ = answer.send(Reply::Failed(why));
                    }
                }
            }
            Ok(Command::Ask(request @ Request::Snap { .. }, answer)) => {
                asked.push_back((Instant::now() + ROOM_PATIENCE, request, answer));
            }
            Ok(Command::Ask(request, answer)) => {
                let (reply, _) = answer_to(subject, &request, &mut tally, &mut pacer, report)?;
                let _ = answer.send(reply);
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Err(e) = subject.tick()
                    && let Some(ended) = told::<S>(Err(e), &mut tally, &mut pacer, report)?
                {
                    break ended;
                }
            }
        }
    };
    if ended == Ended::Terminated {
        // What lies in memory is about to be written to the disk: there is no time to tidy it.
        subject.leave();
    }
    if let Some(outcome) = subject.settle() {
        told::<S>(outcome, &mut tally, &mut pacer, report)?;
    }
    if let Some((_, answer)) = profile {
        let _ = answer.send(end_profile(subject));
    }
    Ok(tally.end(ended, subject.is_mixed()))
}

fn end_profile<S: Subject>(subject: &mut S) -> Reply {
    match subject.profiled() {
        Ok(engine) => Reply::Profile(Box::new(engine.end_profile())),
        Err(why) => Reply::Failed(why),
    }
}

/// Reports an outcome. `Some` when it ends the watching, an error when it must not go on.
fn told<S: Subject>(
    outcome: Result<S::Taken>,
    tally: &mut Tally,
    pacer: &mut Pacer,
    report: &mut dyn FnMut(&Progress),
) -> Result<Option<Ended>> {
    match outcome {
        Ok(taken) => {
            let price = S::price(&taken);
            if let Some(every) = pacer.stored(price.kind, &price.costs) {
                report(&Progress::Held { every });
            }
            tally.take(&price);
            report(&S::told(taken));
            Ok(None)
        }
        Err(e) if e.trouble() == Trouble::Vanished => Ok(Some(Ended::TargetExited(None))),
        Err(e @ SessionError::Audit { .. }) => Err(e),
        // What fails at the very first will fail again, but for a tree whose processes come and go.
        Err(e)
            if tally.taken == 0
                && tally.failed == 0
                && !matches!(e, SessionError::Changing { .. }) =>
        {
            Err(e)
        }
        Err(e) => {
            tally.failed += 1;
            report(&Progress::Failed { why: e.to_string() });
            Ok(None)
        }
    }
}

/// The answer, and what has to end the watch when it is given.
fn answer_to<S: Subject>(
    subject: &mut S,
    request: &Request,
    tally: &mut Tally,
    pacer: &mut Pacer,
    report: &mut dyn FnMut(&Progress),
) -> Result<(Reply, Option<SessionError>)> {
    if let Some(outcome) = subject.settle() {
        told::<S>(outcome, tally, pacer, report)?;
    }
    let refused = |why: String| Ok((Reply::Failed(why), None));
    if let Request::Snap { tree, pid, .. } | Request::Rollback { tree, pid, .. } = request
        && let Some(why) = subject.refusal(*tree, *pid)
    {
        return refused(why);
    }
    match request {
        Request::Profile { .. } | Request::Prune { .. } => {
            unreachable!("answered when it is over")
        }
        Request::Snap { .. } if !subject.has_room() => refused(
            "no room for another snapshot until older ones are merged, which needs room itself: free some, or prune \
             or flush what is there"
                .into(),
        ),
        Request::Snap {
            then,
            also,
            recipients,
            ..
        } => {
            if let Err(e) = sealed_for(subject, recipients) {
                return refused(e);
            }
            pacer.begin();
            match subject.snap(*then, *also) {
                Ok(taken) => {
                    let reply = S::answer(&taken);
                    told::<S>(Ok(taken), tally, pacer, report)?;
                    Ok((reply, None))
                }
                // What comes after it would build on what is wrong.
                Err(e @ SessionError::Audit { .. }) => Ok((Reply::Failed(e.to_string()), Some(e))),
                Err(e) => refused(e.to_string()),
            }
        }
        Request::Rollback { to, .. } => match subject.roll_back(to) {
            Ok((progress, reply)) => {
                report(&progress);
                Ok((reply, None))
            }
            Err(e) => {
                let why = e.to_string();
                if is_halfway(&e) {
                    report(&Progress::Mixed { why: why.clone() });
                }
                refused(why)
            }
        },
    }
}

/// Whether its snapshots are sealed for these keys, if any are asked for.
fn sealed_for<S: Subject>(subject: &S, recipients: &[String]) -> std::result::Result<(), String> {
    if recipients.is_empty() || subject.recipients().map_err(|e| e.to_string())? == recipients {
        return Ok(());
    }
    Err(
        "its snapshots are not sealed for the keys of --encrypt-to: leave that option out, or end that watch and \
         give it to a new one"
            .into(),
    )
}

fn is_halfway(error: &SessionError) -> bool {
    matches!(
        error,
        SessionError::Restore(RestoreError::Halfway { .. } | RestoreError::TreeHalfway { .. })
    )
}

#[cfg(test)]
mod tests {
    use super::super::control::Also;
    use super::super::{Engine, Options, Then, TrackerChoice, TrackerKind};
    use super::*;
    use crate::session::asleep::await_sleep;
    use crate::store::Store;
    use std::path::Path;
    use std::process::Command;

    /// A watch of a process that sleeps, until `work` is done.
    fn watching<T>(work: impl FnOnce(&Path, &mut Engine, &mut Pacer) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(folder.path()).unwrap();
        let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
        await_sleep(sleeper.id() as i32);
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
            tree: false,
            pid: None,
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
