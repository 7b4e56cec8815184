//! Listening on the network: the port, the authority, and the first token.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use tokio::net::TcpListener;

use crate::access::{Role, TokenError, Tokens};
use crate::error::{Failure, Result};
use crate::server::Network;
use crate::tls::{self, Authority, ServerIdentity};
use crate::{output, place};

/// The name of the token that a server makes for whoever runs it.
const FIRST: &str = "admin";

/// Whether and how the API is served over the network.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListenFlags {
    /// Also serve the API over TLS here, as 127.0.0.1:7654
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The directory of ca.crt and ca.key, or of ca.crt, server.crt and server.key [default: tls in the data directory]
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// A name or address that clients reach this server under; may be repeated
    #[arg(long, value_name = "NAME", requires = "listen")]
    tls_name: Vec<String>,
    /// Requests a second of one caller over the network, who may ask twice as many at once
    #[arg(long, value_name = "N", default_value_t = 200, requires = "listen", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_rate: u32,
}

/// Who makes an authority where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// This process: it is the only server of its store.
    Make,
    /// A person, once for all servers of the store.
    Refuse,
}

/// What has to go when the server stops.
#[derive(Debug)]
pub(crate) struct Listening {
    address: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.address);
    }
}

impl ListenFlags {
    /// Opens the port, if one is asked for, after everything else that can fail.
    pub(crate) async fn open(
        &self,
        data_dir: &Path,
        store: &Arc<dyn Store>,
        environment: &Environment,
        missing: Missing,
    ) -> Result<Option<(Network, Listening)>> {
        let Some(address) = self.listen else {
            return Ok(None);
        };
        let own = data_dir.join(place::TLS);
        let dir = self.tls_dir.as_deref().unwrap_or(&own);
        if missing == Missing::Make && !dir.join(tls::CA).exists() {
            Authority::make(dir).map_err(Failure::failed)?;
        }
        let identity = ServerIdentity::new(
            dir,
            tls::names(address.ip(), crate::up::host_name().ok(), &self.tls_name),
        );
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::failed(format!("cannot listen on {address}: {error}"))
                .hint("choose another with --listen, or stop who listens there")
        })?;
        let bound = listener.local_addr().map_err(Failure::failed)?;
        let network = Network::new(listener, identity).map_err(|error| {
            let hint = match error.is_missing {
                true => format!(
                    "`platctrl ca init --tls-dir {}` makes an authority for all servers of a store",
                    dir.display()
                ),
                false => "ca.crt and ca.key, or ca.crt, server.crt and server.key, in PEM".into(),
            };
            Failure::failed(error).hint(hint)
        })?;
        if dir != own {
            share_authority(dir, &own)?;
        }
        first_token(data_dir, store, environment).await?;
        let url = format!("https://{}", reached_at(bound));
        let file = place::listens(data_dir);
        std::fs::write(&file, &url).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", file.display()))
        })?;
        output::note(format_args!(
            "the API answers at {url}; `platctrl kubeconfig` lets kubectl in"
        ));
        Ok(Some((network, Listening { address: file })))
    }
}

/// Where this machine's clients find it.
fn reached_at(bound: SocketAddr) -> SocketAddr {
    let mut address = bound;
    match bound {
        SocketAddr::V4(it) if it.ip().is_unspecified() => {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        SocketAddr::V6(it) if it.ip().is_unspecified() => {
            address.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
        }
        _ => {}
    }
    address
}

/// Puts the authority's certificate where this machine's clients look for it.
fn share_authority(dir: &Path, own: &Path) -> Result<()> {
    let copied = std::fs::create_dir_all(own)
        .and_then(|()| std::fs::copy(dir.join(tls::CA), own.join(tls::CA)));
    copied.map(|_| ()).map_err(|error| {
        Failure::failed(format!(
            "cannot write {}: {error}",
            own.join(tls::CA).display()
        ))
    })
}

/// Makes a token for whoever runs the server, unless there is one that works.
async fn first_token(
    data_dir: &Path,
    store: &Arc<dyn Store>,
    environment: &Environment,
) -> Result<()> {
    let path = place::token(data_dir);
    let tokens = Tokens::new(Arc::clone(store), environment.clone());
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok(Some(_)) = tokens.caller(text.trim()).await
    {
        return Ok(());
    }
    let (secret, _) = match tokens
        .create(FIRST, Role::Admin, None, "platctrl", |transaction| {
            transaction
        })
        .await
    {
        Ok(made) => made,
        Err(TokenError::Taken(_)) => {
            output::note(format_args!(
                "hint: this store has its first token already, and it is not in {}: `platctrl token create NAME --role admin` on this machine makes another",
                path.display()
            ));
            return Ok(());
        }
        Err(error) => {
            return Err(Failure::failed(format!(
                "the first token cannot be made: {error}"
            )));
        }
    };
    write_secret(&path, secret.reveal())
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

/// Writes a file whole or not at all, for its owner alone.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
