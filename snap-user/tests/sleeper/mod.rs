//! A process that does nothing.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::process::{Child, Command};

/// A process that sleeps, ended on drop.
pub struct Sleeper(pub Child);

impl Sleeper {
    pub fn start() -> Self {
        let child = Command::new("sleep").arg("1000").spawn();
        Self(child.expect("sleep"))
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
