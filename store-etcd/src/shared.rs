//! What all links of a store share: where it is, who logs in and how, and what its server told.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderValue;
use platctrl_framework::store::Revision;
use rustls::ClientConfig;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::connection::{Connection, methods};
use crate::grpc::{CallError, Status, frame};
use crate::keys::Keys;
use crate::location::Location;
use crate::options::Options;
use crate::tls::{Files, server_name};
use crate::version::Version;
use crate::wire;

/// What all links of a store share.
pub(crate) struct Shared {
    pub(crate) location: Location,
    pub(crate) options: Options,
    pub(crate) keys: Keys,
    pub(crate) closed: CancellationToken,
    /// The newest revision that any answer has told, for watchers that lag.
    newest: AtomicI64,
    /// Notified when `newest` grows while somebody sleeps on it.
    pub(crate) grown: Notify,
    pub(crate) sleeping: AtomicBool,
    pub(crate) tls: Mutex<Option<(Files, Arc<ClientConfig>)>>,
    login: Login,
    pub(crate) server: Mutex<Option<Server>>,
    /// Numbers for connections and tokens.
    pub(crate) numbers: AtomicU64,
}

/// What the store's server said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// Its version; None where this credential may not know it.
    pub version: Option<String>,
    /// What an operator should know about this version.
    pub warnings: Vec<String>,
}

/// The token of a logged-in user.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) value: HeaderValue,
    number: u64,
}

#[derive(Default)]
struct Login {
    token: Mutex<Option<Token>>,
    busy: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn new(location: Location, options: Options) -> Result<Self, String> {
        let tls = match &options.tls {
            None => None,
            Some(tls) => {
                let files = Files::read(tls)?;
                let config = files.config(tls)?;
                for endpoint in location.endpoints() {
                    server_name(tls, &endpoint.host)?;
                }
                Some((files, config))
            }
        };
        Ok(Self {
            keys: Keys::new(location.root()),
            location,
            options,
            closed: CancellationToken::new(),
            newest: AtomicI64::new(0),
            grown: Notify::new(),
            sleeping: AtomicBool::new(false),
            tls: Mutex::new(tls),
            login: Login::default(),
            server: Mutex::new(None),
            numbers: AtomicU64::new(1),
        })
    }

    pub(crate) fn server(&self) -> Option<Server> {
        lock(&self.server).clone()
    }

    /// Whether a requested progress comes in order. A server that hides its version is newer than
    /// the repair.
    pub(crate) fn trusts_progress(&self) -> bool {
        match &*lock(&self.server) {
            None => false,
            Some(server) => server.version.as_deref().is_none_or(|text| {
                Version::parse(text).is_some_and(Version::answers_progress_in_order)
            }),
        }
    }

    pub(crate) fn newest(&self) -> i64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Notes a revision that an answer told.
    pub(crate) fn saw(&self, revision: i64) {
        let before = self.newest.fetch_max(revision, Ordering::AcqRel);
        if before < revision && self.sleeping.swap(false, Ordering::AcqRel) {
            self.grown.notify_one();
        }
    }

    /// Another history is at an older revision.
    pub(crate) fn rewind(&self, revision: i64) {
        self.newest.store(revision, Ordering::Release);
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.options.tls.is_some()
    }

    /// Reads the files of TLS again; true when they differ and are usable.
    pub(crate) fn reload(&self) -> Result<bool, String> {
        let Some(tls) = &self.options.tls else {
            return Ok(false);
        };
        let files = Files::read(tls)?;
        if lock(&self.tls)
            .as_ref()
            .is_some_and(|(old, _)| *old == files)
        {
            return Ok(false);
        }
        let config = files.config(tls)?;
        *lock(&self.tls) = Some((files, config));
        Ok(true)
    }

    /// The token to use, after logging in when there is none.
    pub(crate) async fn token(&self, connection: &Connection) -> Result<Option<Token>, CallError> {
        let Some(credentials) = &self.options.credentials else {
            return Ok(None);
        };
        if let Some(token) = lock(&self.login.token).clone() {
            return Ok(Some(token));
        }
        let _busy = self.login.busy.lock().await;
        if let Some(token) = lock(&self.login.token).clone() {
            return Ok(Some(token));
        }
        let request = wire::AuthenticateRequest {
            name: credentials.user.clone(),
            password: credentials.password.clone(),
        };
        let answer = connection
            .ask::<wire::AuthenticateResponse>(methods::AUTHENTICATE, frame(&request), None)
            .await;
        let answer = match answer {
            // A server without access control lets everybody in.
            Err(CallError::Status(status)) if status.message.contains("not enabled") => {
                return Ok(None);
            }
            Err(CallError::Status(status)) => {
                return Err(CallError::Status(Status {
                    message: format!("user `{}`: {}", credentials.user, status.message),
                    ..status
                }));
            }
            answer => answer?,
        };
        let mut value = HeaderValue::from_str(&answer.token)
            .map_err(|_| CallError::Broken("a token that cannot be sent".to_owned()))?;
        value.set_sensitive(true);
        let token = Token {
            value,
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
        };
        *lock(&self.login.token) = Some(token.clone());
        Ok(Some(token))
    }

    /// The token that calls show now.
    pub(crate) fn held_token(&self) -> Option<Token> {
        lock(&self.login.token).clone()
    }

    /// Forgets a token that is no longer good.
    pub(crate) fn forget(&self, token: Option<&Token>) {
        let mut current = lock(&self.login.token);
        if let (Some(stale), Some(held)) = (token, current.as_ref())
            && stale.number == held.number
        {
            *current = None;
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A revision of etcd, which knows no epochs.
pub(crate) fn revision(counter: i64) -> Revision {
    Revision::new(0, u64::try_from(counter).unwrap_or_default())
}
