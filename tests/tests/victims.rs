//! Every victim is well on its own, and notices when its memory is damaged behind its back: a victim that
//! cannot fail proves nothing about a snapshot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::footprint::state_of;
use tests::victim::blocked;
use tests::{Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

/// Lets a victim work for a while; it must get on, and every invariant must hold.
fn is_well(name: &str, args: &[&str]) -> Result<()> {
    let mut victim = Victim::spawn(name, args)?;
    let first = victim.status()?.counter;
    std::thread::sleep(Duration::from_millis(700));
    victim.wait_beyond(first, LIMIT)?;
    victim.check()?;
    victim.quit()
}

/// Damages a victim's memory; it must say so, and end.
fn notices_damage(name: &str, args: &[&str]) -> Result<()> {
    let mut victim = Victim::spawn(name, args)?;
    victim.check()?;
    victim.sabotage()?;
    // The victim may find the damage before it is asked.
    let asked = victim.check();
    assert!(
        asked.is_err(),
        "victim {name} passed its check with damaged memory"
    );
    let reason = victim.expect_broken(LIMIT)?;
    assert!(reason.contains(name), "{reason}");
    Ok(())
}

macro_rules! victims {
    ($($test:ident: $name:literal $args:expr $(, needs $need:expr)?;)+) => {
        $(mod $test {
            #[test]
            fn is_well() -> anyhow::Result<()> {
                $(tests::require!($need);)?
                super::is_well($name, &$args)
            }

            #[test]
            fn notices_damage() -> anyhow::Result<()> {
                $(tests::require!($need);)?
                super::notices_damage($name, &$args)
            }
        })+
    };
}

victims! {
    counter: "counter" ["--mib", "16"];
    tree: "tree" [];
    tree_with_memory: "tree" ["--mib", "4"];
    session: "session" [];
    threads: "threads" [];
    maps: "maps" [];
    dontneed: "dontneed" [];
    fork: "fork" [];
    exec: "exec" ["--every-ms", "100"];
    deepstack: "deepstack" [];
    hugepages: "hugepages" ["--mib", "16"];
    shared: "shared" [];
    shared_alone: "shared" ["memfd", "--alone"];
    filemap: "filemap" [];
    filemap_unlinked: "filemap" ["both", "--unlinked"];
    signals: "signals" [];
    avx: "avx" [], needs Cpu("avx2");
    rseq: "rseq" [], needs Rseq;
    clocks: "clocks" [];
    sparse: "sparse" [];
    uffd: "uffd" [], needs Tracker("wp");
    attributes_signals: "attributes" ["signals"];
    attributes_timers: "attributes" ["timers"];
    attributes_process: "attributes" ["process"];
    attributes_memory: "attributes" ["memory"];
    attributes_threads: "attributes" ["threads"], needs Priorities;
    attributes_credentials: "attributes" ["credentials"], needs OtherUsers;
    gup: "gup" [];
    gup_with_rollbacks: "gup" ["--rollbacks"];
    signals_with_rollbacks: "signals" ["--rollbacks"];
    shared_with_rollbacks: "shared" ["--rollbacks"];
    pipe_with_rollbacks: "blocked" ["pipe", "--rollbacks"];
    blocked_in_nanosleep: "blocked" ["nanosleep"];
    blocked_in_clock_nanosleep: "blocked" ["clock_nanosleep"];
    blocked_in_poll: "blocked" ["poll"];
    blocked_in_ppoll: "blocked" ["ppoll"];
    blocked_in_select: "blocked" ["select"];
    blocked_in_futex: "blocked" ["futex"];
    blocked_in_futex_timeout: "blocked" ["futex-timeout"];
    blocked_in_pipe: "blocked" ["pipe"];
    blocked_in_epoll_wait: "blocked" ["epoll_wait"];
    blocked_in_sigtimedwait: "blocked" ["sigtimedwait"];
    blocked_in_wait4: "blocked" ["wait4"];
    blocked_in_accept: "blocked" ["accept"];
    blocked_in_recv: "blocked" ["recv"];
    blocked_in_recv_with_a_limit: "blocked" ["recv-timeout"];
    blocked_in_read_with_a_limit: "blocked" ["read-timeout"];
}

#[test]
fn an_unknown_victim_or_option_is_refused() -> Result<()> {
    require!(Kernel(3, 0));
    assert!(Victim::spawn("no-such-victim", &[]).is_err());
    assert!(Victim::spawn("counter", &["--no-such-option", "1"]).is_err());
    Ok(())
}

/// signal(7): these calls fail with EINTR after a stop even where there is no handler.
const NOT_RESTARTED: &[&str] = &["epoll_wait", "sigtimedwait", "recv-timeout", "read-timeout"];

fn is_stopped_or_over(victim: &Victim) -> bool {
    state_of(victim.pid()) == 'T' || !victim.alive()
}

fn stop_and_continue(victims: &[Victim]) -> Result<()> {
    let all = |signal| {
        victims
            .iter()
            .try_for_each(|victim| kill(Pid::from_raw(victim.pid()), signal))
    };
    for _ in 0..30 {
        all(Signal::SIGSTOP)?;
        // One that is not stopped yet would never be. Some find themselves interrupted here, and end.
        let end = Instant::now() + LIMIT;
        while !victims.iter().all(is_stopped_or_over) {
            ensure!(Instant::now() < end, "not all are stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(3));
        all(Signal::SIGCONT)?;
        std::thread::sleep(Duration::from_millis(12));
    }
    Ok(())
}

#[test]
fn blocked_calls_that_the_kernel_restarts_survive_stop_and_continue() -> Result<()> {
    let kinds = blocked::KINDS
        .iter()
        .filter(|kind| !NOT_RESTARTED.contains(kind));
    let victims: Vec<Victim> = kinds
        .map(|kind| Victim::spawn("blocked", &[kind]))
        .collect::<Result<_>>()?;
    stop_and_continue(&victims)?;
    victims.into_iter().try_for_each(Victim::quit)
}

/// Else the victim could not notice either that ksnap has interrupted a call.
#[test]
fn a_blocked_victim_notices_an_interrupted_call() -> Result<()> {
    for kind in NOT_RESTARTED {
        let victim = Victim::spawn("blocked", &[kind])?;
        stop_and_continue(std::slice::from_ref(&victim))?;
        let reason = victim.expect_broken(LIMIT)?;
        assert!(
            reason.contains("Interrupted system call"),
            "{kind}: {reason}"
        );
    }
    Ok(())
}

/// Else nobody could notice a leader that was not brought back, and whoever asks would wait for good.
#[test]
fn a_session_whose_leader_is_stuck_says_so() -> Result<()> {
    let mut victim = Victim::spawn("session", &[])?;
    let leader = victim.ready()["leader"].as_i64().context("no leader")? as i32;
    kill(Pid::from_raw(leader), Signal::SIGSTOP)?;
    // It waits for so many naps, however long they take here.
    let reason = match victim.ask("check", Duration::from_secs(540)) {
        Err(error) => format!("{error:#}"),
        Ok(status) => bail!("it passed its check: {status:?}"),
    };
    ensure!(
        reason.contains(&format!("the leader (process {leader}) is stuck")),
        "{reason}"
    );
    Ok(())
}

/// Overwrites registers, not memory: only the loop that holds them can tell.
#[test]
#[cfg(target_arch = "x86_64")]
fn avx_notices_a_register_that_changed() -> Result<()> {
    require!(Cpu("avx2"));
    let mut victim = Victim::spawn("avx", &["--threads", "1"])?;
    let tid = victim.ready()["workers"][0]["tid"]
        .as_i64()
        .expect("a worker's thread id") as i32;
    for _ in 0..50 {
        // Now and then the thread is just between two rounds, and the damage is without effect.
        let damaged = tests::poke::invert_vector_registers(tid);
        if victim.check().is_err() {
            break;
        }
        damaged?;
    }
    let reason = victim.expect_broken(LIMIT)?;
    assert!(reason.contains("vector register"), "{reason}");
    Ok(())
}
