//! Which store: its URL, how it is reached, and the backend behind it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_framework::store::StoreError;
use platctrl_store_consul::{self as consul, ConsulStore};
use platctrl_store_embedded::EmbeddedStore;
use platctrl_store_etcd::{self as etcd, EtcdStore};

use crate::error::{Code, Failure, Result};
use crate::output;

/// Where a root is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    /// A directory of this machine.
    Embedded(PathBuf),
    /// An etcd cluster.
    Etcd(etcd::Location),
    /// A root in Consul.
    Consul(consul::Address),
}

/// The store that a process works on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StoreFlags {
    /// The store: etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
    #[arg(long, env = "PLATCTRL_STORE", value_name = "URL")]
    store: String,
    #[command(flatten)]
    access: StoreAccess,
}

impl StoreFlags {
    pub(crate) fn url(&self) -> Result<StoreUrl> {
        StoreUrl::parse(&self.store)
    }

    /// Whether or not it can be reached now.
    pub(crate) fn open_later(&self, environment: &Environment) -> Result<Arc<dyn Store>> {
        self.url()?.open_later(&self.access, environment)
    }

    pub(crate) async fn open(&self, environment: &Environment) -> Result<Arc<dyn Store>> {
        self.url()?.open(&self.access, environment, false).await
    }
}

/// How a store is reached that is not on this machine.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Reaching the store")]
pub(crate) struct StoreAccess {
    /// The certificates that the store's are signed with; without it the connection is plain
    #[arg(long, global = true, env = "PLATCTRL_STORE_CA", value_name = "FILE")]
    store_ca: Option<PathBuf>,
    /// The certificate that is shown to the store
    #[arg(
        long,
        env = "PLATCTRL_STORE_CERT",
        value_name = "FILE",
        requires = "store_key"
    )]
    store_cert: Option<PathBuf>,
    /// Its key
    #[arg(
        long,
        env = "PLATCTRL_STORE_KEY",
        value_name = "FILE",
        requires = "store_cert"
    )]
    store_key: Option<PathBuf>,
    /// The name that the store's certificates are for, when it is not the host's
    #[arg(
        long,
        env = "PLATCTRL_STORE_SERVER_NAME",
        value_name = "NAME",
        requires = "store_ca"
    )]
    store_server_name: Option<String>,
    /// A user of the store (etcd)
    #[arg(
        long,
        env = "PLATCTRL_STORE_USER",
        value_name = "NAME",
        requires = "store_password_file"
    )]
    store_user: Option<String>,
    /// The file with its password
    #[arg(
        long,
        env = "PLATCTRL_STORE_PASSWORD_FILE",
        value_name = "FILE",
        requires = "store_user"
    )]
    store_password_file: Option<PathBuf>,
    /// The file with the token that is shown to the store (Consul)
    #[arg(
        long,
        global = true,
        env = "PLATCTRL_STORE_TOKEN_FILE",
        value_name = "FILE"
    )]
    store_token_file: Option<PathBuf>,
    /// The datacenter, when it is not that of the agent that is asked (Consul)
    #[arg(
        long,
        global = true,
        env = "PLATCTRL_STORE_DATACENTER",
        value_name = "NAME"
    )]
    store_datacenter: Option<String>,
}

impl StoreAccess {
    fn etcd(&self) -> Result<etcd::Options> {
        let mut options = etcd::Options::default();
        options.tls = self.store_ca.as_ref().map(|ca| {
            let mut tls = etcd::Tls::new(ca);
            if let (Some(certificate), Some(key)) = (&self.store_cert, &self.store_key) {
                tls = tls.with_client_certificate(certificate, key);
            }
            match &self.store_server_name {
                Some(name) => tls.with_server_name(name),
                None => tls,
            }
        });
        if let (Some(user), Some(file)) = (&self.store_user, &self.store_password_file) {
            let password = std::fs::read_to_string(file).map_err(|error| {
                Failure::failed(format!("cannot read {}: {error}", file.display()))
            })?;
            let password = password.trim_end_matches(['\r', '\n']);
            options.credentials = Some(etcd::Credentials::new(user, password));
        }
        Ok(options)
    }
}

impl StoreAccess {
    /// The backend itself, for what only etcd has.
    pub(crate) async fn etcd_store(&self, location: &etcd::Location) -> Result<EtcdStore> {
        let store = EtcdStore::connect(location.clone(), self.etcd()?).await;
        store.map_err(|error| etcd_failure(&error))
    }

    /// The backend itself, for what only Consul has.
    pub(crate) async fn consul_store(
        &self,
        address: &consul::Address,
        environment: &Environment,
    ) -> Result<ConsulStore> {
        let opened = ConsulStore::open(address, self.consul(), environment.clone());
        opened.await.map_err(|error| consul_failure(&error))
    }

    fn consul(&self) -> consul::Options {
        let mut options = consul::Options::default();
        options.token_file.clone_from(&self.store_token_file);
        options.datacenter.clone_from(&self.store_datacenter);
        options.tls = self.store_ca.as_ref().map(|ca| {
            let mut tls = consul::TlsOptions::with_ca(ca);
            tls.client = self.store_cert.clone().zip(self.store_key.clone());
            tls.server_name.clone_from(&self.store_server_name);
            tls
        });
        options
    }
}

