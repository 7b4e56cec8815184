//! Which part of a log is meant: by runs and by time, decided over plain data.

use platctrl_shim_lib::{Mark, MarkKind};

/// A file of a log, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sheet {
    /// Its bytes.
    pub(super) length: u64,
    /// When it was written last, in milliseconds since 1970.
    pub(super) written_ms: u64,
    /// What its supervisor knows of it; None: an older one wrote it.
    pub(super) marks: Option<Vec<Mark>>,
}

/// A place in a log: the number of the file, from the oldest, and the bytes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) offset: u64,
}

/// The run before the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Previous {
    /// It is there from one place to the other. `whole`: its beginning is kept.
    Kept { from: Place, to: Place, whole: bool },
    /// Nothing has ended, or of what has nothing is kept.
    Nothing,
    /// No file says where a run begins.
    Unmarked,
}

/// A run that begins and ends in these places, as far as that is known.
struct Run {
    number: u64,
    from: Option<Place>,
    to: Option<Place>,
}

/// The newest run that has ended.
pub(super) fn previous(files: &[Sheet]) -> Previous {
    let beginning = Place { file: 0, offset: 0 };
    let mut runs: Vec<Run> = Vec::new();
    let mut marked = false;
    for (file, sheet) in files.iter().enumerate() {
        marked |= sheet.marks.is_some();
        for mark in sheet.marks.iter().flatten() {
            let offset = mark.offset;
            let place = Place { file, offset };
            match mark.kind {
                MarkKind::Begin { run } => {
                    match runs.last_mut() {
                        // Its end was seen by nobody.
                        Some(last) => last.to = last.to.or(Some(place)),
                        // What is there before the first that is marked.
                        None if place > beginning => runs.push(Run {
                            number: run.saturating_sub(1),
                            from: None,
                            to: Some(place),
                        }),
                        None => {}
                    }
                    runs.push(Run {
                        number: run,
                        from: Some(place),
                        to: None,
                    });
                }
                MarkKind::End { run } => match runs.last_mut() {
                    Some(last) if last.number == run => last.to = last.to.or(Some(place)),
                    Some(_) => {}
                    None => runs.push(Run {
                        number: run,
                        from: None,
                        to: Some(place),
                    }),
                },
                _ => {}
            }
        }
    }
    if !marked {
        return Previous::Unmarked;
    }
    let ended = runs.iter().rev().find_map(|run| Some((run.from, run.to?)));
    match ended {
        Some((from, to)) => Previous::Kept {
            from: from.unwrap_or(beginning),
            to,
            whole: from.is_some(),
        },
        None => Previous::Nothing,
    }
}

