//! What is asked of pods and machines rather than of the store: logs, commands, what is used. The
//! nodes answer; here it is decided who may ask, and passed on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use platctrl_framework::client::Client;
use platctrl_framework::model::{Joined, Resource as _};
use platctrl_kinds::Pod;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::App;
use super::asker::{self, Asker};
use super::auth::{Origin, Stream};
use super::node::{Behalf, What};
use super::read;
use super::request::Query;
use super::status::{Failure, Result, json_response};
use super::streams::{self, keeping, turned};
use crate::access::{Place, short};
use crate::api;

/// What a connection is turned into on which a command's streams go.
pub(crate) const COMMAND: &str = "platctrl-exec";
/// Commands that a server passes on at once.
pub(super) const COMMANDS: usize = 256;
/// Bytes that are read from a client at once, and pieces that wait for a node.
const READ: usize = 32 * 1024;
const BACKLOG: usize = 2;
/// Nodes that are asked at once what is used.
const AT_ONCE: usize = 1_024;
/// How long one of them may take to say it, and the most that it may say.
const USED: Duration = Duration::from_secs(15);
const LARGEST: usize = 16 << 20;
/// Characters of a command's name that are remembered.
const PROGRAM: usize = 80;

/// A question to a node, on somebody's behalf.
fn question(method: Method, path: &str, asker: &Asker, body: Body) -> Result<http::Request<Body>> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(format!("http://node{path}"))
        .body(body)
        .map_err(|error| Failure::bad_request(format!("this cannot be asked: {error}")))?;
    behalf(asker).put(request.headers_mut());
    Ok(request)
}

fn behalf(asker: &Asker) -> Behalf {
    Behalf {
        name: asker.name.clone(),
        role: asker.rights.base,
        from: asker.from.clone(),
    }
}

/// Where a node has a pod.
fn path_of(pod: &Joined, part: &str) -> String {
    let namespace = pod.key.namespace().unwrap_or_default();
    format!("/pods/{namespace}/{}/{part}", pod.key.name())
}

/// The parameters of these names, as they were given.
fn passed(query: &Query, names: &[&str]) -> api::Query {
    let mut passed = api::Query::default();
    for name in names {
        for value in query.all(name) {
            passed = passed.with(name, value);
        }
    }
    passed
}

/// `GET …/pods/<name>/log`.
pub(super) async fn log(
    app: &Arc<App>,
    asker: &Asker,
    pod: &Joined,
    query: &Query,
) -> Result<Response> {
    let follows = query.flag("follow")? && !query.flag("previous")?;
    let permit = follows
        .then(|| app.follows.clone().try_acquire_owned())
        .transpose();
    let permit = permit.map_err(|_| {
        Failure::too_many("this server follows as many logs as it can: end some of them")
    })?;
    let names = [
        "follow",
        "previous",
        "tailLines",
        "sinceSeconds",
        "sinceTime",
        "launchable",
        "container",
    ];
    let mut wanted = passed(query, &names);
    if let Some(reality) = pod.own_reality() {
        wanted = wanted.with("phase", reality.value.status.phase.as_str());
    }
    let path = wanted.on(&path_of(pod, "log"));
    let request = question(Method::GET, &path, asker, Body::empty())?;
    let node = pod.key.node().unwrap_or_default();
    let (response, room) = streams::ask(app, node, request).await?;
    Ok(keeping(response, (permit, room)))
}

