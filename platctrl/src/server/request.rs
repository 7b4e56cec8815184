//! What comes with a request: its query, and its body up to a limit.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::status::{Failure, Result};

/// The most bytes that an object may have on its way here.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The parameters of a query. Those that nobody asks for are ignored, as Kubernetes does.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self> {
        let pairs = query.unwrap_or_default().split('&');
        let pairs = pairs.filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        pairs.collect::<Result<_>>().map(Self)
    }

    /// A parameter that was given and is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(given, _)| given == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// All values of a parameter, in their order.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let given = self.0.iter().filter(move |(given, _)| given == name);
        given.map(|(_, value)| value.as_str())
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        match self.0.iter().find(|(given, _)| given == name) {
            None => Ok(false),
            Some((_, value)) => match value.as_str() {
                "" | "1" | "true" | "True" => Ok(true),
                "0" | "false" | "False" => Ok(false),
                other => Err(Failure::bad_request(format!(
                    "`{name}` is true or false, not `{}`",
                    shown(other)
                ))),
            },
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| value.parse().ok()).flatten();
        let refuse = || {
            let value = shown(value);
            Failure::bad_request(format!("`{name}` is a whole number, not `{value}`"))
        };
        number.map(Some).ok_or_else(refuse)
    }

    /// Whether everything is to be checked and nothing written.
    pub(super) fn dry_run(&self) -> Result<bool> {
        let mut given = self
            .0
            .iter()
            .filter(|(name, value)| name == "dryRun" && !value.is_empty());
        match given.next() {
            None => Ok(false),
            Some((_, value)) if value == "All" => Ok(true),
            Some((_, value)) => Err(Failure::bad_request(format!(
                "`dryRun` is `All`, not `{}`",
                shown(value)
            ))),
        }
    }
}

/// Foreign text, short and without what a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect()
}

fn decode(text: &str) -> Result<String> {
    let refuse = || Failure::bad_request("the query is not valid: it has a broken %-escape");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit().ok_or_else(refuse)?, digit().ok_or_else(refuse)?);
                u8::try_from(high << 4 | low).map_err(|_| refuse())?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| refuse())
}

/// The media type of a body, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
}

/// Reads a body that may be a JSON object of at most [`MAX_BODY_BYTES`].
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes> {
    let refuse = || {
        Failure::too_large(format!(
            "the request is larger than {MAX_BODY_BYTES} bytes: an object has at most 384 KiB; put large data into an artifact"
        ))
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(refuse());
    }
    let collect = async {
        let mut bytes = BytesMut::new();
        let mut body = body;
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|error| Failure::bad_request(format!("the request broke off: {error}")))?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > MAX_BODY_BYTES {
                    return Err(refuse());
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    };
    let late = |_| Failure::timeout("the request's body did not come within 30 seconds");
    tokio::time::timeout(BODY_TIMEOUT, collect)
        .await
        .map_err(late)?
}

/// Reads a body that is a JSON object.
pub(super) async fn object(headers: &HeaderMap, body: Body) -> Result<Value> {
    match media_type(headers) {
        "" | "application/json" => {}
        other => {
            return Err(Failure::media_type(format!(
                "objects are read as application/json, not {}",
                shown(other)
            )));
        }
    }
    parse(&read(headers, body).await?)
}

pub(super) fn parse(bytes: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Failure::bad_request(format!("the body is not JSON: {error}")))?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Failure::bad_request("the body is JSON but no object"))
}

/// Reads a manifest: JSON, or one document of YAML.
pub(super) fn manifest(bytes: &[u8]) -> Result<Value> {
    if let Ok(value @ Value::Object(_)) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Failure::bad_request("the body is not text in UTF-8"))?;
    let documents = crate::manifest::parse("body", std::path::Path::new("/"), text)
        .map_err(|problem| Failure::bad_request(crate::output::plain(&problem)))?;
    let mut documents = documents.into_iter();
    match (documents.next(), documents.next()) {
        (Some(one), None) => Ok(one.value),
        _ => Err(Failure::bad_request("the body is not one manifest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_or_refused() {
        let query = Query::parse(Some("labelSelector=a%20in%20(b%2Cc)&watch=1&limit=5&x")).unwrap();
        assert_eq!(query.get("labelSelector"), Some("a in (b,c)"));
        assert!(query.flag("watch").unwrap() && !query.flag("follow").unwrap());
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert!(Query::parse(Some("a=%zz")).is_err());
        assert!(Query::parse(Some("a=%f")).is_err());
        assert!(Query::parse(Some("a=%ff")).is_err());
        let query = Query::parse(Some("limit=-1&watch=maybe&dryRun=Some")).unwrap();
        assert!(query.number("limit").is_err() && query.flag("watch").is_err());
        assert!(query.dry_run().is_err());
    }
}
