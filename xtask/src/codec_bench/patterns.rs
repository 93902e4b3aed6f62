//! Changes as they are said to be typical, one kind to a set.

use crate::{Page, Pair};

const PAGES: usize = 2000;
const LEN: usize = 4096;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

fn noise(random: &mut Random) -> Box<Page> {
    let mut page = Box::new([0; LEN]);
    for word in page.as_chunks_mut::<8>().0 {
        *word = random.next().to_le_bytes();
    }
    page
}

/// Words of English, the frequent ones often.
const WORDS: &str = "the of and to in is that for it as was with be by on not he his but at are this have from or had \
    an they which one you were all her she there would their we him been has when who will no more if out so said \
    what up its about than into them can only other time new some could these two may first then do any like my now \
    over such our man me even most made after also did many before must through years where much your way well down \
    should because each just those people how too little state good very make world still own see men work long here \
    get both between life being under never day same another know while last might us great old year off come since \
    against go came right used take three memory snapshot process restore history";

fn text(random: &mut Random) -> Box<Page> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut page = Box::new([b' '; LEN]);
    let mut at = 0;
    while at < LEN {
        // The product of two: low numbers often.
        let count = words.len() as u64;
        let word = words[(random.below(count) * random.below(count) / count) as usize].as_bytes();
        let len = word.len().min(LEN - at);
        page[at..at + len].copy_from_slice(&word[..len]);
        at += word.len() + 1;
    }
    page
}

/// Pages that `make` makes, changed by `change`.
fn set(
    seed: u64,
    make: impl Fn(&mut Random) -> Box<Page>,
    change: impl Fn(&mut Random, &mut Page),
) -> Vec<Pair> {
    let mut random = Random(seed);
    let pair = |_| {
        let before = make(&mut random);
        let mut page = before.clone();
        change(&mut random, &mut page);
        Pair {
            before: Some(before),
            page,
        }
    };
    (0..PAGES).map(pair).collect()
}

/// All patterns. The pages are of random bytes unless the name says otherwise, so that nothing but the change can be
/// made small.
pub fn all() -> Vec<(&'static str, Vec<Pair>)> {
    let words = |page: &mut Page, random: &mut Random, count: u64| {
        for _ in 0..count {
            let at = random.below(512) as usize;
            page.as_chunks_mut::<8>().0[at] = random.next().to_le_bytes();
        }
    };
    vec![
        (
            "one word",
            set(1, noise, |random, page| words(page, random, 1)),
        ),
        (
            "12 bytes each 1,111",
            set(2, noise, |random, page| {
                for at in (0..LEN - 12).step_by(1111) {
                    let more = [random.next().to_le_bytes(), random.next().to_le_bytes()].concat();
                    page[at..at + 12].copy_from_slice(&more[..12]);
                }
            }),
        ),
        (
            "sparse: 16 words",
            set(3, noise, |random, page| words(page, random, 16)),
        ),
        (
            "dense: half the words count",
            set(4, noise, |random, page| {
                for word in page.as_chunks_mut::<8>().0 {
                    let step = random.below(1000) * random.below(2);
                    *word = u64::from_le_bytes(*word).wrapping_add(step).to_le_bytes();
                }
            }),
        ),
        (
            "text, edited",
            set(5, text, |random, page| {
                // Twenty words are written over.
                for _ in 0..20 {
                    let with = text(random);
                    let at = random.below(LEN as u64 - 12) as usize;
                    page[at..at + 12].copy_from_slice(&with[..12]);
                }
            }),
        ),
        ("text, new", {
            let mut pairs = set(6, text, |_, _| {});
            pairs.iter_mut().for_each(|pair| pair.before = None);
            pairs
        }),
        (
            "random",
            set(7, noise, |random, page| *page = *noise(random)),
        ),
    ]
}
