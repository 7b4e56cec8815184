use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site", plurral = "sites")]
struct SiteSpec {}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Page", column(name = "Size", pth = ".spec.size"))]
struct PageSpec {}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Line", namespaced)]
struct LineSpec {}

fn main() {}
