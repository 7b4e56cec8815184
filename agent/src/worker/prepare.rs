//! Getting a version ready without touching the one that runs: artifacts, user, ports; then its
//! files, in directories of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use platctrl_framework::model::Uid;
use platctrl_kinds::Launchable;

use super::trouble::{blocking, waiting};
use crate::artifacts::ArtifactError;
use crate::files::{self, Access, FileError};
use crate::hoist::{self, Install, Launch};
use crate::host::Host;
use crate::launch::{self, Surroundings};
use crate::layout::PodPaths;
use crate::name::PodName;
use crate::plan::Step;
use crate::report::Trouble;
use crate::secrets::Secrets;
use crate::version::{Desired, Installed, Program, RunAs, Scripts, Version};

/// Artifacts of one pod that are fetched at once: a pod that is stuck leaves room for others.
const FETCHES: usize = 2;

/// Resolves what `desired` needs. `previous` are the ports that the pod has now.
pub(super) async fn resolve(
    host: Arc<Host>,
    name: PodName,
    desired: Desired,
    previous: BTreeMap<String, u16>,
) -> Result<Version, Trouble> {
    let run_as = {
        let (host, desired, name) = (Arc::clone(&host), desired.clone(), name.clone());
        waiting(Step::Fetch, move || resolve_user(&host, &name, &desired)).await?
    };
    // What cannot be given is known before anything is fetched.
    let ports = {
        let (host, wanted, name) = (Arc::clone(&host), desired.spec.ports.clone(), name.clone());
        waiting(Step::Fetch, move || {
            host.ports.allocate(&name, &wanted, &previous)
        })
        .await?
    };
    let wanted: Vec<_> = desired
        .spec
        .launchables
        .iter()
        .map(|(name, launchable)| fetch(Arc::clone(&host), name.clone(), launchable.clone()))
        .collect();
    let fetched: Vec<_> = stream::iter(wanted).buffered(FETCHES).try_collect().await?;
    let mut installs = BTreeMap::new();
    let (mut programs, mut scripts) = (BTreeMap::new(), BTreeMap::new());
    for (launchable, install) in fetched {
        let entries = desired
            .spec
            .launchables
            .get(&launchable)
            .map(|wanted| wanted.entry_points.clone())
            .unwrap_or_default();
        let (name, path, launch) = (launchable.clone(), install.path.clone(), install.launch);
        let found = blocking(Step::Fetch, move || {
            look(&name, &path, launch, &entries)
                .map_err(|error| Trouble::artifact(&name, &ArtifactError::Hoist(Arc::new(error))))
        });
        let found = found.await?;
        installs.insert(
            launchable.clone(),
            Installed {
                digest: install.digest,
                path: install.path,
            },
        );
        programs.extend(found.programs);
        if found.scripts != Scripts::default() {
            scripts.insert(launchable.clone(), found.scripts);
        }
    }
    Ok(Version {
        adjusted: None,
        generation: desired.generation,
        digest: desired.digest,
        spec: desired.spec,
        run_as,
        ports,
        installs,
        programs,
        scripts,
    })
}

/// What an install offers.
struct Offer {
    programs: BTreeMap<String, Program>,
    scripts: Scripts,
}

