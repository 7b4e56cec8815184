//! The environment of a program, built from nothing.

use std::path::Path;

use platctrl_framework::model::Uid;

use crate::layout::PodPaths;
use crate::name::PodName;
use crate::secrets::Secrets;
use crate::version::Version;

/// Where programs are looked up.
pub(crate) const FIXED_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program is told about where it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    /// The node.
    pub(crate) node: &'a str,
    /// The pod.
    pub(crate) pod: &'a PodName,
    /// Which pod of that name.
    pub(crate) uid: &'a Uid,
    /// The pod's directories.
    pub(crate) paths: &'a PodPaths,
}

/// The whole environment of a program of `version`: what every program gets, then the manifest's
/// `env`, which may replace any of it. Nothing is inherited from the agent. Empty for a program
/// that the version does not have.
#[must_use]
pub(crate) fn environment(
    version: &Version,
    program: &str,
    surroundings: Surroundings<'_>,
) -> Vec<(String, String)> {
    let Some(known) = version.programs.get(program) else {
        return Vec::new();
    };
    let stop_timeout = version.stop_timeout(program, None);
    started(
        version,
        &known.launchable,
        &known.entry,
        stop_timeout,
        surroundings,
    )
}

/// The whole environment of a script of a launchable, `bin/enable` say: that of its programs.
#[must_use]
pub(crate) fn script_environment(
    version: &Version,
    launchable: &str,
    script: &str,
    surroundings: Surroundings<'_>,
) -> Vec<(String, String)> {
    let mut programs = version.programs.iter();
    let first = programs.find(|(_, program)| program.launchable == launchable);
    let stop_timeout = first.map_or(Version::LONGEST_STOP, |(name, _)| {
        version.stop_timeout(name, None)
    });
    started(version, launchable, script, stop_timeout, surroundings)
}

fn started(
    version: &Version,
    launchable: &str,
    entry: &str,
    stop_timeout: std::time::Duration,
    surroundings: Surroundings<'_>,
) -> Vec<(String, String)> {
    let Surroundings {
        node,
        pod,
        uid,
        paths,
    } = surroundings;
    let config = paths.config(version.generation);
    let text = |path: &Path| path.display().to_string();
    let installed = version.installs.get(launchable);
    let root = installed
        .map(|installed| paths.install(&install_name(installed)))
        .unwrap_or_default();
    let app = version.spec.app.as_deref().unwrap_or(pod.name());
    let mut env: Vec<(String, String)> = vec![
        ("PATH".into(), FIXED_PATH.into()),
        ("HOME".into(), text(&paths.data())),
        ("USER".into(), version.run_as.name.clone()),
        ("CONFIG_PATH".into(), text(&config.join("config.yaml"))),
        (
            "PLATFORM_CONFIG_PATH".into(),
            text(&config.join("platform.yaml")),
        ),
        (
            "RESOURCE_LIMIT_PATH".into(),
            text(&config.join("resource_limits.yaml")),
        ),
        ("POD_HOME".into(), text(paths.home())),
        ("POD_ID".into(), app.to_owned()),
        ("POD_UNIQUE_KEY".into(), uid.to_string()),
        ("POD_NAME".into(), pod.name().to_owned()),
        ("POD_NAMESPACE".into(), pod.namespace().to_owned()),
        ("POD_LABELS_PATH".into(), text(&paths.labels())),
        ("NODE_NAME".into(), node.to_owned()),
        ("LAUNCHABLE_ID".into(), launchable.to_owned()),
        ("LAUNCHABLE_ROOT".into(), text(&root)),
        ("ENTRY_POINT".into(), entry.to_owned()),
        ("RESTART_TIMEOUT".into(), stop_timeout.as_secs().to_string()),
    ];
    for (name, number) in &version.ports {
        env.push((port_variable(name), number.to_string()));
    }
    for name in version.spec.secrets.keys() {
        let path = Secrets::path(paths, version.generation, name);
        env.push((format!("SECRET_{name}"), text(&path)));
    }
    let own = version.spec.launchables.get(launchable);
    for (name, value) in own.into_iter().flat_map(|launchable| &launchable.env) {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    env
}

/// `PORT_HTTP` for `http`; what no variable's name may hold becomes `_`.
fn port_variable(name: &str) -> String {
    let upper = name.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    });
    std::iter::once("PORT_")
        .flat_map(str::chars)
        .chain(upper)
        .collect()
}

