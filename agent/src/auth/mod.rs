//! Which user a pod runs as.
//!
//! As root every app has a user of its own, `pc-<app>`, made on first use with `useradd` so that
//! every cache and every other tool on the machine knows it; or a pod names an existing user.
//! Not as root everything runs as the current user.
//!
//! What we make is noted in `<data-dir>/users.json` before it is made, and only what is noted
//! there and still is what we made is ever removed. The note also keeps a user's number, so that
//! one that somebody deleted owns its files again once it is back.
//!
//! Everything here blocks: usually for as long as it takes to read `/etc/passwd`, for some 50 ms
//! when a user is made, and for five seconds at most when the machine's directory service hangs.

mod accounts;
mod command;
mod policy;
mod record;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use platctrl_framework::model::{Digest, InvalidName, check_name};

pub(crate) use policy::Refusal;
pub use policy::UserPolicy;

use crate::files::FileError;
use accounts::Account;
use record::{Made, Record};

/// The longest name of a user on Linux.
const LONGEST_NAME: usize = 32;

/// Why there is no user to run a pod as.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AuthError {
    /// There is no such user.
    #[error("there is no user `{name}` on this node: make it, correct `runAs`, or leave it out")]
    NoSuchUser {
        /// As `runAs` names it.
        name: String,
    },
    /// `runAs` is not something a user can be called.
    #[error("`runAs: {name}` is not the name of a user: correct it, or leave it out")]
    InvalidName {
        /// As it was given, shortened and made printable.
        name: String,
    },
    /// The app's name cannot be part of a user's.
    #[error(transparent)]
    InvalidApp(#[from] InvalidName),
    /// The policy of this node does not allow the user.
    #[error("pods may not run as `{name}`: {why}; name another user in `runAs`, or leave it out")]
    Refused {
        /// The user.
        name: String,
        /// What is against it.
        why: Refusal,
    },
    /// Without root there is only one user.
    #[error(
        "the agent is not root and runs everything as `{current}`, not as `{name}`: leave out `runAs`, or run the agent as root"
    )]
    NotRoot {
        /// As `runAs` names it.
        name: String,
        /// Who everything runs as.
        current: String,
    },
    /// A user or group that is not ours has the name.
    #[error(
        "a user or group `{name}` is on this node and was not made for the app `{app}`: if pods are meant to run as it, say so in `runAs`; else rename it or the app"
    )]
    Taken {
        /// The name.
        name: String,
        /// The app.
        app: String,
    },
    /// A tool that every Linux distribution has is missing here.
    #[error(
        "`{program}` is not on this node: install the package `passwd` (`shadow-utils`), or name an existing user in `runAs`"
    )]
    NoTool {
        /// Its name.
        program: &'static str,
    },
    /// A tool failed.
    #[error("`{program}` for the user `{name}` failed: {message}")]
    Tool {
        /// Its name.
        program: &'static str,
        /// The user.
        name: String,
        /// What it said.
        message: String,
    },
    /// The note of the users we made cannot be understood.
    #[error("{} is damaged ({why}): move it away; users noted there have to be removed by hand", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A call on the machine's list of users failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// A user as programs get it: exactly these ids, nothing inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user's name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) uid: u32,
    /// Its primary group.
    pub(crate) gid: u32,
    /// Its further groups, sorted.
    pub(crate) groups: Vec<u32>,
    /// Its home according to the machine, which need not exist.
    pub(crate) home: PathBuf,
}

impl Identity {
    /// Who this process runs as.
    #[must_use]
    pub(crate) fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let groups = rustix::process::getgroups().unwrap_or_default();
        // Its name is for display: without one it is called by its number.
        let account = accounts::by_uid(uid).ok().flatten();
        let (name, home) = account.map_or_else(
            || (uid.to_string(), PathBuf::from("/")),
            |account| (account.name, account.home),
        );
        Self::new(
            name,
            uid,
            gid,
            groups.into_iter().map(rustix::process::Gid::as_raw),
            home,
        )
    }

    fn new(
        name: String,
        uid: u32,
        gid: u32,
        groups: impl IntoIterator<Item = u32>,
        home: PathBuf,
    ) -> Self {
        let mut groups: Vec<_> = groups.into_iter().filter(|group| *group != gid).collect();
        groups.sort_unstable();
        groups.dedup();
        Self {
            name,
            uid,
            gid,
            groups,
            home,
        }
    }
}

