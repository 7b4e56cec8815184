use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example/dev",
    version = "1",
    kind = "webSite",
    plural = "web.sites",
    singular = "Site",
    short("ok", "a b", "ok"),
)]
struct SiteSpec {}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Page")]
struct Page {}

fn main() {}
