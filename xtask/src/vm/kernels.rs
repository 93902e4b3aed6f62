//! Fetches Debian kernel packages with apt into a cache, leaving the system's own apt state alone.
//!
//! The mirror is the one this machine is configured for; the suite is the one the kernel lives in,
//! whatever suite the machine itself runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tools::{self, found};
use super::{Error, Kernel, Result, modules};

/// Signs every Debian suite that the matrix uses.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The folder of its modules, in a kernel's cache. Another name where other ones are wanted.
const MODULES: &str = "modules-1";

/// A kernel on disk, ready to boot.
#[derive(Debug)]
pub struct Image {
    /// The compressed kernel image.
    pub vmlinuz: PathBuf,
    /// Its build configuration, where the package has one.
    pub config: Option<PathBuf>,
    /// Modules that every boot loads, in this order.
    pub modules: Vec<PathBuf>,
    /// The package and version it is from, as `linux-image-… 6.1.192-2`.
    pub package: String,
}

/// The cached kernel, fetched first if it is not there yet. `cache` is the folder of this kernel;
/// removing it makes the next call fetch the newest package.
pub fn ensure(kernel: Kernel, cache: &Path, say: &mut dyn FnMut(&str)) -> Result<Image> {
    if let Some(image) = cached(cache) {
        return Ok(image);
    }
    for tool in ["apt-get", "apt-cache", "dpkg"] {
        if !found(tool) {
            return Err(Error::Unavailable {
                what: format!("a kernel {kernel} image"),
                why: format!("no {tool} to fetch one with"),
                remedy: format!(
                    "put one at {} (with its config, and a folder {MODULES} with its modules, beside it) or use a Debian machine",
                    cache.join("vmlinuz").display()
                ),
            });
        }
    }
    if !Path::new(KEYRING).exists() {
        return Err(Error::Unavailable {
            what: "the Debian archive key".into(),
            why: format!("no {KEYRING}"),
            remedy: "install the package debian-archive-keyring".into(),
        });
    }
    let mirror = mirror()?;
    let parent = cache.parent().unwrap_or(cache);
    let work = parent.join(format!("fetch-{}-{}", kernel.name(), std::process::id()));
    let result = fetch(kernel, &mirror, &work, cache, say);
    // Only scratch files: a leftover costs disk space and nothing else.
    let _ = fs::remove_dir_all(&work);
    result
}

fn cached(cache: &Path) -> Option<Image> {
    let vmlinuz = cache.join("vmlinuz");
    if !vmlinuz.exists() {
        return None;
    }
    let config = Some(cache.join("config")).filter(|path| path.exists());
    let package = fs::read_to_string(cache.join("package"));
    let modules = cache.join(MODULES);
    if package.is_ok() && !modules.exists() {
        // Fetched before there were any.
        return None;
    }
    let package = package.map_or_else(
        |_| "put there by hand".into(),
        |text| text.trim().to_string(),
    );
    Some(Image {
        vmlinuz,
        config,
        modules: modules::list(&modules),
        package,
    })
}

