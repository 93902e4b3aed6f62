//! Kernel modules that tests need, out of a kernel's package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Error, Result, tools};

/// Those that are wanted, what others build on first: a cable between two networks, what disturbs it, and what tells of
/// sockets.
const WANTED: [&str; 6] = [
    "kernel/drivers/net/veth.ko",
    "kernel/net/sched/sch_netem.ko",
    "kernel/net/ipv4/inet_diag.ko",
    "kernel/net/ipv4/tcp_diag.ko",
    "kernel/net/ipv4/udp_diag.ko",
    "kernel/net/unix/unix_diag.ko",
];

/// Puts those that a package's tree has into a new folder, as files that are loaded in the order of their names.
pub fn take(tree: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let all = tree.join("lib/modules");
    let Some(Ok(release)) = fs::read_dir(&all).ok().and_then(|mut all| all.next()) else {
        return Ok(());
    };
    for (number, wanted) in WANTED.iter().enumerate() {
        let plain = release.path().join(wanted);
        let name = plain.file_name().unwrap_or_default().to_string_lossy();
        let to = folder.join(format!("{number}-{name}"));
        let packed = plain.with_extension("ko.xz");
        if plain.exists() {
            fs::copy(&plain, &to).map_err(Error::io("copy", &plain))?;
        } else if packed.exists() {
            let copy = folder.join(format!("{number}-{name}.xz"));
            fs::copy(&packed, &copy).map_err(Error::io("copy", &packed))?;
            tools::run(
                Command::new("xz").arg("-d").arg(&copy),
                "unpack a kernel module",
            )?;
        }
    }
    Ok(())
}

/// Those in such a folder, in their order.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut modules: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    modules.sort();
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_taken_packed_or_not_in_their_order() {
        let work = tempfile::tempdir().unwrap();
        let tree = work.path().join("tree");
        let modules = tree.join("lib/modules/6.12");
        for (name, text) in [(WANTED[1], "netem"), (WANTED[0], "veth")] {
            let path = modules.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
        let packed = modules.join(WANTED[0]);
        let packing = Command::new("xz").arg(&packed).status();
        assert!(packing.is_err() || !packed.exists(), "xz leaves {packed:?}");
        let folder = work.path().join("modules");
        take(&tree, &folder).unwrap();
        let texts: Vec<String> = list(&folder)
            .iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        assert_eq!(texts, ["veth", "netem"]);
        // A package without any.
        let none = work.path().join("none");
        take(&work.path().join("other"), &none).unwrap();
        assert_eq!(list(&none), [PathBuf::new(); 0]);
    }
}
