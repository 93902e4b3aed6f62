use super::*;
use std::os::unix::fs::PermissionsExt;

fn keys() -> (Keys, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Keys::new(folder.path().join("config")), folder)
}

#[test]
fn the_pair_is_made_once_for_its_owner_alone() {
    let (keys, _folder) = keys();
    let first = keys.pair().unwrap().public;
    assert_eq!(keys.pair().unwrap().public, first);
    let file = keys.dir().join(KEY_FILE);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(keys.pair().unwrap_err().to_string().contains("chmod 600"));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&file, "ksnap private key 1\n00\n").unwrap();
    assert!(keys.pair().is_err());
}

#[test]
fn trust_is_given_and_taken_away() {
    let (keys, _folder) = keys();
    let key = |n: u8| PublicKey([n; 32]);
    assert_eq!(keys.trusted().unwrap(), []);
    keys.trust(key(1), Some("one")).unwrap();
    keys.trust(key(2), None).unwrap();
    assert!(keys.trust(key(3), Some("one")).is_err());
    keys.trust(key(1), Some("uno")).unwrap();
    let names = |keys: &Keys| -> Vec<String> {
        let all = keys.trusted().unwrap();
        all.into_iter().map(|t| t.name).collect()
    };
    assert_eq!(names(&keys), ["", "uno"]);
    assert!(!keys.forget("one").unwrap());
    assert!(keys.forget("uno").unwrap());
    assert!(keys.forget(&key(2).to_string()).unwrap());
    assert_eq!(keys.trusted().unwrap(), []);
    assert!(keys.trust(key(4), Some("two\nlines")).is_err());
}

#[test]
fn a_key_that_is_trusted_again_keeps_its_name_unless_it_gets_another() {
    let (keys, _folder) = keys();
    let key = PublicKey([1; 32]);
    keys.trust(key, Some("one")).unwrap();
    assert_eq!(keys.trust(key, None).unwrap().name, "one");
    assert_eq!(keys.trusted().unwrap()[0].name, "one");
    assert_eq!(keys.trust(key, Some("")).unwrap().name, "");
    assert_eq!(keys.trusted().unwrap()[0].name, "");
}

#[test]
fn what_is_written_between_the_keys_stays() {
    let (keys, _folder) = keys();
    let key = |n: u8| PublicKey([n; 32]);
    keys.trust(key(1), Some("one")).unwrap();
    let file = keys.dir().join(TRUSTED_FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("# the machines\n\n{text}  # and others\n")).unwrap();
    keys.trust(key(2), Some("two")).unwrap();
    assert!(keys.forget("one").unwrap());
    let text = std::fs::read_to_string(&file).unwrap();
    let left = format!("# the machines\n\n  # and others\n{} two\n", key(2));
    assert_eq!(text, left);
}

#[test]
fn keys_that_are_trusted_at_the_same_time_are_all_kept() {
    let (keys, _folder) = keys();
    std::thread::scope(|scope| {
        for first in 0..4 {
            let keys = &keys;
            scope.spawn(move || {
                for n in 0..25 {
                    keys.trust(PublicKey([first * 25 + n; 32]), None).unwrap();
                }
            });
        }
    });
    assert_eq!(keys.trusted().unwrap().len(), 100);
}

#[test]
fn a_key_comes_back_from_its_text_and_from_tls() {
    let key = KeyPair::generate().unwrap().public;
    assert_eq!(key.to_string().parse(), Ok(key));
    assert_eq!(key.to_string()[8..].parse(), Ok(key));
    assert_eq!(PublicKey::from_spki(&key.spki()), Some(key));
    for bad in ["", "ed25519:12", "ed25519:zz", "rsa:00"] {
        assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
    }
}

#[test]
fn the_folder_is_where_the_environment_says() {
    let of = |set: &[(&str, &str)], root| {
        let variable = |name: &str| {
            let found = set.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        default_dir(variable, root).map(|dir| dir.to_string_lossy().into_owned())
    };
    assert_eq!(of(&[], true).as_deref(), Some("/etc/ksnap"));
    assert_eq!(of(&[("KSNAP_CONFIG", "/a")], true).as_deref(), Some("/a"));
    assert_eq!(
        of(&[("HOME", "/h")], false).as_deref(),
        Some("/h/.config/ksnap")
    );
    assert_eq!(of(&[], false), None);
}
