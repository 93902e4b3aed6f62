//! `ksnap watch`: every victim lives through many audited snapshots, and is afterwards as if nothing had been.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Footprint, Ksnap, Need, Victim, Watch, effort, require};

/// How long a watch of a second or two may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
const NOBODY: u32 = 65534;

/// Watches a victim as `options` say for `count` snapshots; then it must be right, at work and clean, and the
/// store whole.
fn lives_through(
    ksnap: &Ksnap,
    mut victim: Victim,
    count: usize,
    options: &[&str],
) -> Result<serde_json::Value> {
    let before = Footprint::of(victim.pid())?;
    let count = effort::times(count);
    let number = count.to_string();
    let options = [&["--every", "20ms", "--count", &number], options].concat();
    let watched = Watch::start(ksnap, victim.pid(), &options)?.finish(LIMIT);
    let watched = victim.blame(watched)?;
    victim.blame(watched.took(count))?;
    let then = victim.check()?.counter;
    victim.wait_beyond(then, LIMIT)?;
    watched.left_nothing(&before)?;
    ksnap.ok(&["verify"])?;
    victim.quit()?;
    Ok(watched.attached)
}

fn watched(name: &str, args: &[&str], count: usize, options: &[&str]) -> Result<()> {
    let victim = Victim::spawn(name, args)?;
    lives_through(&Ksnap::new()?, victim, count, options).map(drop)
}

macro_rules! watched {
    ($($test:ident: $name:literal $args:expr, $count:literal $(, needs $need:expr)?;)+) => {
        mod every_victim_lives_through_audited_snapshots {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                tests::require!(Root, Ksnap $(, $need)?);
                super::watched($name, &$args, $count, &["--audit"])
            })+
        }
    };
}

watched! {
    counter: "counter" ["--mib", "16"], 40;
    threads: "threads" [], 40;
    maps: "maps" [], 40;
    dontneed: "dontneed" [], 40;
    fork: "fork" [], 40;
    exec: "exec" ["--every-ms", "250"], 30;
    deepstack: "deepstack" [], 30;
    hugepages: "hugepages" ["--mib", "16"], 40;
    shared_alone: "shared" ["--alone"], 40;
    filemap: "filemap" [], 40;
    filemap_unlinked: "filemap" ["both", "--unlinked"], 40;
    signals: "signals" [], 40;
    avx: "avx" [], 40, needs Cpu("avx2");
    clocks: "clocks" [], 40;
    rseq: "rseq" [], 40, needs Rseq;
    sparse: "sparse" [], 40;
    uffd: "uffd" [], 40, needs Tracker("wp");
    nanosleep: "blocked" ["nanosleep"], 40;
    clock_nanosleep: "blocked" ["clock_nanosleep"], 40;
    poll: "blocked" ["poll"], 40;
    ppoll: "blocked" ["ppoll"], 40;
    select: "blocked" ["select"], 40;
    futex: "blocked" ["futex"], 40;
    futex_timeout: "blocked" ["futex-timeout"], 40;
    pipe: "blocked" ["pipe"], 40;
    epoll_wait: "blocked" ["epoll_wait"], 40;
    sigtimedwait: "blocked" ["sigtimedwait"], 40;
    wait4: "blocked" ["wait4"], 40;
    accept: "blocked" ["accept"], 40;
    recv: "blocked" ["recv"], 40;
    recv_timeout: "blocked" ["recv-timeout"], 40;
    read_timeout: "blocked" ["read-timeout"], 40;
    signal_dispositions: "attributes" ["signals"], 40;
    timers: "attributes" ["timers"], 40;
    session: "session" [], 40;
}

