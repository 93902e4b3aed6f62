//! Points of a rollback and a restore at which a test can have ksnap killed. None of this is in a release build.

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

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
pub fn point(_: &str) {}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
pub fn is_chosen(_: &str) -> bool {
    false
}
