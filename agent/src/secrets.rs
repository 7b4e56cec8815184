//! Secrets: files of the node that a pod asks for by name, given to it in memory.
//!
//! They come from `<secrets-dir>/<namespace>/<file>`, which only root may read or write, all the way
//! down: a name in a manifest is all that anybody else ever sees. They go to
//! `<data-dir>/secrets/<namespace>.<pod>/<generation>/<NAME>`, on a file system in memory, readable
//! for the pod's user alone. After a power cut nothing of them is left on the machine; they are
//! given again whenever a program is started.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use platctrl_kinds::SecretSource;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::files::{self, Access, FileError};
use crate::layout::{Layout, PodPaths};
use crate::name::PodName;
use crate::version::RunAs;

/// The largest secret.
const LARGEST: u64 = 1 << 20;
/// How much memory all of them may take.
const OPTIONS: &[&std::ffi::CStr] = &[
    c"mode=0711,size=64m,nr_inodes=65536,noswap",
    c"mode=0711,size=64m,nr_inodes=65536",
];

/// Why a pod does not get its secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SecretError {
    /// There is no such file.
    #[error("secret `{name}`: this node has no {}: put it there, for root alone to read", path.display())]
    Missing {
        /// The name in the pod.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Others than root can read or change it, or it is no file.
    #[error("secret `{name}`: {} {problem}", path.display())]
    Unsafe {
        /// The name in the pod.
        name: String,
        /// The file, or a directory above it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is nowhere to put them.
    #[error(
        "secrets need a file system in memory, which only root can make: run the agent as root"
    )]
    NoMemory,
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SecretError {
    /// One word in camel case.
    #[must_use]
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "SecretMissing",
            Self::Unsafe { .. } => "SecretUnsafe",
            Self::NoMemory => "SecretsUnavailable",
            Self::File(_) => "FileError",
        }
    }
}

/// The secrets of a node.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    from: PathBuf,
    to: PathBuf,
}

impl Secrets {
    pub(crate) fn new(from: PathBuf, layout: &Layout) -> Self {
        Self {
            from,
            to: layout.secrets(),
        }
    }

    /// Where a generation of a pod has the secret `name`.
    pub(crate) fn path(paths: &PodPaths, generation: u64, name: &str) -> PathBuf {
        paths.secrets().join(generation.to_string()).join(name)
    }

    /// Gives a pod the secrets that it asks for. All of them are found before any is given.
    pub(crate) fn give(
        &self,
        pod: &PodName,
        generation: u64,
        wanted: &BTreeMap<String, SecretSource>,
        run_as: &RunAs,
    ) -> Result<(), SecretError> {
        if wanted.is_empty() {
            return Ok(());
        }
        if !rustix::process::geteuid().is_root() {
            return Err(SecretError::NoMemory);
        }
        let mut found = Vec::new();
        for (name, source) in wanted {
            found.push((name, self.read(name, pod.namespace(), &source.file)?));
        }
        self.mount()?;
        let owned = |mode| Access {
            mode,
            uid: None,
            gid: Some(run_as.gid),
        };
        let home = self.to.join(pod.directory());
        files::make_dir(&home, owned(0o710))?;
        let home = home.join(generation.to_string());
        files::make_dir(&home, owned(0o750))?;
        for (name, secret) in found {
            let access = Access {
                mode: 0o400,
                uid: Some(run_as.uid),
                gid: Some(run_as.gid),
            };
            files::write(&home.join(name), &secret, access, false)?;
        }
        Ok(())
    }

    /// Takes away what a pod was given for generations other than `keep`.
    pub(crate) fn take_back(
        paths: &PodPaths,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), FileError> {
        let home = paths.secrets();
        let generations = files::subdirectories(home)?;
        let mut left = 0;
        for generation in &generations {
            if keep(generation) {
                left += 1;
                continue;
            }
            remove(&home.join(generation))?;
        }
        if left == 0 {
            remove(home)?;
        }
        Ok(())
    }

