//! Lines that are drawn again in place, on a terminal.
//!
//! A line that is too wide is cut: one that wraps would be counted wrong, and what stands above
//! would be drawn over.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd;

use crate::error::{Failure, Result};

/// The columns and rows of a terminal.
pub(crate) fn size(terminal: &impl AsFd) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// What of a line fits. What is not ASCII is taken to be two columns wide: some of it is.
pub(crate) fn clipped(line: &str, columns: usize) -> &str {
    let mut used = 0;
    for (at, c) in line.char_indices() {
        used += if c.is_ascii() { 1 } else { 2 };
        if used > columns {
            return &line[..at];
        }
    }
    line
}

/// A part of the terminal that is drawn again and again.
#[derive(Debug)]
pub(crate) struct Screen {
    /// Lines that stand there.
    drawn: usize,
}

impl Screen {
    /// None when standard output is no terminal.
    pub(crate) fn new() -> Option<Self> {
        io::stdout().is_terminal().then_some(Self { drawn: 0 })
    }

    /// How many lines there is room for.
    pub(crate) fn rows(&self) -> usize {
        // The cursor stands below the last line.
        size(&io::stdout())
            .map_or(24, |(_, rows)| rows)
            .saturating_sub(1)
            .max(1)
    }

    /// Draws these lines where the last ones stood.
    pub(crate) fn draw(&mut self, lines: &[String]) -> Result<()> {
        let (columns, rows) = size(&io::stdout()).unwrap_or((80, 24));
        let lines = &lines[..lines.len().min(rows.saturating_sub(1).max(1))];
        let text = redrawn(
            self.drawn.min(rows.saturating_sub(1)),
            lines,
            // The last column stays free: some terminals go on to the next line there.
            columns.saturating_sub(1),
        );
        self.drawn = lines.len();
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }
}

/// Lines in the place of so many others.
fn redrawn(drawn: usize, lines: &[String], columns: usize) -> String {
    let mut text = String::new();
    if drawn > 0 {
        text.push_str(&format!("\x1b[{drawn}A\r"));
    }
    for line in lines {
        text.push_str(clipped(line, columns));
        // Whatever is right of it, and the next line.
        text.push_str("\x1b[K\n");
    }
    // Whatever stood below.
    text.push_str("\x1b[J");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_where_the_last_ones_stood_and_never_wrap() {
        let lines = ["abcdef".to_owned(), "xy".to_owned()];
        assert_eq!(redrawn(0, &lines, 4), "abcd\x1b[K\nxy\x1b[K\n\x1b[J");
        assert!(redrawn(3, &lines, 4).starts_with("\x1b[3A\r"));
        assert_eq!(clipped("aäb", 2), "a");
        assert_eq!(clipped("aäb", 4), "aäb");
        assert_eq!(clipped("", 0), "");
    }
}
