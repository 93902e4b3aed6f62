//! Azure and Google: each once from the first push to the last prune, on a server that speaks as they do. S3 is in
//! `bucket.rs`.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tests::footprint::await_gone;
use tests::ksnap::number;
use tests::{Azurite, Google, Ksnap, Moto, Python, Victim, require};

const LIMIT: Duration = Duration::from_secs(60);

fn one(mut values: Vec<Value>) -> Result<Value> {
    ensure!(values.len() == 1, "{values:?}");
    Ok(values.remove(0))
}

/// A victim that goes on from what was pushed, and two snapshots of which one is pruned.
fn a_victim_goes_on_from(url: &str, equip: impl Fn(Ksnap) -> Ksnap) -> Result<()> {
    let here = equip(Ksnap::new()?);
    let there = equip(Ksnap::new()?);
    let nothing = there.run(&["pull", url, "--list"])?;
    ensure!(
        nothing.stderr.contains("nothing has been pushed"),
        "{nothing:?}"
    );
    let mut victim = Victim::spawn("counter", &["--mib", "8"])?;
    let pid = victim.pid();
    let first = here.snap(pid, &[])?;
    let pushed = one(here.json(&["push", "latest", url])?)?;
    ensure!(pushed["id"] == *first && number(&pushed["sent_chunks"])? > 0);
    // Again: nothing has to be sent, since all chunks are asked for.
    let again = one(here.json(&["push", "latest", url])?)?;
    ensure!(
        again["new_pages"] == 0 && again["sent_chunks"] == 0,
        "{again}"
    );
    let beyond = victim.status()?.counter + 100;
    victim.wait_beyond(beyond, LIMIT)?;
    let ended = here.run(&["snap", &pid.to_string(), "--kill"])?;
    ensure!(matches!(ended.code()?, 0 | 3), "{ended:?}");
    drop(victim);
    await_gone(pid, LIMIT)?;
    let second = one(here.json(&["push", "latest", url])?)?;
    ensure!(
        number(&second["new_pages"])? < number(&pushed["new_pages"])?,
        "{second}"
    );
    drop(here);
    let listed = there.json(&["pull", url, "--list"])?;
    let ids: Vec<&Value> = listed.iter().map(|entry| &entry["id"]).collect();
    ensure!(ids == [&pushed["id"], &second["id"]], "{listed:?}");
    // Of what the first one has alone something is deleted; all that the second one needs stays.
    let prune = ["prune", "--bucket", url, "--keep-last", "1", "-y"];
    let waits = one(there.json(&[&prune[..], &["--dry-run"]].concat())?)?;
    ensure!(waits["removed"].as_array().map(Vec::len) == Some(1));
    // With a grace time lists are written and read; a push in between heeds them.
    let doomed = one(there.json(&[&prune[..], &["--grace", "1h"]].concat())?)?;
    ensure!(doomed["kept"] == 1 && doomed["deleted_chunks"] == 0);
    let pruned = one(there.json(&[&prune[..], &["--grace", "0"]].concat())?)?;
    ensure!(
        pruned["kept"] == 1 && number(&pruned["kept_chunks"])? == number(&second["chunks"])?,
        "{pruned}"
    );
    let pulled = one(there.json(&["pull", url])?)?;
    ensure!(pulled["id"] == second["id"], "{pulled}");
    there.ok(&["verify"])?;
    let back = there.start(&["restore", "latest", "--wait", "--json"])?;
    let mut victim = Victim::brought_back(back)?;
    let beyond = victim.check()?.counter + 100;
    victim.wait_beyond(beyond, LIMIT)?;
    victim.check()?;
    victim.quit()?;
    // What is not there is told from what is.
    let gone = there.run(&["pull", url, &first])?;
    ensure!(
        gone.code()? == 1 && gone.stderr.contains(&first),
        "{gone:?}"
    );
    Ok(())
}

#[test]
fn a_victim_goes_on_from_azure() -> Result<()> {
    require!(Root, Ksnap, Azure, ChosenIds);
    let azurite = Azurite::start("snapshots")?;
    a_victim_goes_on_from("az://snapshots/some/fleet", |ksnap| azurite.equip(ksnap))
}

#[test]
fn a_victim_goes_on_from_google() -> Result<()> {
    require!(Root, Ksnap, Google, ChosenIds);
    let google = Google::start("snapshots")?;
    a_victim_goes_on_from("gs://snapshots/some/fleet", |ksnap| google.equip(ksnap))
}

#[test]
fn a_wrong_key_for_azure_is_told_and_never_shown() -> Result<()> {
    require!(Ksnap, Azure);
    let azurite = Azurite::start("snapshots")?;
    // As long as a real one.
    let wrong =
        "SGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbG8gaGVsbA==";
    let ksnap = azurite
        .equip(Ksnap::new()?)
        .with_variable("AZURE_STORAGE_ACCOUNT_KEY", wrong.into());
    for verbose in ["-q", "-vvv"] {
        let refused = ksnap.run(&["pull", "az://snapshots/fleet", verbose])?;
        ensure!(refused.code()? == 13, "{refused:?}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(said.contains("az://snapshots/fleet"), "{said}");
        ensure!(
            !said.contains(wrong) && !said.contains("SharedKey"),
            "{said}"
        );
    }
    Ok(())
}

/// As many pages as make an index longer than a part.
const MANY: &str = "\
import time
many = b'x' * 4096 * 176000
print('ready')
time.sleep(1000)
";

/// Google's server knows nothing of parts (docs/bucket.md).
#[test]
fn an_index_that_is_sent_in_parts_arrives() -> Result<()> {
    require!(Root, Ksnap, S3, Azure, Program("python3"));
    let mut script = Python::script(MANY)?;
    // Meanwhile.
    let servers = std::thread::spawn(|| (Moto::start("snapshots"), Azurite::start("snapshots")));
    ensure!(script.line(LIMIT)? == "ready");
    let here = Ksnap::new()?;
    here.snap(script.pid(), &[])?;
    let (moto, azurite) = servers.join().map_err(|_| anyhow!("no servers"))?;
    let (moto, azurite) = (moto?, azurite?);
    let equip = |ksnap| azurite.equip(moto.equip(ksnap));
    let here = equip(here);
    for url in ["s3://snapshots/many", "az://snapshots/many"] {
        let pushed = one(here.json(&["push", "latest", url])?)?;
        ensure!(number(&pushed["sent_bytes"])? > 8 << 20, "{pushed}");
        let there = equip(Ksnap::new()?);
        let listed = one(there.json(&["pull", url, "--list"])?)?;
        ensure!(listed["pages"] == pushed["pages"], "{listed}");
        let pulled = one(there.json(&["pull", url])?)?;
        ensure!(pulled["pages"] == pushed["pages"], "{pulled}");
        let stored = pulled["stored_id"].as_str().context("no id")?;
        let process = one(there.json(&["show", stored])?)?;
        ensure!(process["process"]["pid"] == script.pid(), "{process}");
    }
    Ok(())
}
