//! A node's own rules of what may run on it, in a file of those who look after the machine.
//!
//! The API lets nobody deploy what is not theirs, but whoever can write to the store itself is not
//! asked there. An agent with such a file asks again, of what would really run, before it fetches
//! anything: app, namespace, name, user, artifacts and their digests, secrets. One rule has to allow
//! all of it. The file is read each time, so that a change counts at once; a file that is missing,
//! not ours alone or not understood allows nothing.
//!
//! ```yaml
//! rules:
//!   - namespaces: [team-a]
//!     apps: ["hello", "hello-*"]
//!     locations: ["https://artifacts.example/hello/*"]
//!   - namespaces: [infra]
//!     apps: ["*"]
//!     locations: ["*"]
//!     runAs: [metrics]
//! ```

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use platctrl_framework::model::Digest;
use platctrl_kinds::{fits_any, fits_location};
use serde::Deserialize;

use crate::authority::{Authority, Denied, Deployment};
use crate::files;

/// Bytes that such a file may have.
const MAX_BYTES: u64 = 1024 * 1024;

/// The rules in a file.
#[derive(Clone, Debug)]
pub struct DeployRules {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<Rule>,
}

/// What may run, in the words of a deployer's role.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    /// In which namespaces, in which `*` stands for anything, as in all of these.
    namespaces: Vec<String>,
    /// Which apps.
    apps: Vec<String>,
    /// How pods may be called; in any way unless said.
    #[serde(default)]
    names: Vec<String>,
    /// Which users pods may name; none unless said, for the app's own needs no mention.
    #[serde(default)]
    run_as: Vec<String>,
    /// Where artifacts may come from; the server unless said.
    #[serde(default)]
    locations: Vec<String>,
    /// The digests that artifacts may have; any unless said.
    #[serde(default)]
    digests: Vec<Digest>,
    /// Which of the node's secrets pods may have; none unless said.
    #[serde(default)]
    secrets: Vec<String>,
}

impl DeployRules {
    /// The rules in this file, which need not be there yet.
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn read(&self) -> Result<Vec<Rule>, String> {
        let path = &self.path;
        let file = files::open(path, MAX_BYTES).map_err(|error| error.to_string())?;
        let file = file.ok_or_else(|| format!("{} is not there", path.display()))?;
        is_ours(path, &file.metadata)?;
        let bytes = file.read().map_err(|error| error.to_string())?;
        let invalid = |why: String| format!("{} cannot be understood: {why}", path.display());
        let text = std::str::from_utf8(&bytes).map_err(|error| invalid(error.to_string()))?;
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| invalid(error.without_snippet().to_string()))?;
        Ok(file.rules)
    }
}

/// Whoever can write the file can allow anything.
fn is_ours(path: &Path, there: &Metadata) -> Result<(), String> {
    let owner = rustix::process::geteuid().as_raw();
    let theirs = there.uid() == owner || there.uid() == 0;
    if !theirs || there.mode() & 0o022 != 0 {
        return Err(format!(
            "{} can be written by others than user {owner}: chown and chmod go-w it",
            path.display()
        ));
    }
    Ok(())
}

impl Authority for DeployRules {
    fn check(&self, deployment: &Deployment<'_>) -> Result<(), Denied> {
        let rules = self
            .read()
            .map_err(|why| Denied(format!("nothing may by the rules of this node: {why}")))?;
        let namespace = deployment.pod.namespace();
        let for_app = rules.iter().filter(|rule| {
            fits_any(&rule.namespaces, namespace) && fits_any(&rule.apps, deployment.app)
        });
        let problem = for_app.map(|rule| rule.beyond(deployment));
        let problems: Vec<_> = problem.collect();
        if problems.iter().any(Option::is_none) {
            return Ok(());
        }
        let why = problems.into_iter().flatten().next().unwrap_or_else(|| {
            format!(
                "none is for the app `{}` in namespace {namespace}",
                deployment.app
            )
        });
        Err(Denied(format!(
            "by the rules in {} {why}",
            self.path.display()
        )))
    }
}

