//! Who is let in, and the tokens that let somebody in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::asker::{self, Asker};
use super::request::{self, Query};
use super::socket::Peer;
use super::status::{Failure, Result, json_response};
use crate::access::{self, Caller, Place, Rights, Role, TokenError, TokenRecord, short};
use crate::tls::{NodeCertificate, Person};

/// How often it is asked again whether somebody may have what they are told.
const AGAIN: Duration = Duration::from_secs(5);

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// The local socket.
    Local(Peer),
    /// Another machine, or this one by its address.
    Network {
        address: SocketAddr,
        /// Whom the certificate names that was shown, if one was.
        person: Option<Person>,
        /// The node that it names, if it is one's.
        node: Option<NodeCertificate>,
    },
}

/// Headers by which an admin's tool asks as if it were somebody else. They are not obeyed, and
/// whoever sends them believes that they are.
const IMPERSONATE: &str = "impersonate-";
/// Bytes of a program's name that are kept.
const PROGRAM: usize = 80;

/// Lets a request pass whose caller may ask it, and tells the handlers who that is.
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    Extension(origin): Extension<Origin>,
    request: Request,
    next: Next,
) -> Response {
    let began = app.config.environment.monotonic();
    let method = request.method().clone();
    let meter = Arc::clone(&app);
    let response = admitted(app, &origin, request, next).await;
    let took = meter.config.environment.monotonic().saturating_sub(began);
    meter.meter.answered(&method, response.status(), took);
    response
}

async fn admitted(app: Arc<App>, origin: &Origin, request: Request, next: Next) -> Response {
    let (mut head, body) = request.into_parts();
    match asker(&app, origin, &head).await {
        Ok(asker) => {
            let stream = Stream::of(&head, origin);
            head.extensions.insert(Arc::new(asker));
            let response = next.run(Request::from_parts(head, body)).await;
            match stream {
                Some(stream) if response.status().is_success() => stream.watched(app, response),
                _ => response,
            }
        }
        Err(failure) => failure.into_response(),
    }
}

async fn asker(app: &App, origin: &Origin, head: &Parts) -> Result<Asker> {
    let headers = &head.headers;
    let with = headers.get(header::USER_AGENT);
    let with = with.map(|with| String::from_utf8_lossy(with.as_bytes()));
    let asker = Asker {
        name: "nobody".to_owned(),
        from: "local".to_owned(),
        with: short(&with.unwrap_or_default(), PROGRAM),
        rights: Rights::of(Role::Bound),
    };
    let mut names = headers.keys().map(http::HeaderName::as_str);
    if names.any(|name| name.starts_with(IMPERSONATE)) {
        return Err(Failure::forbidden(
            "nobody is asked for in somebody else's name here: use a token of theirs",
        ));
    }
    match origin {
        Origin::Local(peer) if peer.is_allowed() => Ok(Asker {
            name: peer.name.clone(),
            rights: Rights::of(Role::Admin),
            ..asker
        }),
        Origin::Local(peer) => Err(Failure::forbidden(format!(
            "this socket serves root and the user that the server runs as, not {}",
            peer.name
        ))),
        Origin::Network { address, .. } => {
            let from = address.ip().to_string();
            over_network(app, origin, head, Asker { from, ..asker }).await
        }
    }
}

async fn over_network(app: &App, origin: &Origin, head: &Parts, asker: Asker) -> Result<Asker> {
    let (method, path) = (&head.method, head.uri.path());
    let Some(needed) = access::needed(method, path) else {
        return Ok(asker);
    };
    let now = app.config.environment.monotonic();
    let caller = match known(app, origin, &head.headers).await {
        Ok(caller) => caller,
        Err(failure) if failure.is_unauthorized() => {
            // Whoever guesses is slowed; whoever is known at the same address is not.
            let slower =
                |wait| Failure::too_many(format!("{} tries too often", asker.from)).after(wait);
            app.refusals.take(&asker.from, now).map_err(slower)?;
            tracing::info!(from = asker.from, "somebody was refused");
            return Err(failure);
        }
        Err(failure) => return Err(failure),
    };
    let slower = |wait| Failure::too_many(format!("{} asks too often", caller.name)).after(wait);
    app.rates.take(&caller.name, now).map_err(slower)?;
    let mut rights = Rights::of(caller.role);
    let reads = matches!(*method, Method::GET | Method::HEAD);
    // Nothing can be added to what is enough; writing may take more than it seems.
    if caller.role < needed || !reads && caller.role < Role::Admin {
        rights.roles = app.bindings.of(&caller.name).await?;
    }
    let asker = Asker {
        name: caller.name,
        rights,
        ..asker
    };
    if may_ask(&asker.rights, needed, reads, path) {
        return Ok(asker);
    }
    Err(asker.denied(Place::Everywhere, &format!("{method} {path}"), needed))
}