/// The programs at the entry points of an install, by default at `bin/launch`, and its scripts.
fn look(
    launchable: &str,
    install: &Path,
    launch: Launch,
    entries: &[String],
) -> Result<Offer, hoist::Error> {
    let mut programs: BTreeMap<String, Program> = BTreeMap::new();
    let mut twice = None;
    let mut add = |name: String, entry: String| {
        let launchable = launchable.to_owned();
        if let Some(other) = programs.insert(
            name,
            Program {
                launchable,
                entry: entry.clone(),
            },
        ) {
            twice = Some((other.entry, entry));
        }
    };
    let mut add_all = |entry: &str, launch: Launch, alone: bool| match launch {
        Launch::File(_) if alone => add(launchable.to_owned(), entry.to_owned()),
        Launch::File(_) => {
            let name = entry.rsplit('/').next().unwrap_or(entry);
            add(format!("{launchable}/{name}"), entry.to_owned());
        }
        Launch::Directory(files) => {
            for name in files.into_keys() {
                add(format!("{launchable}/{name}"), format!("{entry}/{name}"));
            }
        }
    };
    match entries {
        [] => add_all("bin/launch", launch, true),
        [entry] => add_all(entry, hoist::entry_point(install, entry)?, true),
        entries => {
            for entry in entries {
                add_all(entry, hoist::entry_point(install, entry)?, false);
            }
        }
    }
    if let Some((one, other)) = twice {
        return Err(hoist::Error::LaunchInvalid {
            problem: format!("{one} and {other} would be programs of one name"),
        });
    }
    let scripts = Scripts {
        disable: hoist::has_script(install, "bin/disable")?,
        post_activate: hoist::has_script(install, "bin/post-activate")?,
        enable: hoist::has_script(install, "bin/enable")?,
    };
    Ok(Offer { programs, scripts })
}

async fn fetch(
    host: Arc<Host>,
    name: String,
    launchable: Box<Launchable>,
) -> Result<(String, Install), Trouble> {
    match crate::collect::ensure(&host, &launchable).await {
        Ok(install) => Ok((name, install)),
        Err(error) => Err(Trouble::artifact(&name, &error)),
    }
}

fn resolve_user(host: &Host, name: &PodName, desired: &Desired) -> Result<RunAs, Trouble> {
    let app = desired.app(name.name());
    let identity = host.users.resolve(desired.spec.run_as.as_deref(), app);
    let identity = identity
        .map_err(|error| Trouble::passing(Step::Fetch, "UserRefused", error.to_string()))?;
    Ok(RunAs {
        name: identity.name,
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
    })
}

/// What [`configure`] writes.
#[derive(Clone, Debug)]
pub(super) struct Configure {
    pub(super) paths: PodPaths,
    pub(super) name: PodName,
    pub(super) uid: Uid,
    pub(super) node: String,
    pub(super) secrets: Secrets,
    pub(super) version: Version,
    pub(super) labels: BTreeMap<String, String>,
}

/// Writes the home's parts that a version needs before it is started. What the version that runs
/// uses is not touched, except for the labels, which are the pod's. Nothing waits for the disk: the
/// same files are written again whenever a program is started anew, so after a power cut too.
pub(super) fn configure(what: &Configure) -> Result<(), Trouble> {
    let Configure {
        paths,
        name,
        uid,
        node,
        secrets,
        version,
        labels,
    } = what;
    let failed = |error: FileError| Trouble::file(Step::Configure, &error);
    let generation = version.generation;
    paths.make_home(&version.run_as).map_err(failed)?;
    write_labels(paths, labels, &version.run_as).map_err(failed)?;

    let links = paths.generation(generation);
    files::make_dir(&links, Access::mode(0o755)).map_err(failed)?;
    for (launchable, installed) in &version.installs {
        let install = launch::install_name(installed);
        files::link(&paths.install(&install), &installed.path).map_err(failed)?;
        let target = Path::new("../../installs").join(install);
        files::link(&links.join(launchable), &target).map_err(failed)?;
    }

    let gid = rustix::process::geteuid()
        .is_root()
        .then_some(version.run_as.gid);
    let (directory, file) = (
        Access {
            mode: 0o750,
            uid: None,
            gid,
        },
        Access {
            mode: 0o640,
            uid: None,
            gid,
        },
    );
    let configuration = launch::configuration(version)
        .map_err(|message| Trouble::lasting(Step::Configure, "ConfigInvalid", message))?;
    let given = secrets.give(name, generation, &version.spec.secrets, &version.run_as);
    given.map_err(|error| Trouble::passing(Step::Configure, error.reason(), error.to_string()))?;
    let config = paths.config(generation);
    files::make_dir(&config, directory).map_err(failed)?;
    for (name, text) in [
        ("config.yaml", &configuration.config),
        ("platform.yaml", &configuration.platform),
        ("resource_limits.yaml", &configuration.resource_limits),
    ] {
        files::write(&config.join(name), text.as_bytes(), file, false).map_err(failed)?;
    }

    let env = paths.env(generation);
    files::make_dir(&env, directory).map_err(failed)?;
    for program in version.programs.keys() {
        let dir = env.join(PodPaths::log_name(program));
        files::make_dir(&dir, directory).map_err(failed)?;
        let surroundings = Surroundings {
            node,
            pod: name,
            uid,
            paths,
        };
        for (variable, value) in launch::environment(version, program, surroundings) {
            files::write(&dir.join(variable), value.as_bytes(), file, false).map_err(failed)?;
        }
    }
    Ok(())
}

