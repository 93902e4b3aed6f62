//! A process that does nothing.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use snap_user::sys::proc;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A process that sleeps, ended on drop.
pub struct Sleeper(pub Child);

impl Sleeper {
    pub fn start() -> Self {
        let child = Command::new("sleep").arg("1000").spawn();
        let sleeper = Self(child.expect("sleep"));
        // Before, it may be in the middle of its execve(2), or on its way into its program.
        let end = Instant::now() + Duration::from_secs(60);
        while proc::stat(sleeper.id().cast_signed(), None).unwrap().state != 'S' {
            assert!(Instant::now() < end, "it does not sleep");
            std::thread::sleep(Duration::from_millis(1));
        }
        sleeper
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its id as a command line has it.
    pub fn pid(&self) -> String {
        self.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
