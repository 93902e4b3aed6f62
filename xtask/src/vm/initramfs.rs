//! Builds the guest's file system: busybox, the payload with its shared libraries, and the first
//! process with one script per command.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::payload::{GuestCommand, HostFile, Payload};
use super::{Error, Result, cpio};

/// The first process, with `TOKEN` where this boot's frame token goes.
const INIT: &str = include_str!("init.sh");

/// Folders that the first process mounts on or that programs expect.
const FOLDERS: [(&str, u32); 11] = [
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
    ("/usr/bin", 0o755),
    ("/usr/sbin", 0o755),
    ("/usr/lib", 0o755),
    ("/var/tmp", 0o1777),
];

/// Debian's merged layout, so that libraries are mapped under the same names as on the host.
const MERGED: [(&str, &str); 4] = [
    ("/bin", "/usr/bin"),
    ("/sbin", "/usr/sbin"),
    ("/lib", "/usr/lib"),
    ("/lib64", "/usr/lib64"),
];

/// Where the first process mounts file systems: what the payload had there would be hidden. `/tmp` is
/// none of them, the root being a tmpfs already.
const MOUNTED: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

const ETC: [(&str, &str); 5] = [
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
    ),
    ("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    (
        "/etc/hosts",
        "127.0.0.1 localhost ksnap-vm\n::1 localhost\n",
    ),
    (
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
    ("/etc/hostname", "ksnap-vm\n"),
];

/// Set for every command before the payload's own: no colours, backtraces, a home.
const ENVIRONMENT: [(&str, &str); 6] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("TMPDIR", "/tmp"),
    ("TERM", "dumb"),
    ("LC_ALL", "C.UTF-8"),
    ("RUST_BACKTRACE", "1"),
];

enum Node {
    Folder(u32),
    Host(PathBuf),
    Text(String, u32),
    Link(String),
    Device(u32, (u32, u32)),
}

/// Everything in the guest by absolute path; the order of the keys puts folders before their contents.
#[derive(Default)]
struct Tree(BTreeMap<String, Node>);

/// Writes the archive to `out` and gives back its size in bytes.
pub fn build(payload: &Payload, busybox: &Path, token: &str, out: &Path) -> Result<u64> {
    let mut tree = Tree::default();
    for (path, mode) in FOLDERS {
        tree.insert(path, Node::Folder(mode))?;
    }
    for (link, target) in MERGED {
        tree.0.insert(
            link.into(),
            Node::Link(target.trim_start_matches('/').into()),
        );
    }
    for (path, text) in ETC {
        tree.insert(path, Node::Text(text.into(), 0o644))?;
    }
    tree.insert("/dev/console", Node::Device(0o600, (5, 1)))?;
    tree.insert("/dev/null", Node::Device(0o666, (1, 3)))?;
    tree.insert("/usr/bin/busybox", Node::Host(busybox.into()))?;
    tree.insert("/init", Node::Text(INIT.replace("TOKEN", token), 0o755))?;
    for file in &payload.files {
        tree.add(file)?;
    }
    for (index, command) in payload.commands.iter().enumerate() {
        let script = script(command, &payload.env)?;
        tree.insert(&format!("/vm/{index}"), Node::Text(script, 0o755))?;
        let limit = format!("{}\n", command.limit.as_secs().max(1));
        tree.insert(&format!("/vm/{index}.limit"), Node::Text(limit, 0o644))?;
    }
    tree.write(out)
}

