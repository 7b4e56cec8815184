//! Who answers for which fields of an object: what server-side apply decides by.
//!
//! Nothing is remembered of an object until somebody applies it this way. Then each applier has
//! the fields that it said, everybody else those that they set since, and what was there before
//! belongs to `before-first-apply`. Whoever applies a value for a field that another one has meets
//! a conflict, unless both say the same or it is told to take the field.
//!
//! It is kept as `metadata.managedFields`, in the shape of Kubernetes.

mod fields;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use fields::{Difference, Fields, difference, merge};

/// The field of the metadata.
pub(super) const MANAGED_FIELDS: &str = "managedFields";
/// Owns what an object had when it was first applied.
const BEFORE: &str = "before-first-apply";
/// Owns what too many others changed one after the other.
const ANCIENT: &str = "ancient-changes";
/// The most owners of an object.
const MOST: usize = 32;
/// The longest name of one.
const LONGEST: usize = 128;
/// Annotations that hold what tools said when they applied on their own side.
const LAST_APPLIED: [&str; 2] = [
    platctrl_framework::client::LAST_APPLIED,
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// Fields of the metadata that somebody can own.
const METADATA: [&str; 3] = ["labels", "annotations", "ownerReferences"];

/// Which of an object's two sides is spoken of: each is a record of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Labels, annotations, owners and spec.
    Intent,
    /// The status.
    Status,
}

impl Side {
    /// What of an object can be owned on this side, without nulls: they say nothing.
    pub(super) fn of(self, object: &Value) -> Value {
        let mut part = Map::new();
        let mut keep = |name: &str, value: Option<&Value>| {
            if let Some(value) = value.filter(|value| !value.is_null()) {
                part.insert(name.to_owned(), without_nulls(value));
            }
        };
        match self {
            Self::Status => keep("status", object.get("status")),
            Self::Intent => {
                let metadata = object.get("metadata").and_then(Value::as_object);
                let metadata = metadata.into_iter().flatten();
                let metadata: Map<_, _> = metadata
                    .filter(|(name, value)| METADATA.contains(&name.as_str()) && !value.is_null())
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                if !metadata.is_empty() {
                    keep("metadata", Some(&metadata.into()));
                }
                keep("spec", object.get("spec"));
            }
        }
        part.into()
    }
}

fn without_nulls(value: &Value) -> Value {
    let Value::Object(fields) = value else {
        return value.clone();
    };
    let fields = fields.iter().filter(|(_, value)| !value.is_null());
    fields
        .map(|(name, value)| (name.clone(), without_nulls(value)))
        .collect::<Map<_, _>>()
        .into()
}

/// How somebody came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Apply,
    Update,
}

/// Somebody and their fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    name: String,
    operation: Operation,
    api_version: String,
    time: Option<String>,
    fields: Fields,
}

/// A field that is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// Who has it.
    pub(super) owner: String,
    /// Where it is, as `.spec.replicas`.
    pub(super) path: String,
}

/// Why something could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// These are others'.
    Conflicts(Vec<Conflict>),
    /// There are as many owners as an object has.
    TooMany,
}

/// Who wants a change, in which version and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wants<'a> {
    pub(super) name: &'a str,
    pub(super) api_version: &'a str,
    pub(super) now: Timestamp,
}

impl Wants<'_> {
    fn owner(&self, operation: Operation, fields: Fields) -> Owner {
        Owner {
            name: self.name.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            time: Some(
                Timestamp::from_second(self.now.as_second())
                    .unwrap_or(self.now)
                    .to_string(),
            ),
            fields,
        }
    }
}

/// Whether somebody can be called so.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is required for an apply: it says who answers for the fields");
    }
    if name.len() > LONGEST {
        return Err("is a name of at most 128 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("is a name without control characters");
    }
    Ok(())
}

/// The owners of an object's fields. None: nothing is remembered of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners(Vec<Owner>);

impl Owners {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `managedFields`. None for what is not in its shape.
    pub(super) fn parse(json: &Value) -> Option<Self> {
        let entries = json.as_array()?;
        // `[{}]` is how clients say that nothing shall be remembered.
        if entries.len() == 1 && entries[0].as_object().is_some_and(Map::is_empty) {
            return Some(Self::default());
        }
        if entries.len() > MOST {
            return None;
        }
        let owner = |entry: &Value| {
            let text = |name: &str| entry.get(name).and_then(Value::as_str);
            let name = text("manager")?;
            check_name(name).ok()?;
            if text("subresource").is_some_and(|it| !it.is_empty() && it != "status") {
                return None;
            }
            Some(Owner {
                name: name.to_owned(),
                operation: match text("operation")? {
                    "Apply" => Operation::Apply,
                    "Update" => Operation::Update,
                    _ => return None,
                },
                api_version: text("apiVersion")?.chars().take(LONGEST).collect(),
                time: text("time").map(|time| time.chars().take(40).collect()),
                fields: Fields::parse(entry.get("fieldsV1")?)?,
            })
        };
        let owners: Option<Vec<_>> = entries.iter().map(owner).collect();
        let mut owners = owners?;
        owners.retain(|owner| !owner.fields.is_empty());
        Some(Self(owners))
    }

    pub(super) fn to_json(&self, side: Side) -> Value {
        let entry = |owner: &Owner| {
            let mut entry = json!({
                "manager": owner.name,
                "operation": match owner.operation {
                    Operation::Apply => "Apply",
                    Operation::Update => "Update",
                },
                "apiVersion": owner.api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": owner.fields.to_json(),
            });
            if let Some(time) = &owner.time {
                entry["time"] = time.as_str().into();
            }
            if side == Side::Status {
                entry["subresource"] = "status".into();
            }
            entry
        };
        self.0.iter().map(entry).collect()
    }

