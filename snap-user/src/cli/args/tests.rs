//! Command lines, and what they are understood as.

use super::*;
use crate::session::Options;
use clap::CommandFactory;
use std::time::Duration;

fn parse(words: &str) -> Result<Verb, clap::error::ErrorKind> {
    Cli::try_parse_from(words.split(' '))
        .map(|cli| cli.verb)
        .map_err(|error| error.kind())
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn run_keeps_everything_after_the_dashes() {
    let verb = parse("ksnap run --every 100ms --count 3 -- sh -c --json").unwrap();
    let Verb::Run(run) = verb else {
        panic!("{verb:?}")
    };
    assert_eq!(run.command, ["sh", "-c", "--json"]);
    let schedule = run.watching.when.schedule();
    assert_eq!(schedule.every, Duration::from_millis(100));
    assert_eq!((schedule.count, schedule.lasting), (Some(3), None));
    let memory = run.watching.taking.options().memory;
    let usual = Options {
        memory,
        ..Options::default()
    };
    assert_eq!(run.watching.taking.options(), usual);
    assert!(parse("ksnap run").is_err());
    assert!(parse("ksnap run sleep 5").is_err());
}

#[test]
fn options_reach_the_session() {
    let verb = parse(
        "ksnap watch 7 --tracker soft-dirty --no-probes --audit --memory 1G --mirror 0 --for 2m",
    );
    let Ok(Verb::Watch(watch)) = verb else {
        panic!("{verb:?}")
    };
    let options = watch.watching.taking.options();
    assert_eq!(options.tracker, "soft-dirty".parse().unwrap());
    assert!(!options.probes && options.audit);
    assert_eq!(options.own, Some("--tracker"));
    assert_eq!((options.memory, options.mirror), (1 << 30, 0));
    assert_eq!(
        watch.watching.when.schedule().lasting,
        Some(Duration::from_secs(120))
    );
}

#[test]
fn nonsense_is_refused() {
    use clap::error::ErrorKind::ValueValidation;
    for words in [
        "ksnap watch 0",
        "ksnap watch x",
        "ksnap watch 1 --tracker best",
        "ksnap watch 1 --every 5",
        "ksnap watch 1 --count 0",
        "ksnap snap 1 --memory 3",
        "ksnap snap 1 --mirror 3",
        "ksnap watch 1 --durability always",
        "ksnap watch 1 --keep 5",
        "ksnap watch 1 --keep-last 0",
        "ksnap prune --max-size 3",
    ] {
        assert_eq!(parse(words).unwrap_err(), ValueValidation, "{words}");
    }
    assert!(parse("ksnap -q -v log").is_err());
}

#[test]
fn the_store_is_on_a_disk_or_in_memory_or_asked_about() {
    let global = |words: &str| {
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        (cli.global.store, cli.global.ram.map(|size| size.0))
    };
    assert_eq!(global("ksnap log"), (None, None));
    let named = Some(Some(PathBuf::from("/x")));
    assert_eq!(global("ksnap log --store /x"), (named.clone(), None));
    assert_eq!(global("ksnap --store=/x --ram log"), (named, Some(None)));
    assert_eq!(
        global("ksnap watch --ram=1G 7"),
        (None, Some(Some(1 << 30)))
    );
    assert_eq!(global("ksnap watch --ram 7"), (None, Some(None)));
    assert_eq!(global("ksnap show --store --json"), (Some(None), None));
    assert!(parse("ksnap watch 7 --ram=3").is_err());
}

#[test]
fn the_default_memory_is_the_sessions() {
    assert_eq!(units::size("512M"), Ok(crate::session::LEAST_MEMORY));
    assert_eq!(units::size("256M"), Ok(crate::session::DEFAULT_MIRROR));
}

#[cfg(feature = "object-storage")]
#[test]
fn a_pull_without_a_reference_is_of_the_newest_and_a_list_takes_none() {
    let Ok(Verb::Pull(pull)) = parse("ksnap pull file:///b") else {
        panic!("no pull")
    };
    assert_eq!((pull.reference.as_str(), pull.list), ("latest", false));
    assert!(parse("ksnap pull file:///b --list").is_ok());
    assert!(parse("ksnap pull file:///b 3f9a --list").is_err());
    assert!(parse("ksnap push file:///b").is_err());
    let Ok(Verb::Push(push)) = parse("ksnap push latest file:///b --encrypt-to age1x") else {
        panic!("no push")
    };
    assert_eq!(push.sealing.encrypt_to, ["age1x"]);
    let Ok(Verb::Prune(prune)) = parse("ksnap prune --bucket file:///b --grace 0") else {
        panic!("no prune")
    };
    assert_eq!(prune.grace, Duration::ZERO);
    let Ok(Verb::Prune(prune)) = parse("ksnap prune --bucket file:///b --keep-last 3") else {
        panic!("no prune")
    };
    assert_eq!(prune.grace, Duration::from_secs(24 * 3600));
    for words in [
        "ksnap prune --grace 1h",
        "ksnap prune --bucket file:///b --max-size 1G",
        "ksnap prune --bucket file:///b --pid 7",
    ] {
        assert!(parse(words).is_err(), "{words}");
    }
}
