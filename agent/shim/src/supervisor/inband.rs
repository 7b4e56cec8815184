//! Marks on their way to runit's logger, which is a process of its own and sees nothing but the
//! output: between the bytes of one run and those of the next, `exec` and `finish` write a word
//! there that the logger takes out again.
//!
//! The word has a key that only root can read, so that no program can say it.

use std::io::{self, Write as _};
use std::path::Path;

use crate::marks::MarkKind;

/// The file with the key.
const KEY: &str = "log-key";
/// A key is not longer.
const MAX_KEY: usize = 128;
/// A word is not longer behind its key: `begin` and a number.
const MAX_WORD: usize = 32;

/// The key in the current directory; None: an older agent made it, and nothing is marked.
pub(super) fn key() -> Option<Vec<u8>> {
    let key = std::fs::read(Path::new(KEY)).ok()?;
    let fits = (16..=MAX_KEY).contains(&key.len()) && key.iter().all(u8::is_ascii_hexdigit);
    fits.then_some(key)
}

/// Says it, on this process's own output.
pub(super) fn say(kind: MarkKind) {
    let Some(key) = key() else {
        return;
    };
    let (word, run) = match kind {
        MarkKind::Begin { run } => ("begin", run),
        MarkKind::End { run } => ("end", run),
        MarkKind::At { .. } => return,
    };
    let mut text = head(&key);
    text.extend_from_slice(format!("{word} {run}\0").as_bytes());
    // In one piece: a pipe takes so little whole, or not at all. Without it a log is one stream.
    let mut output = io::stdout().lock();
    let _ = output.write_all(&text).and_then(|()| output.flush());
}

fn head(key: &[u8]) -> Vec<u8> {
    [b"\0platctrl-run ", key, b" "].concat()
}

/// What comes out of the pipe, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Output(&'a [u8]),
    Mark(MarkKind),
}

/// Takes the words out.
#[derive(Debug)]
pub(super) struct Splitter {
    head: Option<Vec<u8>>,
    /// What may be the beginning of a word.
    held: Vec<u8>,
}

impl Splitter {
    pub(super) fn new(key: Option<Vec<u8>>) -> Self {
        Self {
            head: key.map(|key| head(&key)),
            held: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, data: &[u8], mut take: impl FnMut(Piece<'_>)) {
        let Some(head) = &self.head else {
            return take(Piece::Output(data));
        };
        let joined;
        let mut rest = match self.held.is_empty() {
            true => data,
            false => {
                self.held.extend_from_slice(data);
                joined = std::mem::take(&mut self.held);
                &joined[..]
            }
        };
        let mut plain = 0;
        while let Some(found) = rest[plain..].iter().position(|byte| *byte == 0) {
            let (before, word) = rest.split_at(plain + found);
            let said = match word.strip_prefix(&head[..]) {
                Some(word) => read(word),
                None if head.starts_with(word) => Said::Part,
                None => Said::Nothing,
            };
            match said {
                Said::Nothing => plain = before.len() + 1,
                Said::Part => {
                    if !before.is_empty() {
                        take(Piece::Output(before));
                    }
                    self.held.extend_from_slice(word);
                    return;
                }
                Said::Mark(kind, length) => {
                    if !before.is_empty() {
                        take(Piece::Output(before));
                    }
                    take(Piece::Mark(kind));
                    rest = &word[head.len() + length..];
                    plain = 0;
                }
            }
        }
        if !rest.is_empty() {
            take(Piece::Output(rest));
        }
    }

    /// Nothing comes any more.
    pub(super) fn end(&mut self, mut take: impl FnMut(Piece<'_>)) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            take(Piece::Output(&held));
        }
    }
}

enum Said {
    Nothing,
    Part,
    /// With the bytes behind the key.
    Mark(MarkKind, usize),
}

fn read(word: &[u8]) -> Said {
    let shown = &word[..word.len().min(MAX_WORD)];
    let Some(end) = shown.iter().position(|byte| *byte == 0) else {
        return match word.len() < MAX_WORD {
            true => Said::Part,
            false => Said::Nothing,
        };
    };
    let text = std::str::from_utf8(&shown[..end]).ok();
    let parsed = text.and_then(|text| {
        let (word, run) = text.split_once(' ')?;
        let run = run.parse().ok()?;
        match word {
            "begin" => Some(MarkKind::Begin { run }),
            "end" => Some(MarkKind::End { run }),
            _ => None,
        }
    });
    parsed.map_or(Said::Nothing, |kind| Said::Mark(kind, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        output: Vec<u8>,
        marks: Vec<(usize, MarkKind)>,
    }

    fn split(pieces: &[&[u8]]) -> Seen {
        let mut splitter = Splitter::new(Some(b"0123456789abcdef".to_vec()));
        let mut seen = Seen::default();
        let mut take = |piece: Piece<'_>| match piece {
            Piece::Output(bytes) => seen.output.extend_from_slice(bytes),
            Piece::Mark(kind) => seen.marks.push((seen.output.len(), kind)),
        };
        for piece in pieces {
            splitter.feed(piece, &mut take);
        }
        splitter.end(&mut take);
        seen
    }

    #[test]
    fn words_are_taken_out_wherever_reads_cut_them() {
        let head = head(b"0123456789abcdef");
        let mut stream = b"a\0b".to_vec();
        stream.extend_from_slice(&head);
        stream.extend_from_slice(b"end 7\0");
        stream.extend_from_slice(&head);
        stream.extend_from_slice(b"begin 8\0c\0");
        let expected = Seen {
            output: b"a\0bc\0".to_vec(),
            marks: vec![
                (3, MarkKind::End { run: 7 }),
                (3, MarkKind::Begin { run: 8 }),
            ],
        };
        assert_eq!(split(&[&stream]), expected);
        for cut in 0..stream.len() {
            let (one, two) = stream.split_at(cut);
            assert_eq!(split(&[one, two]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(split(&single), expected);
    }

    #[test]
    fn what_only_looks_like_a_word_is_output() {
        let head = head(b"0123456789abcdef");
        let with = |rest: &[u8]| [&head[..], rest].concat();
        for stream in [
            b"\0platctrl-run 0000000000000000 begin 1\0".to_vec(),
            with(b"dance 1\0"),
            with(b"begin one\0"),
            with(b"begin 1111111111111111111111111111111111111111\0"),
            with(b"begin 1"),
            head.clone(),
        ] {
            let seen = split(&[&stream]);
            assert_eq!(seen.output, stream);
            assert_eq!(seen.marks, []);
        }
        let mut keyless = Splitter::new(None);
        let mut output = Vec::new();
        let word = with(b"begin 1\0");
        keyless.feed(&word, |piece| match piece {
            Piece::Output(bytes) => output.extend_from_slice(bytes),
            Piece::Mark(kind) => panic!("{kind:?}"),
        });
        assert_eq!(output, word);
    }
}
