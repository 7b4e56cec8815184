//! The versions of one program: replication controllers that follow one another.

use jiff::Timestamp;
use platctrl_kinds::line::{CAUSE, LINE, MADE_BY, REVISION};
use serde_json::{Map, Value};

use super::{collection, is_final, number, text, title};
use crate::api::{Api, Catalog, Collection, Query, Target};
use crate::cli::find;
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::output::Table;

/// The versions of one program, and the rolls between them.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) rolls: Collection,
    /// Its replication controllers, by revision.
    versions: Vec<Value>,
    /// Its rolling updates, the oldest first.
    known: Vec<Value>,
}

fn label<'o>(object: &'o Value, name: &str) -> &'o str {
    object["metadata"]["labels"][name]
        .as_str()
        .unwrap_or_default()
}

fn annotation<'o>(object: &'o Value, name: &str) -> &'o str {
    object["metadata"]["annotations"][name]
        .as_str()
        .unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The first version of a line was made before there was a line.
pub(super) fn revision(version: &Value) -> u64 {
    annotation(version, REVISION).parse().unwrap_or(1)
}

impl Line {
    /// The line that a replication controller or a rolling update belongs to.
    pub(super) async fn find(
        api: &Api,
        catalog: &Catalog,
        target: &Target,
        namespace: &str,
    ) -> Result<Self> {
        let object = find::exact(api, target, namespace).await?;
        let name_of_line = match target.kind.kind.as_str() {
            "ReplicationController" => match label(&object, LINE) {
                "" => name(&object).to_owned(),
                line => line.to_owned(),
            },
            "RollingUpdate" => {
                let controllers = catalog.named("replicationcontrollers")?;
                let from = text(&object, "/spec/from").to_owned();
                let from = Target {
                    kind: controllers,
                    name: from,
                };
                match find::exact(api, &from, namespace).await {
                    Ok(from) if !label(&from, LINE).is_empty() => label(&from, LINE).to_owned(),
                    _ => from.name,
                }
            }
            other => {
                return Err(Failure::usage(format!("a {other} is not rolled out"))
                    .hint("name a replication controller, as rc/hello"));
            }
        };
        let controllers = collection(catalog, "replicationcontrollers", namespace)?;
        let rolls = collection(catalog, "rollingupdates", namespace)?;
        let (all, _) = find::list(api, &controllers, &Query::default()).await?;
        let belongs = |it: &Value| label(it, LINE) == name_of_line || name(it) == name_of_line;
        let mut versions: Vec<Value> = all.into_iter().filter(belongs).collect();
        versions.sort_by_key(revision);
        let (all, _) = find::list(api, &rolls, &Query::default()).await?;
        let ours = |roll: &Value| {
            let of = |side: &str| versions.iter().any(|it| name(it) == text(roll, side));
            of("/spec/from") || of("/spec/to")
        };
        let mut known: Vec<Value> = all.into_iter().filter(ours).collect();
        known.sort_by(|a, b| {
            let at = |roll: &Value| text(roll, "/metadata/creationTimestamp").to_owned();
            (at(a), name(a)).cmp(&(at(b), name(b)))
        });
        Ok(Self {
            name: name_of_line,
            namespace: namespace.to_owned(),
            rolls,
            versions,
            known,
        })
    }

    /// The roll that is under way.
    pub(super) fn under_way(&self) -> Option<&Value> {
        self.known.iter().rev().find(|roll| !is_final(roll))
    }

    /// The roll that is under way, or why there is none.
    pub(super) fn active(&self) -> Result<&Value> {
        self.under_way().ok_or_else(|| {
            let message = format!("no roll of {} is under way", output::plain(&self.name));
            Failure::new(Code::NotFound, message)
                .hint("`platctrl rollout start` begins one, `platctrl rollout history` lists what there was")
        })
    }

    /// The roll that is under way, or the last one.
    pub(super) fn newest(&self) -> Result<&Value> {
        match self.under_way().or(self.known.last()) {
            Some(roll) => Ok(roll),
            None => self.active(),
        }
    }

    /// The version that runs: the one with most pods, and of several the newest.
    pub(super) fn current(&self) -> Result<&Value> {
        let runs = self.versions.iter();
        let runs = runs.max_by_key(|it| {
            (
                it["spec"]["claimedBy"].is_null(),
                number(it, "/spec/replicas"),
                revision(it),
            )
        });
        runs.ok_or_else(|| {
            let message = format!(
                "there is no replication controller of {}",
                output::plain(&self.name)
            );
            Failure::new(Code::NotFound, message)
        })
    }

    pub(super) fn replicas(&self, version: &str) -> u64 {
        let found = self.versions.iter().find(|it| name(it) == version);
        found.map_or(0, |it| number(it, "/spec/replicas"))
    }

    /// The number of the next version, and a name for it.
    pub(super) fn next(&self) -> (u64, String) {
        let next = 1 + self.versions.iter().map(revision).max().unwrap_or(0);
        (next, format!("{}-{next}", self.name))
    }

    pub(super) fn has(&self, version: &str) -> bool {
        self.versions.iter().any(|it| name(it) == version)
    }