impl Tree {
    /// Adds a node and, where they are missing, the folders above it.
    fn insert(&mut self, path: &str, node: Node) -> Result<()> {
        let path = merged(path);
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(Error::Payload(format!(
                "{path} is not an absolute guest path"
            )));
        }
        for (at, _) in path.match_indices('/').skip(1) {
            self.0
                .entry(path[..at].into())
                .or_insert(Node::Folder(0o755));
        }
        self.0.insert(path, node);
        Ok(())
    }

    /// Adds a file or a folder of the host, and the libraries of the programs in it.
    fn add(&mut self, file: &HostFile) -> Result<()> {
        let Some(guest) = file.guest.to_str() else {
            return Err(Error::Payload(format!(
                "{} is not UTF-8",
                file.guest.display()
            )));
        };
        if MOUNTED.iter().any(|mount| file.guest.starts_with(mount)) {
            return Err(Error::Payload(format!(
                "{guest} would be hidden below a mount"
            )));
        }
        let metadata = fs::metadata(&file.host).map_err(Error::io("read", &file.host))?;
        if metadata.is_file() {
            for library in shared_libraries(&file.host)? {
                let path = library.to_string_lossy().into_owned();
                self.insert(&path, Node::Host(library))?;
            }
            return self.insert(guest, Node::Host(file.host.clone()));
        }
        if !metadata.is_dir() {
            return Err(Error::Payload(format!(
                "{} is neither a file nor a folder",
                file.host.display()
            )));
        }
        self.insert(guest, Node::Folder(metadata.permissions().mode() & 0o7777))?;
        for entry in fs::read_dir(&file.host).map_err(Error::io("list", &file.host))? {
            let entry = entry.map_err(Error::io("list", &file.host))?;
            let inner = HostFile {
                host: entry.path(),
                guest: file.guest.join(entry.file_name()),
            };
            // Links to folders, and links to nothing, stay links: following them could go round.
            let link = fs::read_link(&inner.host)
                .ok()
                .filter(|_| !inner.host.is_file());
            match (link, inner.guest.to_str()) {
                (Some(target), Some(guest)) => {
                    self.insert(guest, Node::Link(target.to_string_lossy().into_owned()))?;
                }
                _ => self.add(&inner)?,
            }
        }
        Ok(())
    }

    fn write(&self, out: &Path) -> Result<u64> {
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let file = File::create(out).map_err(Error::io("create", out))?;
        let mut archive = cpio::Writer::new(BufWriter::with_capacity(1 << 20, file));
        for (path, node) in &self.0 {
            match node {
                Node::Folder(mode) => archive.directory(path, *mode),
                Node::Text(text, mode) => {
                    archive.file(path, *mode, text.len() as u64, text.as_bytes())
                }
                Node::Link(target) => archive.symlink(path, target),
                Node::Device(mode, number) => archive.character_device(path, *mode, *number),
                Node::Host(host) => File::open(host)
                    .and_then(|file| {
                        let metadata = file.metadata()?;
                        let mode = metadata.permissions().mode() & 0o7777;
                        archive.file(path, mode, metadata.len(), file)
                    })
                    .map_err(|source| io::Error::new(source.kind(), format!("{path}: {source}"))),
            }
            .map_err(Error::io("write", out))?;
        }
        let (_, length) = archive.finish().map_err(Error::io("write", out))?;
        Ok(length)
    }
}

/// The path below /usr for one that goes through a merged folder.
fn merged(path: &str) -> String {
    MERGED
        .iter()
        .find_map(|(link, target)| {
            let rest = path.strip_prefix(link)?;
            rest.starts_with('/').then(|| format!("{target}{rest}"))
        })
        .unwrap_or_else(|| path.to_string())
}

/// The script that becomes a command.
fn script(command: &GuestCommand, common: &[(String, String)]) -> Result<String> {
    let bad = |what: &str| Error::Payload(format!("command {:?}: {what}", command.name));
    if command.argv.is_empty() {
        return Err(bad("no program to run"));
    }
    let mut script = String::from("#!/bin/sh\n");
    let defaults = ENVIRONMENT.map(|(name, value)| (name.to_string(), value.to_string()));
    for (name, value) in defaults.iter().chain(common) {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(good) {
            return Err(bad(&format!("{name:?} is no name for a variable")));
        }
        script.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    let folder = command.folder.to_string_lossy();
    script.push_str(&format!("cd {} || exit 126\nexec", quoted(&folder)));
    for argument in &command.argv {
        script.push(' ');
        script.push_str(&quoted(argument));
    }
    script.push('\n');
    Ok(script)
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The files that the dynamic loader maps for `binary`, the loader included; none for a static
/// binary or a file that is no program.
pub fn shared_libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let mut magic = [0; 4];
    let mut file = File::open(binary).map_err(Error::io("open", binary))?;
    if file.read_exact(&mut magic).is_err() || magic != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    let ldd = Command::new("ldd")
        .arg(binary)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io("start", Path::new("ldd")))?;
    // A static program makes ldd fail; its stdout names no library then.
    libraries_in(&String::from_utf8_lossy(&ldd.stdout)).map_err(|library| Error::MissingLibrary {
        binary: binary.into(),
        library,
    })
}

