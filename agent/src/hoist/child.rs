//! The helper processes: what they do, and how they answer.
//!
//! An agent starts its own binary again with a hidden subcommand; that subcommand's whole body is
//! [`main`]. There are three tasks, each for the kind of work an agent should not do as root:
//! - `unpack`: standard input is the artifact, open; standard output is the directory to fill, open.
//! - `read`: opens a file beneath a directory and copies it to standard output.
//! - `fetch`: asks a server and copies what it answers to standard output.
//!
//! The second argument is whom to become, `UID:GID`, or `-` to stay who it is. (The helper does
//! that itself, so that it can be started without copying the agent's memory map, whose size does
//! not matter then.) The answer is one line of JSON on standard error. Nothing else is shared, and
//! the parent checks what was done rather than believing the answer.
//!
//! A fourth task, `prove`, tries what the sandbox has to refuse, and tells what it did not.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::sandbox::{self, Fence};
use super::{Digest, Error, Limits, Refusal, Rule, download, prove, unpack};

/// The hidden subcommand of `platctrl` whose body is [`main`].
pub const SUBCOMMAND: &str = "__hoist-child";

/// How a helper process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildCommand {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

impl ChildCommand {
    /// This very program with the hidden subcommand [`SUBCOMMAND`].
    ///
    /// It is named by what the kernel is running, not by a path: so it is the same version after
    /// the file was replaced by an upgrade, and starts where the helper's user may not enter the
    /// directory that the program lies in.
    #[must_use]
    pub fn this_program() -> Self {
        Self::new("/proc/self/exe", [SUBCOMMAND])
    }

    /// Another program that hands the arguments after `arguments` to [`main`].
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }
}

/// The unprivileged user that helper processes run as. It needs no entry in the user database and
/// must own nothing on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildUser {
    /// User id.
    pub uid: u32,
    /// Group id; there are no further groups.
    pub gid: u32,
}

impl ChildUser {
    /// As a helper's second argument.
    pub(super) fn argument(user: Option<Self>) -> String {
        user.map_or_else(
            || "-".to_owned(),
            |user| format!("{}:{}", user.uid, user.gid),
        )
    }

    fn from_argument(text: &str) -> Result<Option<Self>, String> {
        if text == "-" {
            return Ok(None);
        }
        let numbers = text.split_once(':');
        let numbers = numbers.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
        match numbers {
            // Becoming root is not giving up anything.
            Some((uid, gid)) if uid != 0 && gid != 0 => Ok(Some(Self { uid, gid })),
            _ => Err(format!("`{text}` is no user to become")),
        }
    }
}

impl Default for ChildUser {
    /// 64999, which the common distributions leave unassigned (60000 to 64999 is Debian's
    /// "dynamically allocated on demand", used from the bottom).
    fn default() -> Self {
        Self {
            uid: 64_999,
            gid: 64_999,
        }
    }
}

/// What `unpack` is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) limits: Limits,
    pub(super) digest: Digest,
}

/// What a helper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Report {
    Done {
        entries: u64,
        bytes: u64,
        /// Fences of the sandbox that this kernel did not give.
        missing: Vec<String>,
    },
    Refused(Refusal),
    DigestMismatch {
        actual: Digest,
        expected: Digest,
    },
    /// What kept `fetch` from fetching.
    NotFetched(download::Trouble),
    /// What the sandbox did not refuse, though it has to.
    Proved {
        allowed: Vec<String>,
        missing: Vec<String>,
    },
    NotFound,
    /// Resolving the path would have left the allowed directory.
    Outside,
    Denied {
        errno: i32,
    },
    NotAFile,
    Failed {
        doing: String,
        path: PathBuf,
        errno: Option<i32>,
        message: String,
    },
}

impl Report {
    pub(super) fn is_success(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Proved { .. })
    }
}

/// The whole of a helper process. `args` are the arguments after the subcommand.
///
/// Call it first thing in `main`, before anything has opened a file or started a thread or a
/// runtime: it closes all inherited files and gives up rights of the whole process.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    sandbox::close_inherited();
    let mut args = args.into_iter();
    let task = args.next().unwrap_or_default();
    let user = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    if let Err(report) = give_up_being_root(user.to_str().unwrap_or_default()) {
        answer(&report);
        return ExitCode::FAILURE;
    }
    let outcome = match (task.to_str(), args.as_slice()) {
        (Some("unpack"), [order]) => do_unpack(order.to_str().unwrap_or_default()),
        (Some("read"), [limit, root, path]) => do_read(
            limit.to_str().unwrap_or_default(),
            Path::new(root),
            Path::new(path),
        ),
        // What holds a secret is not among the arguments, which everybody may read.
        (Some("fetch"), []) => do_fetch(io::stdin().lock()),
        (Some("fetch"), [order]) => do_fetch(order.as_encoded_bytes()),
        (Some("prove"), [directory, beside]) => do_prove(Path::new(directory), Path::new(beside)),
        _ => {
            eprintln!("this is a part of the agent, which starts it by itself");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(report) => {
            answer(&report);
            ExitCode::SUCCESS
        }
        Err(report) => {
            answer(&report);
            ExitCode::FAILURE
        }
    }
}

fn give_up_being_root(user: &str) -> Result<(), Report> {
    let user = ChildUser::from_argument(user).map_err(|e| failed("become somebody else", e))?;
    match user.map(sandbox::become_user) {
        Some(Err(error)) => Err(failed("become somebody else", error)),
        _ => Ok(()),
    }
}

fn answer(report: &Report) {
    // When nobody listens, there is nobody to tell either.
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = io::stderr().lock().write_all(&line);
    }
}