/// Whether a path may be asked for at all. Who may do what to which object is decided once it is
/// known which.
fn may_ask(rights: &Rights, needed: Role, reads: bool, path: &str) -> bool {
    if rights.level(Place::Everywhere) >= needed {
        return true;
    }
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if below("/artifacts") {
        return match reads {
            true => rights.is_somebody(),
            false => rights.uploads(),
        };
    }
    let objects = below("/apis") && path.split('/').filter(|it| !it.is_empty()).count() > 3;
    // `/why` tells of one object, and asks as for the object.
    // `/top` asks for the namespace that is named.
    let documents = [
        "/api", "/apis", "/openapi", "/kinds", "/version", "/why", "/top",
    ];
    let documents = reads && documents.into_iter().any(below);
    rights.is_somebody() && (objects || documents)
}

/// Whom the token or certificate of a request names.
async fn known(app: &App, origin: &Origin, headers: &HeaderMap) -> Result<Caller> {
    let Origin::Network { person, .. } = origin else {
        return Err(Failure::unauthorized("only over the network"));
    };
    match bearer(headers)? {
        Some(token) => app.tokens.caller(&token).await?.ok_or_else(|| {
            Failure::unauthorized(
                "this token is not known here, or is good no more: `platctrl token create` makes one",
            )
        }),
        None => {
            let person = person.as_ref().ok_or_else(|| {
                Failure::unauthorized(
                    "say who you are: with a token (`Authorization: Bearer …`) or with a certificate of this server's authority",
                )
            })?;
            // The handshake was good, and the connection may be old.
            if person.until <= app.config.environment.now() {
                return Err(Failure::unauthorized("the certificate is good no more"));
            }
            Ok(person.caller.clone())
        }
    }
}

/// An answer that goes on for as long as its caller may have it.
pub(super) struct Stream {
    origin: Origin,
    uri: Uri,
    headers: HeaderMap,
}

impl Stream {
    /// What is asked for, if it is a watch or a log that is followed over the network.
    fn of(head: &Parts, origin: &Origin) -> Option<Self> {
        let query = Query::parse(head.uri.query()).ok()?;
        let goes_on = query.flag("watch").ok()? || query.flag("follow").ok()?;
        if !goes_on || head.method != Method::GET {
            return None;
        }
        Self::over(head, origin)
    }

    /// Whatever is asked for over the network.
    pub(super) fn over(head: &Parts, origin: &Origin) -> Option<Self> {
        let Origin::Network { .. } = origin else {
            return None;
        };
        Some(Self {
            origin: origin.clone(),
            uri: head.uri.clone(),
            headers: head.headers.clone(),
        })
    }

    /// Ends the answer when its caller may not have it any more.
    fn watched(self, app: Arc<App>, response: Response) -> Response {
        let (head, body) = response.into_parts();
        let ended = async move { self.lapse(&app, |rights| self.reads(&app, rights)).await };
        let frames = http_body_util::BodyStream::new(body);
        let frames = frames.take_until(Box::pin(ended));
        let body = Body::new(http_body_util::StreamBody::new(frames));
        Response::from_parts(head, body)
    }

    /// Completes when its caller has not the rights any more that it takes.
    pub(super) async fn lapse(&self, app: &App, allows: impl Fn(&Rights) -> bool) {
        let environment = &app.config.environment;
        while self.is_allowed(app, &allows).await {
            environment.sleep(environment.jitter(AGAIN)).await;
        }
    }

