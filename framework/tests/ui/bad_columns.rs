use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v1",
    kind = "Site",
    column(name = "Ready", path = "status.ready"),
    column(name = "ready", path = ".status.ready"),
    column(name = "", path = ".size"),
    column(name = "Size")
)]
struct SiteSpec {}

fn main() {}
