//! What signals do to this program.

use super::{Result, SysError};

/// Has a signal do to this program what it does to any that says nothing of it (`signal(7)`), whatever was to be done
/// with it until now.
pub fn leave_to_kernel(signal: i32) -> Result<()> {
    // SAFETY: no function is installed, and the one that was is code of this program that stays where it is.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(SysError::last("signal", format_args!("signal {signal}"))),
        _ => Ok(()),
    }
}
