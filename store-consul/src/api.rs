//! The calls on Consul that the store makes, and what their failures mean.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use platctrl_framework::store::StoreError;
use serde::Deserialize;

use crate::http::{Answer, Ask, Endpoint, NoAnswer};
use crate::wire::{self, Op, Pair, Txn};

/// Consul waits up to a sixteenth longer than asked, so that not all ask again at once.
const WAIT: Duration = Duration::from_secs(50);

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// Any server's, however far behind: only for learning that something may have changed.
    Stale,
    /// The leader has asked the others whether it still is the leader.
    Consistent,
}

impl Consistency {
    fn query(self) -> &'static str {
        match self {
            Self::Stale => "stale=",
            Self::Consistent => "consistent=",
        }
    }
}

/// The token, and where it comes from.
#[derive(Debug)]
struct Token {
    file: Option<std::path::PathBuf>,
    current: Mutex<Option<Arc<str>>>,
}

impl Token {
    fn current(&self) -> Option<Arc<str>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Reads the file again.
    fn reload(&self) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("the token file {}: {error}", file.display()))?;
        let token = text.trim();
        let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
        if token.is_empty() || !plain || token.len() > 4096 {
            return Err(format!("the token file {} holds no token", file.display()));
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(token.into());
        Ok(())
    }

    /// True when the file holds another token than the one a request was refused with. Of
    /// requests that are refused together the first reads it for all, so the question is what
    /// this request sent and not what was known last.
    fn replaced(&self, refused: Option<&str>) -> bool {
        self.reload().is_ok() && self.current().as_deref() != refused
    }
}

/// Consul at one endpoint, with one root.
#[derive(Debug)]
pub(crate) struct Api {
    endpoint: Endpoint,
    root: String,
    datacenter: Option<String>,
    token: Token,
    timeout: Duration,
}

/// What a blocking read shows.
#[derive(Debug)]
pub(crate) struct Wake {
    pub(crate) index: u64,
    pub(crate) pairs: Vec<Pair>,
}

impl Api {
    /// # Errors
    /// The token file's problem.
    pub(crate) fn new(
        endpoint: Endpoint,
        root: &str,
        datacenter: Option<String>,
        token_file: Option<std::path::PathBuf>,
        timeout: Duration,
    ) -> Result<Self, String> {
        let token = Token {
            file: token_file,
            current: Mutex::new(None),
        };
        token.reload()?;
        Ok(Self {
            endpoint,
            root: root.to_owned(),
            datacenter,
            token,
            timeout,
        })
    }

    /// The endpoint as a URL, for messages.
    pub(crate) fn name(&self) -> String {
        self.endpoint.name()
    }

    /// A key as it is on the server.
    pub(crate) fn at(&self, key: &str) -> String {
        format!("{}/{key}", self.root)
    }

