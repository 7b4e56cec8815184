//! What a request that cannot be done is answered with: a `Status` object that names the thing,
//! the cause and the way out, in the shape that Kubernetes clients understand.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use platctrl_framework::client::ClientError;
use platctrl_framework::model::identity::IdentityError;
use platctrl_framework::model::{FieldError, ObjectKey};
use platctrl_framework::store::StoreError;
use serde_json::{Map, Value, json};

/// Seconds after which a client may try again when the store does not say.
const RETRY_AFTER: u64 = 1;

/// Why a request was not done.
#[derive(Clone, Debug)]
pub(super) struct Failure(Box<Told>);

#[derive(Clone, Debug)]
struct Told {
    code: StatusCode,
    reason: &'static str,
    message: String,
    /// Which object: fields of `details`.
    about: Map<String, Value>,
    causes: Vec<FieldError>,
    /// What is told of each cause, for programs.
    cause: &'static str,
    retry_after: Option<u64>,
    allow: Option<&'static str>,
}

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Told {
            code,
            reason,
            message: message.into(),
            about: Map::new(),
            causes: Vec::new(),
            cause: "FieldValueInvalid",
            retry_after: None,
            allow: None,
        }))
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// What is asked for cannot be done to what is there.
    pub(super) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// Nobody whom the server knows.
    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// There is no object of that name.
    pub(super) fn no_object(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{plural}.{group} \"{name}\" not found");
        Self::not_found(message).about(group, plural, name)
    }

    pub(super) fn method(method: &http::Method, allow: &'static str) -> Self {
        let message = format!("{method} is not possible here; possible: {allow}");
        let mut failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
        failure.0.allow = Some(allow);
        failure
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        let code = StatusCode::PAYLOAD_TOO_LARGE;
        Self::new(code, "RequestEntityTooLarge", message)
    }

    pub(super) fn media_type(message: impl Into<String>) -> Self {
        let code = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(code, "UnsupportedMediaType", message)
    }

    pub(super) fn too_many(message: impl Into<String>) -> Self {
        let code = StatusCode::TOO_MANY_REQUESTS;
        let mut failure = Self::new(code, "TooManyRequests", message);
        failure.0.retry_after = Some(RETRY_AFTER);
        failure
    }

    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        let code = StatusCode::SERVICE_UNAVAILABLE;
        let mut failure = Self::new(code, "ServiceUnavailable", message);
        failure.0.retry_after = Some(RETRY_AFTER);
        failure
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        let code = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(code, "InternalError", message)
    }

    pub(super) fn no_space(message: impl Into<String>) -> Self {
        let code = StatusCode::INSUFFICIENT_STORAGE;
        Self::new(code, "InsufficientStorage", message)
    }

    /// Fields that are not as they must be.
    pub(super) fn invalid(what: impl std::fmt::Display, causes: Vec<FieldError>) -> Self {
        let texts: Vec<_> = causes.iter().map(ToString::to_string).collect();
        let message = format!("{what} is invalid: {}", texts.join("; "));
        let code = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(code, "Invalid", message).with_causes(causes)
    }

    /// Nothing says which of several it is about.
    pub(super) fn ambiguous(message: impl Into<String>, parameter: &str) -> Self {
        let cause = FieldError::new(parameter, "is not given");
        let mut failure = Self::bad_request(message).with_causes(vec![cause]);
        failure.0.cause = "FieldValueRequired";
        failure
    }

    /// Fields that others answer for.
    pub(super) fn owned_by_others(message: impl Into<String>, causes: Vec<FieldError>) -> Self {
        let mut failure = Self::conflict(message).with_causes(causes);
        failure.0.cause = "FieldManagerConflict";
        failure
    }

    /// Names the fields that it is about.
    pub(super) fn with_causes(mut self, causes: Vec<FieldError>) -> Self {
        self.0.causes = causes;
        self
    }

    /// When to try again.
    pub(super) fn after(mut self, wait: std::time::Duration) -> Self {
        self.0.retry_after = Some(wait.as_secs().saturating_add(1));
        self
    }

    /// Names the object that it is about.
    pub(super) fn about(mut self, group: &str, plural: &str, name: &str) -> Self {
        self.0.about.insert("group".into(), group.into());
        self.0.about.insert("kind".into(), plural.into());
        self.0.about.insert("name".into(), name.into());
        self
    }

    /// It is not known who asks.
    pub(super) fn is_unauthorized(&self) -> bool {
        self.0.code == StatusCode::UNAUTHORIZED
    }

    /// The name is taken.
    pub(super) fn is_taken(&self) -> bool {
        self.0.reason == "AlreadyExists"
    }

    fn about_key(self, key: &ObjectKey) -> Self {
        self.about(&key.kind().group, &key.kind().plural, key.name())
    }

    /// The `Status` object.
    pub(super) fn to_status(&self) -> Value {
        let mut details = self.0.about.clone();
        if !self.0.causes.is_empty() {
            let causes = self.0.causes.iter().map(|cause| {
                json!({"reason": self.0.cause, "message": cause.problem, "field": cause.path})
            });
            details.insert("causes".into(), causes.collect());
        }
        if let Some(seconds) = self.0.retry_after {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
            "reason": self.0.reason,
            "code": self.0.code.as_u16(),
        });
        if !details.is_empty() {
            status["details"] = details.into();
        }
        status
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = json_response(self.0.code, &self.to_status());
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.0.code == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        if let Some(allow) = self.0.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// A value as the body of an answer.
pub(super) fn json_response(code: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Adds a `Warning` header: something that the caller should know though the request was done.
pub(super) fn warn(response: &mut Response, text: &str) {
    let quoted: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '?'
            }
        })
        .map(|c| if matches!(c, '"' | '\\') { '\'' } else { c })
        .collect();
    if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
        response.headers_mut().append(header::WARNING, value);
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Conflict { .. } => {
                Self::conflict("something of it has changed meanwhile: read it again and repeat")
            }
            StoreError::TooLarge { .. } => Self::too_large(text),
            StoreError::Compacted { .. } => {
                Self::expired(format!("{text}: list again and go on from there"))
            }
            StoreError::Unavailable { retry_after, .. } => {
                let mut failure = Self::unavailable(text);
                if let Some(wait) = retry_after {
                    failure.0.retry_after = Some(wait.as_secs().max(1));
                }
                failure
            }
            StoreError::Unknown { reason } => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "Timeout",
                format!(
                    "the store did not confirm ({reason}): the change may or may not have happened; look before you repeat it"
                ),
            ),
            // The caller asked for nothing wrong: the server's credential or its request is.
            _ => Self::internal(text),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::NotFound { key } => {
                Self::no_object(&key.kind().group, &key.kind().plural, key.name())
            }
            ClientError::AlreadyExists { key, .. } => {
                Self::new(StatusCode::CONFLICT, "AlreadyExists", text).about_key(&key)
            }
            ClientError::Conflict { key, .. } => Self::conflict(text).about_key(&key),
            ClientError::Invalid { key, errors } => Self::invalid(key, errors),
            ClientError::Name(_) => Self::bad_request(text),
            ClientError::Store(error) => error.into(),
            _ => Self::internal(text),
        }
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Store(error) => error.into(),
            other => Self::unavailable(other.to_string()),
        }
    }
}
