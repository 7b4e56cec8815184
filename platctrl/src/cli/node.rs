//! `node`: admits machines, so that their agents may work; empties them, and gives them up.

mod certificate;
mod drain;
mod inspect;
mod life;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity;
use platctrl_framework::root::RootedStore;
use platctrl_framework::store::Store;

use super::Setting;
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::roles::admission::{self, Admitted};
use crate::store::StoreFlags;

pub(crate) use drain::DrainArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Write a machine's record, so that its agent may work: labels and addresses come from here, never from the agent
    Admit {
        /// The name of the node
        name: String,
        /// Labels that selectors choose it by: KEY=VALUE, several with commas
        #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
        labels: Vec<(String, String)>,
        /// An address that its pods may be reached under; may be repeated
        #[arg(long = "address", value_name = "ADDRESS")]
        addresses: Vec<String>,
        /// Also give it a certificate, which takes those before away: NAME.crt and NAME.key in this directory
        #[arg(short, long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Where the authority is that signs it [default: tls in the data directory]
        #[arg(long, value_name = "DIR", requires = "output")]
        tls_dir: Option<PathBuf>,
        // Last: its heading is that of all that follows.
        #[command(flatten)]
        store: Box<StoreFlags>,
    },
    /// Take a node's certificate away, which ends its stream
    Revoke {
        /// The name of the node
        name: String,
        #[command(flatten)]
        store: Box<StoreFlags>,
    },
    /// Show what is on this machine: what is wanted, what runs, and what it takes; also without a server
    Inspect(inspect::InspectArgs),
    /// Put no new pods on a node
    Cordon(NameArgs),
    /// Put pods on a node again, and end a drain
    Uncordon(NameArgs),
    /// Move a node's pods elsewhere, never more at once than their budgets leave
    Drain(DrainArgs),
    /// Give a node up: its pods are replaced, and its agent, should it come back, stops what it has
    Retire(life::RetireArgs),
}

/// A node.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NameArgs {
    /// The name of the node, or node/NAME
    #[arg(value_parser = node_name)]
    name: String,
}

impl NameArgs {
    pub(crate) fn cordon(&self) -> NodeVerb {
        NodeVerb::Cordon(self.clone())
    }

    pub(crate) fn uncordon(&self) -> NodeVerb {
        NodeVerb::Uncordon(self.clone())
    }
}

/// `web1`, also written as `node/web1` or `no/web1`.
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let name = match text.split_once('/') {
        Some(("node" | "nodes" | "no", name)) => name,
        Some((kind, _)) => return Err(format!("a {kind} is no node")),
        None => text,
    };
    platctrl_framework::model::check_name("the name of a node", name)
        .map_err(|error| error.to_string())?;
    Ok(name.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

pub(crate) async fn run(verb: &NodeVerb, setting: &Setting) -> Result<()> {
    if let NodeVerb::Inspect(args) = verb {
        return inspect::run(args, setting).await;
    }
    let environment = Environment::system();
    match verb {
        NodeVerb::Admit {
            name,
            store,
            labels,
            addresses,
            output,
            tls_dir,
        } => {
            let url = store.url()?;
            let store = open(store, &environment).await?;
            let admitted = Admitted {
                labels: labels.iter().cloned().collect::<BTreeMap<_, _>>(),
                addresses: addresses.clone(),
            };
            let is_new = admission::admit(&store, &environment, name, admitted).await?;
            if let Some(to) = output {
                let tls_dir = tls_dir.as_deref();
                certificate::give(&store, &environment, setting, name, tls_dir, to).await?;
            }
            if is_new {
                output::note(format_args!(
                    "hint: start its agent with `platctrl agent --store {url} --node {name}`"
                ));
                return output::print(format_args!("node/{name} admitted\n"));
            }
            output::note(
                "hint: what was said of it before is kept; change its labels with `platctrl label node`",
            );
            output::print(format_args!("node/{name} unchanged\n"))
        }
        NodeVerb::Revoke { name, store } => {
            let store = open(store, &environment).await?;
            certificate::revoke(&store, &environment, name).await
        }
        _ => life::run(verb, setting).await,
    }
}

/// Opens a store that was made before.
async fn open(flags: &StoreFlags, environment: &Environment) -> Result<Arc<dyn Store>> {
    let url = flags.url()?;
    let store = flags.open(environment).await?;
    identity::open(&*store).await.map_err(|error| {
        Failure::new(Code::Unreachable, error.to_string())
            .hint(format!("`platctrl store init {url}` prepares an empty one"))
    })?;
    Ok(Arc::new(RootedStore::new(store)))
}