    /// Where an undo goes from and to.
    pub(super) fn back(&self, wanted: Option<u64>) -> Result<(String, String)> {
        let current = self.current()?;
        let before = match wanted {
            Some(wanted) => self.versions.iter().find(|it| revision(it) == wanted),
            None => {
                // Where the present one came from; after an undo that is not the number before.
                let mut rolls = self.known.iter().rev();
                let last = rolls.find(|it| {
                    text(it, "/status/phase") == "Complete" && text(it, "/spec/to") == name(current)
                });
                let from = last.map(|it| text(it, "/spec/from"));
                from.and_then(|from| self.versions.iter().find(|it| name(it) == from))
            }
        };
        let Some(before) = before.filter(|it| name(it) != name(current)) else {
            let message = match wanted {
                Some(wanted) if wanted == revision(current) => {
                    format!("revision {wanted} is the one that runs")
                }
                Some(wanted) => format!("there is no revision {wanted}"),
                None => format!(
                    "there is no version of {} before {}",
                    self.name,
                    name(current)
                ),
            };
            return Err(Failure::new(Code::NotFound, output::plain(&message))
                .hint("`platctrl rollout history` lists them"));
        };
        Ok((name(current).to_owned(), name(before).to_owned()))
    }

    /// How careful the last roll was.
    pub(super) fn care_of_last(&self) -> Map<String, Value> {
        const CARE: [&str; 6] = [
            "minimumHealthy",
            "surge",
            "minHealthyTime",
            "delay",
            "progressDeadline",
            "failureBudget",
        ];
        let last = self.known.last().and_then(|roll| roll["spec"].as_object());
        let fields = last.into_iter().flatten();
        let fields = fields.filter(|(field, _)| CARE.contains(&field.as_str()));
        fields
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect()
    }

    /// Prints all versions, the oldest first.
    pub(super) fn history(&self) -> Result<()> {
        let now = Timestamp::now();
        let heading = [
            "REVISION", "NAME", "PODS", "READY", "WHAT", "MADE BY", "AGE", "ROLL", "CAUSE",
        ];
        let mut lines = vec![heading.map(str::to_owned).to_vec()];
        for version in &self.versions {
            let rolls = self.known.iter().rev();
            let roll = rolls
                .clone()
                .find(|roll| text(roll, "/spec/to") == name(version));
            let roll = roll.map(|roll| {
                let phase = text(roll, "/status/phase");
                format!("{} {phase}", title(roll))
            });
            let or_dash = |text: &str| match text {
                "" => "-".to_owned(),
                text => output::plain(text),
            };
            lines.push(vec![
                revision(version).to_string(),
                output::plain(name(version)),
                number(version, "/spec/replicas").to_string(),
                number(version, "/status/readyReplicas").to_string(),
                or_dash(&what(version)),
                or_dash(annotation(version, MADE_BY)),
                output::age(&version["metadata"]["creationTimestamp"], now),
                or_dash(&roll.unwrap_or_default()),
                or_dash(annotation(version, CAUSE)),
            ]);
        }
        output::print(Table::default().render(&lines))
    }
}

/// The artifacts of a version, shortened.
fn what(version: &Value) -> String {
    let launchables = version.pointer("/spec/template/spec/launchables");
    let launchables = launchables.and_then(Value::as_object).into_iter().flatten();
    let each = launchables.map(|(name, launchable)| {
        let digest = launchable["digest"].as_str();
        let short = match digest {
            Some(digest) => digest
                .trim_start_matches("sha256:")
                .chars()
                .take(12)
                .collect(),
            None => launchable["location"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        };
        format!("{name}={short}")
    });
    each.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use platctrl_framework::model::KindDefinition;
    use platctrl_kinds::RollingUpdate;
    use serde_json::json;

    use super::*;

    fn line(versions: Vec<Value>, known: Vec<Value>) -> Line {
        let roll_kind = KindDefinition::of::<RollingUpdate>();
        Line {
            name: "hello".into(),
            namespace: "default".into(),
            rolls: Collection::new(&roll_kind, Some("default")),
            versions,
            known,
        }
    }

    fn version(name: &str, number: u64, replicas: u32, claimed: Option<&str>) -> Value {
        json!({
            "metadata": {"name": name, "annotations": {REVISION: number.to_string()}},
            "spec": {"replicas": replicas, "claimedBy": claimed},
        })
    }

    #[test]
    fn an_undo_goes_to_where_the_present_version_came_from() {
        let rolls = |pairs: &[(&str, &str)]| {
            let roll = |(from, to): &(&str, &str)| json!({"metadata": {"name": to}, "spec": {"from": from, "to": to}, "status": {"phase": "Complete"}});
            pairs.iter().map(roll).collect::<Vec<_>>()
        };
        let versions = vec![
            version("hello", 1, 0, Some("hello-2")),
            version("hello-2", 2, 0, Some("hello-3")),
            version("hello-3", 3, 4, None),
        ];
        let found = line(
            versions.clone(),
            rolls(&[("hello", "hello-2"), ("hello-2", "hello-3")]),
        );
        assert_eq!(
            found.back(None).unwrap(),
            ("hello-3".into(), "hello-2".into())
        );
        assert_eq!(found.back(Some(1)).unwrap().1, "hello");
        assert!(
            found
                .back(Some(3))
                .unwrap_err()
                .message
                .contains("is the one that runs")
        );
        assert!(found.back(Some(9)).is_err());
        assert_eq!(
            (found.next(), found.replicas("hello-3")),
            ((4, "hello-4".into()), 4)
        );
        assert!(line(versions[..1].to_vec(), vec![]).back(None).is_err());
    }
}
