//! The launchable's output: what comes through its FIFO is copied to its [log](super::log).
//!
//! The launchable holds the FIFO open for reading *and* writing, so a killed shim costs it
//! nothing but waiting, and the next shim finds what it wrote.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use rustix::fs::{Mode, fchown};
use rustix::process::Uid;

use super::inband::{self, Piece, Splitter};
use super::log::Sink;
use crate::marks::MarkKind;
use crate::spec::LogSpec;

/// The FIFO's name in the shim's directory.
pub(super) const FIFO: &str = "out";
/// Read at once. What was used of it once stays resident, so it is small.
const BUFFER: usize = 16 << 10;
/// Reserved for it: enough that the allocator maps it apart from everything else, where what is
/// not used costs nothing.
const RESERVED: usize = 256 << 10;
/// Reads in a row before the shim looks at anything else.
const BURST: u32 = 32;
/// Such bursts take everything out of a FIFO that nobody writes to any more, however large it is.
const DRAIN: u32 = 64;

/// Both ends of the way from the launchable to its log.
#[derive(Debug)]
pub(super) struct Output {
    fifo: File,
    sink: Sink,
    buffer: Vec<u8>,
    /// The run whose output comes.
    run: Option<u64>,
}

impl Output {
    /// Opens the FIFO in the current directory, making it if needed; tells whether it was there.
    pub(super) fn open(log: LogSpec) -> io::Result<(Self, bool)> {
        let mode = Mode::RUSR | Mode::WUSR;
        let existed = match rustix::fs::mkfifoat(rustix::fs::CWD, FIFO, mode) {
            Ok(()) => false,
            Err(rustix::io::Errno::EXIST) => true,
            Err(error) => return Err(error.into()),
        };
        // Open for writing too, so that it never reports the end of its writers.
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(FIFO)?;
        let kind = fifo.metadata()?.mode() & libc::S_IFMT;
        if kind != libc::S_IFIFO {
            return Err(io::Error::other(format!("{FIFO} is not a FIFO; remove it")));
        }
        let buffer = Vec::with_capacity(RESERVED);
        Ok((
            Self {
                fifo,
                // Marks are in the shim's own directory, which is the current one.
                sink: Sink::new(log, "."),
                buffer,
                run: None,
            },
            existed,
        ))
    }

    /// Lets the launchable's user open its own output again, as `/dev/stdout`.
    pub(super) fn give_to(&self, uid: Option<u32>) -> io::Result<()> {
        if let Some(uid) = uid.filter(|_| rustix::process::geteuid().is_root()) {
            fchown(&self.fifo, Some(Uid::from_raw(uid)), None)?;
        }
        Ok(())
    }

    /// The FIFO's identity as (device, inode).
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.fifo.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// What comes is of the run with this number.
    pub(super) fn begin(&mut self, run: u64) {
        self.drain();
        self.run = Some(run);
        self.sink.mark(MarkKind::Begin { run });
    }

    /// Nothing of the run lives any more: what it wrote is all there is.
    pub(super) fn end(&mut self) {
        if let Some(run) = self.run.take() {
            self.drain();
            self.sink.mark(MarkKind::End { run });
        }
    }

    /// The run with this number began under the shim before.
    pub(super) fn take_over(&mut self, run: u64) {
        self.run = Some(run);
    }

    fn drain(&mut self) {
        for _ in 0..DRAIN {
            if !self.pump() {
                return;
            }
        }
    }

    /// Copies what there is, up to a limit; whether there may be more.
    pub(super) fn pump(&mut self) -> bool {
        for _ in 0..BURST {
            let room = &mut self.buffer.spare_capacity_mut()[..BUFFER];
            match rustix::io::read(&self.fifo, room) {
                Ok((read, _)) => {
                    let n = read.len();
                    self.sink.write(read);
                    if n < BUFFER {
                        return false;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false, // nothing there
            }
        }
        true
    }

    /// Changes where it goes, from the next byte on.
    pub(super) fn redirect(&mut self, log: &LogSpec) {
        if !self.sink.goes_to(log) {
            self.pump();
            self.sink.redirect(log.clone());
        }
    }

    /// Bytes dropped since the shim started, and why, while dropping goes on.
    pub(super) fn dropped(&self) -> (u64, Option<&str>) {
        self.sink.dropped()
    }

    /// When [`Output::retry`] is due.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.sink.deadline()
    }

    /// Tries to write the line about dropped output.
    pub(super) fn retry(&mut self) {
        self.sink.retry();
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

/// Copies standard input to a log until it ends. What runsv calls as its logger.
pub(super) fn pump_stdin(log: LogSpec) -> io::Result<()> {
    let mut sink = Sink::new(log, ".");
    let mut words = Splitter::new(inband::key());
    let mut take = |piece: Piece<'_>| match piece {
        Piece::Output(bytes) => sink.write(bytes),
        Piece::Mark(kind) => sink.mark(kind),
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer[..]) {
            Ok(0) => {
                words.end(&mut take);
                return Ok(());
            }
            Ok(n) => words.feed(&buffer[..n], &mut take),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
