//! Two who want to stop the same process.

use super::*;
use std::sync::mpsc::channel;

struct Sleeper(std::process::Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_tracers_take_turns_and_one_that_stays_is_told() {
    // Whoever waits here may wait, so that no busy machine decides who comes in time.
    const LONG: Duration = Duration::from_secs(60);
    let options = Freeze {
        timeout: LONG,
        ..Freeze::default()
    };
    let sleeper = Sleeper(
        std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap(),
    );
    let pid = sleeper.0.id().cast_signed();
    let (held, is_held) = channel();
    let (go, is_told) = channel();
    let other = std::thread::spawn(move || {
        let frozen = Frozen::freeze(pid, options).unwrap();
        held.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        frozen.thaw();
        is_told.recv().unwrap();
        let frozen = Frozen::freeze(pid, options).unwrap();
        held.send(()).unwrap();
        is_told.recv().unwrap();
        frozen.thaw();
    });
    is_held.recv().unwrap();
    let turn = Frozen::freeze_in_turn(pid, options, LONG);
    drop(turn.expect("the other one lets go"));
    go.send(()).unwrap();
    is_held.recv().unwrap();
    let error = Frozen::freeze(pid, options).expect_err("it is held");
    assert!(error.is_denied(), "{error}");
    go.send(()).unwrap();
    other.join().unwrap();
}