/// The users that pods of one agent run as.
#[derive(Debug)]
pub(crate) struct Users {
    root: bool,
    policy: UserPolicy,
    /// Held while the record is read and changed, and users with it.
    record: Mutex<Record>,
}

impl Users {
    /// The users noted in a data directory, which has to exist by the time one is made.
    #[must_use]
    pub(crate) fn open(data_dir: &Path, policy: UserPolicy) -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            policy,
            record: Mutex::new(Record::at(data_dir.join("users.json"))),
        }
    }

    /// Who a pod runs as: the user it names, or its app's own, made on first use.
    ///
    /// # Errors
    /// [`AuthError`] names the user and the way out.
    pub(crate) fn resolve(&self, run_as: Option<&str>, app: &str) -> Result<Identity, AuthError> {
        if !self.root {
            let current = Identity::current();
            return match run_as {
                Some(name) if name != current.name => Err(AuthError::NotRoot {
                    name: printable(name),
                    current: current.name,
                }),
                _ => Ok(current),
            };
        }
        match run_as {
            Some(name) => self.existing(name),
            None => self.of_app(app),
        }
    }

    /// Whether a pod may run as the user it names. One that is not there yet may still be made, by
    /// a hook say, and is looked at again by [`Users::resolve`].
    ///
    /// # Errors
    /// [`AuthError`] names the user and the way out.
    pub(crate) fn check(&self, run_as: Option<&str>) -> Result<(), AuthError> {
        let Some(name) = run_as else { return Ok(()) };
        match self.resolve(Some(name), "") {
            Ok(_) | Err(AuthError::NoSuchUser { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn existing(&self, name: &str) -> Result<Identity, AuthError> {
        if !accounts::is_name(name) {
            return Err(AuthError::InvalidName {
                name: printable(name),
            });
        }
        let account = accounts::find(name)?.ok_or_else(|| AuthError::NoSuchUser {
            name: name.to_owned(),
        })?;
        let groups = accounts::all_groups(name)?;
        self.allowed(account.with_groups(groups), false)
    }

    fn of_app(&self, app: &str) -> Result<Identity, AuthError> {
        check_name("app", app)?;
        let name = user_name(app);
        let account = match accounts::local(&name)? {
            Some(account) => account,
            None => self.make(&name, app)?,
        };
        if !self.is_ours(&account, app)? {
            return Err(AuthError::Taken {
                name,
                app: app.to_owned(),
            });
        }
        let groups = accounts::local_groups(&name)?;
        self.allowed(account.with_groups(groups), true)
    }

    /// Whether we made the user for the app: it says so itself, or our note does.
    fn is_ours(&self, account: &Account, app: &str) -> Result<bool, AuthError> {
        if account.comment == comment(app) {
            return Ok(true);
        }
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let made = record.read()?.remove(&account.name);
        Ok(made.is_some_and(|made| made.app == app && made.uid == Some(account.uid)))
    }

    fn allowed(&self, identity: Identity, ours: bool) -> Result<Identity, AuthError> {
        match self.policy.refusal(&identity, ours) {
            None => Ok(identity),
            Some(why) => Err(AuthError::Refused {
                name: identity.name,
                why,
            }),
        }
    }

    fn make(&self, name: &str, app: &str) -> Result<Account, AuthError> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let _alone = accounts::Alone::new()?;
        // Another pod of the app, or another agent, may have been first.
        if let Some(account) = accounts::local(name)? {
            return Ok(account);
        }
        let mut made = record.read()?;
        let before = made.get(name).cloned();
        let group = accounts::local_group(name)?;
        if group.is_some() && before.is_none() {
            return Err(AuthError::Taken {
                name: name.to_owned(),
                app: app.to_owned(),
            });
        }
        // Its number is given again, so that its files are its own again, unless it is taken.
        let uid = match before.and_then(|made| made.uid) {
            Some(uid) if accounts::by_uid(uid)?.is_none() => Some(uid),
            _ => None,
        };
        let entry = |uid, gid| Made {
            app: app.to_owned(),
            uid,
            gid,
        };
        let there = accounts::all()?;
        for (name, made) in made.iter().filter(|(other, _)| *other != name) {
            if let Err(error) = give_back(name, made, &there) {
                tracing::warn!(%error, "a user that somebody deleted cannot be made again");
            }
        }
        made.insert(name.to_owned(), entry(uid, group));
        record.write(&made)?;
        let added = accounts::add(name, &comment(app), uid, group);
        let Some(account) = accounts::local(name)? else {
            added?;
            return Err(AuthError::Tool {
                program: "useradd",
                name: name.to_owned(),
                message: "it said it was done, but the user is not in /etc/passwd".into(),
            });
        };
        if added.is_err() {
            // Somebody else was first: it is not ours to remove.
            made.remove(name);
            record.write(&made)?;
            return Ok(account);
        }
        made.insert(name.to_owned(), entry(Some(account.uid), Some(account.gid)));
        record.write(&made)?;
        Ok(account)
    }

    /// Removes the users we made and their groups, and returns their names. One that changed since
    /// is left alone and forgotten; one that cannot be removed, because a process still runs as
    /// it, stays noted.
    ///
    /// # Errors
    /// The first [`AuthError`] met; the others are removed all the same.
    pub(crate) fn remove_created(&self) -> Result<Vec<String>, AuthError> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.root {
            return Ok(Vec::new());
        }
        let _alone = accounts::Alone::new()?;
        let (mut removed, mut failure) = (Vec::new(), None);
        let mut left = record.read()?;
        for (name, made) in left.clone() {
            match remove(&name, &made) {
                Ok(done) => {
                    left.remove(&name);
                    removed.extend(done.then_some(name));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        record.write(&left)?;
        failure.map_or(Ok(removed), Err)
    }
}

/// Makes a user again that we made and that is not there any more. Its programs may still run: its
/// number must not become another app's.
fn give_back(name: &str, made: &Made, there: &[Account]) -> Result<(), AuthError> {
    let Some(uid) = made.uid else { return Ok(()) };
    let known = |account: &Account| account.name == name || account.uid == uid;
    if !is_of_app(name, made) || there.iter().any(known) {
        return Ok(());
    }
    let group = accounts::local_group(name)?;
    accounts::add(name, &comment(&made.app), Some(uid), group)
}

/// A damaged or changed note speaks of nobody else's users.
fn is_of_app(name: &str, made: &Made) -> bool {
    check_name("app", &made.app).is_ok() && name == user_name(&made.app)
}

/// Removes a user if it is the one we made. Says whether it did.
fn remove(name: &str, made: &Made) -> Result<bool, AuthError> {
    if !is_of_app(name, made) {
        return Ok(false);
    }
    let account = accounts::local(name)?;
    let ours = account.as_ref().is_some_and(|account| match made.uid {
        Some(uid) => account.uid == uid,
        // We did not live to note its number: it tells itself.
        None => account.comment == comment(&made.app),
    });
    if account.is_some() && !ours {
        return Ok(false);
    }
    if ours {
        accounts::delete(name)?;
    }
    // userdel takes the group along where /etc/login.defs says so.
    if let Some(gid) = accounts::local_group(name)?
        && made.gid.is_none_or(|made| made == gid)
        && (ours || made.gid.is_some())
    {
        accounts::delete_group(name)?;
    }
    Ok(ours)
}

/// The user of an app: `pc-<app>`, or where that is too long `pc_`, the beginning and a hash: no
/// app's short name is like another one's long name.
fn user_name(app: &str) -> String {
    let name = format!("pc-{app}");
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let hash: String = Digest::of(app.as_bytes()).hex().chars().take(20).collect();
    let start: String = app.chars().take(8).collect();
    format!("pc_{start}-{hash}")
}

/// What a user that we made says about itself.
fn comment(app: &str) -> String {
    format!("platctrl app {app}")
}

fn printable(name: &str) -> String {
    name.chars()
        .take(64)
        .flat_map(char::escape_default)
        .collect()
}