/// `POST …/pods/<name>/exec`, after which the connection is the command's.
pub(super) async fn exec(
    State(app): State<Arc<App>>,
    Path((group, version, namespace, name)): Path<(String, String, String, String)>,
    Extension(asker): Extension<Arc<Asker>>,
    Extension(origin): Extension<Origin>,
    upgrade: Option<Extension<OnUpgrade>>,
    request: Request,
) -> Result<Response> {
    let (head, _) = request.into_parts();
    if head.method != Method::POST {
        return Err(Failure::method(&head.method, "POST"));
    }
    let query = Query::parse(head.uri.query())?;
    let served = app.served();
    let path = format!("namespaces/{namespace}/pods/{name}");
    let target = served.target(&group, &version, &path)?;
    if target.kind.definition.group_plural() != Pod::group_plural() {
        return Err(Failure::not_found("only pods have programs"));
    }
    let place = asker::place(target.kind, Some(&namespace));
    behalf(&asker).may(&asker.rights, What::Exec, place)?;
    let config = &app.config;
    let client = Client::new(
        config.store.clone(),
        config.environment.clone(),
        asker.name.as_str(),
    );
    let pod = read::existing(&client, &target).await?;
    let wanted = head.headers.get(header::UPGRADE);
    let (true, Some(Extension(upgrade))) = (wanted.is_some_and(|it| it == COMMAND), upgrade) else {
        return Err(Failure::bad_request(format!(
            "a command's streams go over the connection: ask with `Upgrade: {COMMAND}`, as `platctrl exec` does"
        )));
    };
    let permit = app.commands.clone().try_acquire_owned().map_err(|_| {
        Failure::too_many("this server passes on as many commands as it can: end some of them")
    })?;
    let mut deed = asker.deed(app.audit.now(), "exec", asker::path(&pod.key));
    // Arguments may be secrets.
    let program = query.all("command").next().unwrap_or_default();
    deed.changes = vec![format!("command: {}", short(program, PROGRAM))];
    app.audit.write(&deed).await?;
    let names = [
        "command",
        "stdin",
        "tty",
        "columns",
        "rows",
        "term",
        "launchable",
        "container",
    ];
    let path = passed(&query, &names).on(&path_of(&pod, "exec"));
    let (sender, said) = mpsc::channel::<std::io::Result<Bytes>>(BACKLOG);
    let said = futures::stream::unfold(said, |mut said| async move {
        let piece = said.recv().await?;
        Some((piece, said))
    });
    let request = question(Method::POST, &path, &asker, Body::from_stream(said))?;
    let node = pod.key.node().unwrap_or_default();
    let (response, room) = streams::ask(&app, node, request).await?;
    if !response.status().is_success() {
        return Ok(response);
    }
    let stream = Stream::over(&head, &origin);
    tokio::spawn(async move {
        let _kept = (permit, room);
        let lapsed = async {
            match stream {
                Some(stream) => {
                    let allows =
                        |rights: &_| What::Exec.is_allowed(rights, Place::Namespace(&namespace));
                    stream.lapse(&app, allows).await;
                }
                None => std::future::pending().await,
            }
        };
        let passing = async {
            match upgrade.await {
                Ok(upgraded) => pass(upgraded, sender, response.into_body()).await,
                Err(error) => tracing::debug!(%error, "the asker of a command is gone"),
            }
        };
        tokio::select! {
            () = passing => {}
            () = lapsed => tracing::info!("a command is ended: its asker may not have it any more"),
            () = app.stopping.cancelled() => {}
        }
    });
    Ok(turned(COMMAND))
}

/// Passes on what comes from either side until one of them has ended.
async fn pass(upgraded: Upgraded, sender: mpsc::Sender<std::io::Result<Bytes>>, mut body: Body) {
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    let up = async {
        loop {
            let mut piece = vec![0; READ];
            match read.read(&mut piece).await {
                Ok(length) if length > 0 => {
                    piece.truncate(length);
                    if sender.send(Ok(piece.into())).await.is_err() {
                        // The node wants no more; what it says is still to come.
                        std::future::pending::<()>().await;
                    }
                }
                _ => return,
            }
        }
    };
    let down = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if write.write_all(&data).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// What a node says is used of it.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    usage: Option<Used>,
    #[serde(default)]
    capacity: Option<Used>,
    #[serde(default)]
    pods: Vec<UsedByPod>,
}