    /// Takes everything away from everybody.
    pub(crate) fn end(layout: &Layout) -> Result<(), FileError> {
        let to = layout.secrets();
        let failed = |error| FileError::new("unmount", &to, error);
        while is_mounted(&to).map_err(failed)? {
            rustix::mount::unmount(&to, UnmountFlags::DETACH)
                .map_err(|errno| failed(errno.into()))?;
        }
        match std::fs::remove_dir(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::new("remove", &to, error))
            }
            _ => Ok(()),
        }
    }

    fn mount(&self) -> Result<(), FileError> {
        let failed =
            |error: io::Error| FileError::new("mount a file system in memory at", &self.to, error);
        files::make_dir(&self.to, Access::mode(0o711))?;
        if is_mounted(&self.to).map_err(failed)? {
            return Ok(());
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let mut outcome = Ok(());
        for options in OPTIONS {
            // Kernels before 6.4 cannot be told not to swap it out.
            outcome = rustix::mount::mount("platctrl", &self.to, "tmpfs", flags, *options);
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map_err(|errno| failed(errno.into()))
    }

    /// Reads a secret, looking at every directory on the way from ours down.
    fn read(&self, name: &str, namespace: &str, file: &str) -> Result<Vec<u8>, SecretError> {
        let mut path = self.from.clone();
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // The whole way, whichever part of it is not there.
        let missing = || SecretError::Missing {
            name: name.to_owned(),
            path: self.from.join(namespace).join(file),
        };
        let failed = |path: &Path, errno: rustix::io::Errno| match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => missing(),
            rustix::io::Errno::LOOP => self.is_unsafe(name, path, "is a symbolic link"),
            errno => SecretError::File(FileError::new("open", path, errno)),
        };
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, &path, directory, Mode::empty());
        let mut at = File::from(opened.map_err(|errno| failed(&path, errno))?);
        self.check(name, &path, &at, true)?;
        path.push(namespace);
        let opened = openat2(&at, namespace, directory, Mode::empty(), beneath);
        at = File::from(opened.map_err(|errno| failed(&path, errno))?);
        self.check(name, &path, &at, true)?;
        path.push(file);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat2(&at, file, flags, Mode::empty(), beneath);
        let opened = File::from(opened.map_err(|errno| failed(&path, errno))?);
        self.check(name, &path, &opened, false)?;
        let mut secret = Vec::new();
        let mut opened = opened.take(LARGEST + 1);
        opened
            .read_to_end(&mut secret)
            .map_err(|error| FileError::new("read", &path, error))?;
        if secret.len() as u64 > LARGEST {
            return Err(self.is_unsafe(name, &path, "is larger than 1 MiB"));
        }
        Ok(secret)
    }

    fn check(&self, name: &str, path: &Path, file: &File, is_dir: bool) -> Result<(), SecretError> {
        let metadata = file
            .metadata()
            .map_err(|error| FileError::new("look at", path, error))?;
        if metadata.is_dir() != is_dir || !(is_dir || metadata.is_file()) {
            return Err(self.is_unsafe(name, path, "is not a regular file"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            let problem = "belongs to somebody else: `chown root` it";
            return Err(self.is_unsafe(name, path, problem));
        }
        // Of the directory itself, which operators make, only that nobody else writes into it.
        let forbidden = if is_dir { 0o022 } else { 0o077 };
        if metadata.mode() & forbidden != 0 {
            let problem = match is_dir {
                true => "can be changed by others: `chmod go-w` it",
                false => "can be read by others: `chmod 600` it",
            };
            return Err(self.is_unsafe(name, path, problem));
        }
        Ok(())
    }

    fn is_unsafe(&self, name: &str, path: &Path, problem: &str) -> SecretError {
        SecretError::Unsafe {
            name: name.to_owned(),
            path: path.to_owned(),
            problem: problem.to_owned(),
        }
    }
}

/// Something of its own is mounted there.
fn is_mounted(path: &Path) -> io::Result<bool> {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|it| it.dev());
    match (device(path), path.parent()) {
        (Ok(here), Some(parent)) => Ok(here != device(parent)?),
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        (Err(error), _) => Err(error),
        (Ok(_), None) => Ok(false),
    }
}

