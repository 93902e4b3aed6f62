//! PostgreSQL: a postmaster, its children and the files of its cluster, which go on together.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::family::{capture, roll_back};
use tests::postgres::Postgres;
use tests::tree::{Pids, bring_back, children_of, nothing_early};
use tests::{Ksnap, Watch, require};

const LIMIT: Duration = Duration::from_secs(120);
/// Transactions of one run of pgbench.
const TRANSACTIONS: u64 = 300;

/// Every transaction adds the same number to an account, a teller and a branch, and to the history.
fn sums_agree(server: &Postgres, transactions: u64) -> Result<()> {
    let said = server.query(
        "select (select count(*) from pgbench_history), \
         (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts), \
         (select sum(bbalance) from pgbench_branches) = (select sum(abalance) from pgbench_accounts), \
         (select sum(tbalance) from pgbench_tellers) = (select sum(abalance) from pgbench_accounts)",
    )?;
    ensure!(said == format!("{transactions}|t|t|t"), "{said}");
    Ok(())
}

fn run(server: &Postgres) -> Result<()> {
    let each = (TRANSACTIONS / 2).to_string();
    server
        .client("pgbench", &["-n", "-c", "2", "-t", &each, "postgres"])
        .map(drop)
}

#[test]
fn postgres_goes_on_with_its_cluster() -> Result<()> {
    require!(Root, Ksnap, Postgres);
    let ksnap = Ksnap::new()?;
    let mut server = Postgres::start()?;
    server.client("pgbench", &["-i", "-q", "-s", "1", "postgres"])?;
    run(&server)?;
    server.await_alone()?;
    let root = server.pid();
    // The last of its clients may be there a moment longer.
    let snap = ksnap.run(&[
        "snap",
        &root.to_string(),
        "--tree",
        "--kill",
        "--files",
        "--json",
    ])?;
    ensure!(matches!(snap.code()?, 0 | 3), "{snap:?}");
    server.process().wait(LIMIT)?.context("it lives")?;
    let said: serde_json::Value = serde_json::from_str(&snap.stdout)?;
    let processes = said["processes"].as_array().context("no processes")?;
    let pids: Vec<i32> = processes
        .iter()
        .filter_map(|one| Some(one["pid"].as_i64()? as i32))
        .collect();
    ensure!(pids.len() > 4, "{said}");
    let pids = Pids(pids);
    pids.are_gone()?;
    ensure!(server.query("select 1").is_err(), "somebody else answers");
    let (mut back, said) = bring_back(&ksnap, &mut nothing_early)?;
    ensure!(said["pid"] == root, "{said}");
    server.await_ready().with_context(|| said.to_string())?;
    sums_agree(&server, TRANSACTIONS)?;
    run(&server)?;
    sums_agree(&server, 2 * TRANSACTIONS)?;
    // It still leads its children: one that ends is made again, and a checkpoint takes two of them.
    server.query("checkpoint")?;
    let launcher = "select pid from pg_stat_activity where backend_type = 'autovacuum launcher'";
    let before = server.query(launcher)?;
    ensure!(children_of(root)?.contains(&before.parse()?), "{before}");
    kill(Pid::from_raw(before.parse()?), Signal::SIGTERM)?;
    let end = std::time::Instant::now() + LIMIT;
    loop {
        let now = server.query(launcher)?;
        if !now.is_empty() && now != before {
            break;
        }
        ensure!(std::time::Instant::now() < end, "no other one is made");
        std::thread::sleep(Duration::from_millis(50));
    }
    let checked = ["--install-missing", "--heapallindexed", "-d", "postgres"];
    server.client("pg_amcheck", &checked)?;
    // Ends in order, and begins anew from what is on the disk.
    kill(Pid::from_raw(root), Signal::SIGINT)?;
    let finished = back.finish(LIMIT)?;
    ensure!(finished.code()? == 0, "{finished:?}");
    pids.are_gone()
}

/// All of its processes have the common buffers, and much that the postmaster left to them, which it has as well.
fn has_common_pages_once(root: i32) -> Result<()> {
    let root = root.to_string();
    let stored = |options: &[&str]| -> Result<Vec<u64>> {
        let ksnap = Ksnap::new()?;
        ksnap.run(&[&["snap", &root][..], options].concat())?;
        let listed = ksnap.json(&["log"])?;
        let bytes = listed.iter().filter_map(|one| one["data_bytes"].as_u64());
        Ok(bytes.collect())
    };
    let (alone, together) = (stored(&[])?, stored(&["--tree"])?);
    ensure!(alone.len() == 1 && together.len() > 5, "{together:?}");
    // Apart, each would take as much.
    ensure!(
        together.iter().sum::<u64>() < 3 * alone[0],
        "{together:?}, and {alone:?} alone"
    );
    Ok(())
}