    /// While the store does not say otherwise, they may.
    async fn is_allowed(&self, app: &App, allows: &impl Fn(&Rights) -> bool) -> bool {
        let caller = match known(app, &self.origin, &self.headers).await {
            Ok(caller) => caller,
            Err(failure) => return !failure.is_unauthorized(),
        };
        let mut rights = Rights::of(caller.role);
        if caller.role < Role::Admin {
            match app.bindings.of(&caller.name).await {
                Ok(roles) => rights.roles = roles,
                Err(_) => return true,
            }
        }
        allows(&rights)
    }

    /// Whether somebody with these rights may read what is asked for.
    fn reads(&self, app: &App, rights: &Rights) -> bool {
        let mut path = self.uri.path().split('/').skip(2);
        let (Some(group), Some(version)) = (path.next(), path.next()) else {
            return false;
        };
        let rest: Vec<_> = path.collect();
        let served = app.served();
        served
            .target(group, version, &rest.join("/"))
            .is_ok_and(|target| {
                let place = asker::place(target.kind, target.namespace.as_deref());
                rights.reads(place)
            })
    }
}

/// The token that a request shows.
fn bearer(headers: &HeaderMap) -> Result<Option<String>> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else {
        return Ok(None);
    };
    if all.next().is_some() {
        return Err(Failure::unauthorized(
            "there are two Authorization headers: send one",
        ));
    }
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(token.trim().to_owned()))
        }
        _ => Err(Failure::unauthorized(
            "the Authorization header is not of the form `Bearer TOKEN`",
        )),
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        let text = error.to_string();
        match error {
            TokenError::Name(_) => Self::bad_request(text),
            TokenError::Taken(_) => Self::conflict(text),
            TokenError::Unknown(_) => Self::not_found(text),
            TokenError::Store(error) => error.into(),
        }
    }
}

/// What may be said of a token: everything but the secret's digest.
fn shown(record: &TokenRecord) -> Value {
    json!({
        "name": record.name,
        "role": record.role,
        "createdAt": record.created_at,
        "createdBy": record.created_by,
        "expiresAt": record.expires_at,
    })
}

/// `GET /auth/self`.
pub(super) async fn whoami(Extension(asker): Extension<Arc<Asker>>) -> Response {
    let answer = json!({
        "name": asker.name, "role": asker.rights.base, "roles": asker.rights.roles,
    });
    json_response(StatusCode::OK, &answer)
}

/// `GET /auth/tokens`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response> {
    let tokens: Vec<_> = app.tokens.list().await?.iter().map(shown).collect();
    Ok(json_response(StatusCode::OK, &json!({"tokens": tokens})))
}

/// What is asked of a new token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    name: String,
    role: Role,
    /// How long it is good; for ever without.
    lifetime_seconds: Option<u64>,
}

/// `POST /auth/tokens`: the only answer that holds the secret.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Arc<Asker>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let body = request::object(&headers, body).await?;
    let wanted: Wanted = serde_json::from_value(body)
        .map_err(|error| Failure::bad_request(format!("the token that is wanted: {error}")))?;
    let lifetime = wanted.lifetime_seconds.map(Duration::from_secs);
    let to = format!("tokens/{}", request::shown(&wanted.name));
    let mut deed = asker.deed(app.audit.now(), "create", to);
    deed.changes = vec![format!("role: {}", wanted.role)];
    let beside = |transaction| app.audit.beside(&deed, transaction);
    let (secret, record) = app
        .tokens
        .create(&wanted.name, wanted.role, lifetime, &asker.name, beside)
        .await?;
    let mut answer = shown(&record);
    answer["token"] = secret.reveal().into();
    Ok(json_response(StatusCode::CREATED, &answer))
}

/// `DELETE /auth/tokens/<name>`.
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Extension(asker): Extension<Arc<Asker>>,
    Path(name): Path<String>,
) -> Result<Response> {
    let to = format!("tokens/{}", request::shown(&name));
    let deed = asker.deed(app.audit.now(), "delete", to);
    let beside = |transaction| app.audit.beside(&deed, transaction);
    app.tokens.revoke(&name, beside).await?;
    Ok(json_response(StatusCode::OK, &json!({"deleted": name})))
}
