//! How an embedder sets the failsafes of a runtime.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::guards::{Domain, Setup};
use super::limits::Limits;
use super::switch::Switches;
use crate::cache::View;
use crate::model::ObjectKey;

/// How a runtime guards itself. Without any of this it has every guard, remembers nothing over a
/// restart, and lists what it holds under the runtime's name.
///
/// ```
/// use platctrl_framework::failsafe::Failsafes;
///
/// let failsafes = Failsafes::new()
///     .remember_in("/var/lib/example/failsafe.json")
///     .failure_domain(|object, _| object.node().map(str::to_owned))
///     .keep_chain();
/// ```
#[derive(Clone, Default)]
pub struct Failsafes {
    limits: Limits,
    domain: Option<Domain>,
    holder: Option<String>,
    file: Option<PathBuf>,
    keep_chain: bool,
    switches: Switches,
}

impl fmt::Debug for Failsafes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failsafes")
            .field("limits", &self.limits)
            .field("holder", &self.holder)
            .field("file", &self.file)
            .field("keep_chain", &self.keep_chain)
            .finish_non_exhaustive()
    }
}

impl Failsafes {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Other numbers than the defaults.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Names the failure domain of an object, as its rack: each has a budget of its own. None, and
    /// without this function, all objects are in one.
    #[must_use]
    pub fn failure_domain(
        mut self,
        domain: impl Fn(&ObjectKey, &View) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.domain = Some(Arc::new(domain));
        self
    }

    /// The name of the [`Failsafe`](super::Failsafe) object that lists what is held; the
    /// runtime's name unless set.
    #[must_use]
    pub fn holder(mut self, name: &str) -> Self {
        self.holder = Some(name.to_owned());
        self
    }

    /// Remembers what was seen in this file, once a minute, so that a store that was restored or
    /// lost records while this program was down is noticed. A file that cannot be read counts as
    /// none, which is logged.
    #[must_use]
    pub fn remember_in(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Appends a link to the store's chain each minute, while this runtime leads, and keeps what
    /// was seen in the store too. One program of a store has to; more do no harm, but the chain
    /// then reaches back less than a week.
    #[must_use]
    pub fn keep_chain(mut self) -> Self {
        self.keep_chain = true;
        self
    }

    /// Switches a safeguard off, for a test that proves what it is good for.
    #[cfg(feature = "conformance")]
    #[must_use]
    pub fn without(mut self, safeguard: super::Safeguard) -> Self {
        self.switches.off.insert(safeguard);
        self
    }

    pub(crate) fn into_setup(self, runtime: &str) -> Setup {
        Setup {
            limits: self.limits,
            domain: self.domain,
            holder: self.holder.unwrap_or_else(|| runtime.to_owned()),
            file: self.file,
            keep_chain: self.keep_chain,
            switches: self.switches,
        }
    }
}
