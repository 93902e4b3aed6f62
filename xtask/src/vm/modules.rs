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

/// Puts them out of a package's tree into a new folder, as files that are loaded in the order of their names.
pub fn take(tree: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let release = release(tree)?;
    for (number, wanted) in WANTED.iter().enumerate() {
        let plain = release.join(wanted);
        let name = plain.file_name().unwrap_or_default().to_string_lossy();
        let to = folder.join(format!("{number}-{name}"));
        if plain.exists() {
            fs::copy(&plain, &to).map_err(Error::io("copy", &plain))?;
            continue;
        }
        let packed = plain.with_extension("ko.xz");
        let copy = folder.join(format!("{number}-{name}.xz"));
        fs::copy(&packed, &copy).map_err(Error::io("copy", &packed))?;
        tools::run(
            Command::new("xz").arg("-d").arg(&copy),
            "unpack a kernel module",
        )?;
    }
    Ok(())
}

/// The folder of the modules of the one kernel that a package has.
fn release(tree: &Path) -> Result<PathBuf> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| tree.join(place));
    let mut folders = places.iter().filter_map(|place| fs::read_dir(place).ok());
    let release = folders.find_map(|mut folder| folder.next()?.ok());
    let release = release.ok_or_else(|| Error::Io {
        action: "find the kernel modules in",
        path: places[0].clone(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    Ok(release.path())
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
        let modules = tree.join("usr/lib/modules/6.12");
        for name in WANTED.iter().rev() {
            let path = modules.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
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
        assert_eq!(texts, WANTED);
        // One that is missing, and a package without any.
        fs::remove_file(modules.join(WANTED[3])).unwrap();
        let error = take(&tree, &work.path().join("fewer")).unwrap_err();
        assert!(error.to_string().contains("tcp_diag"), "{error}");
        assert!(take(&work.path().join("other"), &work.path().join("none")).is_err());
    }
}
