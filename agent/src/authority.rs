//! Whether something may run on this node: asked before anything of it is fetched.
//!
//! The API checks who may deploy what; an agent asks again what will really run, by its own means.

use std::fmt;

use platctrl_framework::model::Digest;

use crate::name::PodName;
use crate::version::Desired;

/// What is about to run, in the terms of deploy rights.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Deployment<'a> {
    /// Which pod.
    pub pod: &'a PodName,
    /// The app.
    pub app: &'a str,
    /// The user it names, if it names one.
    pub run_as: Option<&'a str>,
    /// Its artifacts: where from, and what they have to be.
    pub artifacts: Vec<(&'a str, Option<Digest>)>,
    /// The files of the node's secrets that it would get.
    pub secrets: Vec<&'a str>,
}

impl<'a> Deployment<'a> {
    pub(crate) fn of(pod: &'a PodName, desired: &'a Desired) -> Self {
        let launchables = desired.spec.launchables.values();
        Self {
            pod,
            app: desired.app(pod.name()),
            run_as: desired.spec.run_as.as_deref(),
            artifacts: launchables
                .map(|launchable| (launchable.location.as_str(), launchable.digest))
                .collect(),
            secrets: desired
                .spec
                .secrets
                .values()
                .map(|secret| secret.file.as_str())
                .collect(),
        }
    }
}

/// Something may not run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub String);

/// Decides what may run on a node.
///
/// ```
/// use platctrl_agent::{Authority, Denied, Deployment};
///
/// /// Only what one team has built.
/// #[derive(Debug)]
/// struct OurBuilds;
///
/// impl Authority for OurBuilds {
///     fn check(&self, deployment: &Deployment<'_>) -> Result<(), Denied> {
///         let ours = |(location, _): &(&str, _)| location.starts_with("https://builds.example/");
///         match deployment.artifacts.iter().find(|artifact| !ours(artifact)) {
///             None => Ok(()),
///             Some((location, _)) => Err(Denied(format!(
///                 "{location} is not one of our builds: publish it there first"
///             ))),
///         }
///     }
/// }
///
/// let mut host = platctrl_agent::HostConfig::new("/var/lib/platctrl", "web1");
/// host.authority = std::sync::Arc::new(OurBuilds);
/// ```
pub trait Authority: fmt::Debug + Send + Sync + 'static {
    /// Whether this may. May block for as long as it takes to read a small file.
    ///
    /// # Errors
    /// [`Denied`] says why not, for people.
    fn check(&self, deployment: &Deployment<'_>) -> Result<(), Denied>;
}

/// Everything may that the store says; which users it may run as is the node's own policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyDeployment;

impl Authority for AnyDeployment {
    fn check(&self, _: &Deployment<'_>) -> Result<(), Denied> {
        Ok(())
    }
}
