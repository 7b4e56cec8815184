//! Which store: its URL, and the backend behind it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::Store;
use platctrl_store_embedded::EmbeddedStore;

use crate::error::{Failure, Result};
use crate::output;

/// Where a root is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    /// A directory of this machine.
    Embedded(PathBuf),
}

impl StoreUrl {
    /// Reads `embedded:DIR`.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let hint = "write embedded: and a directory, as embedded:/var/lib/platctrl/store";
        match url.split_once(':') {
            Some(("embedded", dir)) if !dir.is_empty() => std::path::absolute(Path::new(dir))
                .map(Self::Embedded)
                .map_err(|error| Failure::failed(format!("cannot use {dir}: {error}"))),
            Some((scheme @ ("etcd" | "consul"), _)) => Err(Failure::usage(format!(
                "this build has the embedded store only, not {scheme}"
            ))
            .hint(hint)),
            _ => Err(Failure::usage(format!("`{}` is no store", output::plain(url))).hint(hint)),
        }
    }

    /// The directory, for what only a store in a directory can do.
    pub(crate) fn directory(&self) -> Result<&Path> {
        let Self::Embedded(dir) = self;
        Ok(dir)
    }

    /// Opens the backend itself, without taking it for any particular root. An embedded store
    /// that is not there is made only when `create` says so.
    pub(crate) async fn open(
        &self,
        environment: &Environment,
        create: bool,
    ) -> Result<Arc<dyn Store>> {
        let Self::Embedded(dir) = self;
        if !create && !dir.exists() {
            return Err(
                Failure::failed(format!("there is no store in {}", dir.display()))
                    .hint("name the directory of a store, as embedded:/var/lib/platctrl/store"),
            );
        }
        let (path, clock) = (dir.clone(), environment.clone());
        let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(path, clock)).await;
        let store = opened.map_err(Failure::failed)?.map_err(Failure::failed)?;
        Ok(Arc::new(store))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Embedded(dir) = self;
        write!(f, "embedded:{}", dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_store_is_a_directory() {
        let url = StoreUrl::parse("embedded:/a").unwrap();
        assert_eq!(url, StoreUrl::Embedded(PathBuf::from("/a")));
        assert_eq!(url.to_string(), "embedded:/a");
        for url in [
            "/a",
            "embedded:",
            "etcd://h:2379/root",
            "consul://h/root",
            "",
        ] {
            assert_eq!(StoreUrl::parse(url).unwrap_err().code, Code::Usage, "{url}");
        }
    }
}