#[derive(Debug, Deserialize)]
struct UsedByPod {
    namespace: String,
    name: String,
    usage: Used,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Used {
    cpu_millis: Option<u64>,
    memory_bytes: Option<u64>,
}

impl Used {
    fn shown(used: Option<&Self>) -> Value {
        let (cpu, memory) = used.map_or((None, None), |used| (used.cpu_millis, used.memory_bytes));
        json!({"cpuMillis": cpu, "memoryBytes": memory})
    }
}

/// `GET /top/nodes`: what is used of each machine; and of which it is not known, why.
pub(super) async fn top_nodes(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Arc<Asker>>,
) -> Result<Response> {
    behalf(&asker).may(&asker.rights, What::Usage, Place::Everywhere)?;
    let (said, missing) = all(&app, &asker, None).await?;
    let items = said.iter().map(|(node, said)| {
        json!({
            "name": node,
            "usage": Used::shown(said.usage.as_ref()),
            "capacity": Used::shown(said.capacity.as_ref()),
            "pods": said.pods.len(),
        })
    });
    Ok(answer(&items.collect::<Vec<_>>(), &missing))
}

/// `GET /top/pods`, of all namespaces or of the one that is named: what each pod uses.
pub(super) async fn top_pods(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Arc<Asker>>,
    uri: Uri,
) -> Result<Response> {
    let query = Query::parse(uri.query())?;
    let namespace = query.get("namespace");
    let place = namespace.map_or(Place::Everywhere, Place::Namespace);
    behalf(&asker).may(&asker.rights, What::Usage, place)?;
    let (said, missing) = all(&app, &asker, namespace).await?;
    let mut items = Vec::new();
    for (node, said) in &said {
        let wanted = |pod: &&UsedByPod| namespace.is_none_or(|it| it == pod.namespace);
        items.extend(said.pods.iter().filter(wanted).map(|pod| {
            json!({
                "namespace": short(&pod.namespace, PROGRAM),
                "name": short(&pod.name, PROGRAM),
                "node": node,
                "usage": Used::shown(Some(&pod.usage)),
            })
        }));
    }
    Ok(answer(&items, &missing))
}

fn answer(items: &[Value], missing: &BTreeMap<String, String>) -> Response {
    let missing: Vec<_> = missing
        .iter()
        .map(|(node, why)| json!({"node": node, "message": why}))
        .collect();
    let answer = json!({"items": items, "missing": missing});
    json_response(StatusCode::OK, &answer)
}

type Told = (BTreeMap<String, Said>, BTreeMap<String, String>);

/// Asks every node what is used, and says of which that is not known.
async fn all(app: &App, asker: &Asker, namespace: Option<&str>) -> Result<Told> {
    let nodes = read::nodes(app.config.store.as_ref()).await?;
    let asked = futures::stream::iter(nodes).map(|node| async move {
        let said = one(app, asker, &node, namespace).await;
        (node, said)
    });
    let mut asked = asked.buffer_unordered(AT_ONCE);
    let (mut said, mut missing) = Told::default();
    while let Some((node, answer)) = asked.next().await {
        match answer {
            Ok(answer) => drop(said.insert(node, answer)),
            Err(failure) => {
                let words = failure.to_status()["message"]
                    .as_str()
                    .map(|it| short(it, 300));
                missing.insert(node, words.unwrap_or_default());
            }
        }
    }
    Ok((said, missing))
}

async fn one(app: &App, asker: &Asker, node: &str, namespace: Option<&str>) -> Result<Said> {
    let mut query = api::Query::default();
    if let Some(namespace) = namespace {
        query = query.with("namespace", namespace);
    }
    let request = question(Method::GET, &query.on("/usage"), asker, Body::empty())?;
    let asked = async {
        let (response, _room) = streams::ask(app, node, request).await?;
        let (head, body) = response.into_parts();
        let bytes = Limited::new(body, LARGEST).collect().await;
        let bytes = bytes
            .map_err(|error| Failure::unavailable(format!("its answer broke off: {error}")))?
            .to_bytes();
        if !head.status.is_success() {
            let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let words = status["message"].as_str().unwrap_or("it refuses");
            return Err(Failure::unavailable(words));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::unavailable(format!("its answer is none: {error}")))
    };
    let late = |_| Failure::unavailable(format!("it did not answer within {USED:?}"));
    tokio::time::timeout(USED, asked).await.map_err(late)?
}