/// The name of an install's directory.
pub(crate) fn install_name(installed: &crate::version::Installed) -> String {
    format!("sha256-{}", installed.digest.hex())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use platctrl_framework::model::Digest;
    use serde_json::json;

    use super::*;
    use crate::layout::Layout;
    use crate::version::{Installed, Program, RunAs};

    pub(crate) fn version() -> Version {
        let spec = json!({
            "launchables": {"web": {
                "location": "file:/a.tar.gz",
                "env": {"GREETING": "hi", "USER": "other"},
                "stopTimeout": "7s",
                "resources": {"cpu": "500m", "memory": "256Mi"},
            }},
            "config": {"greeting": "hi"},
            "ports": {"http": {}, "admin-api": {}},
        });
        Version {
            adjusted: None,
            generation: 3,
            digest: Digest::of("spec"),
            spec: serde_json::from_value(spec).unwrap(),
            run_as: RunAs {
                name: "pc-hello".into(),
                uid: 1,
                gid: 1,
                groups: Vec::new(),
            },
            ports: BTreeMap::from([("http".into(), 31234), ("admin-api".into(), 31235)]),
            installs: BTreeMap::from([(
                "web".into(),
                Installed {
                    digest: Digest::of("artifact"),
                    path: "/x".into(),
                },
            )]),
            programs: BTreeMap::from([(
                "web/a".into(),
                Program {
                    launchable: "web".into(),
                    entry: "bin/launch/a".into(),
                },
            )]),
            scripts: BTreeMap::new(),
        }
    }

    #[test]
    fn a_program_gets_exactly_what_is_documented_and_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodName::new("default", "hello-x2").unwrap();
        let paths = Layout::open(dir.path()).unwrap().pod(&pod);
        let uid = Uid::from("u1");
        let surroundings = Surroundings {
            node: "web1",
            pod: &pod,
            uid: &uid,
            paths: &paths,
        };
        let env: BTreeMap<_, _> = environment(&version(), "web/a", surroundings)
            .into_iter()
            .collect();
        let names: BTreeSet<_> = env.keys().map(String::as_str).collect();
        let expected = BTreeSet::from([
            "PATH",
            "HOME",
            "USER",
            "CONFIG_PATH",
            "PLATFORM_CONFIG_PATH",
            "RESOURCE_LIMIT_PATH",
            "POD_HOME",
            "POD_ID",
            "POD_UNIQUE_KEY",
            "LAUNCHABLE_ID",
            "LAUNCHABLE_ROOT",
            "RESTART_TIMEOUT",
            "ENTRY_POINT",
            "PORT_HTTP",
            "PORT_ADMIN_API",
            "NODE_NAME",
            "POD_NAME",
            "POD_NAMESPACE",
            "POD_LABELS_PATH",
            "GREETING",
        ]);
        assert_eq!(names, expected);
        assert_eq!(env["PORT_HTTP"], "31234");
        assert_eq!(env["RESTART_TIMEOUT"], "7");
        assert_eq!(env["ENTRY_POINT"], "bin/launch/a");
        assert_eq!(env["USER"], "other", "the manifest has the last word");
        assert!(environment(&version(), "nobody", surroundings).is_empty());
        let script = script_environment(&version(), "web", "bin/enable", surroundings);
        let script: BTreeMap<_, _> = script.into_iter().collect();
        assert_eq!(script["ENTRY_POINT"], "bin/enable");
        assert_eq!(script["GREETING"], "hi");
        assert_eq!(
            script.keys().collect::<Vec<_>>(),
            env.keys().collect::<Vec<_>>()
        );
    }
}
