//! What both sides know of a page when they come to a word: the words before it.

/// Words of a page. A word's place wraps at this, which only the last word of a page does, when nothing comes
/// after it.
const WORDS: usize = 512;

/// The coded words of a page so far, and how far back the next one is expected to come from.
pub(super) struct Context {
    /// The words, from 1; the one at 0 stands before the page and is 0.
    words: [u64; WORDS],
    /// Place of the next word.
    next: usize,
    /// The word so many words before the next is the expected one; at least 1, less than the next one's place
    /// except at first.
    distance: usize,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            words: [0; WORDS],
            next: 1,
            distance: 1,
        }
    }
}

impl Context {
    /// Forgets the page before.
    pub(super) fn reset(&mut self) {
        self.words[0] = 0;
        self.next = 1;
        self.distance = 1;
    }

    /// Place of the next word.
    #[inline(always)]
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// The word before.
    #[inline(always)]
    pub(super) fn last(&self) -> u64 {
        self.words[(self.next - 1) % WORDS]
    }

    /// The word that is expected: that at the distance of the last jump.
    #[inline(always)]
    pub(super) fn expected(&self) -> u64 {
        self.words[(self.next - self.distance) % WORDS]
    }

    /// The word at this place.
    #[inline(always)]
    pub(super) fn at(&self, place: usize) -> u64 {
        self.words[place % WORDS]
    }

    /// Sets the distance. `false` if there is no word there.
    #[inline(always)]
    pub(super) fn jump(&mut self, distance: usize) -> bool {
        self.distance = distance;
        0 < distance && distance < self.next
    }

    /// Takes in the next word.
    #[inline(always)]
    pub(super) fn push(&mut self, word: u64) {
        self.words[self.next % WORDS] = word;
        self.next += 1;
    }
}
