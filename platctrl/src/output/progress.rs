//! Progress of long work, on standard error: a bar that grows where somebody watches, and nothing
//! anywhere else. Its line is gone when the work is done, however that ended.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use super::{is_watched, screen};

/// Drawing more often shows nobody more.
const AGAIN: Duration = Duration::from_millis(100);
/// How wide the bar itself is.
const WIDTH: u64 = 30;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Keys,
}

impl Unit {
    fn of(self, count: u64) -> String {
        match self {
            Self::Keys => format!("{count} keys"),
            Self::Bytes if count < 1 << 20 => format!("{} KiB", count >> 10),
            Self::Bytes => {
                let tenths = count.saturating_mul(10) >> 20;
                format!("{}.{} MiB", tenths / 10, tenths % 10)
            }
        }
    }
}

/// A line that shows how far something is.
#[derive(Debug)]
pub(crate) struct Bar {
    what: String,
    unit: Unit,
    /// How much there is to do, where that is known.
    total: Option<u64>,
    watched: bool,
    /// When it was drawn last, and how many percent were done then.
    drawn: Option<(Instant, Option<u64>)>,
}

impl Bar {
    pub(crate) fn new(what: impl Into<String>, unit: Unit, total: Option<u64>) -> Self {
        Self {
            what: what.into(),
            unit,
            total,
            watched: is_watched(),
            drawn: None,
        }
    }

    /// So much is done.
    pub(crate) fn show(&mut self, done: u64) {
        let percent = self.total.map(|total| part(done, total, 100));
        let shows_that =
            |drawn: (Instant, Option<u64>)| drawn.1 == percent && drawn.0.elapsed() < AGAIN;
        if !self.watched || self.drawn.is_some_and(shows_that) {
            return;
        }
        self.drawn = Some((Instant::now(), percent));
        let line = line(&self.what, self.unit, done, self.total);
        let width = screen::size(&io::stderr()).map_or(80, |(columns, _)| columns);
        let mut stderr = io::stderr().lock();
        // There is nowhere to complain when that fails.
        let _ = write!(
            stderr,
            "\r{}\x1b[K",
            screen::clipped(&line, width.saturating_sub(1))
        );
        let _ = stderr.flush();
    }

    /// The same where the whole is known only on the way, and what else there is to say of it.
    pub(crate) fn show_of(&mut self, done: u64, total: u64, what: String) {
        (self.total, self.what) = (Some(total), what);
        self.show(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[K");
            let _ = stderr.flush();
        }
    }
}

/// `[#####     ]  50 %  1.0 MiB of 2.0 MiB  uploading hello.tar.gz`
fn line(what: &str, unit: Unit, done: u64, total: Option<u64>) -> String {
    let Some(total) = total else {
        return format!("{}  {what}", unit.of(done));
    };
    let filled = usize::try_from(part(done, total, WIDTH)).unwrap_or(0);
    let (bar, rest) = (
        "#".repeat(filled),
        " ".repeat((WIDTH as usize).saturating_sub(filled)),
    );
    let percent = part(done, total, 100);
    match unit {
        Unit::Keys => format!("[{bar}{rest}] {percent:>3} %  {done} of {total} keys, {what}"),
        Unit::Bytes => format!(
            "[{bar}{rest}] {percent:>3} %  {} of {}  {what}",
            unit.of(done),
            unit.of(total)
        ),
    }
}

/// As many parts of all as what is done is of the total.
fn part(done: u64, total: u64, all: u64) -> u64 {
    match total {
        0 => all,
        total => u64::try_from(u128::from(done.min(total)) * u128::from(all) / u128::from(total))
            .unwrap_or(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_how_far_something_is() {
        let half = line("x", Unit::Keys, 5, Some(10));
        assert_eq!(
            half,
            "[###############               ]  50 %  5 of 10 keys, x"
        );
        assert!(line("x", Unit::Keys, 0, Some(0)).contains("100 %"));
        assert!(line("x", Unit::Keys, 9, Some(3)).contains("100 %"));
        assert!(line("x", Unit::Bytes, u64::MAX, Some(u64::MAX)).contains("100 %"));
        assert_eq!(line("x", Unit::Bytes, 2 << 10, None), "2 KiB  x");
        assert_eq!(line("x", Unit::Bytes, 3 << 19, None), "1.5 MiB  x");
    }
}
