//! How many pages are asked for ahead: as many as keep the connection busy, and no more, since a page that somebody waits
//! for comes behind them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How much longer than the quickest answer another one may take before fewer pages are asked for.
const LATE: Duration = Duration::from_millis(20);
const LEAST: usize = 64;
const MOST: usize = 8192;

/// Pages that may be outstanding.
pub(super) struct Window {
    pages: usize,
    quickest: Duration,
    /// Requests: which number of pages will have come when they are answered, and when they were made.
    requests: VecDeque<(u64, Instant)>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            pages: LEAST,
            quickest: Duration::MAX,
            requests: VecDeque::new(),
        }
    }

    /// Pages that may be outstanding now.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Requests that have not been answered.
    pub(super) fn requests(&self) -> usize {
        self.requests.len()
    }

    /// A request was made, which is answered when so many pages have come in all.
    pub(super) fn asked(&mut self, due: u64) {
        self.requests.push_back((due, Instant::now()));
    }

    /// So many pages have come in all.
    pub(super) fn came(&mut self, pages: u64) {
        while let Some((due, at)) = self.requests.front().copied()
            && due <= pages
        {
            self.requests.pop_front();
            self.answered(at.elapsed());
        }
    }

    /// A request was answered after so long.
    fn answered(&mut self, after: Duration) {
        self.quickest = self.quickest.min(after);
        self.pages = match after < self.quickest.saturating_add(LATE) {
            true => self.pages + self.pages / 8,
            false => self.pages - self.pages / 8,
        }
        .clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_while_answers_come_soon_and_closes_when_they_do_not() {
        let mut window = Window::new();
        for _ in 0..100 {
            window.answered(Duration::from_millis(100));
        }
        assert_eq!(window.pages(), MOST);
        for _ in 0..100 {
            window.answered(Duration::from_millis(130));
        }
        assert_eq!(window.pages(), LEAST);
    }

    #[test]
    fn a_request_is_answered_with_its_last_page() {
        let mut window = Window::new();
        window.asked(10);
        window.asked(30);
        window.came(9);
        assert_eq!((window.requests.len(), window.pages()), (2, LEAST));
        window.came(29);
        assert_eq!(window.requests.len(), 1);
        window.came(30);
        assert!(window.requests.is_empty() && window.pages() > LEAST);
    }
}
