//! The calls to the kernel that have no safe wrapper. A shim has one thread, so what runs between
//! fork and exec may do anything.
#![expect(
    unsafe_code,
    reason = "fork, exec, signal masks and signalfd need libc"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::{mem, ptr};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub(super) enum Fork {
    Child,
    Parent { pid: u32 },
}

/// Forks. The caller's process must have one thread.
pub(super) fn fork() -> io::Result<Fork> {
    // SAFETY: the process has one thread (the shim never makes another), so no lock can be held
    // by a thread that the child lacks.
    let pid = check(unsafe { libc::fork() })?;
    Ok(match u32::try_from(pid) {
        Ok(pid) if pid > 0 => Fork::Parent { pid },
        _ => Fork::Child,
    })
}

/// Ends this process at once, without running what std registered for its exit.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Executes `argv[0]`; returns only when that fails.
pub(super) fn exec(argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (args, vars) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call;
    // `args[0]` is a valid string or null, which the kernel refuses.
    unsafe { libc::execve(args[0], args.as_ptr(), vars.as_ptr()) };
    io::Error::last_os_error()
}

/// Signals that tell of an error in the shim itself; they are never blocked.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// Blocks every signal and returns a descriptor from which SIGCHLD, SIGTERM and SIGINT are read.
/// The others are thereby without effect on the shim.
pub(super) fn take_signals() -> io::Result<OwnedFd> {
    // SAFETY: both sets are initialised by sigfillset and sigemptyset before they are used, and
    // signalfd's new descriptor belongs to nobody else.
    unsafe {
        let mut blocked = mem::zeroed();
        libc::sigfillset(&raw mut blocked);
        for fault in FAULTS {
            libc::sigdelset(&raw mut blocked, fault);
        }
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const blocked,
            ptr::null_mut(),
        ))?;
        let mut wanted = mem::zeroed();
        libc::sigemptyset(&raw mut wanted);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT] {
            libc::sigaddset(&raw mut wanted, signal);
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let fd = check(libc::signalfd(-1, &raw const wanted, flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The next signal from [`take_signals`], if one is waiting.
pub(super) fn next_signal(signals: &OwnedFd) -> Option<i32> {
    let mut info = mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = mem::size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as large as said, and is read only when the kernel filled all of it.
    unsafe {
        let read = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size);
        if usize::try_from(read) != Ok(size) {
            return None;
        }
        i32::try_from(info.assume_init().ssi_signo).ok()
    }
}

/// Gives every signal its default effect and blocks none: what a program expects to start with.
pub(super) fn reset_signals() -> io::Result<()> {
    // By the kernel's own call, since libc's leaves out the two signals it keeps for itself,
    // which may have been inherited as ignored all the same. Zeroes are, in the order any
    // architecture has them, SIG_DFL, no flags and an empty mask; the longest is below 64 bytes.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: the structure outlives the call, and nothing is written to the null pointer.
        // KILL and STOP are refused: they are as they are.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                mem::size_of::<u64>(),
            );
        }
    }
    // SAFETY: the set is initialised by sigemptyset.
    unsafe {
        let mut none = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut(),
        ))?;
    }
    Ok(())
}

/// Sends any signal, also a real-time one, to one process.
pub(super) fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes any two numbers; a positive pid is one process.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Gives this process a view of the file systems of its own, as it was so far.
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: it takes a number and touches no memory; file descriptors stay shared as they are.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Removes every capability from the bounding set, so that no program executed later can get one.
pub(super) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64_u64 {
        // SAFETY: these two operations take one number and touch no memory.
        let dropped = unsafe {
            if libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) != 1 {
                continue; // absent already, or no such capability in this kernel
            }
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0)
        };
        check(dropped)?;
    }
    Ok(())
}

/// Closes every descriptor above 2, now or at the next exec.
pub(super) fn close_above_stdio(at_exec: bool) -> io::Result<()> {
    let flags = if at_exec {
        libc::CLOSE_RANGE_CLOEXEC
    } else {
        0
    };
    // SAFETY: at exec nothing is closed before this process's memory goes away. At once is asked
    // for only before the shim has opened anything, so nothing that Rust owns is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags) };
    if result == 0 {
        return Ok(());
    }
    // Kernels before 5.11 lack the call or its flag.
    // SAFETY: as above; getrlimit fills the structure it is given, or fails.
    unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        let end = libc::c_int::try_from(limit.rlim_cur)
            .unwrap_or(1 << 20)
            .min(1 << 20);
        for fd in 3..end {
            if at_exec {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            } else {
                libc::close(fd);
            }
        }
    }
    Ok(())
}

/// Gives memory that is not used any more back to the kernel.
pub(super) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches the allocator's free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
