//! The fixtures of real programs work: what they start answers, and is gone afterwards.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::{Footprint, Python, Redis, Victim, require};

#[test]
fn redis_answers_takes_load_and_ends_with_its_fixture() -> Result<()> {
    require!(Program("redis-server"), Program("redis-benchmark"));
    let redis = Redis::start()?;
    let pid = redis.pid();
    let mut client = redis.client()?;
    client.set("key", "value")?;
    assert_eq!(client.get("key")?.as_deref(), Some("value"));
    assert_eq!(client.get("no such key")?, None);
    assert_eq!(client.incr("n")?, 1);
    redis.populate(1000, 100)?;
    assert_eq!(client.integer(&["DBSIZE"])?, 1002);
    let digest = client.digest()?;
    let rates = redis.benchmark(
        &["-t", "set", "-n", "2000", "-r", "100"],
        Duration::from_secs(60),
    )?;
    assert!(
        rates
            .iter()
            .any(|(name, rate)| name.contains("SET") && *rate > 0.0),
        "{rates:?}"
    );
    assert_ne!(client.digest()?, digest);
    assert_eq!(Footprint::of(pid)?.tracer, 0);
    drop(redis);
    assert!(
        Footprint::of(pid).is_err(),
        "redis-server {pid} outlives its fixture"
    );
    Ok(())
}

#[test]
fn python_runs_a_script_and_ends_with_its_fixture() -> Result<()> {
    require!(Program("python3"));
    let mut python = Python::script("import os\nprint(os.getpid())\nprint(int(input()) + 1)\n")?;
    assert_eq!(
        python.line(Duration::from_secs(60))?,
        python.pid().to_string()
    );
    writeln!(python.process().stdin()?, "41")?;
    assert_eq!(python.line(Duration::from_secs(60))?, "42");
    assert_eq!(python.finish(Duration::from_secs(60))?.code()?, 0);
    Ok(())
}

#[test]
fn a_victim_that_another_program_runs_is_found_and_ends_with_its_fixture() -> Result<()> {
    // The shell must stay the parent: it has something to do afterwards.
    let script = || -> Result<Command> {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(r#""$0" counter --mib 1; exit 7"#)
            .arg(tests::paths::victim()?);
        Ok(command)
    };
    let mut victim = Victim::from_command(script()?)?;
    assert_ne!(victim.pid(), victim.process().pid());
    victim.check()?;
    assert_eq!(victim.finish()?.code()?, 7);
    let victim = Victim::from_command(script()?)?;
    let pid = victim.pid();
    drop(victim);
    let gone = (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        matches!(tests::footprint::state_of(pid), '?' | 'Z')
    });
    assert!(gone, "victim {pid} outlives its fixture");
    Ok(())
}

#[test]
fn a_victim_can_run_as_an_ordinary_user() -> Result<()> {
    require!(Root, BuildForAll, OtherUsers);
    const NOBODY: u32 = 65534;
    let mut command = Command::new(tests::paths::victim()?);
    command
        .args(["filemap", "--mib", "1"])
        .uid(NOBODY)
        .gid(NOBODY);
    let mut victim = Victim::from_command(command)?;
    let owner = std::fs::metadata(format!("/proc/{}", victim.pid()))?.uid();
    assert_eq!(owner, NOBODY);
    victim.check()?;
    victim.quit()
}
