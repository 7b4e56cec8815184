//! A file of fixed slots, each holding one line, rewritten in place.
//!
//! All space is taken when the file is made, so recording an end or a start needs none: a full
//! disk cannot make a shim forget. A write touches one slot; a power cut can damage that one
//! only, and the checksum in the line shows it.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::io::pwritev;

/// What fills a slot up.
static BLANK: [u8; 4096] = [b'\n'; 4096];

#[derive(Debug)]
pub(super) struct SlotFile {
    file: File,
    size: usize,
    count: u64,
    /// Its name is on disk.
    named: Cell<bool>,
}

impl SlotFile {
    /// Opens or makes the file. One of another size is laid out anew, with `keep` in it. A new one
    /// is on disk, name and all, with the first line that is to be there: before that it holds
    /// nothing.
    pub(super) fn open(
        path: &str,
        size: usize,
        count: u64,
        keep: impl IntoIterator<Item = (u64, String)>,
    ) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let slots = Self {
            file,
            size,
            count,
            named: Cell::new(false),
        };
        let metadata = slots.file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other(format!("{path} is not a regular file")));
        }
        let length = count.saturating_mul(size as u64);
        if metadata.len() != length || !slots.are_whole()? {
            // Never to where nothing was written yet: a power cut would leave a file of that
            // length and nothing in it.
            if metadata.len() > length {
                slots.file.set_len(length)?;
            }
            for slot in 0..count {
                slots.fill(slot, "")?;
            }
            for (number, line) in keep {
                slots.fill(number % count, &line)?;
            }
            if metadata.len() > 0 {
                slots.file.sync_all()?;
            }
        }
        Ok(slots)
    }

    /// Writes a line in the slot its number falls on; `durable` waits until it is on disk.
    pub(super) fn write(&self, number: u64, line: &str, durable: bool) -> io::Result<()> {
        self.fill(number % self.count, line)?;
        if !durable {
            return Ok(());
        }
        self.file.sync_data()?;
        if !self.named.get() {
            File::open(Path::new("."))?.sync_all()?;
            self.named.set(true);
        }
        Ok(())
    }

    /// Whether something is in every slot: one of which a power cut has left nothing but its length
    /// has no room on the disk either.
    fn are_whole(&self) -> io::Result<bool> {
        for slot in 1..=self.count {
            let mut last = [0];
            let at = slot.saturating_mul(self.size as u64).saturating_sub(1);
            self.file.read_exact_at(&mut last, at)?;
            if last != *b"\n" {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fill(&self, slot: u64, line: &str) -> io::Result<()> {
        // One newline at least stays, to end the line.
        let padding = self.size.checked_sub(line.len()).filter(|left| *left > 0);
        let padding = padding
            .and_then(|left| BLANK.get(..left))
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let parts = [IoSlice::new(line.as_bytes()), IoSlice::new(padding)];
        let written = pwritev(&self.file, &parts, slot.saturating_mul(self.size as u64))?;
        if written == self.size {
            Ok(())
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_another_layout_is_replaced_with_what_is_to_be_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let path = path.to_str().unwrap();
        let lines = || {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let slots = SlotFile::open(path, 64, 2, []).unwrap();
        for number in 1..=5 {
            slots
                .write(number, &format!("line {number}\n"), true)
                .unwrap();
        }
        assert_eq!(lines(), ["line 4", "line 5"]);
        assert!(slots.write(6, &"x".repeat(64), true).is_err());
        let keep = [(4, "line 4\n".to_owned())];
        drop(SlotFile::open(path, 64, 2, keep.clone()).unwrap());
        assert_eq!(
            lines(),
            ["line 4", "line 5"],
            "the same layout is left alone"
        );
        drop(SlotFile::open(path, 128, 4, keep).unwrap());
        assert_eq!(lines(), ["line 4"]);
    }

    #[test]
    fn a_file_of_which_a_power_cut_left_its_length_has_room_again_and_no_line_hides() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        File::create(&path).unwrap().set_len(4 * 4096).unwrap();
        assert_eq!(path.metadata().unwrap().blocks(), 0, "there is no room");
        let slots = SlotFile::open(path.to_str().unwrap(), 4096, 4, []).unwrap();
        slots.write(2, "line\n", true).unwrap();
        assert!(path.metadata().unwrap().blocks() * 512 >= 4 * 4096);
        let text = std::fs::read(&path).unwrap();
        assert!(!text.contains(&0), "{text:?}");
    }

    #[test]
    fn what_was_written_for_good_is_there_after_the_power_failed() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let Some(mut disk) = platctrl_test_support::power_cut::Disk::mount(at, 64) else {
            return;
        };
        let (path, line) = (at.join("slots"), |number: u64| format!("line {number}\n"));
        std::env::set_current_dir(at).unwrap();
        let mut slots = SlotFile::open("slots", 4096, 4, []).unwrap();
        for number in 0..6 {
            slots.write(number, &line(number), true).unwrap();
            slots.write(number + 1, "not flushed\n", false).unwrap();
            std::env::set_current_dir("/").unwrap();
            drop(slots);
            disk.cut();
            let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
            assert!(text.contains(&line(number)), "{number}: {text:?}");
            assert!(!text.contains("not flushed"), "{number}");
            std::env::set_current_dir(at).unwrap();
            slots = SlotFile::open("slots", 4096, 4, []).unwrap();
        }
    }
}
