//! Which servers an agent calls, so that they may ask its node something, and what it shows them.

use std::path::{Path, PathBuf};

use super::LinkConfig;
use crate::api;
use crate::cli::{Setting, is_remote};
use crate::error::Result;
use crate::server::node::Commands;
use crate::server::node::link::{Place, Remote};
use crate::{output, place, tls};

/// Who may ask the node of an agent for logs, commands and what is used.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LinkFlags {
    /// Servers to call, so that they may ask this node for logs and the like; a name may stand for several [default: the one of --server]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    servers: Vec<String>,
    /// The certificate of this node, as `node admit --output` gives it [default: node.crt in the data directory]
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The key of that certificate [default: node.key in the data directory]
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Run nobody's commands in pods, whoever a server says may
    #[arg(long)]
    no_exec: bool,
}

impl LinkFlags {
    pub(super) fn config(
        &self,
        node: &str,
        setting: &Setting,
        data_dir: &Path,
    ) -> Result<LinkConfig> {
        let (certificate, key) = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            _ => (data_dir.join("node.crt"), data_dir.join("node.key")),
        };
        let given: Vec<&str> = match self.servers.as_slice() {
            [] => setting.given_server().into_iter().collect(),
            servers => servers.iter().map(String::as_str).collect(),
        };
        let has_certificate = self.certificate.is_some() || certificate.exists();
        let mut places = Vec::new();
        for server in &given {
            if !is_remote(server) {
                let socket = place::server(Some(server), Some(data_dir))?;
                places.push(Place::Local(socket));
                continue;
            }
            let ca = setting
                .given_ca()
                .unwrap_or_else(|| data_dir.join(place::TLS).join(tls::CA));
            let remote = api::Remote::new(server, ca, None)?;
            if has_certificate {
                places.push(Place::Remote(Remote {
                    host: remote.host,
                    port: remote.port,
                    ca: remote.ca,
                    certificate: certificate.clone(),
                    key: key.clone(),
                }));
            } else {
                output::note(format_args!(
                    "hint: {server} cannot ask this node for logs and the like: it has no certificate ({}); `platctrl node admit {node} --output DIR` gives one",
                    certificate.display()
                ));
            }
        }
        if given.is_empty() {
            places.push(Place::Local(place::socket(data_dir)));
        }
        Ok(LinkConfig {
            node: node.to_owned(),
            data_dir: data_dir.to_owned(),
            places,
            commands: match self.no_exec {
                true => Commands::OfNobody,
                false => Commands::OfThoseWhoMay,
            },
        })
    }
}