    /// A key of the server without the root.
    pub(crate) fn without_root<'a>(&self, key: &'a str) -> &'a str {
        let rest = key.strip_prefix(self.root.as_str());
        rest.and_then(|rest| rest.strip_prefix('/')).unwrap_or(key)
    }

    /// A transaction that only reads and checks, at the leader's newest state.
    pub(crate) async fn read(&self, ops: &[Op]) -> Result<Txn, StoreError> {
        self.txn(ops, false).await
    }

    /// A transaction that writes.
    pub(crate) async fn write(&self, ops: &[Op]) -> Result<Txn, StoreError> {
        self.txn(ops, true).await
    }

    async fn txn(&self, ops: &[Op], write: bool) -> Result<Txn, StoreError> {
        debug_assert!(ops.len() <= wire::MAX_OPS, "{} operations", ops.len());
        let what = if write { "a commit" } else { "a read" };
        let body = wire::encode(ops).map_err(|error| StoreError::Invalid {
            reason: error.to_string(),
        })?;
        if body.len() > wire::MAX_BODY {
            return Err(StoreError::TooLarge {
                what: format!("{what} as a request to {}, packed, in bytes", self.name()),
                size: body.len(),
                limit: wire::MAX_BODY,
            });
        }
        let query = if write {
            ""
        } else {
            Consistency::Consistent.query()
        };
        let answer = self
            .ask(
                Method::PUT,
                "/v1/txn",
                query,
                body,
                self.timeout,
                what,
                write,
            )
            .await?;
        match answer.status {
            StatusCode::OK | StatusCode::CONFLICT => {}
            _ => return Err(self.refused(&answer, what, write)),
        }
        let decoded = wire::decode_txn(&answer.body, &self.root);
        let txn = decoded.map_err(|error| self.nonsense(what, &error, write))?;
        match (answer.status, &txn) {
            (StatusCode::OK, Txn::Done(_)) | (StatusCode::CONFLICT, Txn::Refused(_)) => Ok(txn),
            _ => Err(self.nonsense(what, "its status and its body disagree", write)),
        }
    }

    /// Waits until a key may have changed since an index, and reads it.
    pub(crate) async fn wait_for(&self, key: &str, index: u64) -> Result<Wake, StoreError> {
        self.blocking(key, "", index).await
    }

    /// Waits until something below a key's text may have changed since an index, and reads it.
    pub(crate) async fn wait_below(&self, begin: &str, index: u64) -> Result<Wake, StoreError> {
        self.blocking(begin, "recurse=&", index).await
    }

    async fn blocking(&self, key: &str, how: &str, index: u64) -> Result<Wake, StoreError> {
        let path = format!("/v1/kv/{}", self.at(key));
        let query = format!(
            "{how}{}&index={index}&wait={}s",
            Consistency::Stale.query(),
            WAIT.as_secs()
        );
        let timeout = WAIT + WAIT / 16 + self.timeout;
        let what = "waiting for changes";
        let answer = self
            .ask(
                Method::GET,
                &path,
                &query,
                Bytes::new(),
                timeout,
                what,
                false,
            )
            .await?;
        let pairs = match answer.status {
            StatusCode::OK => wire::decode_pairs(&answer.body, &self.root)
                .map_err(|error| self.nonsense(what, &error, false))?,
            StatusCode::NOT_FOUND if header(&answer.headers, "x-consul-index").is_some() => {
                Vec::new()
            }
            _ => return Err(self.refused(&answer, what, false)),
        };
        let index = header(&answer.headers, "x-consul-index")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| self.nonsense(what, "it has no index", false))?;
        if header(&answer.headers, "x-consul-knownleader") == Some("false") {
            return Err(self.unavailable(what, "the server asked knows no leader"));
        }
        Ok(Wake { index, pairs })
    }

    /// The index of everything whose key begins with a text: that of the last change there,
    /// deletes included.
    pub(crate) async fn index_of(&self, begin: &str) -> Result<u64, StoreError> {
        let path = format!("/v1/kv/{}", self.at(begin));
        let what = "looking for foreign writes";
        // Cut at slashes, the answer is short however much there is.
        let query = format!("keys=&separator=/&{}", Consistency::Consistent.query());
        let answer = self
            .ask(
                Method::GET,
                &path,
                &query,
                Bytes::new(),
                self.timeout,
                what,
                false,
            )
            .await?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => {}
            _ => return Err(self.refused(&answer, what, false)),
        }
        header(&answer.headers, "x-consul-index")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| self.nonsense(what, "it has no index", false))
    }

    /// Makes a session that ends without renewal, and returns its id.
    pub(crate) async fn create_session(&self, ttl: Duration) -> Result<String, StoreError> {
        #[derive(Deserialize)]
        struct Created {
            #[serde(rename = "ID")]
            id: String,
        }
        // No health check takes it away: only time, or somebody who destroys it. It locks one
        // key that nobody else locks, so the delay would delay nobody.
        let body = format!(
            r#"{{"Name":"platctrl","TTL":"{}ms","Behavior":"release","LockDelay":"0s","Checks":[],"NodeChecks":[]}}"#,
            ttl.as_millis()
        );
        let what = "making a session";
        let answer = self
            .ask(
                Method::PUT,
                "/v1/session/create",
                "",
                body.into(),
                self.timeout,
                what,
                true,
            )
            .await?;
        if answer.status != StatusCode::OK {
            let text = answer.text();
            if text.contains("Invalid Session TTL") {
                let reason = format!(
                    "{}: {text}; set the option for the shortest lease to the servers' \
                     session_ttl_min",
                    self.name()
                );
                return Err(StoreError::Invalid { reason });
            }
            return Err(self.refused(&answer, what, true));
        }
        let created: Created = serde_json::from_slice(&answer.body)
            .map_err(|error| self.nonsense(what, &error.to_string(), true))?;
        Ok(created.id)
    }

    /// Starts a session's time again; false when there is none of this id.
    pub(crate) async fn renew_session(&self, id: &str) -> Result<bool, StoreError> {
        let what = "renewing a session";
        let path = format!("/v1/session/renew/{id}");
        let answer = self
            .ask(
                Method::PUT,
                &path,
                "",
                Bytes::new(),
                self.timeout,
                what,
                true,
            )
            .await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND if answer.text().contains("not found") => Ok(false),
            _ => Err(self.refused(&answer, what, true)),
        }
    }

    /// Ends a session; nothing happens where there is none.
    pub(crate) async fn destroy_session(&self, id: &str) -> Result<(), StoreError> {
        let what = "ending a session";
        let path = format!("/v1/session/destroy/{id}");
        let answer = self
            .ask(
                Method::PUT,
                &path,
                "",
                Bytes::new(),
                self.timeout,
                what,
                true,
            )
            .await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            _ => Err(self.refused(&answer, what, true)),
        }
    }

    /// A call of Consul's access control; what its status means is for the caller to say.
    pub(crate) async fn acl(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        what: &str,
    ) -> Result<Answer, StoreError> {
        let write = method != Method::GET;
        self.ask(method, path, "", body, self.timeout, what, write)
            .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one private funnel for every call"
    )]
    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &str,
        body: Bytes,
        timeout: Duration,
        what: &str,
        write: bool,
    ) -> Result<Answer, StoreError> {
        let mut path = format!("{path}?{query}");
        if let Some(datacenter) = &self.datacenter {
            path.push_str("&dc=");
            path.push_str(datacenter);
        }
        let mut again = true;
        loop {
            let token = self.token.current();
            let ask = Ask {
                method: method.clone(),
                path: path.clone(),
                body: body.clone(),
                token: token.clone(),
                timeout,
            };
            let answer = self.endpoint.send(ask).await;
            let answer = answer.map_err(|error| self.no_answer(what, &error, write))?;
            // A token that was rotated is in the file by now, and a refused request did not
            // happen.
            if again && answer.status == StatusCode::FORBIDDEN {
                again = false;
                if self.token.replaced(token.as_deref()) {
                    continue;
                }
            }
            return Ok(answer);
        }
    }

    fn no_answer(&self, what: &str, error: &NoAnswer, write: bool) -> StoreError {
        let reason = format!("{}: {what}: {}", self.name(), error.reason);
        if error.sent && write {
            StoreError::Unknown { reason }
        } else if error.passing {
            StoreError::unavailable(reason)
        } else {
            StoreError::Invalid { reason }
        }
    }

    pub(crate) fn unavailable(&self, what: &str, reason: &str) -> StoreError {
        StoreError::unavailable(format!("{}: {what}: {reason}", self.name()))
    }

    pub(crate) fn denied(&self, what: &str) -> StoreError {
        StoreError::Denied {
            what: format!("{what} at {}", self.name()),
        }
    }

    /// An answer that Consul does not give. A write may have happened.
    pub(crate) fn nonsense(&self, what: &str, error: &str, write: bool) -> StoreError {
        let reason = format!(
            "{}: {what}: the answer is not one of Consul: {error}",
            self.name()
        );
        if write {
            StoreError::Unknown { reason }
        } else {
            StoreError::unavailable(reason)
        }
    }

    /// What a status that is no success means.
    pub(crate) fn refused(&self, answer: &Answer, what: &str, write: bool) -> StoreError {
        let text = answer.text();
        let status = answer.status;
        let reason = format!("{}: {what}: {status}: {text}", self.name());
        match status.as_u16() {
            401 | 403 => self.denied(&format!("{what} ({text})")),
            413 => StoreError::TooLarge {
                what: format!("the request to {} ({text})", self.name()),
                size: number_before(&text, " bytes").unwrap_or(0),
                limit: number_after(&text, "max size: ").unwrap_or(0),
            },
            429 => StoreError::Unavailable {
                reason,
                retry_after: header(&answer.headers, "retry-after")
                    .and_then(|text| text.parse().ok())
                    .map(Duration::from_secs),
            },
            400 if text.contains("HTTPS") => StoreError::Invalid {
                reason: format!(
                    "{}: this port speaks TLS only: connect with TLS, or name the plain port",
                    self.name()
                ),
            },
            300..=399 => StoreError::Invalid {
                reason: format!("{reason} (a redirect, which Consul does not need here)"),
            },
            404 | 405 => StoreError::Invalid {
                reason: format!("{reason} (is this Consul? since 1.8 it knows this path)"),
            },
            400..=499 => StoreError::Invalid { reason },
            // A datacenter that nobody knows stays unknown until somebody changes something.
            _ if text.contains("No path to datacenter") => StoreError::Invalid { reason },
            _ if !write || did_not_happen(&text) => StoreError::unavailable(reason),
            _ => StoreError::Unknown { reason },
        }
    }
}