/// Each kind of blocking call has a test above.
#[test]
fn no_kind_of_blocking_call_is_left_out() {
    let source = include_str!("watch.rs");
    for kind in tests::victim::blocked::KINDS {
        assert!(
            source.contains(&format!(r#""blocked" ["{kind}"]"#)),
            "{kind}"
        );
    }
    // Those of open files do nothing until they are asked to: files.rs.
    for (name, ..) in tests::victim::VICTIMS.iter().filter(|v| v.0 != "files") {
        assert!(source.contains(&format!("\"{name}\"")), "{name}");
    }
}

/// What another process or the kernel writes during a stop an audit would find: here it is not asked for.
mod what_others_write_does_no_harm {
    use super::*;

    #[test]
    fn shared() -> Result<()> {
        require!(Root, Ksnap);
        watched("shared", &[], 40, &[])
    }

    #[test]
    fn gup() -> Result<()> {
        require!(Root, Ksnap);
        watched("gup", &[], 40, &[])
    }

    /// Its parent alone: the others go on.
    #[test]
    fn tree() -> Result<()> {
        require!(Root, Ksnap);
        watched("tree", &[], 40, &[])
    }
}

mod without_probes {
    use super::*;

    fn alike(name: &str, args: &[&str]) -> Result<()> {
        let victim = Victim::spawn(name, args)?;
        let options = ["--audit", "--no-probes"];
        let attached = lives_through(&Ksnap::new()?, victim, 30, &options)?;
        ensure!(attached["faults"].is_null(), "{attached}");
        Ok(())
    }

    macro_rules! alike {
        ($($test:ident: $name:literal $args:expr;)+) => {
            $(#[test]
            fn $test() -> Result<()> {
                require!(Root, Ksnap);
                alike($name, &$args)
            })+
        };
    }

    alike! {
        counter: "counter" ["--mib", "8"];
        threads: "threads" [];
        maps: "maps" [];
        dontneed: "dontneed" [];
        exec: "exec" ["--every-ms", "250"];
        deepstack: "deepstack" [];
        hugepages: "hugepages" ["--mib", "8"];
        filemap: "filemap" [];
        signals: "signals" [];
        sparse: "sparse" [];
        nanosleep: "blocked" ["nanosleep"];
        clock_nanosleep: "blocked" ["clock_nanosleep"];
        poll: "blocked" ["poll"];
        futex_timeout: "blocked" ["futex-timeout"];
    }
}

/// The kernel has to have the tracker.
fn with_tracker(tracker: &'static str, name: &str, args: &[&str], count: usize) -> Result<()> {
    let victim = Victim::spawn(name, args)?;
    let options = ["--audit", "--tracker", tracker];
    let attached = lives_through(&Ksnap::new()?, victim, count, &options)?;
    ensure!(attached["tracker"] == tracker, "{attached}");
    Ok(())
}

macro_rules! trackers {
    ($($test:ident: $tracker:literal $name:literal $args:expr, $count:literal;)+) => {
        mod each_tracker_works_alone {
            $(#[test]
            fn $test() -> anyhow::Result<()> {
                tests::require!(Root, Ksnap, Tracker($tracker));
                super::with_tracker($tracker, $name, &$args, $count)
            })+
        }
    };
}

trackers! {
    hash_counter: "hash" "counter" ["--mib", "4"], 20;
    hash_maps: "hash" "maps" [], 20;
    hash_dontneed: "hash" "dontneed" [], 20;
    hash_filemap: "hash" "filemap" ["--mib", "2"], 20;
    hash_exec: "hash" "exec" ["--every-ms", "250"], 20;
    soft_dirty_counter: "soft-dirty" "counter" ["--mib", "4"], 30;
    soft_dirty_maps: "soft-dirty" "maps" [], 30;
    soft_dirty_dontneed: "soft-dirty" "dontneed" [], 30;
    soft_dirty_filemap: "soft-dirty" "filemap" [], 30;
    soft_dirty_exec: "soft-dirty" "exec" ["--every-ms", "250"], 30;
    wp_counter: "wp" "counter" ["--mib", "4"], 30;
}

/// Whoever runs the tests may know what the kernel has: then nothing less will do.
#[test]
fn a_process_is_tracked_by_the_best_that_the_kernel_has() -> Result<()> {
    require!(Root, Ksnap);
    let known = |name: &str| std::env::var(name).ok();
    let works = |kind: &&'static str| Need::Tracker(kind).missing().is_none();
    let best = ["wp", "soft-dirty", "hash"].iter().find(|kind| works(kind));
    let best = known("KSNAP_TESTS_TRACKER").or(best.map(|kind| (*kind).to_owned()));
    let victim = Victim::spawn("counter", &["--mib", "4"])?;
    let attached = lives_through(&Ksnap::new()?, victim, 20, &["--audit"])?;
    ensure!(
        attached["tracker"].as_str() == best.as_deref(),
        "{attached}"
    );
    if let Some(faults) = known("KSNAP_TESTS_FAULTS") {
        ensure!(attached["faults"] == faults.as_str(), "{attached}");
        let notes = attached["notes"].as_array().map(Vec::len);
        ensure!(notes == Some(0), "{attached}");
    }
    Ok(())
}

mod an_ordinary_user {
    use super::*;

    fn watches_an_own(name: &str, args: &[&str], options: &[&str]) -> Result<()> {
        let ksnap = Ksnap::as_user(NOBODY)?;
        watches(&ksnap, Victim::spawn_as(NOBODY, name, args)?, options)
    }

    pub fn watches(ksnap: &Ksnap, victim: Victim, options: &[&str]) -> Result<()> {
        let options = [&["--audit"], options].concat();
        let attached = lives_through(ksnap, victim, 30, &options)?;
        // One line says what is missing.
        ensure!(attached["faults"].is_null(), "{attached}");
        ensure!(
            attached["notes"].as_array().map(Vec::len) == Some(1),
            "{attached}"
        );
        Ok(())
    }

    #[test]
    fn watches_a_counter() -> Result<()> {
        require!(Root, Ksnap, OtherUsers);
        watches_an_own("counter", &["--mib", "4"], &[])
    }

    #[test]
    fn watches_changing_mappings() -> Result<()> {
        require!(Root, Ksnap, OtherUsers);
        watches_an_own("maps", &[], &[])
    }

    #[test]
    fn watches_threads() -> Result<()> {
        require!(Root, Ksnap, OtherUsers);
        watches_an_own("threads", &[], &[])
    }

    #[test]
    fn watches_with_the_hash_tracker() -> Result<()> {
        require!(Root, Ksnap, OtherUsers);
        watches_an_own("counter", &["--mib", "4"], &["--tracker", "hash"])
    }

    #[test]
    fn is_refused_the_process_of_another_user() -> Result<()> {
        require!(Root, Ksnap, OtherUsers);
        let ksnap = Ksnap::as_user(NOBODY)?;
        let mut victim = Victim::spawn("counter", &["--mib", "1"])?;
        let before = Footprint::of(victim.pid())?;
        let ended = ksnap.run(&["snap", &victim.pid().to_string()])?;
        ensure!(ended.code()? == 13, "{ended:?}");
        ensure!(
            ended.stderr.contains(&victim.pid().to_string()),
            "{ended:?}"
        );
        Footprint::of(victim.pid())?.nothing_left_since(&before)?;
        victim.check()?;
        victim.quit()
    }
}

mod root_of_a_user_namespace {
    use super::*;

    fn with(name: &str, args: &[&str]) -> Result<()> {
        let mut victim = Victim::spawn_in_user_namespace(name, args)?;
        let ksnap = Ksnap::in_user_namespace_of(victim.pid())?;
        ksnap.ok(&["snap", &victim.pid().to_string(), "--audit"])?;
        victim.check()?;
        an_ordinary_user::watches(&ksnap, victim, &[])
    }

    #[test]
    fn snapshots_and_watches_a_counter() -> Result<()> {
        require!(Root, Ksnap, UserNamespace);
        with("counter", &["--mib", "4"])
    }

    #[test]
    fn snapshots_and_watches_threads() -> Result<()> {
        require!(Root, Ksnap, UserNamespace);
        with("threads", &[])
    }
}

#[test]
fn an_interrupted_watch_leaves_the_process_alone() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "4"])?;
    let before = Footprint::of(victim.pid())?;
    let mut watch = Watch::start(&ksnap, victim.pid(), &["--every", "20ms", "--audit"])?;
    watch.wait_taken(5, LIMIT)?;
    // While it goes on, nothing of it is inside the target but the registration.
    Footprint::of(victim.pid())?.no_descriptors_since(&before)?;
    Footprint::of(victim.pid())?.no_code_since(&before)?;
    let watched = watch.interrupt(LIMIT)?;
    watched.took(5)?;
    ensure!(watched.ended["ended"] == "interrupted", "{}", watched.ended);
    watched.left_nothing(&before)?;
    victim.check()?;
    victim.quit()
}

