//! Logs of the pods on this machine, as the agent's library reads them.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use jiff::Timestamp;
use platctrl_agent::{LogError, LogQuery, LogReader, PodName};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::request::{Query, shown};
use super::super::status::{Failure, Result, warn};

/// Pieces that wait for the client.
const BACKLOG: usize = 2;

/// What a pod's programs wrote, as the query wants it. `permit` is kept for as long as it goes on.
pub(super) async fn answer(
    data_dir: &Path,
    pod: &PodName,
    query: &Query,
    stopping: CancellationToken,
    permit: impl Send + 'static,
) -> Result<Response> {
    let asked = asked(query)?;
    let (data_dir, pod) = (data_dir.to_owned(), pod.clone());
    let opened = tokio::task::spawn_blocking(move || LogReader::open(&data_dir, &pod, asked)).await;
    let opened = opened.map_err(|error| Failure::internal(error.to_string()))?;
    let log = opened.map_err(|error| failure(&error, query))?;
    let note = log.note();
    let (sender, pieces) = mpsc::channel(BACKLOG);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let end = || stopping.is_cancelled() || sender.is_closed();
        if let Err(error) = log.copy(&end, &|piece| sender.blocking_send(Ok(piece)).is_ok()) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = futures::stream::unfold(pieces, |mut pieces| async move {
        let piece: io::Result<Bytes> = pieces.recv().await?;
        Some((piece, pieces))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    if let Some(note) = note {
        warn(&mut response, note);
    }
    Ok(response)
}

/// What a client asks for.
fn asked(query: &Query) -> Result<LogQuery> {
    let mut asked = LogQuery::default();
    let program = query.get("launchable").or_else(|| query.get("container"));
    asked.program = program.map(ToOwned::to_owned);
    asked.tail = query.number("tailLines")?;
    asked.since = match (query.number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            let why = "sinceSeconds and sinceTime exclude each other";
            return Err(Failure::bad_request(why));
        }
        (Some(seconds), None) => SystemTime::now().checked_sub(Duration::from_secs(seconds)),
        (None, Some(time)) => {
            let time: Timestamp = time
                .parse()
                .map_err(|error| Failure::bad_request(format!("sinceTime is no time: {error}")))?;
            Some(time.into())
        }
        (None, None) => None,
    };
    asked.previous = query.flag("previous")?;
    asked.follow = query.flag("follow")?;
    Ok(asked)
}

fn failure(error: &LogError, query: &Query) -> Failure {
    match error {
        LogError::NoLog => {
            // As the server knows it, for people alone.
            let phase = shown(query.get("phase").unwrap_or("Pending"));
            Failure::bad_request(format!(
                "{error}: its phase is {phase}; `platctrl describe` tells why it has not started"
            ))
        }
        LogError::Read { .. } => Failure::internal(error.to_string()),
        LogError::NoProgram { program, known } => {
            let error = LogError::NoProgram {
                program: shown(program),
                known: known.clone(),
            };
            Failure::bad_request(error.to_string())
        }
        LogError::Several { .. } => Failure::ambiguous(error.to_string(), "launchable"),
        error => Failure::bad_request(error.to_string()),
    }
}
