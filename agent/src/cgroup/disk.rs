//! Which disk a directory is on, as the kernel's limits name it.

use std::fs;
use std::path::Path;

/// The number, as `8:0`, of the disk that `directory` is on. None when that is no disk: a file
/// system in memory, over the network, or of several devices.
pub(super) fn of(directory: &Path) -> Option<String> {
    let device = rustix::fs::stat(directory).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    whole(Path::new("/sys/dev/block"), &format!("{major}:{minor}"))
}

/// The whole disk that a device is, or is a part of: only those have limits.
fn whole(devices: &Path, number: &str) -> Option<String> {
    let device = devices.join(number).canonicalize().ok()?;
    let disk = match device.join("partition").exists() {
        true => device.parent()?,
        false => &device,
    };
    let number = fs::read_to_string(disk.join("dev")).ok()?;
    let number = number.trim();
    let (major, minor) = number.split_once(':')?;
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    (plain(major) && plain(minor)).then(|| number.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_limited_as_the_disk_it_is_a_part_of() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/vda");
        fs::create_dir_all(disk.join("vda1")).unwrap();
        fs::write(disk.join("dev"), "254:0\n").unwrap();
        fs::write(disk.join("vda1/dev"), "254:1\n").unwrap();
        fs::write(disk.join("vda1/partition"), "1\n").unwrap();
        let devices = sys.path().join("block");
        fs::create_dir(&devices).unwrap();
        for (number, to) in [("254:0", "vda"), ("254:1", "vda/vda1")] {
            let to = sys.path().join("devices").join(to);
            std::os::unix::fs::symlink(to, devices.join(number)).unwrap();
            assert_eq!(whole(&devices, number).as_deref(), Some("254:0"));
        }
        assert_eq!(whole(&devices, "0:45"), None);
        assert_eq!(of(Path::new("/proc")), None, "nothing of it is on a disk");
    }
}
