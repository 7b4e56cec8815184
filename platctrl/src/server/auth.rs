//! Who is let in, and the tokens that let somebody in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::request;
use super::socket::Peer;
use super::status::{Failure, Result, json_response};
use crate::access::{self, Caller, Role, TokenError, TokenRecord};

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// The local socket.
    Local(Peer),
    /// Another machine, or this one by its address.
    Network {
        address: SocketAddr,
        /// Whom the certificate names that was shown, if one was.
        person: Option<Caller>,
    },
}

/// Lets a request pass whose caller may ask it, and tells the handlers who that is.
pub(super) async fn admit(
    State(app): State<Arc<App>>,
    Extension(origin): Extension<Origin>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let shown = bearer(request.headers());
    match caller(&app, &origin, &method, &path, shown).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

async fn caller(
    app: &App,
    origin: &Origin,
    method: &Method,
    path: &str,
    shown: Result<Option<String>>,
) -> Result<Caller> {
    let (address, person) = match origin {
        Origin::Local(peer) if peer.is_allowed() => {
            return Ok(Caller {
                name: peer.name.clone(),
                role: Role::Admin,
            });
        }
        Origin::Local(peer) => {
            return Err(Failure::forbidden(format!(
                "this socket serves root and the user that the server runs as, not {}",
                peer.name
            )));
        }
        Origin::Network { address, person } => (address, person),
    };
    let Some(needed) = access::needed(method, path) else {
        return Ok(Caller {
            name: "nobody".to_owned(),
            role: Role::Viewer,
        });
    };
    let caller = match shown? {
        Some(token) => app.tokens.caller(&token).await?.ok_or_else(|| {
            tracing::info!(%address, "a token was refused");
            Failure::unauthorized(
                "this token is not known here, or is good no more: `platctrl token create` makes one",
            )
        })?,
        None => person.clone().ok_or_else(|| {
            Failure::unauthorized(
                "say who you are: with a token (`Authorization: Bearer …`) or with a certificate of this server's authority",
            )
        })?,
    };
    if caller.role < needed {
        return Err(Failure::forbidden(format!(
            "{} may do what a {} may; {method} {path} takes the role {needed}",
            caller.name, caller.role
        )));
    }
    Ok(caller)
}

/// The token that a request shows.
fn bearer(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
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
pub(super) async fn whoami(Extension(caller): Extension<Caller>) -> Response {
    let answer = json!({"name": caller.name, "role": caller.role});
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
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let body = request::object(&headers, body).await?;
    let wanted: Wanted = serde_json::from_value(body)
        .map_err(|error| Failure::bad_request(format!("the token that is wanted: {error}")))?;
    let lifetime = wanted.lifetime_seconds.map(Duration::from_secs);
    let (secret, record) = app
        .tokens
        .create(&wanted.name, wanted.role, lifetime, &caller.name)
        .await?;
    tracing::info!(token = record.name, role = %record.role, by = caller.name, "a token was made");
    let mut answer = shown(&record);
    answer["token"] = secret.reveal().into();
    Ok(json_response(StatusCode::CREATED, &answer))
}

/// `DELETE /auth/tokens/<name>`.
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response> {
    app.tokens.revoke(&name).await?;
    tracing::info!(token = name, by = caller.name, "a token was taken away");
    Ok(json_response(StatusCode::OK, &json!({"deleted": name})))
}
