//! Writing limits into the kernel's files, in the two dialects it has.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use platctrl_kinds::{Bytes, Cpu, Io, Resources};

use super::CgroupError;
use super::mounts::Controller;

/// Over this many microseconds a share of processor time is measured.
const PERIOD: u64 = 100_000;
/// The longest such span, for shares so small that the kernel refuses them otherwise.
const LONG_PERIOD: u64 = 1_000_000;
/// The smallest quota the kernel takes.
const LEAST_QUOTA: u64 = 1_000;

/// Hands every controller that we use down to the groups below, as far as the kernel lets us.
/// Where it does not, the limit's file will be missing below, and that is reported.
pub(super) fn delegate(directory: &Path) {
    let file = directory.join("cgroup.subtree_control");
    for controller in Controller::ALL {
        let _ = write(&file, &format!("+{controller}"));
    }
}

/// Sets what `resources` says of a controller in a group of version 2. False when the group does
/// not have the controller.
pub(super) fn set_v2(
    directory: &Path,
    controller: Controller,
    resources: &Resources,
    disk: Option<&str>,
) -> Result<bool, CgroupError> {
    match controller {
        Controller::Cpu => {
            let value = match resources.cpu.map(quota) {
                Some((quota, period)) => format!("{quota} {period}"),
                None => format!("max {PERIOD}"),
            };
            set(directory, "cpu.max", &value)
        }
        Controller::Memory => {
            let (memory, swap) = match resources.memory {
                Some(bytes) => (bytes.get().to_string(), "0"),
                None => ("max".to_owned(), "max"),
            };
            // A limit that swap gets around is none. Without swap there is no such file.
            set(directory, "memory.swap.max", swap)?;
            // Half of a program is of no use: it ends whole and is started again.
            set(directory, "memory.oom.group", "1")?;
            // The kernel would make room at once by ending what runs.
            if let Some(limit) = resources.memory {
                check_room(directory, "memory.current", limit.get())?;
            }
            set(directory, "memory.max", &memory)
        }
        Controller::Pids => set(directory, "pids.max", &pids(resources)),
        Controller::Io => {
            let Some(disk) = disk else { return Ok(false) };
            let number = |limit: Option<u64>| limit.map_or("max".to_owned(), |it| it.to_string());
            let Io {
                read_bytes,
                write_bytes,
                read_operations,
                write_operations,
            } = resources.io;
            let value = format!(
                "{disk} rbps={} wbps={} riops={} wiops={}",
                number(read_bytes.map(Bytes::get)),
                number(write_bytes.map(Bytes::get)),
                number(read_operations),
                number(write_operations),
            );
            set(directory, "io.max", &value)
        }
    }
}

/// The same in a group of version 1.
pub(super) fn set_v1(
    directory: &Path,
    controller: Controller,
    resources: &Resources,
    disk: Option<&str>,
) -> Result<bool, CgroupError> {
    match controller {
        Controller::Cpu => {
            // The kernel compares each of the two with the other: none in between.
            let there = set(directory, "cpu.cfs_quota_us", "-1")?;
            if let Some((quota, period)) = resources.cpu.map(quota)
                && there
            {
                set(directory, "cpu.cfs_period_us", &period.to_string())?;
                set(directory, "cpu.cfs_quota_us", &quota.to_string())?;
            }
            Ok(there)
        }
        Controller::Memory => {
            // Memory and swap together may not be below memory: away with it first. Kernels that
            // do not account for swap have no such file, or refuse to write it.
            let _ = set(directory, "memory.memsw.limit_in_bytes", "-1");
            let memory = match resources.memory {
                Some(bytes) => bytes.get().to_string(),
                None => "-1".to_owned(),
            };
            let there = set(directory, "memory.limit_in_bytes", &memory)?;
            let _ = set(directory, "memory.memsw.limit_in_bytes", &memory);
            Ok(there)
        }
        Controller::Pids => set(directory, "pids.max", &pids(resources)),
        Controller::Io => {
            let Some(disk) = disk else { return Ok(false) };
            let Io {
                read_bytes,
                write_bytes,
                read_operations,
                write_operations,
            } = resources.io;
            let mut there = true;
            for (file, limit) in [
                ("blkio.throttle.read_bps_device", read_bytes.map(Bytes::get)),
                (
                    "blkio.throttle.write_bps_device",
                    write_bytes.map(Bytes::get),
                ),
                ("blkio.throttle.read_iops_device", read_operations),
                ("blkio.throttle.write_iops_device", write_operations),
            ] {
                // 0 is no limit.
                let value = format!("{disk} {}", limit.unwrap_or(0));
                there &= set(directory, file, &value)?;
            }
            Ok(there)
        }
    }
}

/// Refuses a limit that is below what is in use.
fn check_room(directory: &Path, file: &str, limit: u64) -> Result<(), CgroupError> {
    let path = directory.join(file);
    let used = std::fs::read_to_string(&path).unwrap_or_default();
    match used.trim().parse::<u64>() {
        Ok(used) if used > limit => {
            let why = format!("{used} bytes are in use, more than {limit}");
            let error = io::Error::new(io::ErrorKind::ResourceBusy, why);
            Err(CgroupError::new("limit the memory of", directory, error))
        }
        _ => Ok(()),
    }
}

fn pids(resources: &Resources) -> String {
    resources
        .pids
        .map_or_else(|| "max".to_owned(), |pids| pids.to_string())
}

/// A share of processor time as so many microseconds in so many.
fn quota(cpu: Cpu) -> (u64, u64) {
    let share = |period: u64| u64::from(cpu.millis()) * (period / 1000);
    match share(PERIOD) {
        quota if quota >= LEAST_QUOTA => (quota, PERIOD),
        _ => (share(LONG_PERIOD).max(LEAST_QUOTA), LONG_PERIOD),
    }
}

/// Writes a file of a group. False when the group exists and has no such file.
fn set(directory: &Path, file: &str, value: &str) -> Result<bool, CgroupError> {
    let path = directory.join(file);
    match write(&path, value) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => Ok(false),
        Err(error) => Err(CgroupError::new("set", &path, error)),
    }
}

/// Writes without ever creating: in a directory that is no cgroup a file would be left behind.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_of_a_processor_is_one_the_kernel_takes() {
        assert_eq!(quota(Cpu::from_millis(500)), (50_000, 100_000));
        assert_eq!(quota(Cpu::from_millis(2500)), (250_000, 100_000));
        assert_eq!(quota(Cpu::from_millis(10)), (1_000, 100_000));
        assert_eq!(quota(Cpu::from_millis(9)), (9_000, 1_000_000));
        assert_eq!(quota(Cpu::from_millis(1)), (1_000, 1_000_000));
    }
}
