//! Stopping a process: what cannot be stopped is let go as it was.

mod skip;

use snap_user::sys::{Freeze, Frozen, Hold, proc};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A parent waits uninterruptibly until its vfork child has opened a pipe that nobody writes to.
const PARENT: &str = "
import os, sys
opens = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]
os.waitpid(os.posix_spawn('/bin/true', ['true'], {}, file_actions=opens), 0)
print('on', flush=True)
";

#[test]
fn a_process_that_does_not_stop_in_time_runs_on_also_where_the_stop_was_to_outlive_us() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let started = Command::new("python3")
        .args(["-c", PARENT])
        .arg(&fifo)
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut parent) = started else {
        skip::skip("the program python3", "apt-get install python3");
        return;
    };
    let pid = parent.id().cast_signed();
    let end = Instant::now() + Duration::from_secs(30);
    let children = format!("/proc/{pid}/task/{pid}/children");
    // Reading its program from the disk it waits like that as well, without a child.
    let waits = || proc::stat(pid, None).unwrap().state == 'D';
    while std::fs::read_to_string(&children).unwrap().is_empty() || !waits() {
        assert!(Instant::now() < end, "it never waits for a vfork child");
        std::thread::sleep(Duration::from_millis(5));
    }
    let options = Freeze {
        hold: Hold::JobControl,
        timeout: Duration::from_millis(100),
    };
    let error = Frozen::freeze(pid, options).expect_err("it does not stop");
    assert!(error.to_string().contains("does not stop"), "{error}");
    // Its child goes on, and then it does.
    drop(std::fs::File::options().write(true).open(&fifo).unwrap());
    let mut out = BufReader::new(parent.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        out.read_line(&mut line).map(|_| line)
    });
    let end = Instant::now() + Duration::from_secs(30);
    while !reader.is_finished() && Instant::now() < end {
        snap_user::sys::release_strays();
        std::thread::sleep(Duration::from_millis(5));
    }
    if !reader.is_finished() {
        parent.kill().unwrap();
        panic!("it stays stopped");
    }
    assert_eq!(reader.join().unwrap().unwrap().trim(), "on");
    assert!(parent.wait().unwrap().success());
}
