//! Kinds made with the derive macro.

use platctrl_framework::model::{
    Column, FieldError, KindDefinition, Metadata, NoStatus, Object, Propagation, Resource, Scope,
    check_name,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A parcel, worked on by one node.
#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v1beta2",
    kind = "Parcel",
    status = ParcelStatus,
    scope = "Node",
    node = "ParcelSpec::carrier",
    short("pa", "pcl"),
    column(name = "Weight", path = ".spec.weight"),
    column(name = "Seen", path = ".status.seen", wide),
    validate = check_parcel,
    validate_update = check_change,
    deletion_policy = policy
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParcelSpec {
    carrier: Option<String>,
    weight: u32,
}

impl ParcelSpec {
    fn carrier(&self) -> Option<&str> {
        self.carrier.as_deref()
    }
}

/// Where it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
pub(crate) struct ParcelStatus {
    #[serde(default)]
    seen: Vec<String>,
}

fn check_parcel(spec: &ParcelSpec, errors: &mut Vec<FieldError>) {
    if spec.weight == 0 {
        errors.push(FieldError::new("spec.weight", "nothing weighs nothing"));
    }
}

fn check_change(old: &ParcelSpec, new: &ParcelSpec, errors: &mut Vec<FieldError>) {
    if old.carrier != new.carrier {
        errors.push(FieldError::new("spec.carrier", "cannot change"));
    }
}

fn policy(spec: &ParcelSpec) -> Propagation {
    if spec.weight > 100 {
        Propagation::Cascade
    } else {
        Propagation::Orphan
    }
}

#[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[resource(
    group = "example.dev",
    version = "v1",
    kind = "Policy",
    scope = "Cluster"
)]
struct PolicySpec {
    text: String,
}

mod inner {
    use super::*;

    #[derive(Resource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
    #[resource(
        group = "example.dev",
        version = "v1",
        kind = "Sheep",
        plural = "sheep",
        singular = "ewe",
        status = "super::Counted<u8>"
    )]
    pub(super) struct SheepSpec {}
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
struct Counted<T: Default> {
    #[serde(default)]
    count: T,
}

fn parcel(weight: u32) -> ParcelSpec {
    ParcelSpec {
        carrier: Some("web1".to_owned()),
        weight,
    }
}

#[test]
fn every_attribute_of_the_derive_reaches_the_trait() {
    assert_eq!(Parcel::api_version(), "example.dev/v1beta2");
    assert_eq!(
        (Parcel::KIND, Parcel::PLURAL, Parcel::SINGULAR),
        ("Parcel", "parcels", "parcel")
    );
    assert_eq!(Parcel::SHORT_NAMES, ["pa", "pcl"]);
    assert_eq!(Parcel::SCOPE, Scope::Node);
    let columns = [
        Column::new("Weight", ".spec.weight"),
        Column::wide("Seen", ".status.seen"),
    ];
    assert_eq!(Parcel::COLUMNS, columns);
    assert_eq!(Parcel::node(&parcel(1)), Some("web1"));
    assert_eq!(Parcel::deletion_policy(&parcel(1)), Propagation::Orphan);
    assert_eq!(Parcel::deletion_policy(&parcel(101)), Propagation::Cascade);

    let mut errors = Vec::new();
    Parcel::validate(&parcel(0), &mut errors);
    let moved = ParcelSpec {
        carrier: None,
        weight: 1,
    };
    Parcel::validate_update(&parcel(1), &moved, &mut errors);
    let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["spec.weight", "spec.carrier"]);

    let object: Object<Parcel> = Object::new(
        Metadata {
            namespace: Some("default".to_owned()),
            ..Metadata::named("a")
        },
        parcel(1),
    );
    assert_eq!(object.key().unwrap().to_string(), "parcels/web1/default/a");
}

#[test]
fn what_is_not_written_has_sensible_defaults() {
    assert_eq!(Policy::PLURAL, "policies");
    assert_eq!(Policy::SCOPE, Scope::Cluster);
    assert!(Policy::SHORT_NAMES.is_empty() && Policy::COLUMNS.is_empty());
    let spec = PolicySpec {
        text: String::new(),
    };
    assert_eq!(Policy::deletion_policy(&spec), Propagation::Orphan);
    assert_eq!(Policy::node(&spec), None);
    let object: Object<Policy> = Object::new(Metadata::named("a"), spec);
    assert_eq!(object.status.detail, NoStatus::default());
    let raw = object.to_raw().unwrap();
    assert_eq!(raw.typed::<Policy>().unwrap().spec, object.spec);

    assert_eq!(
        (inner::Sheep::PLURAL, inner::Sheep::SINGULAR),
        ("sheep", "ewe")
    );
    assert_eq!(inner::Sheep::SCOPE, Scope::Namespaced);
    let detail = <inner::Sheep as Resource>::Status::default();
    assert_eq!(detail, Counted { count: 0_u8 });
}

#[test]
fn names_that_the_derive_accepts_are_segments_of_keys() {
    for definition in [
        KindDefinition::of::<Parcel>(),
        KindDefinition::of::<Policy>(),
        KindDefinition::of::<inner::Sheep>(),
    ] {
        check_name("API group", &definition.group).unwrap();
        check_name("kind", &definition.plural).unwrap();
        for name in &definition.short_names {
            check_name("short name", name).unwrap();
        }
    }
}

#[test]
fn wrong_attributes_are_compile_errors_that_say_what_to_write() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
