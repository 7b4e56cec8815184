//! Pages of this program that it does not use.
//!
//! Code stays in a process's memory once it has run, and the kernel maps the fifteen pages around
//! it with it. What a start needs is two thirds of the program, what an agent at rest needs is much
//! less. The kernel takes such pages when it is short of memory; an agent does not wait for that,
//! because whoever looks at what it costs counts them. Pages that are used again come back from the
//! kernel's cache of the file, in a millisecond for all of them.

#![expect(
    unsafe_code,
    reason = "the kernel is told which addresses are not needed"
)]

use std::ops::Range;

/// Lets go of all pages of this program that are as in its file. Those in use come back.
pub(crate) fn give_back() {
    // Without `/proc` everything stays where it is.
    let Ok(mappings) = std::fs::read_to_string("/proc/self/smaps") else {
        return;
    };
    let own = give_back as fn() as usize;
    for part in unchanged(&mappings, own) {
        let (start, length) = (part.start as *mut libc::c_void, part.end - part.start);
        // SAFETY: the range is a mapping of the program's own file, which lasts as long as the
        // process. It is not writable and no page of it was ever written, so that each page reads
        // the same when it is mapped again.
        unsafe {
            libc::madvise(start, length, libc::MADV_DONTNEED);
        }
    }
}

/// The parts of the program with this address in it that cannot be written and are as in its file.
fn unchanged(mappings: &str, own: usize) -> Vec<Range<usize>> {
    let mappings: Vec<_> = parse(mappings);
    let Some(file) = (mappings.iter())
        .find(|it| it.range.contains(&own))
        .map(|it| it.file)
    else {
        return Vec::new();
    };
    let ours = mappings.into_iter();
    let ours = ours.filter(|it| it.file == file && it.anonymous == Some(0) && !it.may_be_written);
    ours.map(|it| it.range).collect()
}

/// What the kernel says of one mapping.
#[derive(Debug)]
struct Mapping<'a> {
    range: Range<usize>,
    may_be_written: bool,
    /// Device and number of the file.
    file: (&'a str, &'a str),
    /// KiB that are not as in the file: relocated, or with a debugger's break point.
    anonymous: Option<u64>,
}

/// `/proc/PID/smaps`: a line for each mapping, and below it lines of `Name: number kB`.
fn parse(text: &str) -> Vec<Mapping<'_>> {
    let mut found: Vec<Mapping<'_>> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = header(line) {
            found.push(mapping);
        } else if let Some(size) = line.strip_prefix("Anonymous:")
            && let Some(last) = found.last_mut()
        {
            let size = size.trim().strip_suffix(" kB");
            last.anonymous = size.and_then(|it| it.parse().ok());
        }
    }
    found
}

/// `start-end rights offset device number path`.
fn header(line: &str) -> Option<Mapping<'_>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |hex| usize::from_str_radix(hex, 16).ok();
    let rights = words.next()?;
    let (device, number) = (words.nth(1)?, words.next()?);
    Some(Mapping {
        range: address(start)?..address(end)?,
        may_be_written: !rights.starts_with("r-") || rights.ends_with('s'),
        file: (device, number),
        anonymous: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPINGS: &str = "\
5000-6000 r--p 00000000 fe:00 77    /bin/agent
Rss:                   4 kB
Anonymous:             0 kB
6000-9000 r-xp 00001000 fe:00 77    /bin/agent
Anonymous:             0 kB
9000-a000 r--p 00004000 fe:00 77    /bin/agent
Anonymous:             4 kB
a000-b000 rw-p 00005000 fe:00 77    /bin/agent
Anonymous:             0 kB
b000-c000 rw-p 00000000 00:00 0     [heap]
Anonymous:             4 kB
7f000-80000 r-xp 00000000 fe:00 78  /lib/libc.so
Anonymous:             0 kB
80000-81000 r-xp 00000000 fe:01 77  /mnt/other
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_as_in_the_programs_own_file_is_let_go() {
        assert_eq!(
            unchanged(MAPPINGS, 0x6abc),
            [0x5000..0x6000, 0x6000..0x9000]
        );
    }

    #[test]
    fn code_with_a_break_point_is_kept() {
        let changed = MAPPINGS.replacen("6000-9000", "6000-8fff", 1);
        let changed = changed.replacen(
            "8fff r-xp 00001000 fe:00 77    /bin/agent\nAnonymous:             0",
            "8fff r-xp 00001000 fe:00 77    /bin/agent\nAnonymous:             4",
            1,
        );
        assert_eq!(
            unchanged(&changed, 0x6abc),
            vec![Range {
                start: 0x5000,
                end: 0x6000
            }]
        );
    }

    #[test]
    fn of_mappings_that_say_less_than_expected_none_is_let_go() {
        for text in [
            "",
            "nonsense",
            "5000-6000",
            "5000-6000 r-xp 0 fe:00 77 /bin/agent\n",
        ] {
            assert_eq!(unchanged(text, 0x5abc), [], "{text:?}");
        }
        let unknown = MAPPINGS.replace("Anonymous:             0 kB", "Anonymous: little");
        assert_eq!(unchanged(&unknown, 0x6abc), []);
        // The address of code that is nowhere.
        assert_eq!(unchanged(MAPPINGS, 0x1), []);
    }

    #[test]
    fn a_program_goes_on_with_less_in_memory() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:"));
            let size = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
            size.parse::<u64>().unwrap()
        };
        // All of the program is touched first.
        let mut sum = 0_u64;
        let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for part in unchanged(&mappings, give_back as fn() as usize) {
            let length = part.end - part.start;
            // SAFETY: a mapping of the program's own file that can be read and lasts.
            let bytes = unsafe { std::slice::from_raw_parts(part.start as *const u8, length) };
            sum += bytes
                .iter()
                .step_by(4096)
                .map(|it| u64::from(*it))
                .sum::<u64>();
        }
        assert_ne!(sum, 0);
        let before = resident();
        give_back();
        let after = resident();
        assert!(after < before / 2, "{before} KiB, then {after} KiB");
    }
}
