//! The system calls that a helper process may make: those it needs, and no others.
//!
//! A list of what is allowed, by kind of work. Anything else is answered with "not permitted" and
//! not with death, so that a C library that tries something new finds another way. Of calls that
//! have many faces (`socket`, `ioctl`) only the needed ones are allowed.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::sandbox::Fence;

/// What every helper does: memory, the files it has open, time, its own end.
const BASIC: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Beneath its directory, where Landlock looks at each.
const OPENING: &[c_long] = &[libc::SYS_openat, libc::SYS_openat2];

const COPYING: &[c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
];

const WRITING: &[c_long] = &[
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_fchmod,
];

const ASKING: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_uname,
    libc::SYS_faccessat,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];

/// The older spellings, which younger architectures never had.
#[cfg(target_arch = "x86_64")]
mod older {
    pub(super) const BASIC: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_stat, libc::SYS_time];
    pub(super) const OPENING: &[libc::c_long] = &[libc::SYS_open];
    pub(super) const ASKING: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_access];
}

#[cfg(not(target_arch = "x86_64"))]
mod older {
    pub(super) const BASIC: &[libc::c_long] = &[];
    pub(super) const OPENING: &[libc::c_long] = &[];
    pub(super) const ASKING: &[libc::c_long] = &[];
}

/// From now on every thread of this process makes only the calls that `fence` needs. It cannot be
/// undone, and holds for whatever this process becomes.
pub(super) fn enter(fence: &Fence<'_>) -> Result<(), String> {
    let program = program(fence).map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
}

fn program(fence: &Fence<'_>) -> Result<BpfProgram, seccompiler::BackendError> {
    let lists: &[&[c_long]] = match fence {
        Fence::Read(_) => &[BASIC, older::BASIC, OPENING, older::OPENING, COPYING],
        Fence::Write(_) => &[BASIC, older::BASIC, OPENING, older::OPENING, WRITING],
        Fence::Network => &[
            BASIC,
            older::BASIC,
            OPENING,
            older::OPENING,
            ASKING,
            older::ASKING,
        ],
    };
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = lists
        .iter()
        .flat_map(|list| list.iter())
        .map(|call| (*call, Vec::new()))
        .collect();
    if matches!(fence, Fence::Network) {
        // TCP and UDP, for names. No raw sockets, no netlink, none of the kernel's odd families.
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                sockets.push(SeccompRule::new(vec![
                    is(0, SeccompCmpOp::Eq, family)?,
                    // Above these bits are flags.
                    is(1, SeccompCmpOp::MaskedEq(0xf), kind)?,
                ])?);
            }
        }
        rules.insert(libc::SYS_socket, sockets);
        // Whether bytes wait, and not to wait for them.
        let requests = [libc::FIONREAD, libc::FIONBIO];
        let requests = requests.into_iter().map(|request| {
            let condition =
                SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
            SeccompRule::new(vec![condition])
        });
        rules.insert(libc::SYS_ioctl, requests.collect::<Result<_, _>>()?);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()
}

fn is(
    argument: u8,
    how: SeccompCmpOp,
    value: libc::c_int,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let value = u64::from(value.unsigned_abs());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_helper_has_a_filter() {
        let fd = std::fs::File::open("/").unwrap();
        for fence in [Fence::Read(&fd), Fence::Write(&fd), Fence::Network] {
            // The kernel takes at most 4,096 instructions.
            let program = program(&fence).unwrap();
            assert!((50..4096).contains(&program.len()), "{}", program.len());
        }
    }
}
