//! The fixtures of real programs work: what they start answers, and is gone afterwards.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use tests::{Footprint, Python, Redis, require};

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
        Duration::from_secs(30),
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
        python.line(Duration::from_secs(20))?,
        python.pid().to_string()
    );
    writeln!(python.process().stdin()?, "41")?;
    assert_eq!(python.line(Duration::from_secs(20))?, "42");
    assert_eq!(python.finish(Duration::from_secs(20))?.code()?, 0);
    Ok(())
}
