//! A node's end: what servers ask of the machine that pods run on. Logs, commands, what is used.
//!
//! A request comes over the node's [stream](link), or within one process. Either way it says on
//! whose behalf, and the node decides again whether they may: a server that errs, or is not what
//! it was, gets no further than the roles that are written in the store.

mod asked;
mod exec;
pub(crate) mod frames;
pub(crate) mod link;
mod log;
mod terminal;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::{Method, Request};
use platctrl_agent::PodName;
use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Store, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

pub(super) use asked::{Behalf, What};

use super::request::Query;
use super::status::{Failure, Result};
use crate::access::{Bindings, Place, Rights};

/// What a node does for servers at once.
pub(crate) const MOST: usize = 64;

/// Whose commands a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commands {
    /// Of those to whom the store gives it.
    OfThoseWhoMay,
    /// Of nobody, whatever the store says.
    OfNobody,
}

/// A node, for whoever may ask something of it.
#[derive(Clone, Debug)]
pub(crate) struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    bindings: Bindings,
    commands: Commands,
    room: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Node {
    /// The node of a data directory. Who may ask what it reads in the store.
    pub(crate) fn new(
        data_dir: impl Into<PathBuf>,
        store: Arc<dyn Store>,
        environment: Environment,
        commands: Commands,
        stopping: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            data_dir: data_dir.into(),
            bindings: Bindings::new(store, environment),
            commands,
            room: Arc::new(Semaphore::new(MOST)),
            stopping,
        }))
    }

    /// Answers one request: `/pods/<namespace>/<name>/log`, `/pods/<namespace>/<name>/exec`,
    /// `/usage`.
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        let answered = self.answered(request).await;
        answered.unwrap_or_else(|failure| {
            tracing::info!(path, failure = %failure.to_status(), "a server was refused");
            failure.into_response()
        })
    }

    async fn answered(&self, request: Request<Body>) -> Result<Response> {
        let (head, body) = request.into_parts();
        let behalf = Behalf::of(&head.headers)?;
        let query = Query::parse(head.uri.query())?;
        let segments: Vec<_> = head.uri.path().split('/').skip(1).collect();
        let inner = &self.0;
        match (&head.method, segments.as_slice()) {
            (&Method::GET, ["usage"]) => {
                let namespace = query.get("namespace");
                let place = namespace.map_or(Place::Everywhere, Place::Namespace);
                self.check(&behalf, What::Usage, place).await?;
                let _permit = self.permit()?;
                usage::answer(&inner.data_dir, namespace).await
            }
            (&Method::GET, ["pods", namespace, name, "log"]) => {
                let pod = pod(namespace, name)?;
                let place = Place::Namespace(pod.namespace());
                self.check(&behalf, What::Log, place).await?;
                let permit = self.permit()?;
                let stopping = inner.stopping.clone();
                log::answer(&inner.data_dir, &pod, &query, stopping, permit).await
            }
            (&Method::POST, ["pods", namespace, name, "exec"]) => {
                let pod = pod(namespace, name)?;
                if inner.commands == Commands::OfNobody {
                    return Err(Failure::forbidden(
                        "this node runs nobody's commands: its agent was started with --no-exec",
                    ));
                }
                let place = Place::Namespace(pod.namespace());
                self.check(&behalf, What::Exec, place).await?;
                let permit = self.permit()?;
                let stopping = inner.stopping.clone();
                tracing::info!(
                    pod = %pod, by = behalf.name, from = behalf.from,
                    program = query.get("command"), "somebody runs a command"
                );
                exec::answer(&inner.data_dir, &pod, &query, body, stopping, permit).await
            }
            _ => Err(Failure::not_found(
                "a node answers for logs, commands and what is used",
            )),
        }
    }

    async fn check(&self, behalf: &Behalf, what: What, place: Place<'_>) -> Result<()> {
        let mut rights = Rights::of(behalf.role);
        // Nothing can be added to what is enough.
        if !what.is_allowed(&rights, place) {
            let roles = self.0.bindings.of(&behalf.name).await;
            rights.roles = roles.map_err(|error| match error {
                StoreError::Denied { .. } => Failure::forbidden(format!(
                    "this node may not read who has which role ({error}): `platctrl store policy` gives its agent that right"
                )),
                error => error.into(),
            })?;
        }
        behalf.may(&rights, what, place)
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.0.room).try_acquire_owned();
        permit.map_err(|_| {
            Failure::too_many(format!(
                "{MOST} logs are read and commands run on this node already: end some of them"
            ))
        })
    }
}

fn pod(namespace: &str, name: &str) -> Result<PodName> {
    PodName::new(namespace, name).map_err(|error| Failure::bad_request(error.to_string()))
}