/// Server errors that are told before anything was done.
fn did_not_happen(text: &str) -> bool {
    const BEFORE: [&str; 8] = [
        "No cluster leader",
        "node is not the leader",
        "Raft leader not found",
        "failed to get conn",
        "timed out enqueuing operation",
        "not ready to serve consistent reads",
        "rolled back",
        "rate limit",
    ];
    // The words for a log entry that another leader may yet commit.
    !text.contains("leadership lost") && BEFORE.iter().any(|known| text.contains(known))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number_after(text: &str, mark: &str) -> Option<usize> {
    let (_, rest) = text.split_once(mark)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn number_before(text: &str, mark: &str) -> Option<usize> {
    let (rest, _) = text.split_once(mark)?;
    let digits: String = rest
        .chars()
        .rev()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.chars().rev().collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_did_not_happen_is_taken_for_that() {
        assert!(did_not_happen("No cluster leader"));
        assert!(did_not_happen(
            "rpc error getting client: failed to get conn: dial tcp: connection refused"
        ));
        for text in [
            "leadership lost while committing log",
            "rpc error making call: EOF",
            "raft apply failed: leadership lost while committing log; node is not the leader",
            "i/o deadline reached",
            "",
        ] {
            assert!(!did_not_happen(text), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_from_the_refusal() {
        let text = "Request body(699106 bytes) too large, max size: 524288 bytes. See …";
        assert_eq!(number_before(text, " bytes"), Some(699_106));
        assert_eq!(number_after(text, "max size: "), Some(524_288));
    }

    /// Refuses two requests with the first token together, and takes what has the second.
    async fn refuse_both(listener: tokio::net::TcpListener) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let both = Arc::new(tokio::sync::Barrier::new(2));
        while let Ok((mut stream, _)) = listener.accept().await {
            let both = Arc::clone(&both);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while stream
                    .read_buf(&mut request)
                    .await
                    .is_ok_and(|read| read > 0)
                {
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let status = if String::from_utf8_lossy(&request).contains("second") {
                        "200 OK"
                    } else {
                        both.wait().await;
                        "403 Forbidden"
                    };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    request.clear();
                }
            });
        }
    }

    #[tokio::test]
    async fn of_two_requests_refused_together_both_are_sent_again_with_the_new_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "first").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::new("127.0.0.1", address.port(), address.to_string(), None, 4);
        let timeout = Duration::from_secs(60);
        let api = Api::new(endpoint, "root", None, Some(file.clone()), timeout).unwrap();
        std::fs::write(&file, "second").unwrap();
        tokio::spawn(refuse_both(listener));
        let ask = || api.acl(Method::GET, "/v1/acl/token/self", Bytes::new(), "a test");
        let (one, other) = tokio::join!(ask(), ask());
        assert_eq!(one.unwrap().status, StatusCode::OK);
        assert_eq!(other.unwrap().status, StatusCode::OK);
    }
}
