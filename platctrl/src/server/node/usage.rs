//! What this node and its pods use at the moment.

use std::path::Path;
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use platctrl_agent::UsageSample;
use serde_json::json;

use super::super::status::{Failure, Result, json_response};

/// How long the node is watched for it.
const SPAN: Duration = Duration::from_secs(1);

/// What is used: by the machine, or by the pods of one namespace alone.
pub(super) async fn answer(data_dir: &Path, namespace: Option<&str>) -> Result<Response> {
    let first = sample(data_dir).await?;
    tokio::time::sleep(SPAN).await;
    let used = sample(data_dir).await?.since(&first);
    let wanted = |of: &str| namespace.is_none_or(|it| it == of);
    let pods = used.pods.iter().filter(|(pod, _)| wanted(pod.namespace()));
    let pods = pods.map(
        |(pod, usage)| json!({"namespace": pod.namespace(), "name": pod.name(), "usage": usage}),
    );
    let mut answer = json!({"pods": pods.collect::<Vec<_>>()});
    if namespace.is_none() {
        answer["usage"] = json!(used.node);
        answer["capacity"] = json!(used.capacity);
    }
    Ok(json_response(StatusCode::OK, &answer))
}

async fn sample(data_dir: &Path) -> Result<UsageSample> {
    let data_dir = data_dir.to_owned();
    let taken = tokio::task::spawn_blocking(move || UsageSample::take(&data_dir));
    let taken = taken
        .await
        .map_err(|error| Failure::internal(error.to_string()))?;
    taken.map_err(|error| Failure::internal(error.to_string()))
}