/// Where what was written since then begins, to the exactness of the marks: nothing newer is left
/// out.
pub(super) fn since(files: &[Sheet], since_ms: u64) -> Place {
    for (file, sheet) in files.iter().enumerate() {
        let times = sheet
            .marks
            .iter()
            .flatten()
            .filter_map(|mark| match mark.kind {
                MarkKind::At { span_ms } => {
                    Some((mark.offset, mark.unix_ms.saturating_add(span_ms)))
                }
                _ => None,
            });
        let times: Vec<_> = times.collect();
        // Nobody knows more of what comes before the first mark than that it is no newer.
        let before = times.first().map_or(sheet.length, |(offset, _)| *offset);
        let newest = times.first().map_or(sheet.written_ms, |(_, until)| *until);
        if before > 0 && newest > since_ms {
            return Place { file, offset: 0 };
        }
        if let Some((offset, _)) = times.iter().find(|(_, until)| *until > since_ms) {
            let offset = *offset;
            return Place { file, offset };
        }
    }
    let last = files.len().saturating_sub(1);
    Place {
        file: last,
        offset: files.last().map_or(0, |file| file.length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(offset: u64, unix_ms: u64, kind: MarkKind) -> Mark {
        Mark::new(offset, unix_ms, kind)
    }

    fn begin(run: u64, offset: u64) -> Mark {
        mark(offset, 0, MarkKind::Begin { run })
    }

    fn end(run: u64, offset: u64) -> Mark {
        mark(offset, 0, MarkKind::End { run })
    }

    fn at(offset: u64, unix_ms: u64) -> Mark {
        mark(offset, unix_ms, MarkKind::At { span_ms: 1000 })
    }

    fn sheet(length: u64, marks: impl IntoIterator<Item = Mark>) -> Sheet {
        Sheet {
            length,
            written_ms: 0,
            marks: Some(marks.into_iter().collect()),
        }
    }

    fn kept(from: (usize, u64), to: (usize, u64), whole: bool) -> Previous {
        let place = |(file, offset)| Place { file, offset };
        Previous::Kept {
            from: place(from),
            to: place(to),
            whole,
        }
    }

    #[test]
    fn the_previous_run_is_the_newest_that_has_ended_in_whichever_files() {
        let cases = [
            // The first runs.
            (vec![sheet(9, [begin(1, 0)])], Previous::Nothing),
            // It ended, and none was begun since.
            (
                vec![sheet(9, [begin(1, 0), end(1, 9)])],
                kept((0, 0), (0, 9), true),
            ),
            // The second runs: what lies between the end and its beginning is nobody's.
            (
                vec![sheet(9, [begin(1, 0), end(1, 5), begin(2, 6)])],
                kept((0, 0), (0, 5), true),
            ),
            // Nobody saw the end.
            (
                vec![sheet(9, [begin(1, 0), begin(2, 6)])],
                kept((0, 0), (0, 6), true),
            ),
            // Over three files, of which the one between has no mark of a run.
            (
                vec![
                    sheet(9, [begin(4, 0), end(4, 3), begin(5, 3)]),
                    sheet(9, [at(0, 1)]),
                    sheet(9, [end(5, 2), begin(6, 2)]),
                ],
                kept((0, 3), (2, 2), true),
            ),
            // Its beginning is not kept.
            (
                vec![sheet(9, [at(0, 1)]), sheet(9, [end(5, 2), begin(6, 2)])],
                kept((0, 0), (1, 2), false),
            ),
            (vec![sheet(9, [begin(6, 2)])], kept((0, 0), (0, 2), false)),
            // Nothing of it is.
            (vec![sheet(9, [begin(6, 0)])], Previous::Nothing),
            (vec![sheet(9, [at(0, 1)])], Previous::Nothing),
            // A run that wrote nothing.
            (
                vec![sheet(9, [begin(1, 0), end(1, 9), begin(2, 9), end(2, 9)])],
                kept((0, 9), (0, 9), true),
            ),
            // An end that is told twice, and one of another run.
            (
                vec![sheet(
                    9,
                    [begin(1, 0), end(1, 4), end(1, 9), begin(2, 9), end(1, 9)],
                )],
                kept((0, 0), (0, 4), true),
            ),
        ];
        for (files, expected) in cases {
            assert_eq!(previous(&files), expected, "{files:?}");
        }
        let unmarked = Sheet {
            length: 9,
            written_ms: 0,
            marks: None,
        };
        assert_eq!(
            previous(std::slice::from_ref(&unmarked)),
            Previous::Unmarked
        );
        assert_eq!(previous(&[]), Previous::Unmarked);
        // What an older supervisor wrote lies before the first run that is marked.
        assert_eq!(
            previous(&[unmarked, sheet(9, [begin(3, 4)])]),
            kept((0, 0), (1, 4), false)
        );
    }

    #[test]
    fn what_was_written_since_a_time_begins_at_the_first_mark_that_may_be_as_new() {
        let files = [
            sheet(100, [at(0, 10_000), at(50, 20_000)]),
            sheet(100, [at(0, 30_000), begin(2, 10), at(10, 40_000)]),
        ];
        for (since_ms, expected) in [
            (0, (0, 0)),
            (10_999, (0, 0)),
            (11_000, (0, 50)),
            // Nothing came for a while.
            (25_000, (1, 0)),
            (31_000, (1, 10)),
            (40_999, (1, 10)),
            (41_000, (1, 100)),
        ] {
            let (file, offset) = expected;
            assert_eq!(
                since(&files, since_ms),
                Place { file, offset },
                "{since_ms}"
            );
        }
        assert_eq!(since(&[], 5), Place { file: 0, offset: 0 });
    }

    #[test]
    fn of_what_has_no_marks_whole_files_are_taken_by_when_they_were_written() {
        let unmarked = |written_ms| Sheet {
            length: 100,
            written_ms,
            marks: None,
        };
        let files = [unmarked(10), unmarked(20), unmarked(30)];
        for (since_ms, file, offset) in [(5, 0, 0), (10, 1, 0), (29, 2, 0), (30, 2, 100)] {
            assert_eq!(
                since(&files, since_ms),
                Place { file, offset },
                "{since_ms}"
            );
        }
        // The newer supervisor went on in the file of the older one.
        let mut grown = sheet(100, [begin(1, 60), at(60, 5000)]);
        grown.written_ms = 8000;
        assert_eq!(since(&[grown.clone()], 1000), Place { file: 0, offset: 0 });
        assert_eq!(
            since(&[grown], 7000),
            Place {
                file: 0,
                offset: 100
            }
        );
    }
}
