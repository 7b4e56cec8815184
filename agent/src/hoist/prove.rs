//! What a program that took a helper over would try, tried from within the sandbox: the kernel has
//! to refuse each. So the fences of the machine at hand are seen, not assumed.
//!
//! On a machine that refuses too little an attempt succeeds. So each is made in a directory that
//! its user may write in, that nobody else can enter, and that is removed afterwards; or it leaves
//! nothing by its nature.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit};

/// What is tried, with a directory beside the one that is fenced: only the fence keeps it out.
type Attempt = (&'static str, fn(&Path) -> bool);

/// Each is true when it was allowed.
const ATTEMPTS: [Attempt; 16] = [
    ("read the user database", |_| {
        fs::read("/etc/passwd").is_ok()
    }),
    ("list the root directory", |_| fs::read_dir("/").is_ok()),
    ("look at another process", |_| {
        fs::read("/proc/1/cmdline").is_ok()
    }),
    ("write beside its directory", |beside| {
        let mut new = OpenOptions::new();
        new.write(true).create_new(true);
        new.custom_flags(libc::O_NOFOLLOW);
        new.open(beside.join("written")).is_ok()
    }),
    ("listen on TCP", |_| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok()
    }),
    ("make an UDP socket", |_| {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_ok()
    }),
    ("make a unix socket", |_| {
        rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).is_ok()
    }),
    ("listen on a unix socket", |_| {
        listen_without_a_file().is_ok()
    }),
    ("talk to the kernel's network", |_| {
        rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).is_ok()
    }),
    ("start a program", |_| {
        Command::new("/bin/true").status().is_ok()
    }),
    ("start a thread", |_| {
        std::thread::Builder::new().spawn(|| {}).is_ok()
    }),
    ("mount", |beside| {
        let flags = MountFlags::empty();
        let mounted = rustix::mount::mount("none", beside, "tmpfs", flags, None).is_ok();
        if mounted {
            let _ = rustix::mount::unmount(beside, UnmountFlags::DETACH);
        }
        mounted
    }),
    ("unmount", |beside| {
        // Nothing is mounted there: who may unmount is told so.
        let told = rustix::mount::unmount(beside, UnmountFlags::DETACH);
        matches!(told, Ok(()) | Err(Errno::INVAL))
    }),
    ("make a device", |beside| {
        let device = rustix::fs::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o600);
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, beside.join("null"), kind, mode, device).is_ok()
    }),
    ("signal its parent", |_| {
        rustix::process::getppid()
            .is_some_and(|parent| rustix::process::test_kill_process(parent).is_ok())
    }),
    ("raise its limits", |_| {
        let more = Rlimit {
            current: Some(64),
            maximum: Some(64),
        };
        rustix::process::setrlimit(Resource::Nproc, more).is_ok()
    }),
];

/// At a name that is in no file system.
fn listen_without_a_file() -> io::Result<()> {
    let name = format!("platctrl-proof-{:016x}", rand::random::<u64>());
    let address = SocketAddr::from_abstract_name(name)?;
    UnixListener::bind_addr(&address).map(drop)
}

/// The attempts that nothing refused. `beside` is a directory outside of the fenced one, which the
/// user may write in.
pub(super) fn what_is_allowed(beside: &Path) -> Vec<String> {
    let allowed = ATTEMPTS.iter().filter(|(_, attempt)| attempt(beside));
    allowed.map(|(name, _)| (*name).to_owned()).collect()
}
