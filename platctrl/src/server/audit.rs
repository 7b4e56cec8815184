//! `GET /audit`: what was done over the API, oldest first.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::{StatusCode, Uri};
use jiff::Timestamp;
use serde_json::json;

use super::App;
use super::request::Query;
use super::status::{Failure, Result, json_response};
use crate::access::Deed;

/// Records that are told unless another number is asked for, and the most that are.
const LIMITS: (u64, u64) = (100, 10_000);

pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response> {
    let query = Query::parse(uri.query())?;
    let limit = query.number("limit")?.unwrap_or(LIMITS.0).min(LIMITS.1);
    let since = query.get("since").map(str::parse::<Timestamp>).transpose();
    let since = since.map_err(|error| Failure::bad_request(format!("since: {error}")))?;
    let is = |wanted: &str, text: &str| query.get(wanted).is_none_or(|wanted| wanted == text);
    let wanted = |deed: &Deed| {
        is("by", &deed.by)
            && is("verb", &deed.verb)
            && since.is_none_or(|since| deed.at >= since)
            && query.get("to").is_none_or(|to| {
                let rest = deed.to.strip_prefix(to);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let deeds = app.audit.list(limit, wanted).await?;
    Ok(json_response(StatusCode::OK, &json!({"items": deeds})))
}