fn fetch(
    kernel: Kernel,
    mirror: &str,
    work: &Path,
    cache: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Image> {
    let mut why = Vec::new();
    for suite in kernel.suites() {
        match resolve(kernel, mirror, suite, &work.join(suite)) {
            Ok((apt, package, version)) => {
                say(&format!("fetching {package} {version} from {suite}"));
                return download(&apt, &package, &version, &work.join(suite), cache);
            }
            Err(error) => why.push(format!("{suite}: {error}")),
        }
    }
    Err(Error::NoKernel {
        kernel,
        why: why.join("; "),
        image: cache.join("vmlinuz"),
    })
}

/// The concrete package and version behind the meta-package of `suite`, and the apt options to get it.
fn resolve(
    kernel: Kernel,
    mirror: &str,
    suite: &str,
    work: &Path,
) -> Result<(Vec<String>, String, String)> {
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        let path = work.join(folder);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    let sources = work.join("sources.list");
    fs::write(
        &sources,
        format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"),
    )
    .map_err(Error::io("write", &sources))?;
    let apt = apt_options(work);
    tools::run(
        Command::new("apt-get").args(&apt).args(["-q", "update"]),
        "read the package list of the suite",
    )?;
    let shown = tools::run(
        Command::new("apt-cache")
            .args(&apt)
            .args(["--no-all-versions", "show"])
            .arg(kernel.meta_package()),
        "find the newest kernel package",
    )?;
    let (package, version) = concrete_package(&shown, kernel).ok_or_else(|| Error::NoKernel {
        kernel,
        why: format!(
            "{} does not depend on a {kernel} image",
            kernel.meta_package()
        ),
        image: PathBuf::new(),
    })?;
    Ok((apt, package, version))
}

fn download(
    apt: &[String],
    package: &str,
    version: &str,
    work: &Path,
    cache: &Path,
) -> Result<Image> {
    tools::run(
        Command::new("apt-get")
            .current_dir(work)
            .args(apt)
            .args(["-q", "download"])
            .arg(format!("{package}={version}")),
        "download the kernel package",
    )?;
    let archive = entry(work, |name| {
        name.starts_with(package) && name.ends_with(".deb")
    })?;
    let tree = work.join("tree");
    tools::run(
        Command::new("dpkg").arg("-x").arg(&archive).arg(&tree),
        "unpack the kernel package",
    )?;
    let boot = tree.join("boot");
    let ready = work.join("ready");
    fs::create_dir_all(&ready).map_err(Error::io("create", &ready))?;
    move_file(
        &entry(&boot, |name| name.starts_with("vmlinuz-"))?,
        &ready.join("vmlinuz"),
    )?;
    if let Ok(config) = entry(&boot, |name| name.starts_with("config-")) {
        move_file(&config, &ready.join("config"))?;
    }
    modules::take(&tree, &ready.join(MODULES))?;
    let note = ready.join("package");
    fs::write(&note, format!("{package} {version}\n")).map_err(Error::io("write", &note))?;
    // One file at a time, the image last: its presence is what `cached` goes by, and two fetches at
    // once end with the same files.
    fs::create_dir_all(cache).map_err(Error::io("create", cache))?;
    for name in ["config", MODULES, "package", "vmlinuz"] {
        // A folder that is there is another's, with the same modules.
        if ready.join(name).exists() && !cache.join(name).is_dir() {
            move_file(&ready.join(name), &cache.join(name))?;
        }
    }
    cached(cache).ok_or_else(|| Error::Io {
        action: "find the unpacked image in",
        path: cache.to_path_buf(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("move a file to", to))
}

/// The one entry of `folder` whose name fits.
fn entry(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fs::read_dir(folder)
        .map_err(Error::io("list", folder))?
        .filter_map(|entry| entry.ok())
        .find(|entry| entry.file_name().to_str().is_some_and(&fits))
        .map(|entry| entry.path())
        .ok_or_else(|| Error::Io {
            action: "find the expected file in",
            path: folder.to_path_buf(),
            source: std::io::ErrorKind::NotFound.into(),
        })
}

/// Options that keep apt to its own sources, lists and cache below `work`: works without root and
/// changes nothing outside.
fn apt_options(work: &Path) -> Vec<String> {
    let at = |name: &str| work.join(name).display().to_string();
    [
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".into(),
        format!("Dir::State={}", at("state")),
        format!("Dir::Cache={}", at("cache")),
        "APT::Architecture=amd64".into(),
        // The unprivileged download user cannot write below a private folder.
        format!(
            "APT::Sandbox::User={}",
            std::env::var("USER").unwrap_or_else(|_| "root".into())
        ),
        "Acquire::Languages=none".into(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".into(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_string(), option])
    .collect()
}

/// The Debian mirror this machine uses.
fn mirror() -> Result<String> {
    let targets = tools::run(
        Command::new("apt-get")
            .args(["indextargets", "--format"])
            .args([
                "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)",
                "Created-By: Packages",
            ]),
        "find the configured Debian mirror",
    )?;
    debian_mirror(&targets).ok_or_else(|| Error::Unavailable {
        what: "a Debian mirror".into(),
        why: "none of the configured apt sources is Debian's main archive".into(),
        remedy: "add one (and run apt-get update), or use a Debian machine".into(),
    })
}

/// Picks the main archive out of `apt-get indextargets` lines of the form
/// `origin|component|codename|uri`: the security archive lacks the backports suites.
fn debian_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (origin, component) = (fields.next()?, fields.next()?);
        let (codename, uri) = (fields.next()?, fields.next()?);
        let main_archive =
            origin == "Debian" && component == "main" && !codename.contains("-security");
        main_archive.then(|| uri.to_string())
    })
}

/// The image package that the meta-package depends on, with the exact version, out of
/// `apt-cache show META`.
fn concrete_package(shown: &str, kernel: Kernel) -> Option<(String, String)> {
    let depends = shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    depends.split(',').find_map(|dependency| {
        let (package, relation) = dependency.trim().split_once(" (= ")?;
        let version = relation.strip_suffix(')')?;
        kernel
            .is_image_package(package)
            .then(|| (package.to_string(), version.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOW_6_1: &str = "\
Package: linux-image-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Architecture: amd64
Provides: virtualbox-guest-modules, wireguard-modules (= 1.0.0)
Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)
Description: Linux for 64-bit PCs (meta-package)
";
    const SHOW_6_12: &str = "\
Package: linux-image-cloud-amd64
Version: 6.12.95-1~bpo12+1
Depends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)
";

    #[test]
    fn the_meta_package_names_the_image_package() {
        assert_eq!(
            concrete_package(SHOW_6_1, Kernel::V6_1),
            Some(("linux-image-6.1.0-56-amd64".into(), "6.1.192-2".into()))
        );
        assert_eq!(
            concrete_package(SHOW_6_12, Kernel::V6_12),
            Some((
                "linux-image-6.12.95+deb12-cloud-amd64".into(),
                "6.12.95-1~bpo12+1".into()
            ))
        );
    }

    #[test]
    fn another_series_or_flavour_is_not_taken_for_the_one_asked() {
        assert_eq!(concrete_package(SHOW_6_1, Kernel::V6_12), None);
        assert_eq!(concrete_package(SHOW_6_12, Kernel::V6_1), None);
        let cloud = SHOW_6_1.replace("-56-amd64", "-56-cloud-amd64");
        assert_eq!(concrete_package(&cloud, Kernel::V6_1), None);
        assert_eq!(
            concrete_package("Package: x\nVersion: 1\n", Kernel::V6_1),
            None
        );
    }

    #[test]
    fn other_dependencies_are_passed_over() {
        let more = SHOW_6_1.replace("Depends: ", "Depends: linux-base (>= 4.3~), kmod, ");
        assert!(concrete_package(&more, Kernel::V6_1).is_some());
    }

    #[test]
    fn the_mirror_is_the_main_archive_of_debian() {
        let targets = "\
Node|main|nodistro|https://node.example/
Debian|main|bookworm-security|http://mirror.example/debian-security/
Debian|contrib|bookworm|http://mirror.example/contrib/
Debian|main|bookworm|http://mirror.example/debian/
";
        assert_eq!(
            debian_mirror(targets).as_deref(),
            Some("http://mirror.example/debian/")
        );
        assert_eq!(
            debian_mirror("Ubuntu|main|noble|http://mirror.example/ubuntu/\n"),
            None
        );
        assert_eq!(debian_mirror(""), None);
    }

    #[test]
    fn a_cached_image_is_used_without_apt() {
        let cache = tempfile::tempdir().unwrap();
        assert!(cached(cache.path()).is_none());
        fs::write(cache.path().join("vmlinuz"), b"kernel").unwrap();
        let image = ensure(Kernel::V6_1, cache.path(), &mut |_| {
            panic!("nothing to fetch")
        })
        .unwrap();
        assert_eq!(image.vmlinuz, cache.path().join("vmlinuz"));
        assert_eq!(image.config, None);
        assert!(image.modules.is_empty());
        assert_eq!(image.package, "put there by hand");
    }
}
