//! `ksnap rollback`: back and forth to any snapshot, through the watcher or without one; the program never notices.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::victim::rng::Rng;
use tests::{Footprint, Ksnap, Victim, Watch, effort, require};

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

/// The ids that the kernel gives out, upwards until the highest one, then from the start again.
struct Ids {
    last: u32,
    came_round: bool,
}

impl Ids {
    fn new() -> Result<Self> {
        let last = Self::given_out()?;
        Ok(Self {
            last,
            came_round: false,
        })
    }

    /// The last field of /proc/loadavg (proc_loadavg(5)).
    fn given_out() -> Result<u32> {
        let text = std::fs::read_to_string("/proc/loadavg")?;
        let last = text.split_whitespace().last().context("nothing in it")?;
        Ok(last.parse()?)
    }

    fn look(&mut self) -> Result<()> {
        let now = Self::given_out()?;
        self.came_round |= now < self.last;
        self.last = now;
        Ok(())
    }
}

/// Watches a victim, and rolls it back so many times to snapshots chosen at random, while snapshots go on.
/// `waits_for_disk`: its threads do (O_DIRECT), and cannot be stopped then; that snapshot fails, the next one
/// is whole.
fn goes_back_and_forth(
    ksnap: &Ksnap,
    mut victim: Victim,
    times: usize,
    options: &[&str],
    waits_for_disk: bool,
) -> Result<()> {
    let pid = victim.pid();
    let before = Footprint::of(pid)?;
    let mut watch = Watch::start(ksnap, pid, &[&["--every", "40ms"], options].concat())?;
    watch.wait_taken(3, LIMIT)?;
    let mut rng = Rng::new(u64::from(std::process::id()));
    let (mut rollbacks, mut refused) = (0, 0);
    let mut ids_in_use = Ids::new()?;
    for _ in 0..effort::times(times) {
        std::thread::sleep(Duration::from_millis(20 + rng.word() % 100));
        ids_in_use.look()?;
        let ids = watch.ids()?;
        let id = &ids[rng.below(ids.len())];
        match ksnap.roll_back(pid, id) {
            Ok(_) => rollbacks += 1,
            // Refused, and nothing touched. Ids are given out in order: another process can have one that was
            // given out before only once the count has come round.
            Err(e) if format!("{e:#}").contains("another process has its id now") => {
                ids_in_use.look()?;
                ensure!(ids_in_use.came_round, "{e:#}");
                refused += 1;
            }
            Err(e) => {
                let said = [watch.process().stderr(), victim.process().stderr()].concat();
                return Err(e.context(said));
            }
        }
        victim.status()?;
    }
    ensure!(refused < rollbacks, "{refused} refused, {rollbacks} done");
    let then = victim.check()?.counter;
    victim.wait_beyond(then, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    let failed = watched.failed.iter();
    let failed: Vec<_> = failed
        .filter(|why| !(waits_for_disk && why.contains("sleeps uninterruptibly")))
        .collect();
    ensure!(failed.is_empty(), "{failed:?}");
    let told = watched.rolled_back.len();
    ensure!(told == rollbacks, "{told} of {rollbacks}");
    watched.left_nothing(&before)?;
    victim.check()?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

fn rolled(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
    let victim = Victim::spawn(name, &[args, &["--rollbacks"]].concat())?;
    goes_back_and_forth(&Ksnap::new()?, victim, 12, options, name == "gup")
}

macro_rules! rolled {
    ($($test:ident: $name:literal $args:expr, $options:expr $(, needs $need:expr)?;)+) => {
        mod every_victim_goes_back_and_forth {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                tests::require!(Root, Ksnap $(, $need)?);
                super::rolled($name, &$args, &$options)
            })+
        }
    };
}

