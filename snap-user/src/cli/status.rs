//! The live status line on standard error.

use super::render::human::clean;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// More often than this nobody can read it.
const INTERVAL: Duration = Duration::from_millis(100);
/// Back to the first column, and erase from there to the end of the line (ECMA-48).
const ERASE: &str = "\r\x1b[K";
/// Where the terminal does not say how wide it is.
const WIDTH: usize = 80;

/// The line is on the screen now.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Takes the line off the screen, if it is there, to make room for other output on standard error.
pub fn clear_line() {
    if SHOWN.swap(false, Ordering::Relaxed) {
        let _ = write!(io::stderr(), "{ERASE}");
    }
}

/// A line that is rewritten in place. Gone from the screen when dropped.
#[derive(Debug)]
pub struct Status {
    on: bool,
    drawn: Option<Instant>,
}

impl Status {
    /// Draws only if `on`.
    pub fn new(on: bool) -> Self {
        Self { on, drawn: None }
    }

    /// Whether all of `text` fits into the line, or none is drawn.
    pub fn has_room_for(&self, text: &str) -> bool {
        !self.on || is_whole(text, width(&io::stderr().lock()) - 1)
    }

    /// Shows `text`, unless the line was drawn a moment ago and is still there.
    pub fn update(&mut self, text: &str) {
        let recent = self.drawn.is_some_and(|at| at.elapsed() < INTERVAL);
        if !self.on || (recent && SHOWN.load(Ordering::Relaxed)) {
            return;
        }
        let mut err = io::stderr().lock();
        // One column less: some terminals wrap as soon as the last one is filled.
        let line = fit(text, width(&err) - 1);
        SHOWN.store(true, Ordering::Relaxed);
        // A status line that cannot be drawn is no reason to end.
        let _ = write!(err, "{ERASE}{line}").and_then(|()| err.flush());
        self.drawn = Some(Instant::now());
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        clear_line();
    }
}

fn width(err: &io::StderrLock<'_>) -> usize {
    if !err.is_terminal() {
        return WIDTH;
    }
    match rustix::termios::tcgetwinsize(err) {
        Ok(size) if size.ws_col > 1 => size.ws_col.into(),
        _ => WIDTH,
    }
}

/// Whether `text` fits into a number of columns.
fn is_whole(text: &str, columns: usize) -> bool {
    clean(text).chars().count() <= columns
}

/// The start of `text` that fits into a number of columns.
fn fit(text: &str, columns: usize) -> String {
    let all = clean(text);
    if is_whole(text, columns) {
        return all;
    }
    let start = all.chars().take(columns.saturating_sub(1));
    start.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_not_wrapped() {
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abcd", 3), "ab…");
        assert_eq!(fit("a\nb", 10), "a\\nb");
        assert!(is_whole("abc", 3) && !is_whole("abcd", 3) && !is_whole("a\nb", 3));
    }
}
