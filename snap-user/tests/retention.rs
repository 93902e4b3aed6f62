//! `tag`, `prune`, `squash` and `export` by the binary, on a store made with the library.

mod cli_support;

use cli_support::Fixture;
use serde_json::Value;

fn seqs(fixture: &Fixture) -> Vec<u64> {
    let out = fixture.ksnap(&["log", "--json"]).ok().out;
    out.lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["seq"]
                .as_u64()
                .unwrap()
        })
        .collect()
}

#[test]
fn a_tag_is_a_reference_until_it_is_deleted() {
    let fixture = Fixture::new();
    let none = fixture.ksnap(&["tag"]).ok();
    assert_eq!((none.out.as_str(), none.err.trim()), ("", "no tags yet"));
    assert_eq!(fixture.ksnap(&["tag", "--json"]).ok().out.trim(), "[]");
    let set = fixture.ksnap(&["tag", "good", "@2"]).ok();
    assert!(
        set.out
            .starts_with(&format!("good  {}", &fixture.ids[1][..12])),
        "{}",
        set.out
    );
    let json = fixture.ksnap(&["show", "good~1", "--json"]).ok().json();
    assert_eq!(json["snapshot"]["id"], fixture.ids[0]);
    // The same again is no change; another one needs a word.
    fixture.ksnap(&["tag", "good", "@2"]).ok();
    let taken = fixture.ksnap(&["tag", "good", "@3"]).fails(2);
    assert!(taken.err.contains("--force"), "{}", taken.err);
    let moved = fixture
        .ksnap(&["tag", "good", "@3", "--force", "--json"])
        .ok()
        .json();
    assert_eq!(
        (&moved["id"], &moved["seq"]),
        (&fixture.ids[2].as_str().into(), &3.into())
    );
    fixture.ksnap(&["tag", "newest"]).ok();
    let all = fixture.ksnap(&["tag", "--json"]).ok().json();
    assert_eq!(all[0]["name"], "good");
    assert_eq!(all[1]["id"], fixture.ids[3]);
    for bad in ["latest", "beef", "a/b", "@1"] {
        let refused = fixture.ksnap(&["tag", bad, "@1"]).fails(2);
        assert!(refused.err.contains(bad), "{}", refused.err);
    }
    fixture.ksnap(&["tag", "-d", "good"]).ok();
    fixture.ksnap(&["tag", "-d", "good"]).fails(1);
    fixture.ksnap(&["tag", "-d"]).fails(2);
    let gone = fixture.ksnap(&["show", "good"]).fails(2);
    assert!(gone.err.contains("no such tag"), "{}", gone.err);
}

#[test]
fn prune_asks_or_refuses_and_says_beforehand_what_would_go() {
    let fixture = Fixture::new();
    let refused = fixture.ksnap(&["prune", "--keep-last", "1"]).fails(2);
    assert!(
        refused.err.contains("removes 3 snapshots of 4") && refused.err.contains("-y"),
        "{}",
        refused.err
    );
    let dry = fixture
        .ksnap(&["prune", "--keep-last", "1", "--dry-run", "--json"])
        .ok()
        .json();
    assert_eq!(
        (&dry["dry_run"], &dry["removed"]),
        (&true.into(), &3.into())
    );
    assert_eq!(dry["sessions"][0]["removed"][2]["id"], fixture.ids[2]);
    assert_eq!(seqs(&fixture), [1, 2, 3, 4]);

    fixture.ksnap(&["tag", "keep-me", "@3"]).ok();
    let done = fixture.ksnap(&["prune", "--keep-last", "1", "-y"]).ok().out;
    assert!(
        done.contains("@1–@2") && done.contains("removed 2 snapshots"),
        "{done}"
    );
    assert_eq!(seqs(&fixture), [3, 4]);
    let gone = fixture.ksnap(&["show", &fixture.ids[0]]).fails(1);
    assert!(gone.err.contains("not found"), "{}", gone.err);
    let parent = fixture.ksnap(&["show", "keep-me~"]).fails(1);
    assert!(parent.err.contains("pruned"), "{}", parent.err);
    // What they need of the others is there.
    fixture.ksnap(&["verify"]).ok();
    let diff = fixture.ksnap(&["diff", "@3", "@4", "--json"]).ok().json();
    assert_eq!(diff["pages"]["changed"], 2);
    let again = fixture.ksnap(&["prune", "--keep-last", "1"]).ok().out;
    assert!(again.starts_with("removed 0 snapshots"), "{again}");
    // No rule: everything stays.
    fixture.ksnap(&["prune"]).ok();
    assert_eq!(seqs(&fixture), [3, 4]);
    // 2026 is long ago, or will be: nothing is that young, and nobody writes the session.
    fixture.ksnap(&["tag", "-d", "keep-me"]).ok();
    let all = fixture
        .ksnap(&["prune", "--keep-within", "1us", "-y", "--json"])
        .ok()
        .json();
    if all["removed"] == 2 {
        assert_eq!(all["sessions"][0]["whole_session"], true);
        assert!(fixture.ksnap(&["log"]).ok().err.contains("no snapshots"));
    }
    fixture.ksnap(&["prune", "--keep-last", "0"]).fails(2);
}