rolled! {
    counter: "counter" ["--mib", "16"], ["--audit"];
    threads: "threads" [], ["--audit"], needs ChosenIds;
    maps: "maps" [], ["--audit"];
    dontneed: "dontneed" [], ["--audit"];
    deepstack: "deepstack" [], ["--audit"];
    hugepages: "hugepages" ["--mib", "16"], ["--audit"];
    avx: "avx" [], ["--audit"], needs Cpu("avx2");
    clocks: "clocks" [], ["--audit"];
    rseq: "rseq" [], ["--audit"], needs Rseq;
    sparse: "sparse" [], ["--audit"];
    signals: "signals" [], ["--audit"];
    filemap_private: "filemap" ["private"], ["--audit"];
    shared_alone: "shared" ["--alone"], ["--audit"];
    fork: "fork" [], ["--audit"];
    signal_dispositions: "attributes" ["signals"], ["--audit"];
    timers: "attributes" ["timers"], ["--audit"];
    process_attributes: "attributes" ["process"], ["--audit"];
    memory_attributes: "attributes" ["memory"], ["--audit"], needs Probes;
    signal_dispositions_without_probes: "attributes" ["signals"], ["--audit", "--no-probes"];
    timers_without_probes: "attributes" ["timers"], ["--audit", "--no-probes"];
    process_attributes_without_probes: "attributes" ["process"], ["--audit", "--no-probes"];
    thread_attributes_without_probes: "attributes" ["threads"], ["--audit", "--no-probes"], needs Priorities;
    credentials_without_probes: "attributes" ["credentials"], ["--audit", "--no-probes"], needs OtherUsers;
    thread_attributes: "attributes" ["threads"], ["--audit"], needs Priorities;
    credentials: "attributes" ["credentials"], ["--audit"], needs OtherUsers;
    gup_direct: "gup" [], [];
    nanosleep: "blocked" ["nanosleep"], ["--audit"];
    clock_nanosleep: "blocked" ["clock_nanosleep"], ["--audit"];
    poll: "blocked" ["poll"], ["--audit"];
    ppoll: "blocked" ["ppoll"], ["--audit"];
    select: "blocked" ["select"], ["--audit"];
    futex: "blocked" ["futex"], ["--audit"];
    futex_timeout: "blocked" ["futex-timeout"], ["--audit"];
    pipe: "blocked" ["pipe"], ["--audit"];
    epoll_wait: "blocked" ["epoll_wait"], ["--audit"];
    sigtimedwait: "blocked" ["sigtimedwait"], ["--audit"];
    wait4: "blocked" ["wait4"], ["--audit"];
    accept: "blocked" ["accept"], ["--audit"];
    recv: "blocked" ["recv"], ["--audit"];
    recv_timeout: "blocked" ["recv-timeout"], ["--audit"];
    read_timeout: "blocked" ["read-timeout"], ["--audit"];
    counter_without_probes: "counter" ["--mib", "8"], ["--audit", "--no-probes"];
    maps_without_probes: "maps" [], ["--audit", "--no-probes"];
    counter_by_hash: "counter" ["--mib", "4"], ["--audit", "--tracker", "hash"];
    maps_by_hash: "maps" [], ["--audit", "--tracker", "hash"];
    counter_by_soft_dirty: "counter" ["--mib", "4"], ["--audit", "--tracker", "soft-dirty"], needs Tracker("soft-dirty");
}

#[test]
fn an_ordinary_user_rolls_back_an_own_process() -> Result<()> {
    require!(Root, Ksnap, OtherUsers);
    let ksnap = Ksnap::as_user(NOBODY)?;
    let victim = Victim::spawn_as(NOBODY, "counter", &["--mib", "4", "--rollbacks"])?;
    goes_back_and_forth(&ksnap, victim, 6, &["--audit"], false)
}

#[test]
fn root_of_a_user_namespace_rolls_back_a_process_in_it() -> Result<()> {
    require!(Root, Ksnap, UserNamespace);
    let args = ["--mib", "4", "--rollbacks"];
    let victim = Victim::spawn_in_user_namespace("counter", &args)?;
    let ksnap = Ksnap::in_user_namespace_of(victim.pid())?;
    goes_back_and_forth(&ksnap, victim, 6, &["--audit"], false)
}

/// The counter is where the snapshot has it, or what the victim has done since it runs again beyond that.
fn counter_is_back(victim: &mut Victim, low: u64, high: u64, since: Instant) -> Result<()> {
    let now = victim.is_back(high, since, 1)?;
    ensure!(now >= low, "the counter is {now}, below {low}");
    Ok(())
}

