use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
struct OldSiteSpec {}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site", also(version = "v1beta1"))]
struct SiteSpec {}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Page", also(version = "v1", spec = OldSiteSpec))]
struct PageSpec {}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v2",
    kind = "Line",
    also(version = "v1", spec = OldSiteSpec),
    also(version = "v1", spec = OldSiteSpec),
    also(version = "one", spec = OldSiteSpec)
)]
struct LineSpec {}

fn main() {}
