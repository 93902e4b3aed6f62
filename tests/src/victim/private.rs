//! Private memory of one process of several, with content of its own, that children of it look at as well.

use anyhow::Result;

use super::family::fork;
use super::fault::{must, os_error};
use super::mem::Mapping;
use super::page::PAGE;
use super::rng::Rng;
use super::table::Table;

/// Exit code of a child that found all as it must be.
const FINE: i32 = 33;
/// Pages that change at each look.
const CHANGES: usize = 100;

/// What one process has.
pub struct Private {
    table: Table,
    rng: Rng,
    _memory: Mapping,
}

impl Private {
    /// So much of it, none for nothing. Its content depends on the seed.
    pub fn new(mib: usize, seed: u64) -> Result<Option<Self>> {
        if mib == 0 {
            return Ok(None);
        }
        let memory = Mapping::private(mib << 20)?;
        // SAFETY: the mapping has that many pages, and lives as long as the table.
        let table = unsafe { Table::new(memory.at(), memory.len() / PAGE, seed) };
        Ok(Some(Self {
            table,
            rng: Rng::new(seed),
            _memory: memory,
        }))
    }

    /// Makes a child that looks at all of it and changes some, and does the same meanwhile: neither may see what the other
    /// has changed.
    pub fn check(&mut self) -> Result<(), String> {
        let child = fork().map_err(|e| e.to_string())?;
        if child == 0 {
            must(self.change_and_look());
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(FINE) }
        }
        let outcome = self.change_and_look();
        let mut status = 0;
        // SAFETY: status is valid for writing.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
            return Err(os_error("waitpid of a child that looks at private memory"));
        }
        outcome?;
        match libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == FINE {
            true => Ok(()),
            false => Err(format!(
                "a child that looks at private memory ended with {status:#x}"
            )),
        }
    }

    fn change_and_look(&mut self) -> Result<(), String> {
        for _ in 0..CHANGES {
            self.table.step(&mut self.rng)?;
        }
        self.table.verify_all()
    }
}
