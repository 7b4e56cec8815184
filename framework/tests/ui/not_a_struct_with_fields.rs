use platctrl_framework::model::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Site")]
enum SiteSpec {
    One,
}

#[derive(Resource)]
#[resource(group = "example.dev", version = "v1", kind = "Page")]
union PageSpec {
    byte: u8,
}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Line")]
struct LineSpec(u8);

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(group = "example.dev", version = "v1", kind = "Word")]
struct WordSpec<T> {
    word: T,
}

fn main() {}
