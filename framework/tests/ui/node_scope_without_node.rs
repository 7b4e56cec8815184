use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site", scope = "Node")]
struct SiteSpec {}

fn node(_: &PageSpec) -> Option<&str> {
    None
}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Page", node = node)]
struct PageSpec {}

fn main() {}