/// Reads ldd's lines: `name => path (address)`, `path (address)`, `name => not found`; the vDSO has
/// no path. The error is the name of a library that was not found.
fn libraries_in(ldd: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let mut libraries = Vec::new();
    for line in ldd.lines() {
        let line = line.trim();
        let (name, found) = line.split_once(" => ").unwrap_or((line, line));
        if found == "not found" {
            return Err(name.to_string());
        }
        let path = found.rsplit_once(" (0x").map_or(found, |(path, _)| path);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[test]
    fn ldd_lines_give_libraries_and_the_loader_but_not_the_vdso() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd5a5f2000)
\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f5c4a000000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f5c49e00000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f5c4a1c3000)
";
        let expected = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ]
        .map(PathBuf::from);
        assert_eq!(libraries_in(text).unwrap(), expected);
        assert_eq!(
            libraries_in("\tstatically linked\n").unwrap(),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn a_library_that_is_not_found_is_named() {
        let text = "\tlibfoo.so.1 => not found\n";
        assert_eq!(libraries_in(text).unwrap_err(), "libfoo.so.1");
    }

    #[test]
    fn library_paths_go_below_usr_as_on_a_merged_host() {
        assert_eq!(
            merged("/lib64/ld-linux-x86-64.so.2"),
            "/usr/lib64/ld-linux-x86-64.so.2"
        );
        assert_eq!(merged("/lib/x/libc.so.6"), "/usr/lib/x/libc.so.6");
        assert_eq!(merged("/library/x"), "/library/x");
        assert_eq!(merged("/usr/lib/x"), "/usr/lib/x");
    }

    #[test]
    fn a_script_keeps_words_with_spaces_and_quotes_whole() {
        let command = GuestCommand::new("x", ["/bin/echo", "it's $HOME", ""]).folder("/my tests");
        let text = script(
            &command,
            &[pair("HOME", "/h"), pair("KSNAP_TESTS_STRICT", "1")],
        )
        .unwrap();
        let end = "export HOME='/h'\nexport KSNAP_TESTS_STRICT='1'\ncd '/my tests' || exit 126\n\
                   exec '/bin/echo' 'it'\\''s $HOME' ''\n";
        assert!(text.ends_with(end), "{text}");
        // The host's shell agrees.
        let folder = tempfile::tempdir().unwrap();
        let command = command.folder(folder.path());
        let text = script(&command, &[]).unwrap();
        let output = Command::new("sh").args(["-c", &text]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's $HOME \n");
    }

    #[test]
    fn commands_and_paths_that_cannot_work_are_refused() {
        assert!(script(&GuestCommand::new("x", Vec::<String>::new()), &[]).is_err());
        assert!(script(&GuestCommand::new("x", ["y"]), &[pair("A B", "")]).is_err());
        assert!(Tree::default().insert("relative", Node::Folder(0)).is_err());
        assert!(Tree::default().insert("/a/../b", Node::Folder(0)).is_err());
    }

    #[test]
    fn a_file_that_a_mount_would_hide_is_refused() {
        let file = |guest: &str| HostFile {
            host: "/bin/sh".into(),
            guest: guest.into(),
        };
        assert!(Tree::default().add(&file("/run/x")).is_err());
        assert!(Tree::default().add(&file("/running/x")).is_ok());
    }

    #[test]
    fn folders_above_a_file_come_before_it() {
        let mut tree = Tree::default();
        tree.insert("/a/b/c", Node::Text(String::new(), 0o644))
            .unwrap();
        let paths: Vec<_> = tree.0.keys().map(String::as_str).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn a_folder_is_taken_with_files_and_links() {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir(host.path().join("inner")).unwrap();
        fs::write(host.path().join("inner/file"), "text").unwrap();
        std::os::unix::fs::symlink(".", host.path().join("inner/round")).unwrap();
        let mut tree = Tree::default();
        tree.add(&HostFile {
            host: host.path().into(),
            guest: "/data".into(),
        })
        .unwrap();
        assert!(matches!(&tree.0["/data/inner/file"], Node::Host(path) if path.ends_with("file")));
        assert!(matches!(&tree.0["/data/inner/round"], Node::Link(target) if target == "."));
    }
}
