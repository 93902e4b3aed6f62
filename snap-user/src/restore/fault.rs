//! Points of a rollback and a restore at which a test can have ksnap killed, or fail; and numbers that a test can set. None
//! of this is in a release build.

/// Dies at once, as by `kill -9`, where the environment variable `KSNAP_KILL_AT` names this point.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    if is_chosen(name) {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// This is where it is going to die.
#[cfg(debug_assertions)]
pub fn is_chosen(name: &str) -> bool {
    std::env::var_os("KSNAP_KILL_AT").is_some_and(|chosen| chosen == name)
}

/// Fails at once, the first time that it comes to the point that the environment variable `KSNAP_FAIL_AT` names.
#[cfg(debug_assertions)]
pub fn failure(name: &str) -> crate::sys::Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static FAILED: AtomicBool = AtomicBool::new(false);
    let is_here = std::env::var_os("KSNAP_FAIL_AT").is_some_and(|chosen| chosen == name);
    match is_here && !FAILED.swap(true, Ordering::Relaxed) {
        true => Err(crate::sys::SysError::new(
            "fail",
            "KSNAP_FAIL_AT",
            std::io::Error::other("a test has it fail"),
        )),
        false => Ok(()),
    }
}

/// What a test has put into an environment variable to have something small or slow.
#[cfg(debug_assertions)]
pub fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub fn number(_: &str) -> Option<u32> {
    None
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub fn failure(_: &str) -> crate::sys::Result<()> {
    Ok(())
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub fn point(_: &str) {}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
pub fn is_chosen(_: &str) -> bool {
    false
}
