//! Rights in the store, made by `store policy`: each program's credential reads and writes what
//! it needs, and every other access is denied. Real servers, real programs.

mod made;
mod matrix;
mod programs;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Key, Store};
use platctrl_store_consul::{ConsulStore, Options as ConsulOptions};
use platctrl_store_etcd::{Credentials, EtcdStore, Options as EtcdOptions};

use crate::fleet;
use crate::rig::Rig;
use crate::servers::Server;

const ROLES: [&[&str]; 3] = [
    &["--role", "agent", "--node", "web1"],
    &["--role", "controllers"],
    &["--role", "server"],
];

/// A store with access control, and the means to work with it.
pub(crate) struct Place {
    pub(crate) rig: Rig,
    pub(crate) server: Server,
    pub(crate) url: String,
    pub(crate) consul: bool,
}

impl Place {
    pub(crate) fn etcd(release: &str) -> Self {
        let (rig, server) = (Rig::new(), Server::etcd(release));
        let url = format!("etcd://{}/{}", server.at, rig.app);
        Self {
            rig,
            server,
            url,
            consul: false,
        }
    }

    pub(crate) fn consul() -> Self {
        let (rig, server) = (Rig::new(), Server::consul());
        let url = format!("consul://{}/{}", server.at, rig.app);
        Self {
            rig,
            server,
            url,
            consul: true,
        }
    }

    /// Flags that show a credential.
    fn flags(&self, user: &str, file: &Path) -> Vec<String> {
        let file = file.to_str().unwrap().to_owned();
        match self.consul {
            true => vec!["--store-token-file".to_owned(), file],
            false => vec![
                "--store-user".to_owned(),
                user.to_owned(),
                "--store-password-file".to_owned(),
                file,
            ],
        }
    }

    /// `platctrl store`, with every right.
    pub(crate) fn store(&self, arguments: &[&str]) -> crate::rig::Said {
        let flags = self.flags("root", &self.server.hush());
        let mut all = vec!["store"];
        all.extend(flags.iter().map(String::as_str));
        all.extend(arguments);
        self.rig.cli(&all)
    }

    fn policy(&self, arguments: &[&str]) -> crate::rig::Said {
        self.store(&[&["policy", &self.url][..], arguments].concat())
    }

    /// Makes a role's credential: its user, and the file with its secret.
    fn credential(&self, role: &[&str], name: &str) -> (String, PathBuf) {
        let file = self.rig.path(name);
        let more = [
            "--apply",
            "--credential",
            file.to_str().unwrap(),
            "-o",
            "json",
        ];
        let said = self.policy(&[role, &more].concat()).ok();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(said.get("credential").is_none(), "{said}");
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let user = said["user"].as_str().unwrap_or_default().to_owned();
        (user, file)
    }

    /// The store below a root, with a credential.
    async fn open(&self, root: &str, user: &str, file: &Path) -> Arc<dyn Store> {
        if self.consul {
            let mut options = ConsulOptions::default();
            options.token_file = Some(file.to_owned());
            let address = format!("consul://{}/{root}", self.server.at)
                .parse()
                .unwrap();
            let opened = ConsulStore::open(&address, options, Environment::system()).await;
            return Arc::new(opened.unwrap());
        }
        let mut options = EtcdOptions::default();
        let password = fs::read_to_string(file).unwrap();
        options.credentials = Some(Credentials::new(user, password.trim_end()));
        let location = format!("etcd://{}/{root}", self.server.at).parse().unwrap();
        Arc::new(EtcdStore::connect(location, options).await.unwrap())
    }

    async fn open_all(&self, root: &str) -> Arc<dyn Store> {
        self.open(root, "root", &self.server.hush()).await
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

impl Place {
    /// Starts one of platctrl's programs with a credential of its own.
    pub(crate) fn start(
        &self,
        role: &str,
        credential: &(String, PathBuf),
        more: &[&str],
    ) -> fleet::Process {
        let flags = self.flags(&credential.0, &credential.1);
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend(more);
        fleet::start(&self.rig, &self.url, role, &args)
    }
}
