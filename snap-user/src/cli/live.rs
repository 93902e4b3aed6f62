//! Joins the commands that work on a live process to the session.

use super::args::{Profile, Rollback, Run, Snap, Watch};
use super::context::Context;
use super::exit::{CliError, Exit};

/// `ksnap run`
pub fn run(_context: &Context, _args: &Run) -> Result<Exit, CliError> {
    Err(CliError::Refused("not wired up yet".into()))
}
/// `ksnap watch`
pub fn watch(_context: &Context, _args: &Watch) -> Result<Exit, CliError> {
    Err(CliError::Refused("not wired up yet".into()))
}
/// `ksnap snap`
pub fn snap(_context: &Context, _args: &Snap) -> Result<Exit, CliError> {
    Err(CliError::Refused("not wired up yet".into()))
}
/// `ksnap rollback`
pub fn rollback(_context: &Context, _args: &Rollback) -> Result<Exit, CliError> {
    Err(CliError::Refused("not wired up yet".into()))
}
/// `ksnap profile`
pub fn profile(_context: &Context, _args: &Profile) -> Result<Exit, CliError> {
    Err(CliError::Refused("not wired up yet".into()))
}
