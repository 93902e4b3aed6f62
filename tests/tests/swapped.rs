//! Pages that are swapped out are pages like others: tracked, captured, put back.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::swap::{Swap, page_out};
use tests::victim::rng::Rng;
use tests::{Ksnap, Victim, Watch, require};

const LIMIT: Duration = Duration::from_secs(120);
const NOBODY: u32 = 65534;
/// The victim has as much, and its files come on top.
const MIB: u64 = 32;

/// Watches a victim that is swapped out again and again, and has it go back to some of its snapshots.
fn lives_through_it(ksnap: &Ksnap, mut victim: Victim, options: &[&str]) -> Result<()> {
    let pid = victim.pid();
    let every = [&["--every", "40ms", "--audit"], options].concat();
    let mut watch = Watch::start(ksnap, pid, &every)?;
    let mut rng = Rng::new(0x5a9);
    let mut most = 0;
    for round in 0..8 {
        most = most.max(page_out(pid)?);
        let taken = watch.ids()?.len();
        watch.wait_taken(taken + 2, LIMIT)?;
        most = most.max(page_out(pid)?);
        if round % 2 == 1 {
            let ids = watch.ids()?;
            let id = &ids[rng.below(ids.len())];
            ksnap.ok(&["rollback", &pid.to_string(), id, "-y"])?;
            victim.check()?;
        }
    }
    watch.interrupt(LIMIT)?.none_failed()?;
    ensure!(
        most > MIB << 19,
        "no more than {most} bytes were swapped out"
    );
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn what_is_swapped_out_is_tracked_and_put_back() -> Result<()> {
    require!(Root, Ksnap, Swap);
    let _swap = Swap::on(64)?;
    let mib = MIB.to_string();
    for tracker in ["wp", "hash"] {
        if tests::Need::Tracker(tracker).missing().is_some() {
            continue;
        }
        let victim = Victim::spawn("counter", &["--mib", &mib, "--rollbacks"])?;
        lives_through_it(&Ksnap::new()?, victim, &["--tracker", tracker])?;
    }
    Ok(())
}

/// Who may not see where pages are still learns that they are there.
#[test]
fn what_is_swapped_out_of_an_ordinary_users_process_is_tracked_and_put_back() -> Result<()> {
    require!(Root, Ksnap, Swap, OtherUsers);
    let _swap = Swap::on(64)?;
    let mib = MIB.to_string();
    let victim = Victim::spawn_as(NOBODY, "counter", &["--mib", &mib, "--rollbacks"])?;
    lives_through_it(&Ksnap::as_user(NOBODY)?, victim, &[])
}

#[test]
fn a_process_that_is_swapped_out_is_ended_and_comes_back() -> Result<()> {
    require!(Root, Ksnap, Swap, ChosenIds);
    let _swap = Swap::on(64)?;
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", &MIB.to_string()])?;
    let counter = victim.check()?.counter;
    let pid = victim.pid();
    ensure!(page_out(pid)? > 0, "nothing is swapped out");
    let ended = ksnap.run(&["snap", &pid.to_string(), "--kill", "--audit"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    victim.process().wait(LIMIT)?;
    tests::footprint::await_gone(pid, LIMIT)?;
    let back = ksnap.start(&["restore", "latest", "--wait", "--json"])?;
    let mut back = Victim::brought_back(back)?;
    // While some of it is still to come.
    page_out(back.pid())?;
    back.wait_beyond(counter + 20, LIMIT)?;
    page_out(back.pid())?;
    back.check()?;
    back.quit()
}
