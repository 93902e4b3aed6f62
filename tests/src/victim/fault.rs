//! The one way for a victim to fail: say which invariant broke, and leave at once.

use std::fmt::Display;
use std::sync::OnceLock;

/// Exit status of a victim that found an invariant broken.
pub const BROKEN: i32 = 70;
/// Exit status of a victim that was called wrongly or could not prepare.
pub const USAGE: i32 = 64;

static PROGRAM: OnceLock<String> = OnceLock::new();

/// Names the victim for its messages.
pub fn name_program(name: &str) {
    PROGRAM.get_or_init(|| name.to_owned());
}

/// Ends the whole process with status [`BROKEN`] and the reason on stderr. Callable from any thread, from a
/// forked child and from a signal handler that interrupted no allocation.
pub fn broken(reason: impl Display) -> ! {
    let name = PROGRAM.get().map_or("?", String::as_str);
    let line = format!("BROKEN {name} (pid {}): {reason}\n", std::process::id());
    // SAFETY: the buffer is valid for its length; _exit does not return and runs no destructors, which is
    // wanted: other threads still use the shared state.
    unsafe {
        libc::write(2, line.as_ptr().cast(), line.len());
        libc::_exit(BROKEN)
    }
}

/// Unwraps the result of a check, or ends the process.
pub fn must<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|reason| broken(reason))
}

/// The last system call's error, in words, with the call that made it.
pub fn os_error(call: &str) -> String {
    format!("{call}: {}", std::io::Error::last_os_error())
}