/// Steps between two snapshots of the counter victim below, whose four threads make one a millisecond.
const FAR: u64 = 6000;
const SLOW: &[&str] = &["--mib", "8", "--rate", "250", "--rollbacks"];

fn the_counter_goes_back(watch: bool) -> Result<()> {
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", SLOW)?;
    let pid = victim.pid();
    let before = Footprint::of(pid)?;
    let watch = match watch {
        true => Some(Watch::start(&ksnap, pid, &["--every", "100ms", "--audit"])?),
        false => None,
    };
    let (first, low, high) = ksnap.snap_between(&mut victim)?;
    victim.wait_beyond(high + FAR, LIMIT)?;
    let (second, late, later) = ksnap.snap_between(&mut victim)?;
    for _ in 0..2 {
        let since = Instant::now();
        ksnap.roll_back(pid, &first)?;
        counter_is_back(&mut victim, low, high, since)?;
        // And forwards.
        let since = Instant::now();
        ksnap.roll_back(pid, &second)?;
        counter_is_back(&mut victim, late, later, since)?;
    }
    if let Some(watch) = watch {
        let watched = watch.interrupt(LIMIT)?;
        watched.none_failed()?;
        ensure!(watched.rolled_back.len() == 4, "{watched:?}");
    }
    Footprint::of(pid)?.nothing_left_since(&before)?;
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn the_counter_goes_back_and_forwards_through_the_watcher() -> Result<()> {
    require!(Root, Ksnap);
    the_counter_goes_back(true)
}

#[test]
fn the_counter_goes_back_and_forwards_without_a_watcher() -> Result<()> {
    require!(Root, Ksnap);
    the_counter_goes_back(false)
}

#[test]
fn snapshots_after_a_rollback_follow_the_one_it_went_to() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", SLOW)?;
    let pid = victim.pid();
    let mut watch = Watch::start(&ksnap, pid, &["--every", "1h", "--audit"])?;
    watch.wait_taken(1, LIMIT)?;
    let (first, ..) = ksnap.snap_between(&mut victim)?;
    ksnap.snap_between(&mut victim)?;
    ksnap.roll_back(pid, &first)?;
    let (branch, ..) = ksnap.snap_between(&mut victim)?;
    let log = ksnap.json(&["log"])?;
    let branch = log.iter().find(|entry| entry["id"] == branch.as_str());
    let branch = branch.context("not listed")?;
    ensure!(
        branch["parent"] == first.as_str() && branch["branch"] == true,
        "{branch}"
    );
    watch.interrupt(LIMIT)?.none_failed()?;
    victim.quit()
}

#[test]
fn a_stopped_process_is_rolled_back_and_stays_stopped() -> Result<()> {
    require!(Root, Ksnap);
    use nix::sys::signal::{Signal, kill};
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", SLOW)?;
    let process = nix::unistd::Pid::from_raw(victim.pid());
    let (first, low, high) = ksnap.snap_between(&mut victim)?;
    victim.wait_beyond(high + FAR, LIMIT)?;
    kill(process, Signal::SIGSTOP)?;
    let end = Instant::now() + LIMIT;
    while tests::footprint::state_of(victim.pid()) != 'T' {
        ensure!(Instant::now() < end, "not stopped");
        std::thread::sleep(Duration::from_millis(1));
    }
    let done = ksnap.roll_back(victim.pid(), &first)?;
    ensure!(done["stopped"] == true, "{done}");
    std::thread::sleep(Duration::from_millis(50));
    let state = tests::footprint::state_of(victim.pid());
    ensure!(state == 'T', "state {state} after a rollback");
    let pid = victim.pid().to_string();
    let said = ksnap.ok(&["rollback", &pid, &first, "-y"])?;
    ensure!(said.contains(&format!("kill -CONT {pid}")), "{said}");
    let since = Instant::now();
    kill(process, Signal::SIGCONT)?;
    counter_is_back(&mut victim, low, high, since)?;
    let done = ksnap.roll_back(victim.pid(), &first)?;
    ensure!(done["stopped"] == false, "{done}");
    victim.quit()
}
