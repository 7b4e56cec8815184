//! A machine as its programs see it, from one boot to the next power cut: processes with numbers and
//! ports of their own, whose kernel has this name for the boot. When the first of them is killed, all are,
//! at once, wherever they have gone.

use std::ffi::OsString;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The first process of a machine, which collects what nobody waits for.
pub(crate) const INIT: &str = "init";

/// `boot ID_FILE`: says `{"init": PID}`, and then runs what the lines of its input say: the
/// failpoints, a tab, and the words of a command, one tab before each. Each time it says
/// `{"agent": N}` once the command before is dead. Ends, with all that runs in it, with its input.
pub(crate) fn boot(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let id = args.next().unwrap_or_default();
    // What belongs to the process in /proc is not there any more once the machine has its own.
    let program = std::env::current_exe().unwrap();
    part();
    let mut command = Command::new(&program);
    command
        .arg(INIT)
        .arg(id)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut init = command.spawn().unwrap();
    let mut ready = [0];
    let begun = init.stdout.take().unwrap().read_exact(&mut ready);
    begun.unwrap();
    say(&format!("{{\"init\": {}}}", init.id()));
    let mut agent: Option<Child> = None;
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.unwrap();
        let mut words = line.split('\t');
        let failpoints = words.next().unwrap_or_default();
        end(agent.take());
        say(&format!("{{\"agent\": {}}}", number + 1));
        let mut command = Command::new(&program);
        command.args(words).env("PLATCTRL_FAILPOINTS", failpoints);
        agent = Some(command.stdin(Stdio::null()).spawn().unwrap());
    }
    // The first process ends when all others have been collected.
    let _ = init.kill();
    end(agent);
    end(Some(init));
    ExitCode::SUCCESS
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).unwrap();
}

fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The processes made from here on are a machine of their own, and so are its mounts.
#[expect(unsafe_code, reason = "unshare can part threads from their files")]
fn part() {
    // Nobody else takes its ports while it is down.
    let parts = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWNET;
    // SAFETY: there is one thread, and tables of files stay as they are.
    unsafe { unshare_unsafe(parts) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
}

/// `init ID_FILE`: the first process.
#[expect(unsafe_code, reason = "a signal is ignored")]
pub(crate) fn init(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let id = args.next().unwrap_or_default();
    mount("proc", "/proc", "proc", MountFlags::empty(), None).unwrap();
    mount_bind(Path::new(&id), "/proc/sys/kernel/random/boot_id").unwrap();
    // SAFETY: no handler is set. The kernel collects the children of whoever ignores this.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    say("ready");
    // It ends with whoever made it, and everything here with it.
    let _ = std::io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}