fn remove(path: &Path) -> Result<(), FileError> {
    // Nobody but root writes there: nothing in it leads elsewhere.
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Node {
        dir: tempfile::TempDir,
        layout: Layout,
    }

    impl Node {
        /// None without root, who alone can do this.
        fn new() -> Option<Self> {
            if !platctrl_test_support::needs::root() {
                return None;
            }
            let dir = tempfile::tempdir().unwrap();
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let layout = Layout::prepare(&dir.path().join("data")).unwrap();
            let node = Self { dir, layout };
            fs::create_dir_all(node.from().join("default")).unwrap();
            node.put("default/db", "hunter2", 0o600);
            Some(node)
        }

        fn from(&self) -> PathBuf {
            self.dir.path().join("from")
        }

        fn put(&self, path: &str, text: &str, mode: u32) {
            let path = self.from().join(path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn give(&self, generation: u64, file: &str) -> Result<PathBuf, SecretError> {
            let secrets = Secrets::new(self.from(), &self.layout);
            let wanted = BTreeMap::from([("DB".into(), SecretSource { file: file.into() })]);
            let run_as = RunAs {
                name: "somebody".into(),
                uid: 54_321,
                gid: 54_322,
                groups: Vec::new(),
            };
            secrets.give(&pod(), generation, &wanted, &run_as)?;
            Ok(Secrets::path(&self.layout.pod(&pod()), generation, "DB"))
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let ended = Secrets::end(&self.layout);
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }

    fn pod() -> PodName {
        PodName::new("default", "hello").unwrap()
    }

    #[test]
    fn a_secret_is_in_memory_and_readable_for_the_pods_user_alone() {
        let Some(node) = Node::new() else { return };
        let path = node.give(1, "db").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "hunter2");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (54_321, 0o400));
        const TMPFS: u64 = 0x0102_1994;
        let kind = rustix::fs::statfs(&path).unwrap().f_type;
        assert_eq!(u64::try_from(kind).unwrap(), TMPFS);
        // Given again, and for another generation, it is mounted once.
        node.give(1, "db").unwrap();
        let newer = node.give(2, "db").unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let at = node.layout.data_dir().join("secrets").display().to_string();
        assert_eq!(mounts.matches(&format!(" {at} ")).count(), 1);
        let paths = node.layout.pod(&pod());
        Secrets::take_back(&paths, |it| it == "2").unwrap();
        assert!(!path.exists() && newer.exists());
        Secrets::take_back(&paths, |_| false).unwrap();
        assert!(!newer.parent().unwrap().parent().unwrap().exists());
    }

    #[test]
    fn a_secret_that_others_could_have_written_or_read_is_not_given() {
        let Some(node) = Node::new() else { return };
        let of_others = node.from().join("other");
        fs::create_dir(&of_others).unwrap();
        node.put("other/key", "x", 0o600);
        node.put("default/open", "x", 0o644);
        node.put("default/large", &"x".repeat(1 << 20 | 1), 0o600);
        node.put("default/foreign", "x", 0o600);
        std::os::unix::fs::chown(node.from().join("default/foreign"), Some(1), None).unwrap();
        symlink("db", node.from().join("default/link")).unwrap();
        symlink("/etc/shadow", node.from().join("default/shadow")).unwrap();
        fs::create_dir(node.from().join("default/directory")).unwrap();
        rustix::fs::mknodat(
            CWD,
            node.from().join("default/pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for (file, reason) in [
            ("none", "SecretMissing"),
            ("key", "SecretMissing"),
            ("open", "SecretUnsafe"),
            ("large", "SecretUnsafe"),
            ("foreign", "SecretUnsafe"),
            ("link", "SecretUnsafe"),
            ("shadow", "SecretUnsafe"),
            ("directory", "SecretUnsafe"),
            ("pipe", "SecretUnsafe"),
        ] {
            let error = node.give(1, file).unwrap_err();
            assert_eq!(error.reason(), reason, "{file}: {error}");
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
        // Whatever a name says, it stays in its namespace, and goes through no link.
        symlink("../other", node.from().join("default/elsewhere")).unwrap();
        for file in ["../other/key", "elsewhere/key", "/etc/hostname"] {
            assert!(node.give(1, file).is_err(), "{file}");
        }
        // Nor what lies in a directory that others may change.
        for directory in [node.from().join("default"), node.from()] {
            let mode = fs::Permissions::from_mode(0o777);
            fs::set_permissions(&directory, mode).unwrap();
            assert_eq!(node.give(1, "db").unwrap_err().reason(), "SecretUnsafe");
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&directory, mode).unwrap();
        }
        assert!(!node.layout.pod(&pod()).secrets().exists());
    }
}
