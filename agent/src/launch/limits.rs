//! What the kernel limits of each process of a program: what the manifest says, and defaults that
//! are the same however the agent was started.

use std::path::PathBuf;

use platctrl_kinds::Launchable;
use platctrl_shim_lib::{Resource, Rlimit};

use super::UnitSpec;

/// Open files: enough for what knows no better, and the hard limit for what asks for more.
const OPEN_FILES: (u64, u64) = (1024, 524_288);
const LOCKED: u64 = 8 << 20;
const STACK: u64 = 8 << 20;

/// Holds what is started of a launchable to what its manifest says; `tmp` is its own `/tmp`.
pub(crate) fn confine(spec: &mut UnitSpec, launchable: &Launchable, tmp: Option<PathBuf>) {
    spec.rlimits = rlimits(launchable);
    let umask = launchable.umask.as_deref().and_then(platctrl_kinds::umask);
    spec.umask = umask.unwrap_or(0o022);
    spec.private_tmp = tmp;
}

/// The limits of a program's processes.
fn rlimits(launchable: &Launchable) -> Vec<Rlimit> {
    let asked = &launchable.rlimits;
    let both = |resource, limit| Rlimit {
        resource,
        soft: limit,
        hard: limit,
    };
    let bytes = |limit: Option<platctrl_kinds::Bytes>| limit.map(platctrl_kinds::Bytes::get);
    let open_files = match asked.open_files {
        Some(files) => both(Resource::OpenFiles, files),
        None => Rlimit {
            resource: Resource::OpenFiles,
            soft: OPEN_FILES.0,
            hard: OPEN_FILES.1,
        },
    };
    let stack = match bytes(asked.stack_bytes) {
        Some(stack) => both(Resource::Stack, stack),
        None => Rlimit {
            resource: Resource::Stack,
            soft: STACK,
            hard: u64::MAX,
        },
    };
    let limits = [
        open_files,
        stack,
        both(Resource::Core, bytes(asked.core_bytes).unwrap_or(0)),
        both(
            Resource::FileSize,
            bytes(asked.file_bytes).unwrap_or(u64::MAX),
        ),
        both(
            Resource::LockedMemory,
            bytes(asked.locked_bytes).unwrap_or(LOCKED),
        ),
        // The user's processes are counted by the user, and pods may share one: control groups
        // count them by the program instead.
        both(Resource::Processes, u64::MAX),
    ];
    limits
        .into_iter()
        .map(|limit| bounded(limit, most))
        .collect()
}

/// How far we may go: with the right to, anywhere, except for open files. Root in a container may
/// not have it.
fn most(resource: Resource) -> u64 {
    use rustix::process::{Resource as R, getrlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    let free =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let of = |resource| getrlimit(resource).maximum.unwrap_or(u64::MAX);
    match resource {
        Resource::OpenFiles if free => std::fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(OPEN_FILES.1),
        _ if free => u64::MAX,
        Resource::OpenFiles => of(R::Nofile),
        Resource::Stack => of(R::Stack),
        Resource::Core => of(R::Core),
        Resource::FileSize => of(R::Fsize),
        Resource::LockedMemory => of(R::Memlock),
        Resource::Processes => of(R::Nproc),
        _ => u64::MAX,
    }
}

fn bounded(limit: Rlimit, most: impl Fn(Resource) -> u64) -> Rlimit {
    let hard = limit.hard.min(most(limit.resource));
    Rlimit {
        soft: limit.soft.min(hard),
        hard,
        ..limit
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(rlimits: &serde_json::Value, resource: Resource) -> (u64, u64) {
        let launchable = json!({"location": "file:/a", "rlimits": rlimits});
        let launchable: Launchable = serde_json::from_value(launchable).unwrap();
        let limits = super::rlimits(&launchable);
        let found = limits.iter().find(|it| it.resource == resource).unwrap();
        (found.soft, found.hard)
    }

    #[test]
    fn what_is_not_said_has_a_default_and_what_is_said_holds() {
        assert_eq!(of(&json!({}), Resource::Core), (0, 0));
        assert_eq!(of(&json!({}), Resource::OpenFiles).0, 1024);
        assert_eq!(
            of(&json!({"openFiles": 100}), Resource::OpenFiles),
            (100, 100)
        );
        assert_eq!(
            of(&json!({"fileBytes": "1Mi"}), Resource::FileSize),
            (1 << 20, 1 << 20)
        );
    }

    #[test]
    fn nobody_gets_more_than_whoever_runs_the_agent_may_give() {
        let limit = Rlimit {
            resource: Resource::OpenFiles,
            soft: 1024,
            hard: 524_288,
        };
        let hard = |most| {
            let limit = bounded(limit, |_| most);
            (limit.soft, limit.hard)
        };
        assert_eq!(hard(4096), (1024, 4096));
        assert_eq!(hard(256), (256, 256));
        assert_eq!(hard(u64::MAX), (1024, 524_288));
    }
}
