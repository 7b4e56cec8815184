//! A launchable's own view of the directories that everybody may write to.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};

use super::sys;

/// What everybody may write to, and so leave traps in for others.
const SHARED: [&str; 2] = ["/tmp", "/var/tmp"];

/// Puts the directory `tmp` in the place of those that everybody may write to, for this process and
/// what it executes. One that `used` lies under stays as it is.
pub(super) fn private_tmp(tmp: &Path, used: &Path) -> io::Result<()> {
    sys::unshare_mounts()?;
    // What is mounted on the machine later is seen here too; what is mounted here stays here.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream)?;
    let used = used.canonicalize()?;
    for shared in SHARED {
        let Ok(place) = Path::new(shared).canonicalize() else {
            continue;
        };
        if used.starts_with(&place) {
            continue;
        }
        mount_bind(tmp, &place)?;
        let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(&place, flags, c"")?;
    }
    Ok(())
}