/// Answers, from the watching thread, that the time is up.
pub(super) fn report_too_slow(wall_time: Duration) {
    answer(&Report::Refused(Refusal {
        entry: String::new(),
        rule: Rule::TooSlow,
        detail: format!("it took longer than {wall_time:?}"),
    }));
}

fn do_unpack(order: &str) -> Result<Report, Report> {
    let order: Order = serde_json::from_str(order).map_err(|e| failed("understand", e))?;
    let dup = |e| failed("open the standard files", e);
    let artifact = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(dup)?);
    let root = io::stdout().as_fd().try_clone_to_owned().map_err(dup)?;
    let root = File::from(root);
    let missing = sandbox::enter(Fence::Write(&root), &order.limits);
    let Order { limits, digest } = order;
    let root = root.into();
    match unpack::unpack(artifact, "the artifact", Some(&digest), &limits, root) {
        Ok(totals) => Ok(Report::Done {
            entries: totals.entries,
            bytes: totals.bytes,
            missing,
        }),
        Err(Error::Refused(refusal)) => Err(Report::Refused(refusal)),
        Err(Error::DigestMismatch {
            actual, expected, ..
        }) => Err(Report::DigestMismatch { actual, expected }),
        Err(Error::NoSpace { path }) => {
            let errno = Some(rustix::io::Errno::NOSPC.raw_os_error());
            Err(Report::Failed {
                doing: "write".into(),
                path,
                errno,
                message: String::new(),
            })
        }
        Err(Error::Io {
            doing,
            path,
            source,
        }) => Err(Report::Failed {
            doing: doing.to_owned(),
            path,
            errno: source.raw_os_error(),
            message: source.to_string(),
        }),
        Err(other) => Err(failed("unpack", other)),
    }
}

fn failed(doing: &str, error: impl std::fmt::Display) -> Report {
    let (doing, message) = (doing.to_owned(), error.to_string());
    Report::Failed {
        doing,
        path: "the artifact".into(),
        errno: None,
        message,
    }
}

fn do_read(limit: &str, root: &Path, path: &Path) -> Result<Report, Report> {
    let limit: u64 = limit.parse().map_err(|e| failed("understand", e))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The directory is the operator's word: links on the way to it are theirs.
    let root = File::from(fs::open(root, flags, Mode::empty()).map_err(opening)?);
    let missing = sandbox::enter(Fence::Read(&root), &Limits::default());
    let file = open_beneath(&root, path)?;
    let stat = fs::fstat(&file).map_err(opening)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Report::NotAFile);
    }
    let out = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| failed("open", e))?;
    let mut out = File::from(out);
    let begin = download::Begin {
        total: u64::try_from(stat.st_size).ok(),
        ..download::Begin::default()
    };
    let mut line = serde_json::to_vec(&begin).map_err(|e| failed("answer", e))?;
    line.push(b'\n');
    out.write_all(&line).map_err(|e| failed("answer", e))?;
    // One more than the limit, for the parent to see that there is more.
    let mut input = File::from(file).take(limit.saturating_add(1));
    let bytes = io::copy(&mut input, &mut out).map_err(|e| Report::Failed {
        doing: "read".into(),
        path: path.to_owned(),
        errno: e.raw_os_error(),
        message: e.to_string(),
    })?;
    Ok(Report::Done {
        entries: 1,
        bytes,
        missing,
    })
}

fn do_fetch(order: impl io::Read) -> Result<Report, Report> {
    const LARGEST: u64 = 4 * 1024 * 1024;
    let order: download::Order =
        serde_json::from_reader(order.take(LARGEST)).map_err(|e| failed("understand", e))?;
    let limits = Limits {
        wall_time: order.wall_time,
        ..Limits::default()
    };
    let ready = download::prepare(order).map_err(Report::NotFetched)?;
    let missing = sandbox::enter(Fence::Network, &limits);
    match download::fetch(ready) {
        Ok(bytes) => Ok(Report::Done {
            entries: 1,
            bytes,
            missing,
        }),
        Err(trouble) => Err(Report::NotFetched(trouble)),
    }
}

fn do_prove(directory: &Path, beside: &Path) -> Result<Report, Report> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::open(directory, flags, Mode::empty()).map_err(opening)?;
    let root = File::from(root);
    let missing = sandbox::enter(Fence::Write(&root), &Limits::default());
    Ok(Report::Proved {
        allowed: prove::what_is_allowed(beside),
        missing,
    })
}

/// Opens `path` beneath `root`; links on the way may lead anywhere beneath `root` too.
fn open_beneath(root: impl std::os::fd::AsFd, path: &Path) -> Result<rustix::fd::OwnedFd, Report> {
    // Without NONBLOCK, opening a named pipe would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(root, path, flags, Mode::empty(), resolve).map_err(opening)
}

fn opening(errno: rustix::io::Errno) -> Report {
    use rustix::io::Errno;
    match errno {
        Errno::NOENT | Errno::NOTDIR => Report::NotFound,
        Errno::XDEV | Errno::LOOP => Report::Outside,
        Errno::ACCESS | Errno::PERM => Report::Denied {
            errno: errno.raw_os_error(),
        },
        Errno::NXIO | Errno::ISDIR => Report::NotAFile,
        other => failed("open", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_becomes_somebody_without_rights_or_stays_who_it_is() {
        let understood = |text| ChildUser::from_argument(text);
        assert_eq!(understood("-"), Ok(None));
        let user = ChildUser { uid: 5, gid: 6 };
        assert_eq!(understood("5:6"), Ok(Some(user)));
        assert_eq!(ChildUser::argument(Some(user)), "5:6");
        for text in [
            "0:0",
            "0:6",
            "5:0",
            "00:6",
            "5",
            "",
            "5:",
            "-1:6",
            "4294967296:6",
            "5:6:7",
        ] {
            assert!(understood(text).is_err(), "{text}");
        }
    }
}
