//! The part of the host's python3 that tests in a virtual machine need.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's own, which the guest finds at the same place. One on PATH may be a launcher for another.
const PYTHON: &str = "/usr/bin/python3";

/// Imports what the scripts of the tests import, and prints the file of every module that this loads.
const MODULES: &str = "import math, os, queue, sys, threading, time
for module in list(sys.modules.values()):
    if getattr(module, '__file__', None):
        print(module.__file__)";

/// The interpreter and its modules; else why there are none.
pub fn files() -> Result<Vec<PathBuf>, String> {
    let how = "install python3 with the system's packages";
    let output = Command::new(PYTHON)
        // No modules of other places, which the guest would lack.
        .args(["-I", "-S", "-c", MODULES])
        .output()
        .map_err(|e| format!("{PYTHON}: {e}; {how}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{PYTHON}: {}; {how}", said.trim_end()));
    }
    let mut files = vec![PathBuf::from(PYTHON)];
    let text = String::from_utf8_lossy(&output.stdout);
    files.extend(text.lines().map(PathBuf::from));
    // What every start loads besides, where it is there.
    if let Some(library) = files.iter().find(|file| file.ends_with("os.py")) {
        let beside = |name: &str| library.with_file_name(name);
        let more: Vec<PathBuf> = ["site.py", "sitecustomize.py", "_sitebuiltins.py"]
            .map(beside)
            .into_iter()
            .filter(|file| Path::is_file(file))
            .collect();
        files.extend(more);
    }
    Ok(files)
}
