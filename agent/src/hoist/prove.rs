//! What a program that took a helper over would try, tried from within the sandbox: the kernel has
//! to refuse each. So the fences of the machine at hand are seen, not assumed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit};

type Attempt = (&'static str, fn() -> bool);

/// Each is true when it was allowed.
const ATTEMPTS: [Attempt; 16] = [
    ("read the user database", || fs::read("/etc/passwd").is_ok()),
    ("list the root directory", || fs::read_dir("/").is_ok()),
    ("look at another process", || {
        fs::read("/proc/1/cmdline").is_ok()
    }),
    ("write to a shared directory", || {
        fs::write("/tmp/.platctrl-proof", "").is_ok()
    }),
    ("listen on TCP", || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok()
    }),
    ("make an UDP socket", || {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_ok()
    }),
    ("make a unix socket", || {
        rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).is_ok()
    }),
    ("listen on a unix socket", || {
        UnixListener::bind(".platctrl-proof").is_ok()
    }),
    ("talk to the kernel's network", || {
        rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).is_ok()
    }),
    ("start a program", || {
        Command::new("/bin/true").status().is_ok()
    }),
    ("start a thread", || {
        std::thread::Builder::new().spawn(|| {}).is_ok()
    }),
    ("mount", || {
        rustix::mount::mount("none", "/tmp", "tmpfs", MountFlags::empty(), None).is_ok()
    }),
    ("unmount", || {
        rustix::mount::unmount("/tmp", UnmountFlags::DETACH).is_ok()
    }),
    ("make a device", || {
        let device = rustix::fs::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(
            CWD,
            Path::new("null"),
            FileType::CharacterDevice,
            mode,
            device,
        )
        .is_ok()
    }),
    ("signal its parent", || {
        rustix::process::getppid()
            .is_some_and(|parent| rustix::process::test_kill_process(parent).is_ok())
    }),
    ("raise its limits", || {
        let more = Rlimit {
            current: Some(64),
            maximum: Some(64),
        };
        rustix::process::setrlimit(Resource::Nproc, more).is_ok()
    }),
];

/// The attempts that nothing refused.
pub(super) fn what_is_allowed() -> Vec<String> {
    let allowed = ATTEMPTS.iter().filter(|(_, attempt)| attempt());
    allowed.map(|(name, _)| (*name).to_owned()).collect()
}