#[test]
fn a_watch_ends_with_its_process_and_what_it_took_stays() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let victim = Victim::spawn("counter", &["--mib", "4"])?;
    let mut watch = Watch::start(&ksnap, victim.pid(), &["--every", "20ms", "--audit"])?;
    watch.wait_taken(5, LIMIT)?;
    victim.quit()?;
    let watched = watch.finish(LIMIT)?;
    watched.took(5)?;
    ensure!(
        watched.ended["ended"] == "target_exited",
        "{}",
        watched.ended
    );
    ksnap.ok(&["verify"])?;
    let listed = ksnap.json(&["log"])?.len();
    ensure!(listed == watched.taken.len(), "{listed} listed");
    Ok(())
}

#[test]
fn a_second_watch_of_the_process_goes_on_with_its_chain() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
    let before = Footprint::of(victim.pid())?;
    for round in 0..3 {
        let options = ["--every", "20ms", "--count", "10", "--audit"];
        let watched = Watch::start(&ksnap, victim.pid(), &options)?.finish(LIMIT)?;
        watched.took(10)?;
        let kind = if round == 0 { "base" } else { "delta" };
        ensure!(watched.taken[0]["kind"] == kind, "{}", watched.taken[0]);
        watched.left_nothing(&before)?;
        victim.check()?;
    }
    ksnap.ok(&["verify"])?;
    victim.quit()
}