/// Of a server that goes on running: a client stays connected, and finds what was in the table then.
#[test]
fn a_table_of_a_running_postgres_goes_back_with_its_server() -> Result<()> {
    require!(Root, Ksnap, Postgres);
    let ksnap = Ksnap::new()?;
    let mut server = Postgres::start()?;
    let mut client = server.session()?;
    let sum = "select count(*) || ' ' || sum(v) from t";
    let made = "create table t as select n as k, 1 as v from generate_series(1, 5000) n";
    ensure!(client.ask(&format!("{made}; checkpoint; {sum}"))? == "5000 5000");
    server.await_alone_but(1)?;
    let root = server.pid();
    let (first, pids) = capture(&ksnap, root, &["--files"])?;
    let _pids = Pids(pids[1..].to_vec());
    has_common_pages_once(root)?;
    // By itself and by another one that comes and goes; in the files, too.
    let more = "insert into t select n, 0 from generate_series(5001, 9000) n";
    let changed = format!("update t set v = 7; {more}; checkpoint; {sum}");
    ensure!(client.ask(&changed)? == "9000 35000");
    server.query("update t set v = v + 1; checkpoint")?;
    ensure!(client.ask(sum)? == "9000 44000");
    server.await_alone_but(1)?;
    let (second, _) = capture(&ksnap, root, &["--files"])?;
    for (id, what) in [
        (&first, "5000 5000"),
        (&second, "9000 44000"),
        (&first, "5000 5000"),
    ] {
        roll_back(&ksnap, root, id)?;
        ensure!(client.ask(sum)? == what, "{what}");
        ensure!(server.query(sum)? == what, "{what}");
        let again = format!("begin; update t set v = 100; {sum}");
        let sum = what.split(' ').next().context("no count")?.parse::<u64>()?;
        ensure!(client.ask(&again)? == format!("{sum} {}", 100 * sum));
        client.ask("rollback; select 1")?;
        server.await_alone_but(1)?;
    }
    // The server still leads its children, and what it has written is whole.
    server.query("checkpoint")?;
    let checked = ["--install-missing", "--heapallindexed", "-d", "postgres"];
    server.client("pg_amcheck", &checked)?;
    drop(client);
    kill(Pid::from_raw(root), Signal::SIGINT)?;
    let ended = server.process().wait(LIMIT)?.context("it lives")?;
    ensure!(ended.success(), "{ended}");
    ksnap.ok(&["verify"])?;
    Ok(())
}

/// Snapshots go on while clients come and go, each a process of its own, and the server goes back to a moment of rest.
#[test]
fn a_postgres_that_is_watched_goes_back_with_its_cluster() -> Result<()> {
    require!(Root, Ksnap, Postgres);
    let ksnap = Ksnap::new()?;
    let mut server = Postgres::start()?;
    server.client("pgbench", &["-i", "-q", "-s", "1", "postgres"])?;
    run(&server)?;
    server.await_alone()?;
    let root = server.pid();
    let options = ["--tree", "--files", "--every", "200ms", "--keep-last", "20"];
    let mut watch = Watch::start(&ksnap, root, &options)?;
    watch.wait_taken(2, LIMIT)?;
    let (rest, pids) = capture(&ksnap, root, &[])?;
    let _pids = Pids(pids[1..].to_vec());
    ksnap.ok(&["tag", "rest", &rest])?;
    for round in 1..3 {
        run(&server)?;
        sums_agree(&server, 2 * TRANSACTIONS).with_context(|| format!("round {round}"))?;
        server.await_alone()?;
        roll_back(&ksnap, root, "rest")?;
        sums_agree(&server, TRANSACTIONS).with_context(|| format!("back, round {round}"))?;
        server.await_alone()?;
    }
    let taken = watch.ids()?.len();
    watch.wait_taken(taken + 2, LIMIT)?;
    let watched = watch.interrupt(LIMIT)?;
    watched.none_failed()?;
    run(&server)?;
    sums_agree(&server, 2 * TRANSACTIONS)?;
    let checked = ["--install-missing", "--heapallindexed", "-d", "postgres"];
    server.client("pg_amcheck", &checked)?;
    kill(Pid::from_raw(root), Signal::SIGINT)?;
    let ended = server.process().wait(LIMIT)?.context("it lives")?;
    ensure!(ended.success(), "{ended}");
    ksnap.ok(&["verify"])?;
    Ok(())
}
