use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
struct OldSiteSpec {}

impl From<OldSiteSpec> for SiteSpec {
    fn from(_: OldSiteSpec) -> Self {
        Self {}
    }
}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v2", kind = "Site", also(version = "v1", spec = OldSiteSpec))]
struct SiteSpec {}

fn main() {}