#[test]
fn run_starts_watches_and_ends_as_its_command() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let options = ["--every", "20ms", "--audit", "--progress", "never"];
    let mut victim = ksnap.run_victim(&options, "counter", &["--mib", "4"])?;
    let enough = || -> Result<bool> {
        // There is no store before the first snapshot.
        let listed = ksnap.run(&["log"])?;
        Ok(listed.code()? == 0 && listed.stdout.lines().count() > 10)
    };
    let end = std::time::Instant::now() + LIMIT;
    while !enough()? {
        ensure!(std::time::Instant::now() < end, "no snapshots");
        victim.check()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let ended = victim.finish()?;
    ensure!(ended.code()? == 0, "{ended:?}");
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// Pages of hugetlbfs that the kernel makes when they are asked for, until this is dropped.
struct HugetlbPages(String);

impl HugetlbPages {
    const PATH: &str = "/proc/sys/vm/nr_overcommit_hugepages";

    fn allow(count: u32) -> Result<Self> {
        let before = std::fs::read_to_string(Self::PATH)?;
        std::fs::write(Self::PATH, count.to_string())?;
        Ok(Self(before))
    }
}

impl Drop for HugetlbPages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, &self.0);
    }
}

#[test]
fn a_page_of_hugetlbfs_is_watched_beyond_its_first_write() -> Result<()> {
    require!(Root, Ksnap, Hugetlb);
    let _pages = HugetlbPages::allow(16)?;
    watched("hugepages", &["--mib", "8", "--hugetlb"], 20, &["--audit"])
}

#[test]
fn an_interrupt_right_at_the_start_ends_the_watch_and_not_ksnap() -> Result<()> {
    require!(Root, Ksnap);
    let ksnap = Ksnap::new()?;
    let victim = Victim::spawn("counter", &["--mib", "4"])?;
    for _ in 0..effort::times(10) {
        let watch = Watch::start(&ksnap, victim.pid(), &["--every", "1h"])?;
        watch.interrupt(LIMIT)?.none_failed()?;
    }
    victim.quit()
}
