//! Lines with numbers, none of which may be lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::background::Background;

const LIMIT: Duration = Duration::from_secs(60);

/// Lines that must come with numbers in order, `n0` first, none missing and none twice.
#[derive(Default)]
pub struct Numbers(u64);

impl Numbers {
    /// Takes the next line.
    pub fn take(&mut self, line: &str) -> Result<()> {
        ensure!(
            line == format!("n{}", self.0),
            "{line} instead of n{}",
            self.0
        );
        self.0 += 1;
        Ok(())
    }

    /// Waits for so many lines.
    pub fn expect(&mut self, process: &mut Background, least: u64) -> Result<()> {
        for _ in 0..least {
            self.take(&process.line(LIMIT)?.context("no number")?)?;
        }
        Ok(())
    }

    /// Everything that was written before the end.
    pub fn rest(&mut self, process: &mut Background) -> Result<()> {
        while let Ok(Some(line)) = process.line(LIMIT) {
            self.take(&line)?;
        }
        Ok(())
    }
}
