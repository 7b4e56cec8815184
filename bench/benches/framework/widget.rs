//! The kind that is reconciled, as each side knows it, and its bytes.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use platctrl_bench::text;
use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Ten fields, with the metadata about 1 KiB of JSON.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "bench.dev", version = "v1", kind = "Widget")]
#[serde(rename_all = "camelCase")]
pub(crate) struct WidgetSpec {
    pub(crate) index: usize,
    /// Counts the changes of the object, from [`FIRST_ROUND`].
    pub(crate) round: u64,
    /// When it was written, in nanoseconds since [`now`]'s zero; [`NO_STAMP`] when nobody asks.
    pub(crate) stamp: u64,
    image: String,
    replicas: u32,
    ports: Vec<u16>,
    paused: bool,
    weight: f64,
    owner: String,
    pub(crate) text: String,
}

// Numbers that always have the same number of digits, so that the server only overwrites them.

/// The round that an object is created at.
pub(crate) const FIRST_ROUND: u64 = 1_000_000;
/// Clock readings are counted from here.
pub(crate) const NO_STAMP: u64 = 1_000_000_000_000_000_000;
/// The resource version before the first change.
pub(crate) const FIRST_VERSION: u64 = 100_000_000_000;

/// The machine's monotonic clock, which all processes share, in nanoseconds from [`NO_STAMP`].
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    NO_STAMP + seconds * 1_000_000_000 + nanoseconds
}

/// The name of an object. Names sort as their numbers do.
pub(crate) fn name(index: usize) -> String {
    format!("widget-{index:06}")
}

/// The number in a name.
pub(crate) fn index(name: &str) -> Option<usize> {
    name.strip_prefix("widget-")?.parse().ok()
}

/// The object as the store holds it.
pub(crate) fn body(index: usize) -> String {
    let name = name(index);
    let filler = text(index as u64, 400);
    let replicas = index % 7;
    format!(
        r#"{{"apiVersion":"bench.dev/v1","kind":"Widget","metadata":{{"name":"{name}","namespace":"default","uid":"00000000-0000-4000-8000-{index:012x}","resourceVersion":"{FIRST_VERSION}","generation":{FIRST_ROUND},"creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"widget","tier":"backend","team":"team-{replicas}"}}}},"spec":{{"index":{index},"round":{FIRST_ROUND},"stamp":{NO_STAMP},"image":"registry.example.com/team/widget:1.0.0","replicas":{replicas},"ports":[8080,8443,9090],"paused":false,"weight":0.25,"owner":"someone@example.com","text":"{filler}"}}}}"#,
    )
}

/// The object as kube-runtime's users write it, without the derive's help but in its shape.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KubeWidget {
    pub(crate) metadata: ObjectMeta,
    pub(crate) spec: WidgetSpec,
}

impl kube::Resource for KubeWidget {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Widget".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "bench.dev".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "widgets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
