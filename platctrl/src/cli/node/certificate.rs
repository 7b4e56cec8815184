//! What a node's agent shows to servers: given when the node is admitted, and taken away.

use std::path::Path;
use std::sync::Arc;

use platctrl_framework::client::Client;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;

use crate::access::nodes::{self, NodeKeyError};
use crate::cli::Setting;
use crate::error::{Code, Failure, Result};
use crate::roles::listen::write_secret;
use crate::tls::{self, Authority};
use crate::{output, place};

fn client(store: &Arc<dyn Store>, environment: &Environment) -> Client {
    Client::new(Arc::clone(store), environment.clone(), "platctrl")
}

fn refused(error: &NodeKeyError) -> Failure {
    let code = match error {
        NodeKeyError::Unknown(_) => Code::NotFound,
        NodeKeyError::Changed(_) => Code::Conflict,
        _ => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

/// Writes a certificate and its key, then writes down that the node has this one and no other.
pub(super) async fn give(
    store: &Arc<dyn Store>,
    environment: &Environment,
    setting: &Setting,
    node: &str,
    tls_dir: Option<&Path>,
    to: &Path,
) -> Result<()> {
    let own;
    let dir = match tls_dir {
        Some(dir) => dir,
        None => {
            own = setting.data_dir()?.join(place::TLS);
            &own
        }
    };
    let authority = Authority::load(dir).map_err(|error| {
        Failure::failed(&error).hint(format!(
            "the directory with the authority's ca.key is named with --tls-dir; `platctrl ca init --tls-dir {}` makes one",
            dir.display()
        ))
    })?;
    let issued = authority.node(node).map_err(Failure::failed)?;
    let seen = tls::node_of_pem(&issued.certificate).ok_or_else(|| {
        Failure::usage(format!("`{}` cannot be a node's name", output::plain(node)))
    })?;
    let (certificate, key) = (
        to.join(format!("{node}.crt")),
        to.join(format!("{node}.key")),
    );
    let written = std::fs::create_dir_all(to)
        .and_then(|()| write_secret(&key, issued.key.trim_end()))
        .and_then(|()| write_secret(&certificate, issued.certificate.trim_end()));
    written
        .map_err(|error| Failure::failed(format!("cannot write into {}: {error}", to.display())))?;
    // Only now does the one before lose its worth.
    let given = nodes::give(&client(store, environment), &seen, environment.now()).await;
    given.map_err(|error| refused(&error))?;
    output::note(format_args!(
        "hint: copy {}, {} and {} to the machine; its agent takes them with --certificate, --key and --ca",
        certificate.display(),
        key.display(),
        dir.join(tls::CA).display()
    ));
    Ok(())
}

/// Takes it away.
pub(super) async fn revoke(
    store: &Arc<dyn Store>,
    environment: &Environment,
    node: &str,
) -> Result<()> {
    let taken = nodes::take(&client(store, environment), node).await;
    if taken.map_err(|error| refused(&error))? {
        output::note(
            "hint: its pods run on; `platctrl node admit NAME --output DIR` gives another certificate",
        );
        return output::print(format_args!("node/{node} has no certificate any more\n"));
    }
    output::print(format_args!("node/{node} had no certificate\n"))
}
