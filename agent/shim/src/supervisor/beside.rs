//! A command beside a launchable: with its user, its cgroups, its limits and its environment.
//!
//! `platctrl-shim exec DIRECTORY -- COMMAND…` becomes that command. It reads the launchable's spec
//! as the shim does, joins what the launchable is in, sheds everything and executes. The agent and
//! people start it; since it is a small program, that costs the same whatever they hold in memory.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{launch, sys};
use crate::spec::{Spec, read_spec};
use crate::state::{is_alive, read_state};

/// The word that asks for this instead of a shim, whose directory is always an absolute path.
pub(super) const WORD: &str = "exec";
/// The command could not be executed.
const REFUSED: i32 = 126;
/// There is no such command.
const NOT_FOUND: i32 = 127;
/// What a terminal is, from whoever asks; everything else is the launchable's.
const TERM: &str = "TERM";

/// Becomes the command. Returns the exit code when it cannot.
pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> i32 {
    let (dir, dashes) = (args.next(), args.next());
    let command: Vec<_> = args.collect();
    let (Some(dir), Some(_), [first, ..]) =
        (dir, dashes.filter(|it| it == "--"), command.as_slice())
    else {
        let _ = writeln!(
            io::stderr(),
            "usage: platctrl-shim {WORD} DIRECTORY -- COMMAND…"
        );
        return 2;
    };
    let name = Path::new(first).display().to_string();
    let (code, why) = become_command(Path::new(&dir), &command);
    let _ = writeln!(io::stderr(), "cannot run {name} beside the program: {why}");
    code
}

fn become_command(dir: &Path, command: &[OsString]) -> (i32, String) {
    let spec = match read_spec(dir) {
        Ok(spec) => spec,
        Err(error) => return (REFUSED, format!("what runs is not known: {error}")),
    };
    let view = match view_of(dir) {
        Ok(view) => view,
        Err(error) => return (REFUSED, format!("cannot find its file system: {error}")),
    };
    match launch::shed_beside(&spec, view) {
        Ok(env) => execute(&spec, command, env),
        Err(why) => (REFUSED, why),
    }
}

/// The file systems as the launchable sees them, where that is not as everybody does.
fn view_of(dir: &Path) -> io::Result<Option<File>> {
    let Some(state) = read_state(dir)?.filter(is_alive) else {
        return Ok(None);
    };
    let Some(child) = state.child else {
        return Ok(None);
    };
    let theirs = match File::open(format!("/proc/{}/ns/mnt", child.pid)) {
        Ok(theirs) => theirs,
        // It ended just now, or is nobody's business but root's: who is not root made no other.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || !rustix::process::geteuid().is_root() =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let same = std::fs::metadata("/proc/self/ns/mnt")?.ino() == theirs.metadata()?.ino();
    let is_its_own = !same && crate::process::identify(child.pid) == Some(child);
    Ok(is_its_own.then_some(theirs))
}

fn execute(spec: &Spec, command: &[OsString], mut env: Vec<CString>) -> (i32, String) {
    let terminal = std::env::var_os(TERM).filter(|_| spec.env.iter().all(|(name, _)| name != TERM));
    if let Some(terminal) = terminal {
        let mut variable = OsString::from("TERM=");
        variable.push(terminal);
        env.extend(CString::new(variable.as_bytes()));
    }
    let args: Result<Vec<_>, _> = command
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect();
    let Ok(mut argv) = args else {
        return (REFUSED, "an argument holds a NUL character".into());
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for path in candidates(spec, &command[0]) {
        let Ok(program) = CString::new(path.as_os_str().as_bytes()) else {
            continue;
        };
        argv[0] = program;
        let error = sys::exec(&argv, &env);
        // As shells do: what may not be run is more worth telling than what is not there.
        if error.kind() != io::ErrorKind::NotFound || last.kind() == io::ErrorKind::NotFound {
            last = error;
        }
    }
    let code = match last.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => REFUSED,
    };
    (code, last.to_string())
}

/// Where a command may be: as it is written if it has a slash, else along the launchable's PATH.
fn candidates(spec: &Spec, name: &OsStr) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return vec![spec.cwd.join(name)];
    }
    let path = spec.env.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(OsStr::new("/usr/bin:/bin"), |(_, path)| path.as_os_str());
    let directories = std::env::split_paths(path).filter(|directory| directory.is_absolute());
    directories.map(|directory| directory.join(name)).collect()
}
