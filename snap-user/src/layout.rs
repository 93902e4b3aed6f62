//! Holds the code to the import table at the top of `lib.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn allowed() -> BTreeMap<String, Vec<String>> {
    include_str!("lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`"))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let room = cells[0].trim_end_matches("`]").to_owned();
            let imports = cells[2]
                .split(", ")
                .filter(|c| *c != "–")
                .map(str::to_owned)
                .collect();
            (room, imports)
        })
        .collect()
}

/// Rooms that a source text names after `crate::`, comments and test modules included.
fn imports(text: &str) -> Vec<String> {
    text.split("crate::")
        .skip(1)
        .flat_map(|rest| {
            let grouped = rest
                .strip_prefix('{')
                .and_then(|r| r.split_once("};"))
                .map(|r| r.0);
            let words = |t: &str| {
                t.split(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            };
            match grouped {
                Some(list) => list.split(',').map(|item| words(item.trim())).collect(),
                None => vec![words(rest)],
            }
        })
        .collect()
}

fn violations(
    folder: &Path,
    room: &str,
    may: &[String],
    known: &[String],
    found: &mut Vec<String>,
) {
    for entry in fs::read_dir(folder).expect("a room is a folder of sources") {
        let path = entry.expect("readable entry").path();
        if path.is_dir() {
            violations(&path, room, may, known, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("readable source");
            for import in imports(&text) {
                if import != room && known.contains(&import) && !may.contains(&import) {
                    found.push(format!(
                        "{}: {room} may not import {import}",
                        path.display()
                    ));
                }
            }
        }
    }
}

#[test]
fn rooms_import_only_what_the_layout_table_allows() {
    let table = allowed();
    let known: Vec<String> = table.keys().cloned().collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms: Vec<String> = fs::read_dir(&source)
        .expect("the source folder")
        .map(|e| e.expect("readable entry"))
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().into_string().expect("UTF-8 name"))
        .collect();
    rooms.sort();
    assert_eq!(
        rooms, known,
        "every folder under src/ has its row in the table, and the reverse"
    );

    let mut found = Vec::new();
    for (room, may) in &table {
        violations(&source.join(room), room, may, &known, &mut found);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_import_reader_sees_single_and_grouped_imports() {
    let text =
        "use crate::model::Vma;\nuse crate::{sys, track::Tracker};\nlet x = crate::store::y();";
    assert_eq!(imports(text), ["model", "sys", "track", "store"]);
}
