//! The module as a whole. What needs a real boot (5 to 15 s, QEMU, a fetched kernel) is ignored by default.

use std::time::Duration;

use super::*;

fn boot(kernel: Kernel) {
    let mut payload = Payload::new();
    payload.env("GREETING", "it's me");
    payload.command(GuestCommand::new("passes", ["true"]));
    payload.command(GuestCommand::new(
        "fails",
        ["sh", "-c", "echo some output >&2; exit 7"],
    ));
    payload.command(
        GuestCommand::new("is told", ["sh", "-c", "printf %s \"$GREETING in $PWD\""])
            .folder("/tmp"),
    );
    payload.command(GuestCommand::new(
        "litters",
        ["sh", "-c", "sleep 500 & sleep 501 & exit 0"],
    ));
    payload.command(GuestCommand::new(
        "is alone",
        [
            "sh",
            "-c",
            "! pidof sleep && test \"$(ls /proc/self/fd | wc -l)\" = 4 && ! tty",
        ],
    ));
    payload.command(GuestCommand::new("hangs", ["sleep", "500"]).limit(Duration::from_secs(2)));
    payload.command(GuestCommand::new("has mounts", [
        "sh",
        "-c",
        "cd /sys/fs/bpf && cd /sys/kernel/tracing/events && cd /sys/fs/cgroup && test -c /dev/ptmx \
         && test -e /boot/config-$(uname -r) && ping -c 1 127.0.0.1",
    ]));
    payload.command(GuestCommand::new(
        "kills the guest",
        [
            "sh",
            "-c",
            "echo bye; echo c > /proc/sysrq-trigger; sleep 9",
        ],
    ));
    payload.command(GuestCommand::new("comes too late", ["true"]));

    let mut heard = Vec::new();
    let outcome = run_with(
        kernel,
        &payload,
        &mut |result| heard.push(result.name.clone()),
        &mut |message| eprintln!("{message}"),
    )
    .unwrap();
    eprintln!("{outcome}");

    let status = |name: &str| {
        outcome
            .results
            .iter()
            .find(|result| result.name == name)
            .unwrap()
            .status
    };
    let output = |name: &str| {
        outcome
            .results
            .iter()
            .find(|result| result.name == name)
            .unwrap()
            .output
            .clone()
    };
    assert_eq!(status("passes"), Status::Passed);
    assert_eq!(status("fails"), Status::Failed(7));
    assert_eq!(output("fails"), "some output\n");
    assert_eq!(output("is told"), "it's me in /tmp");
    assert_eq!(status("litters"), Status::Passed);
    assert_eq!(
        outcome.results[3].left_behind.len(),
        2,
        "{:?}",
        outcome.results[3]
    );
    assert_eq!(status("is alone"), Status::Passed, "{}", output("is alone"));
    assert_eq!(status("hangs"), Status::TimedOut);
    assert_eq!(
        status("has mounts"),
        Status::Passed,
        "{}",
        output("has mounts")
    );
    assert_eq!(status("kills the guest"), Status::GuestDied);
    assert_eq!(output("kills the guest").trim(), "bye");
    assert_eq!(status("comes too late"), Status::NotRun);
    assert_eq!(heard.len(), 7, "{heard:?}");
    assert!(outcome.warnings.is_empty(), "{:?}", outcome.warnings);
    assert!(
        outcome.release.starts_with(&format!("{kernel}.")),
        "{}",
        outcome.release
    );
    assert!(!outcome.is_success());
    assert_eq!(
        outcome.tally(),
        Tally {
            passed: 5,
            failed: 4,
            ignored: 0
        }
    );
}

#[test]
#[ignore = "boots a virtual machine"]
fn a_6_1_guest_runs_commands_and_tells_how_each_ended() {
    boot(Kernel::V6_1);
}

#[test]
#[ignore = "boots a virtual machine"]
fn a_6_12_guest_runs_commands_and_tells_how_each_ended() {
    boot(Kernel::V6_12);
}

#[test]
fn only_what_dead_runs_left_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    // No process has this id: ids end far below.
    let dead = format!("initramfs-{}.cpio", i32::MAX);
    let alive = format!("initramfs-{}.cpio", std::process::id());
    for name in [&dead, &alive, "vmlinuz"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    sweep(folder.path());
    assert!(!folder.path().join(dead).exists());
    assert!(folder.path().join(alive).exists());
    assert!(folder.path().join("vmlinuz").exists());
}
