//! What a helper process gives up before it touches anything hostile.
//!
//! It was started with an empty environment. Here it becomes an unprivileged user and gives up
//! gaining privileges, every file but those beneath one directory, the network (or, for the one
//! that fetches, all of it but asking), starting processes, every system call that it does not
//! need, and more than its share of memory, time and disk. Each fence the kernel does not have is
//! reported, never silently missing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
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

use super::{ChildUser, Limits, seccomp};

/// The newest Landlock interface whose rights we know; older kernels enforce what they have.
const LANDLOCK: ABI = ABI::V6;
/// Address space: the buffers, the names of the largest archive, and the C library's arenas.
const MEMORY: u64 = 1024 * 1024 * 1024;
/// Open files: the standard three, a directory or two, a file.
const FILES: u64 = 64;

/// What is left to a helper.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fence<'a> {
    /// Reading beneath this directory.
    Read(&'a File),
    /// Reading and writing beneath this directory.
    Write(&'a File),
    /// Asking servers, and reading what finding their addresses needs.
    Network,
}

/// What looking up a name reads.
const NAME_FILES: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ld.so.cache",
];
/// Where the C library keeps its ways of looking up names.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// Becomes `user`, for good and without any further group. Nothing to do for one who is it.
pub(super) fn become_user(user: ChildUser) -> io::Result<()> {
    use rustix::fs::{Gid, Uid};
    use rustix::process::{geteuid, getuid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if geteuid() == uid && getuid() == uid {
        return Ok(());
    }
    // This is the only thread so far, so it is the process.
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    if set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok() {
        return Err(io::Error::other("the way back is open"));
    }
    Ok(())
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
pub(super) fn enter(fence: Fence<'_>, limits: &Limits) -> Vec<String> {
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
    match landlock(fence) {
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
    if let Err(e) = seccomp::enter(&fence) {
        missing.push(format!("system call filter: {e}"));
    }
    missing
}

fn landlock(fence: Fence<'_>) -> Result<RulesetStatus, landlock::RulesetError> {
    let files = AccessFs::from_all(LANDLOCK);
    let ruleset = Ruleset::default().handle_access(files)?;
    let ruleset = match fence {
        // Whom it may ask is not known before names are; that nobody asks it is.
        Fence::Network => ruleset.handle_access(AccessNet::BindTcp)?,
        _ => ruleset.handle_access(AccessNet::from_all(LANDLOCK))?,
    };
    let mut ruleset = ruleset.scope(Scope::from_all(LANDLOCK))?.create()?;
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    match fence {
        Fence::Read(directory) => {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, reading))?;
        }
        Fence::Write(directory) => {
            // Refer is what lets a hard link be in another directory than the file.
            let writing = AccessFs::ReadDir
                | AccessFs::WriteFile
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSym
                | AccessFs::Refer;
            ruleset = ruleset.add_rule(PathBeneath::new(directory, writing))?;
        }
        Fence::Network => {
            let files = NAME_FILES.map(|path| (path, AccessFs::ReadFile.into()));
            let libraries = LIBRARIES.map(|path| (path, reading));
            for (path, access) in files.into_iter().chain(libraries) {
                // What this machine does not have needs no rule.
                if let Ok(file) = File::open(path) {
                    ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
                }
            }
        }
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// Ends this process when its parent is gone (nobody reads standard error any more) or when its
/// time is up. Not PR_SET_PDEATHSIG: that one follows the parent's *thread*, and an agent's threads
/// come and go.
fn watch(wall_time: Duration) -> std::io::Result<()> {
    let limit = Timespec::try_from(wall_time).ok();
    let (started, begun) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name("watch".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            let _ = started.send(());
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
    // What a thread's beginning asks of the kernel is not asked afterwards.
    begun.recv().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Landlock binds the thread that asks for it, so a test can have a thread of its own confined.
    fn confined<T: Send>(fence: Fence<'_>, work: impl Sync + Fn() -> T) -> Option<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| match landlock(fence).unwrap() {
                    RulesetStatus::NotEnforced => None,
                    _ => Some(work()),
                })
                .join()
                .unwrap()
        })
    }

    #[test]
    fn a_confined_writer_reaches_its_directory_and_nothing_else() {
        let area = tempfile::tempdir().unwrap();
        let (inside, outside) = (area.path().join("in"), area.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::write(inside.join("file"), "").unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let directory = File::open(&inside).unwrap();
        let denied = confined(Fence::Write(&directory), || {
            // What an unpacker does works.
            fs::create_dir(inside.join("d")).unwrap();
            fs::write(inside.join("d/new"), "x").unwrap();
            fs::hard_link(inside.join("file"), inside.join("d/hard")).unwrap();
            std::os::unix::fs::symlink("file", inside.join("soft")).unwrap();
            [
                ("write", fs::write(outside.join("new"), "x").map(drop)),
                ("read", fs::read(outside.join("secret")).map(drop)),
                ("list", fs::read_dir(&outside).map(drop)),
                ("remove", fs::remove_file(outside.join("secret"))),
                (
                    "link out",
                    fs::hard_link(inside.join("file"), outside.join("file")),
                ),
                (
                    "link in",
                    fs::hard_link(outside.join("secret"), inside.join("secret")),
                ),
                ("bind", TcpListener::bind("127.0.0.1:0").map(drop)),
                ("connect", TcpStream::connect(address).map(drop)),
            ]
        });
        let Some(denied) = denied else {
            platctrl_test_support::needs::lacks("Landlock in its kernel");
            return;
        };
        for (what, outcome) in denied {
            let kind = outcome.map_err(|e| e.kind());
            let refused = matches!(
                kind,
                Err(ErrorKind::PermissionDenied | ErrorKind::CrossesDevices)
            );
            assert!(refused, "{what}: {kind:?}");
        }
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        // The test itself is as free as before.
        fs::write(outside.join("new"), "x").unwrap();
    }

    #[test]
    fn a_confined_reader_reads_beneath_its_directory_and_writes_nowhere() {
        let area = tempfile::tempdir().unwrap();
        let inside = area.path().join("in");
        fs::create_dir(&inside).unwrap();
        fs::write(inside.join("file"), "text").unwrap();
        fs::write(area.path().join("secret"), "secret").unwrap();
        let directory = File::open(&inside).unwrap();
        let outcome = confined(Fence::Read(&directory), || {
            assert_eq!(fs::read(inside.join("file")).unwrap(), b"text");
            (
                fs::read(area.path().join("secret")).is_err(),
                fs::write(inside.join("file"), "").is_err(),
            )
        });
        assert!(matches!(outcome, None | Some((true, true))), "{outcome:?}");
    }
}