#[test]
fn squash_merges_what_lies_between_and_refuses_what_has_a_tag() {
    let fixture = Fixture::new();
    let refused = fixture.ksnap(&["squash", "@1..@3"]).fails(2);
    assert!(
        refused.err.contains("removes 1 snapshot of"),
        "{}",
        refused.err
    );
    fixture.ksnap(&["tag", "mine", "@2"]).ok();
    let tagged = fixture.ksnap(&["squash", "@1..@3", "-y"]).fails(2);
    assert!(
        tagged.err.contains("@2") && tagged.err.contains("tag"),
        "{}",
        tagged.err
    );
    fixture.ksnap(&["tag", "-d", "mine"]).ok();
    let stranger = fixture.ksnap(&["squash", "@3..@4", "-y"]).fails(2);
    assert!(stranger.err.contains("does not follow"), "{}", stranger.err);
    for bad in ["@3", "..", "@1...@3"] {
        fixture.ksnap(&["squash", bad, "-y"]).fails(2);
    }
    let before = fixture.ksnap(&["diff", "@1", "@3", "--json"]).ok().json();
    let done = fixture
        .ksnap(&["squash", "@1..@3", "-y", "--json"])
        .ok()
        .json();
    assert_eq!((&done["removed"], &done["kept"]), (&1.into(), &3.into()));
    assert_eq!(seqs(&fixture), [1, 3, 4]);
    let after = fixture.ksnap(&["diff", "@1", "@3", "--json"]).ok().json();
    assert_eq!(before["pages"], after["pages"]);
    fixture.ksnap(&["verify"]).ok();
    // What lies behind a pruned one is not reached any more.
    let cut = fixture.ksnap(&["squash", "@1..@3", "-y"]).fails(2);
    assert!(cut.err.contains("pruned"), "{}", cut.err);
}

#[test]
fn squash_makes_a_new_base_of_all_before_one() {
    let fixture = Fixture::new();
    let done = fixture
        .ksnap(&["squash", "..@4", "-y", "--json"])
        .ok()
        .json();
    assert_eq!((&done["removed"], &done["kept"]), (&2.into(), &2.into()));
    assert_eq!(seqs(&fixture), [3, 4]);
    fixture.ksnap(&["verify"]).ok();
    let again = fixture.ksnap(&["squash", "..@4", "--dry-run", "--json"]);
    assert_eq!(again.ok().json()["removed"], 0);
}

#[test]
fn an_export_of_an_invented_process_is_an_elf_core() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let core = dir.path().join("core");
    let core = core.to_str().expect("UTF-8");
    let json = fixture
        .ksnap(&["export", "@3", "--core", core, "--json"])
        .ok()
        .json();
    assert_eq!((&json["threads"], &json["exe"]), (&2.into(), &Value::Null));
    assert!(
        std::fs::read(core)
            .expect("written")
            .starts_with(b"\x7fELF")
    );
    fixture.damage(&fixture.ids[0], 300);
    let damaged = dir.path().join("other");
    let name = damaged.to_str().expect("UTF-8");
    let ran = fixture.ksnap(&["export", "@1", "--core", name]).fails(15);
    assert!(ran.err.contains("damaged"), "{}", ran.err);
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
    fixture.ksnap(&["export", "@1"]).fails(2);
    let none = fixture
        .ksnap(&["gdb", "@4", "--gdb", "/no/such/gdb"])
        .fails(1);
    assert!(none.err.contains("apt-get install gdb"), "{}", none.err);
}
