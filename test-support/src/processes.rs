//! Processes that end with their test, and names, addresses and directories of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// The directory of a tool's programs, unpacked if need be.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tools");
    let output = Command::new(script).arg(name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "scripts/tools {name}: {said}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

/// Starts a process that dies with this one: from a thread that lasts as long as this process,
/// because the signal comes when the thread that started it ends.
#[must_use]
pub fn spawn(command: Command) -> Child {
    type Job = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                die_with_parent(&mut command);
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    spawner.send((command, answer)).unwrap();
    child.recv().unwrap().unwrap()
}

#[expect(unsafe_code, reason = "pre_exec runs between fork and exec")]
fn die_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: prctl is a plain system call; nothing is allocated or locked.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// A number that nobody else has.
#[must_use]
pub fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// An address of the loopback network that nobody else uses.
#[must_use]
pub fn address() -> String {
    let number = random();
    let byte = |shift: u32| ((number >> shift) & 0xff).clamp(1, 254);
    format!("127.{}.{}.{}", byte(0), byte(8), byte(16))
}

/// A root that nobody else uses.
#[must_use]
pub fn root() -> String {
    format!("test-{:016x}", random())
}

/// Where servers keep their data: in memory, because nothing here outlives the machine.
#[must_use]
pub fn directory(prefix: &str) -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        builder.tempdir_in(memory).unwrap()
    } else {
        builder.tempdir().unwrap()
    }
}

/// Asks until it is true.
///
/// # Panics
/// It is not within the time.
pub fn wait_until(patience: Duration, what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_true() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How long what is about to happen may take on the busiest machine. Nothing takes that long.
pub const SOON: Duration = Duration::from_secs(60);

/// Asks until there is an answer: for what the kernel or another process does and tells nobody.
/// The pause between two looks synchronises nothing, it leaves the processor to the others.
///
/// # Panics
/// There is none within [`SOON`].
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process was stopped by a signal.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    state.is_ok_and(|state| state.contains(") T "))
}
