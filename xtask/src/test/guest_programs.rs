//! Programs of the host that tests of two machines need in a guest.

use crate::host;
use std::path::PathBuf;

/// Busybox has some of these names, with fewer options.
const PROGRAMS: [(&str, &str); 10] = [
    ("redis-server", "redis-server"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("env", "coreutils"),
    ("sleep", "coreutils"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// All of them; else the packages to install.
pub fn files() -> Result<Vec<PathBuf>, String> {
    let mut packages: Vec<&str> = Vec::new();
    let mut files = Vec::new();
    for (program, package) in PROGRAMS {
        match host::find(program) {
            Some(path) => files.push(path),
            None if packages.contains(&package) => {}
            None => packages.push(package),
        }
    }
    match packages.is_empty() {
        true => Ok(files),
        false => Err(format!("apt-get install {}", packages.join(" "))),
    }
}