impl StoreUrl {
    /// Reads `embedded:DIR`, `etcd://HOST:PORT,…/ROOT` or `consul://HOST:PORT/ROOT`.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let hint = "write embedded:DIR, as embedded:/var/lib/platctrl/store, etcd://HOST:PORT,…/ROOT, or consul://HOST:PORT/ROOT";
        match url.split_once(':') {
            Some(("embedded", dir)) if !dir.is_empty() => std::path::absolute(Path::new(dir))
                .map(Self::Embedded)
                .map_err(|error| Failure::failed(format!("cannot use {dir}: {error}"))),
            Some(("etcd", _)) => url
                .parse()
                .map(Self::Etcd)
                .map_err(|error| Failure::usage(output::plain(&format!("{error}")))),
            Some(("consul", _)) => {
                url.parse()
                    .map(Self::Consul)
                    .map_err(|error: consul::InvalidAddress| {
                        Failure::usage(output::plain(&format!("{error}")))
                    })
            }
            _ => Err(Failure::usage(format!("`{}` is no store", output::plain(url))).hint(hint)),
        }
    }

    /// The directory, for what only a store in a directory can do.
    pub(crate) fn directory(&self) -> Result<&Path> {
        match self {
            Self::Embedded(dir) => Ok(dir),
            Self::Etcd(_) | Self::Consul(_) => Err(Failure::usage(format!(
                "{self} is saved, checked and restored by its own tools"
            ))
            .hint("etcdctl and etcdutl, or `consul snapshot`; then say so with `platctrl store restored`")),
        }
    }

    /// Opens the backend itself, without taking it for any particular root, and waits until it
    /// answers. An embedded store that is not there is made only when `create` says so.
    pub(crate) async fn open(
        &self,
        access: &StoreAccess,
        environment: &Environment,
        create: bool,
    ) -> Result<Arc<dyn Store>> {
        match self {
            Self::Embedded(dir) => {
                if !create && !dir.exists() {
                    let message = format!("there is no store in {}", dir.display());
                    return Err(Failure::failed(message).hint(
                        "name the directory of a store, as embedded:/var/lib/platctrl/store",
                    ));
                }
                let (path, clock) = (dir.clone(), environment.clone());
                let opened =
                    tokio::task::spawn_blocking(move || EmbeddedStore::open(path, clock)).await;
                let store = opened.map_err(Failure::failed)?.map_err(Failure::failed)?;
                Ok(Arc::new(store))
            }
            Self::Etcd(location) => Ok(Arc::new(access.etcd_store(location).await?)),
            Self::Consul(address) => Ok(Arc::new(access.consul_store(address, environment).await?)),
        }
    }

    /// Opens a store that many processes use, whether or not it can be reached now.
    pub(crate) fn open_later(
        &self,
        access: &StoreAccess,
        environment: &Environment,
    ) -> Result<Arc<dyn Store>> {
        match self {
            Self::Embedded(_) => Err(Failure::new(
                Code::Unreachable,
                format!("{self} can only be opened while it answers"),
            )),
            Self::Etcd(location) => {
                let store = EtcdStore::open(location.clone(), access.etcd()?);
                Ok(Arc::new(store.map_err(|error| etcd_failure(&error))?))
            }
            Self::Consul(address) => {
                let environment = environment.clone();
                let store = ConsulStore::open_later(address, access.consul(), environment);
                Ok(Arc::new(store.map_err(|error| consul_failure(&error))?))
            }
        }
    }
}

fn consul_failure(error: &consul::OpenError) -> Failure {
    let code = match error.store_error() {
        Some(StoreError::Denied { .. }) => Code::Denied,
        Some(StoreError::Unavailable { .. } | StoreError::Unknown { .. }) => Code::Unreachable,
        _ => Code::Failed,
    };
    Failure::new(code, output::plain(&error.to_string()))
}

fn etcd_failure(error: &etcd::ConnectError) -> Failure {
    let code = match error {
        etcd::ConnectError::Denied { .. } => Code::Denied,
        etcd::ConnectError::Unavailable { .. } => Code::Unreachable,
        _ => Code::Failed,
    };
    Failure::new(code, output::plain(&error.to_string()))
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(dir) => write!(f, "embedded:{}", dir.display()),
            Self::Etcd(location) => location.fmt(f),
            Self::Consul(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_directory_or_a_cluster() {
        let url = StoreUrl::parse("embedded:/a").unwrap();
        assert_eq!(url, StoreUrl::Embedded(PathBuf::from("/a")));
        assert_eq!(url.to_string(), "embedded:/a");
        let url = StoreUrl::parse("etcd://a,b:1/root").unwrap();
        assert_eq!(url.to_string(), "etcd://a:2379,b:1/root");
        assert_eq!(url.directory().unwrap_err().code, Code::Usage);
        for url in ["/a", "embedded:", "etcd://h:2379", "zookeeper://h/root", ""] {
            assert_eq!(StoreUrl::parse(url).unwrap_err().code, Code::Usage, "{url}");
        }
    }
}