impl Rule {
    /// The first thing that the rule does not allow.
    fn beyond(&self, deployment: &Deployment<'_>) -> Option<String> {
        let name = deployment.pod.name();
        if !self.names.is_empty() && !fits_any(&self.names, name) {
            return Some(format!("no pod of that app is called `{name}`"));
        }
        if let Some(user) = deployment.run_as
            && !fits_any(&self.run_as, user)
        {
            return Some(format!("that app may not run as the user `{user}`"));
        }
        for (location, digest) in &deployment.artifacts {
            if !fits_location(&self.locations, location) {
                return Some(format!("that app has no artifact at {location}"));
            }
            let listed = digest.is_some_and(|digest| self.digests.contains(&digest));
            if !self.digests.is_empty() && !listed {
                return Some(format!(
                    "the artifact at {location} is not one that is listed"
                ));
            }
        }
        let secret = deployment
            .secrets
            .iter()
            .find(|secret| !fits_any(&self.secrets, secret))?;
        Some(format!("that app may not have the secret file `{secret}`"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::name::PodName;

    const DIGEST: &str = "sha256:9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c";
    const THERE: &str = "https://artifacts.example/hello/1.tar.gz";

    struct Node {
        dir: tempfile::TempDir,
        rules: DeployRules,
    }

    impl Node {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("rules.yaml");
            let node = Self {
                rules: DeployRules::in_file(&path),
                dir,
            };
            node.write(text);
            node
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("rules.yaml")
        }

        fn write(&self, text: &str) {
            fs::write(self.path(), text).unwrap();
            fs::set_permissions(self.path(), fs::Permissions::from_mode(0o644)).unwrap();
        }

        /// Why something may not run; None if it may.
        fn denies(&self, change: impl FnOnce(&mut Deployment<'_>)) -> Option<String> {
            self.denies_pod("team-a", "hello-x", change)
        }

        fn denies_pod(
            &self,
            namespace: &str,
            name: &str,
            change: impl FnOnce(&mut Deployment<'_>),
        ) -> Option<String> {
            let pod = PodName::new(namespace, name).unwrap();
            let mut deployment = Deployment {
                pod: &pod,
                app: "hello",
                run_as: None,
                artifacts: vec![(THERE, Some(DIGEST.parse().unwrap()))],
                secrets: Vec::new(),
            };
            change(&mut deployment);
            self.rules.check(&deployment).err().map(|denied| denied.0)
        }
    }

    const RULES: &str = "
rules:
  - namespaces: [team-a]
    apps: [hello, hello-*]
    locations: ['https://artifacts.example/hello/*']
";

    #[test]
    fn what_a_rule_allows_may_run_and_nothing_else() {
        let node = Node::new(RULES);
        assert_eq!(node.denies(|_| {}), None);
        let denied = node.denies_pod("bank", "hello-x", |_| {}).unwrap();
        assert!(denied.contains("namespace bank"), "{denied}");
        for (change, part) in [
            (
                Box::new(|it: &mut Deployment<'_>| it.app = "bank")
                    as Box<dyn Fn(&mut Deployment<'_>)>,
                "the app `bank`",
            ),
            (Box::new(|it| it.run_as = Some("root")), "the user `root`"),
            (
                Box::new(|it| it.artifacts[0].0 = "https://artifacts.example/hello/../bank.tar.gz"),
                "no artifact at",
            ),
            (
                Box::new(|it| it.artifacts.push(("artifact:sha256:ab", None))),
                "artifact:sha256:ab",
            ),
            (Box::new(|it| it.secrets.push("db")), "secret file `db`"),
        ] {
            let denied = node.denies(&*change).unwrap();
            assert!(denied.contains(part), "{denied}");
        }
    }

    #[test]
    fn a_rule_can_name_users_names_digests_and_secrets() {
        let more =
            "    runAs: [web]\n    names: [hello-*]\n    secrets: [hello-*]\n    digests: ['";
        let node = Node::new(&format!("{RULES}{more}{DIGEST}']\n"));
        let allowed = |it: &mut Deployment<'_>| {
            it.run_as = Some("web");
            it.secrets.push("hello-db");
        };
        assert_eq!(node.denies(allowed), None);
        let other: Digest = DIGEST.replace("9f", "00").parse().unwrap();
        for digest in [Some(other), None] {
            let denied = node.denies(|it| it.artifacts[0].1 = digest).unwrap();
            assert!(denied.contains("not one that is listed"), "{denied}");
        }
        assert!(node.denies_pod("team-a", "other", |_| {}).is_some());
    }

    #[test]
    fn halves_of_two_rules_do_not_add_up() {
        let other = "  - {namespaces: ['*'], apps: [bank], runAs: [bank], locations: ['*']}\n";
        let node = Node::new(&format!("{RULES}{other}"));
        assert!(node.denies(|it| it.run_as = Some("bank")).is_some());
        assert_eq!(node.denies(|it| it.app = "bank"), None);
    }

    #[test]
    fn a_file_that_is_missing_open_to_others_or_not_understood_allows_nothing() {
        let node = Node::new(RULES);
        fs::set_permissions(node.path(), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(node.denies(|_| {}).unwrap().contains("written by others"));
        for text in [
            "",
            "rules",
            "rules: [{apps: ['*']}]",
            "rules: []\nrulez: []",
            "\u{0}",
        ] {
            node.write(text);
            assert!(node.denies(|_| {}).is_some(), "{text:?}");
        }
        // A change counts at once.
        node.write(RULES);
        assert_eq!(node.denies(|_| {}), None);
        let real = node.dir.path().join("real.yaml");
        fs::rename(node.path(), &real).unwrap();
        assert!(node.denies(|_| {}).unwrap().contains("not there"));
        std::os::unix::fs::symlink(&real, node.path()).unwrap();
        assert!(node.denies(|_| {}).is_some(), "a link may lead anywhere");
    }

    #[test]
    fn what_is_not_a_small_file_allows_nothing() {
        let node = Node::new(RULES);
        fs::remove_file(node.path()).unwrap();
        fs::create_dir(node.path()).unwrap();
        assert!(node.denies(|_| {}).unwrap().contains("no regular file"));
        fs::remove_dir(node.path()).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, node.path(), pipe, mode, 0).unwrap();
        assert!(node.denies(|_| {}).unwrap().contains("no regular file"));
        fs::remove_file(node.path()).unwrap();
        let large = usize::try_from(MAX_BYTES).unwrap();
        node.write(&format!("{RULES}#{}", "x".repeat(large)));
        assert!(node.denies(|_| {}).unwrap().contains("no regular file"));
    }

    #[test]
    fn a_file_that_is_swapped_while_it_is_looked_at_is_not_believed() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let node = Node::new("rules: []");
        let other = node.dir.path().join("other.yaml");
        fs::write(&other, RULES).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o666)).unwrap();
        let (swaps, done) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut allowed = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let flags = RenameFlags::EXCHANGE;
                    renameat_with(CWD, node.path(), CWD, &other, flags).unwrap();
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut looks = 0;
            while looks < 2000 || swaps.load(Ordering::Relaxed) < 2000 {
                allowed += u32::from(node.denies(|_| {}).is_none());
                looks += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(allowed, 0);
    }
}
