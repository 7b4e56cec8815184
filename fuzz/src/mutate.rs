//! Inputs that are nearly right: kept ones with a few random changes.
//!
//! Blind to what an input reaches, unlike libFuzzer, but reproducible and at home with any
//! compiler. Everything follows from the seed.

/// Numbers that sit on an edge of something.
const EDGES: [u64; 12] = [
    0,
    1,
    63,
    64,
    255,
    256,
    65_535,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Bytes that mean something to many parsers.
const BYTES: &[u8] = b"\0\x01\x7f\x80\xff\n\r\t \"'\\/%&=?#,.:;-_+*!()[]{}<>0123456789";

/// Makes inputs out of inputs.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
    longest: usize,
    words: &'static [&'static str],
}

impl Mutator {
    /// A source of inputs of at most `longest` bytes, into which `words` are strewn.
    #[must_use]
    pub fn new(seed: u64, longest: usize, words: &'static [&'static str]) -> Self {
        Self {
            state: seed,
            longest,
            words,
        }
    }

    /// A random number (splitmix64).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end as u64)).unwrap_or(0)
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        let at = self.below(from.len());
        &from[at]
    }

    /// A part of an input: mostly short.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let rest = length - start;
        let most = if self.next().is_multiple_of(8) {
            rest
        } else {
            rest.min(8)
        };
        start..start + self.below(most + 1)
    }

    /// One of `seeds` with a few changes, or something made up when there are none.
    pub fn input(&mut self, seeds: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut input = if seeds.is_empty() || self.next().is_multiple_of(64) {
            let length = self.below(self.longest.min(64) + 1);
            (0..length).map(|_| self.next() as u8).collect()
        } else {
            self.pick(seeds).1.clone()
        };
        // Mostly one change, now and then many.
        let changes = 1 + self.next().trailing_zeros() * 2;
        for _ in 0..changes {
            self.change(&mut input, seeds);
        }
        input.truncate(self.longest);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[(String, Vec<u8>)]) {
        let length = input.len();
        match self.next() % 12 {
            0 | 1 if length > 0 => {
                let at = self.below(length);
                input[at] ^= 1 << self.below(8);
            }
            2 if length > 0 => {
                let at = self.below(length);
                input[at] = *self.pick(BYTES);
            }
            3 => {
                let at = self.below(length + 1);
                input.insert(at, *self.pick(BYTES));
            }
            4 => {
                let part = self.part(length);
                input.drain(part);
            }
            5 => {
                let part = self.part(length);
                let copy = input[part].to_vec();
                let at = self.below(length + 1);
                input.splice(at..at, copy);
            }
            6 | 7 if !self.words.is_empty() => {
                let word = self.pick(self.words).as_bytes();
                let part = self.part(length);
                // Beside what is there, or in its place.
                let end = if self.next().is_multiple_of(2) {
                    part.start
                } else {
                    part.end
                };
                input.splice(part.start..end, word.iter().copied());
            }
            8 => self.number(input),
            9 if !seeds.is_empty() => {
                let other = &self.pick(seeds).1;
                let taken = other[self.part(other.len())].to_vec();
                let part = self.part(length);
                input.splice(part, taken);
            }
            10 if length > 0 => {
                // One byte many times: depth, width, overflow.
                let at = self.below(length);
                let times = 1 << self.below(12);
                let byte = input[at];
                input.splice(at..at, std::iter::repeat_n(byte, times));
            }
            11 if length > 1 => {
                let cut = self.below(length);
                input.truncate(cut);
            }
            _ => input.push(self.next() as u8),
        }
    }

    /// Puts a number from an edge in the place of one: of digits, or of bytes.
    fn number(&mut self, input: &mut Vec<u8>) {
        let edge = *self.pick(&EDGES);
        let start = input.len() / 2;
        let digits = |byte: &u8| byte.is_ascii_digit();
        let from = self.below(start + 1);
        if let Some(first) = input[from..].iter().position(digits) {
            let first = from + first;
            let end = input[first..]
                .iter()
                .position(|byte| !byte.is_ascii_digit())
                .map_or(input.len(), |length| first + length);
            input.splice(first..end, edge.to_string().into_bytes());
            return;
        }
        let width = 1 << self.below(4);
        if input.len() >= width {
            let at = self.below(input.len() - width + 1);
            input[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
        }
    }
}
