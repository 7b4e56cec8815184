//! What a helper process gives up before it touches anything hostile.
//!
//! The parent has started it as an unprivileged user with an empty environment. Here it gives up
//! gaining privileges, every file but those beneath one directory, the network (Landlock: TCP),
//! starting processes, and more than its share of memory, time and disk. Each fence the kernel does
//! not have is reported, never silently missing. (A system call filter is not among them.)

use std::os::fd::{AsFd, BorrowedFd};
use std::process;
use std::thread;
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, setrlimit, umask};

use super::Limits;

/// The newest Landlock interface whose rights we know; older kernels enforce what they have.
const LANDLOCK: ABI = ABI::V6;
/// Address space: the buffers, the names of the largest archive, and the C library's arenas.
const MEMORY: u64 = 1024 * 1024 * 1024;
/// Open files: the standard three, a directory or two, a file.
const FILES: u64 = 64;

/// What a helper may do beneath its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beneath {
    Read,
    Write,
}

/// Closes every file but the standard three, which an agent started with leaked files would pass on.
#[expect(
    unsafe_code,
    reason = "there is no safe way to close what one does not own"
)]
pub(super) fn close_inherited() {
    // SAFETY: called first thing in a process that was just executed, before anything in it opened
    // a file, so no Rust value owns any of these descriptors.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
}

/// Enters the sandbox, for good. Returns what of it could not be had.
pub(super) fn enter(directory: BorrowedFd<'_>, beneath: Beneath, limits: &Limits) -> Vec<String> {
    let mut missing = Vec::new();
    umask(Mode::from_raw_mode(0o022));
    for (resource, limit) in [
        (Resource::Core, 0),
        (Resource::As, MEMORY),
        (Resource::Cpu, limits.wall_time.as_secs().saturating_add(1)),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nofile, FILES),
    ] {
        let both = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        if let Err(e) = setrlimit(resource, both) {
            missing.push(format!("limit {resource:?}: {e}"));
        }
    }
    if let Err(e) = rustix::thread::set_no_new_privs(true) {
        missing.push(format!("no_new_privs: {e}"));
    }
    match landlock(directory, beneath) {
        Ok(RulesetStatus::FullyEnforced) => {}
        // Without scopes or network rights on an older kernel; the files are fenced.
        Ok(RulesetStatus::PartiallyEnforced) => {
            missing.push("Landlock: this kernel has only part of it".to_owned());
        }
        Ok(RulesetStatus::NotEnforced) => {
            missing.push("Landlock: this kernel does not have it, or has it switched off".into());
        }
        Err(e) => missing.push(format!("Landlock: {e}")),
    }
    if let Err(e) = watch(limits.wall_time) {
        missing.push(format!("watching the parent: {e}"));
    }
    // Last, because the watching thread counts.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(e) = setrlimit(Resource::Nproc, none) {
        missing.push(format!("limit Nproc: {e}"));
    }
    missing
}

fn landlock(
    directory: BorrowedFd<'_>,
    beneath: Beneath,
) -> Result<RulesetStatus, landlock::RulesetError> {
    let allowed: BitFlags<AccessFs> = match beneath {
        Beneath::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        // Refer is what lets a hard link be in another directory than the file.
        Beneath::Write => {
            AccessFs::ReadDir
                | AccessFs::WriteFile
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSym
                | AccessFs::Refer
        }
    };
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rule(PathBeneath::new(directory, allowed))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Ends this process when its parent is gone (nobody reads standard error any more) or when its
/// time is up. Not PR_SET_PDEATHSIG: that one follows the parent's *thread*, and an agent's threads
/// come and go.
fn watch(wall_time: Duration) -> std::io::Result<()> {
    let limit = Timespec::try_from(wall_time).ok();
    thread::Builder::new()
        .name("watch".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            let stderr = std::io::stderr();
            loop {
                let mut report = [PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::empty())];
                match poll(&mut report, limit.as_ref()) {
                    Err(rustix::io::Errno::INTR) => {}
                    Ok(0) => {
                        super::child::report_too_slow(wall_time);
                        process::exit(1);
                    }
                    _ => process::exit(2),
                }
            }
        })?;
    Ok(())
}