/// The same for the version that is current. Its link is made again, too.
pub(super) fn configure_current(what: &Configure) -> Result<(), Trouble> {
    configure(what)?;
    make_current(&what.paths, what.version.generation)
        .map_err(|error| Trouble::file(Step::Start, &error))
}

/// Makes `current` name a generation.
pub(super) fn make_current(paths: &PodPaths, generation: u64) -> Result<(), FileError> {
    let target = Path::new("generations").join(generation.to_string());
    files::link(&paths.current(), &target)
}

/// Writes the labels as `name="value"` lines, which a shell can read.
pub(super) fn write_labels(
    paths: &PodPaths,
    labels: &BTreeMap<String, String>,
    run_as: &RunAs,
) -> Result<(), FileError> {
    // Label values hold letters, digits, `.`, `_`, `-` and nothing to escape.
    let text: String = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\"\n"))
        .collect();
    let gid = rustix::process::geteuid().is_root().then_some(run_as.gid);
    files::write(
        &paths.labels(),
        text.as_bytes(),
        Access {
            mode: 0o640,
            uid: None,
            gid,
        },
        false,
    )
}

/// Removes the files of generations other than those of `keep` and `running`, and links to
/// installs that none of them uses.
pub(super) fn prune(
    paths: &PodPaths,
    trash: &Path,
    keep: &[&Version],
    running: &BTreeSet<u64>,
) -> Result<(), FileError> {
    let generations: BTreeSet<_> = keep
        .iter()
        .map(|version| version.generation)
        .chain(running.iter().copied())
        .map(|generation| generation.to_string())
        .collect();
    Secrets::take_back(paths, |generation| generations.contains(generation))?;
    for parent in ["env", "config", "generations"] {
        let parent = paths.home().join(parent);
        for name in files::subdirectories(&parent)? {
            if !generations.contains(&name) {
                files::remove_tree(&parent.join(name), trash)?;
            }
        }
    }
    let mut installs: BTreeSet<_> = keep
        .iter()
        .flat_map(|it| it.installs.values())
        .map(launch::install_name)
        .collect();
    // What a process runs that no update stopped.
    for generation in running {
        let links = paths.generation(*generation);
        for link in entries(&links)? {
            let target = std::fs::read_link(link.path()).unwrap_or_default();
            let name = target.file_name().and_then(|name| name.to_str());
            installs.extend(name.map(str::to_owned));
        }
    }
    let parent = paths.home().join("installs");
    for entry in entries(&parent)? {
        if entry
            .file_name()
            .to_str()
            .is_none_or(|name| !installs.contains(name))
        {
            files::remove_tree(&entry.path(), trash)?;
        }
    }
    Ok(())
}

/// What is in a directory; nothing when there is none.
fn entries(path: &Path) -> Result<Vec<std::fs::DirEntry>, FileError> {
    match std::fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(FileError::new("read", path, error)),
    }
}
