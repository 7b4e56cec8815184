//! `store`: prepares a store for use.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, IdentityError};
use platctrl_store_embedded::EmbeddedStore;

use crate::error::{Code, Failure, Result};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Make an empty store ready for use
    Init {
        /// Which: embedded:DIR
        url: String,
    },
}

pub(crate) async fn run(verb: &StoreVerb) -> Result<()> {
    let StoreVerb::Init { url } = verb;
    let dir = embedded(url)?;
    let environment = Environment::system();
    let store =
        EmbeddedStore::open(&dir, environment.clone()).map_err(|error| open_failure(&error))?;
    let anchor = identity::initialise(&store, &environment)
        .await
        .map_err(|error| match error {
            IdentityError::NotEmpty { .. } => Failure::new(Code::Conflict, error.to_string()),
            error => Failure::failed(error),
        })?;
    output::print(format_args!(
        "store {} is ready at {}\n",
        anchor.store_id,
        dir.display()
    ))
}

/// Another process may have it, or it cannot be read.
pub(crate) fn open_failure(error: &platctrl_store_embedded::OpenError) -> Failure {
    Failure::failed(error)
}

/// The directory of an embedded store's URL.
fn embedded(url: &str) -> Result<PathBuf> {
    let hint = "write embedded: and a directory, as embedded:/var/lib/platctrl/store";
    match url.split_once(':') {
        Some(("embedded", dir)) if !dir.is_empty() => std::path::absolute(Path::new(dir))
            .map_err(|error| Failure::failed(format!("cannot use {dir}: {error}"))),
        Some((scheme @ ("etcd" | "consul"), _)) => Err(Failure::usage(format!(
            "this build has the embedded store only, not {scheme}"
        ))
        .hint(hint)),
        _ => Err(Failure::usage(format!("`{}` is no store", output::plain(url))).hint(hint)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_directory() {
        assert_eq!(embedded("embedded:/a").unwrap(), PathBuf::from("/a"));
        for url in [
            "/a",
            "embedded:",
            "etcd://h:2379/root",
            "consul://h/root",
            "",
        ] {
            assert_eq!(embedded(url).unwrap_err().code, Code::Usage, "{url}");
        }
    }
}