    /// Applies what somebody says to what is there; both are of one [`Side`]. Answers what comes
    /// of it and who owns what then.
    pub(super) fn apply(
        &self,
        wants: Wants<'_>,
        live: &Value,
        config: &Value,
        force: bool,
    ) -> Result<(Value, Self), Refused> {
        let mut owners = self.clone();
        if owners.is_empty() {
            owners = Self::before(wants, live);
        }
        let is_own =
            |owner: &Owner| owner.name == wants.name && owner.operation == Operation::Apply;
        let own = owners.0.iter().position(is_own);
        let own = own.map(|at| owners.0.remove(at));

        let mut wanted = live.clone();
        merge(&mut wanted, config);
        let changed = difference(live, &wanted).set;
        let conflicts = owners.0.iter().flat_map(|owner| {
            let paths = owner.fields.met_by(&changed).into_iter();
            paths.map(|path| Conflict {
                owner: owner.name.clone(),
                path,
            })
        });
        let conflicts: Vec<_> = conflicts.collect();
        if !conflicts.is_empty() {
            if !force {
                return Err(Refused::Conflicts(conflicts));
            }
            for owner in &mut owners.0 {
                owner.fields.lose(&changed);
            }
            owners.0.retain(|owner| !owner.fields.is_empty());
        }

        // What it said before and says no more goes, unless somebody else says it, too.
        let mut dropped = own
            .as_ref()
            .map(|own| own.fields.dropped_by(config))
            .unwrap_or_default();
        let fields = Fields::of(config);
        let mut said = fields.clone();
        for owner in &owners.0 {
            dropped.spare(&owner.fields);
            said.add(&owner.fields);
        }
        let mut result = live.clone();
        dropped.take_from(&mut result, &said);
        merge(&mut result, config);

        if !fields.is_empty() {
            if owners.0.len() >= MOST {
                return Err(Refused::TooMany);
            }
            owners.0.push(match own {
                // Said again, it was said then.
                Some(own) if own.fields == fields && own.api_version == wants.api_version => own,
                _ => wants.owner(Operation::Apply, fields),
            });
        }
        owners.sort();
        Ok((result, owners))
    }

    /// Who owns what of an object of which nothing is remembered. What a tool applied on its own
    /// side is what it would have applied here.
    fn before(wants: Wants<'_>, live: &Value) -> Self {
        let mut rest = Fields::of(live);
        let annotations = live.pointer("/metadata/annotations");
        let applied = annotations.and_then(|annotations| {
            let texts = LAST_APPLIED.iter().filter_map(|name| annotations.get(name));
            let texts = texts.filter_map(Value::as_str);
            let mut configs = texts.filter_map(|text| serde_json::from_str::<Value>(text).ok());
            configs.next()
        });
        let mut owners = Vec::new();
        if let Some(config) = applied.filter(|_| matches!(wants.name, "kubectl" | "platctrl")) {
            // Ours has labels and annotations at its top.
            let labels = json!({"metadata": config, "spec": config.get("spec")});
            let config = match config.get("metadata") {
                Some(_) => Side::Intent.of(&config),
                None => Side::Intent.of(&labels),
            };
            let mut said = Fields::of(&config);
            // What somebody changed since is theirs.
            said.lose(&difference(live, &config).set);
            let notes: Map<_, _> = LAST_APPLIED
                .iter()
                .map(|name| ((*name).to_owned(), json!("")))
                .collect();
            said.add(&Fields::of(&json!({"metadata": {"annotations": notes}})));
            rest.lose(&said);
            if !said.is_empty() {
                owners.push(wants.owner(Operation::Apply, said));
            }
        }
        if !rest.is_empty() {
            let mut before = wants.owner(Operation::Update, rest);
            before.name = BEFORE.to_owned();
            owners.push(before);
        }
        Self(owners)
    }

    /// Gives the fields of a change to whoever made it, where owners are remembered at all.
    pub(super) fn changed(&mut self, wants: Wants<'_>, before: &Value, after: &Value) {
        if self.is_empty() {
            return;
        }
        let Difference { set, removed } = difference(before, after);
        if set.is_empty() && removed.is_empty() {
            return;
        }
        let mut own = Fields::default();
        for owner in &mut self.0 {
            owner.fields.lose(&removed);
            if owner.name == wants.name && owner.operation == Operation::Update {
                own = std::mem::take(&mut owner.fields);
            } else {
                owner.fields.lose(&set);
            }
        }
        self.0.retain(|owner| !owner.fields.is_empty());
        own.lose(&set);
        own.add(&set.unfold(after));
        if !own.is_empty() {
            self.0.push(wants.owner(Operation::Update, own));
        }
        self.sort();
        self.merge_oldest();
    }

    /// Those who applied first, each by time.
    fn sort(&mut self) {
        let rank = |owner: &Owner| (owner.operation == Operation::Update, owner.time.clone());
        self.0.sort_by_key(rank);
    }

    /// Makes one owner of the oldest that only changed something, where there are too many.
    fn merge_oldest(&mut self) {
        while self.0.len() > MOST {
            let is_update = |owner: &Owner| owner.operation == Operation::Update;
            let Some(at) = self.0.iter().position(is_update) else {
                return;
            };
            let mut oldest = self.0.remove(at);
            match self.0.get_mut(at) {
                Some(next) => {
                    oldest.fields.add(&next.fields);
                    next.fields = oldest.fields;
                    next.name = ANCIENT.to_owned();
                }
                None => return self.0.push(oldest),
            }
        }
    }
}

#[cfg(test)]
mod tests;
