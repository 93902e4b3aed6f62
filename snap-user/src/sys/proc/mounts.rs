//! What is mounted where, as a process sees it (proc_pid_mountinfo(5)).

use crate::sys::Result;
use std::collections::BTreeSet;

/// Whether two processes see the same mounts, but for `/proc`: that of a PID namespace is its own.
///
/// # Errors
/// Those of reading `mountinfo`.
pub fn see_same_mounts(one: i32, other: i32) -> Result<bool> {
    let mounts = |pid: i32| {
        let text = super::read(format!("/proc/{pid}/mountinfo"))?;
        Ok(seen(&String::from_utf8_lossy(&text)))
    };
    Ok(mounts(one)? == mounts(other)?)
}

/// Each mount by its place, its device, and what of that is there.
fn seen(text: &str) -> BTreeSet<[String; 3]> {
    let mount = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let [_, _, device, root, place, ..] = fields[..] else {
            return None;
        };
        (!source.starts_with("proc ")).then(|| [place, device, root].map(str::to_owned))
    };
    text.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "\
22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
23 28 0:22 / /proc rw,nosuid shared:13 - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 28 0:26 / /tmp rw shared:4 - tmpfs tmpfs rw
";

    #[test]
    fn only_what_is_somewhere_else_makes_a_difference() {
        let again = HERE
            .replace("23 28 0:22", "99 98 0:77")
            .replace("22 28", "97 98");
        assert_eq!(seen(HERE), seen(&again), "numbers, and another /proc");
        let bound = HERE.replace("0:26 / /tmp", "254:0 /var/private /tmp");
        assert_ne!(seen(HERE), seen(&bound));
        assert_ne!(
            seen(HERE),
            seen(&format!("{HERE}31 28 0:27 / /mnt rw - tmpfs tmpfs rw\n"))
        );
        assert_eq!(seen("nonsense\n1 2 3 - x\n"), BTreeSet::new());
    }

    #[test]
    fn a_process_sees_what_it_sees() {
        let own = std::process::id() as i32;
        assert!(see_same_mounts(own, own).expect("readable"));
        assert!(see_same_mounts(own, -1).is_err());
    }
}
