//! The machine's users and groups.
//!
//! Users that we make are read from the files themselves, where they are the moment they are made:
//! a cache that answers "no such user" for a while is not asked. Users that others made may be in
//! a directory service, which `getent` and `id` ask in a process of their own: it may hang.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AuthError, Identity, command};
use crate::files::FileError;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
const LOCK_DIR: &str = "/run/platctrl";
/// How long a directory service may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How long a change may take: the tools wait some 15 s for each other.
const CHANGE: Duration = Duration::from_secs(60);

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) comment: String,
    pub(super) home: PathBuf,
}

impl Account {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.trim_end().split(':').collect();
        let [name, _, uid, gid, comment, home, _] = fields[..] else {
            return None;
        };
        Some(Self {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            comment: comment.to_owned(),
            home: home.into(),
        })
    }

    pub(super) fn with_groups(self, groups: Vec<u32>) -> Identity {
        Identity::new(self.name, self.uid, self.gid, groups, self.home)
    }
}

/// Whether a user can be called so. Tools take a number for an id and `-` for an option.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |char: char| !char.is_control() && !char.is_whitespace() && !":/,".contains(char);
    let number = name.bytes().all(|byte| byte.is_ascii_digit());
    (1..=256).contains(&name.len()) && !name.starts_with('-') && !number && name.chars().all(plain)
}

fn read(path: &str) -> Result<String, AuthError> {
    match fs::read(path) {
        // Names that are no text are nobody we look for.
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(AuthError::Read {
            path: Path::new(path).to_owned(),
            source,
        }),
    }
}

/// The users in `/etc/passwd`.
pub(super) fn all() -> Result<Vec<Account>, AuthError> {
    Ok(read(PASSWD)?.lines().filter_map(Account::parse).collect())
}

/// The user of that name in `/etc/passwd`.
pub(super) fn local(name: &str) -> Result<Option<Account>, AuthError> {
    Ok(all()?.into_iter().find(|account| account.name == name))
}

/// The first user with that id in `/etc/passwd`.
pub(super) fn by_uid(uid: u32) -> Result<Option<Account>, AuthError> {
    Ok(all()?.into_iter().find(|account| account.uid == uid))
}

/// The user of that name, wherever this machine has its users from.
pub(super) fn find(name: &str) -> Result<Option<Account>, AuthError> {
    if let Some(account) = local(name)? {
        return Ok(Some(account));
    }
    if command::find("getent").is_none() {
        return Ok(None);
    }
    let output = command::run("getent", name, &["passwd", name], LOOK_UP)?;
    match output.code {
        Some(0) => {
            let account = output.stdout.lines().find_map(Account::parse);
            Ok(account.filter(|account| account.name == name))
        }
        Some(2) => Ok(None),
        _ => Err(AuthError::Tool {
            program: "getent",
            name: name.to_owned(),
            message: output.message,
        }),
    }
}

/// Every group of a user, wherever this machine has its groups from.
pub(super) fn all_groups(name: &str) -> Result<Vec<u32>, AuthError> {
    let output = command::run("id", name, &["-G", name], LOOK_UP)?;
    let groups = output.stdout.split_whitespace().map(str::parse).collect();
    match (output.code, groups) {
        (Some(0), Ok(groups)) => Ok(groups),
        _ => {
            let message = output.message;
            Err(AuthError::Tool {
                program: "id",
                name: name.to_owned(),
                message,
            })
        }
    }
}

/// The id of a group in `/etc/group`.
pub(super) fn local_group(name: &str) -> Result<Option<u32>, AuthError> {
    let text = read(GROUP)?;
    let mut groups = text.lines().filter_map(parse_group);
    Ok(groups
        .find(|(group, ..)| *group == name)
        .map(|(_, gid, _)| gid))
}

/// The groups in `/etc/group` that a user was added to.
pub(super) fn local_groups(name: &str) -> Result<Vec<u32>, AuthError> {
    let text = read(GROUP)?;
    let groups = text.lines().filter_map(parse_group);
    let member = |members: &str| members.split(',').any(|member| member == name);
    Ok(groups
        .filter(|(.., members)| member(members))
        .map(|(_, gid, _)| gid)
        .collect())
}

fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim_end().split(':');
    let (name, gid) = (fields.next()?, fields.nth(1)?);
    Some((name, gid.parse().ok()?, fields.next()?))
}

/// While it lives no other agent on this machine changes users. `useradd` looks whether the user
/// exists before it takes its own lock: two at once would both succeed, with different ids.
///
/// The lock's file is removed with the lock, so that nothing stays on the machine.
#[derive(Debug)]
pub(super) struct Alone {
    path: PathBuf,
    _lock: fs::File,
}

impl Alone {
    /// Waits its turn.
    pub(super) fn new() -> Result<Self, AuthError> {
        // Root's own directory: nobody else can take the lock.
        let failed = |error| FileError::new("lock", Path::new(LOCK_DIR), error);
        fs::create_dir_all(LOCK_DIR).map_err(failed)?;
        let path = Path::new(LOCK_DIR).join("users.lock");
        loop {
            let file = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| FileError::new("open", &path, error))?;
            file.lock()
                .map_err(|error| FileError::new("lock", &path, error))?;
            // Whoever had it may have removed the file: then this is the lock of nothing.
            let mine = file
                .metadata()
                .map_err(|error| FileError::new("read", &path, error))?;
            let is_there = fs::symlink_metadata(&path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino()));
            if is_there {
                return Ok(Self { path, _lock: file });
            }
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // While it is still locked: nobody can hold another file of that name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a user of the system, with that id if there is one, and a group of its own unless it gets
/// one that is there.
pub(super) fn add(
    name: &str,
    comment: &str,
    uid: Option<u32>,
    group: Option<u32>,
) -> Result<(), AuthError> {
    let shell = command::find("nologin").unwrap_or_else(|| "/bin/false".into());
    let shell = shell.to_string_lossy();
    let (uid, group) = (
        uid.map(|uid| uid.to_string()),
        group.map(|group| group.to_string()),
    );
    let mut args = vec!["--system", "--no-create-home", "--home-dir", "/nonexistent"];
    args.extend(["--shell", &shell, "--comment", comment]);
    if let Some(uid) = &uid {
        args.extend(["--uid", uid]);
    }
    match &group {
        Some(group) => args.extend(["--no-user-group", "--gid", group]),
        None => args.push("--user-group"),
    }
    args.push(name);
    change("useradd", name, &args, &[0])
}

/// Removes a user.
pub(super) fn delete(name: &str) -> Result<(), AuthError> {
    // 6: there is none.
    change("userdel", name, &[name], &[0, 6])
}

/// Removes a group.
pub(super) fn delete_group(name: &str) -> Result<(), AuthError> {
    // 6: there is none.
    change("groupdel", name, &[name], &[0, 6])
}

fn change(program: &'static str, name: &str, args: &[&str], fine: &[i32]) -> Result<(), AuthError> {
    let output = command::run(program, name, args, CHANGE)?;
    if output.code.is_some_and(|code| fine.contains(&code)) {
        return Ok(());
    }
    Err(AuthError::Tool {
        program,
        name: name.to_owned(),
        message: output.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_others_are_passed_over() {
        let line = "pc-hello:x:995:994:platctrl app hello:/nonexistent:/usr/sbin/nologin";
        let account = Account::parse(line).unwrap();
        assert_eq!((account.uid, account.gid), (995, 994));
        assert_eq!(account.comment, "platctrl app hello");
        for line in [
            "",
            "#",
            "+::::::",
            "a:x:-1:0::/:",
            "a:x:1",
            "a:x:1:2:c:/:sh:more",
        ] {
            assert_eq!(Account::parse(line), None, "{line}");
        }
        assert_eq!(parse_group("adm:x:4:a,b"), Some(("adm", 4, "a,b")));
        assert_eq!(parse_group("adm:x:four:a,b"), None);
    }

    #[test]
    fn what_tools_would_take_for_something_else_is_no_name() {
        for name in [
            "",
            "-G",
            "0",
            "1000",
            "a b",
            "a:b",
            "a/b",
            "a\nb",
            "\u{1b}[31m",
        ] {
            assert!(!is_name(name), "{name:?}");
        }
        for name in ["hello", "www-data", "_apt", "a.b", r"CORP\user", "me@corp"] {
            assert!(is_name(name), "{name}");
        }
    }
}
