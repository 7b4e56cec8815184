//! `diff`: what `apply` would change, before it does.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::{Setting, apply};
use crate::error::{Code, Failure, Result};
use crate::manifest::Manifests;
use crate::output;

/// Lines shown before and after a change.
const CONTEXT: usize = 3;
/// The exit code when something differs.
const DIFFERS: u8 = 1;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 nothing differs, 1 something does, more than 1 it could not be compared."
)]
pub(crate) struct DiffArgs {
    /// A file, a directory of files, or - for standard input
    #[arg(short, long, required = true, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// The namespace of objects that name none
    #[arg(short, long)]
    namespace: Option<String>,
}

/// What is the server's to say about an object, and no manifest's.
const OF_THE_SERVER: [&str; 6] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

pub(crate) async fn run(args: &DiffArgs, setting: &Setting) -> Result<()> {
    match compare(args, setting).await {
        // 1 says that something differs.
        Err(failure) if failure.code == Code::Failed && failure.silent.is_none() => Err(Failure {
            code: Code::Usage,
            ..failure
        }),
        outcome => outcome,
    }
}

async fn compare(args: &DiffArgs, setting: &Setting) -> Result<()> {
    let manifests = Manifests::read_aside(&args.filename).await?;
    let (api, catalog) = setting.connect().await?;
    let namespaces = apply::Namespaces::new(args.namespace.as_deref(), setting);
    let colour = output::is_coloured();
    let mut differs = false;
    for object in &apply::prepare(&api, &catalog, manifests, namespaces).await? {
        let path = object.collection().object(&object.name);
        let now = match api.get(&path).await {
            Ok(now) => yaml(now)?,
            Err(failure) if failure.code == Code::NotFound => String::new(),
            Err(failure) => return Err(failure),
        };
        let wanted = yaml(object.result.clone())?;
        let text = unified(&object.title(), &now, &wanted, colour);
        differs |= !text.is_empty();
        output::print(text)?;
    }
    match differs {
        true => Err(Failure::silent(DIFFERS)),
        false => Ok(()),
    }
}

/// An object as YAML, without what nobody writes into a manifest.
fn yaml(mut object: Value) -> Result<String> {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in OF_THE_SERVER {
            metadata.remove(field);
        }
    }
    output::yaml_text(&object)
}

/// The differences of two texts; nothing when there are none.
fn unified(title: &str, now: &str, wanted: &str, colour: bool) -> String {
    if now == wanted {
        return String::new();
    }
    let diff = TextDiff::from_lines(now, wanted);
    let mut text = format!("--- {title} as it is\n+++ {title} after apply\n");
    for hunk in diff.unified_diff().context_radius(CONTEXT).iter_hunks() {
        let _ = writeln!(text, "{}", hunk.header());
        for change in hunk.iter_changes() {
            let (sign, shade) = match change.tag() {
                ChangeTag::Equal => (' ', ""),
                ChangeTag::Delete => ('-', "\x1b[31m"),
                ChangeTag::Insert => ('+', "\x1b[32m"),
            };
            let line = output::plain(change.value().trim_end_matches('\n'));
            let _ = match colour && !shade.is_empty() {
                true => writeln!(text, "{shade}{sign}{line}\x1b[0m"),
                false => writeln!(text, "{sign}{line}"),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_manifest_says_is_compared() {
        let object = |replicas: u32, generation: u32| {
            json!({"kind": "X", "metadata": {"name": "a", "generation": generation, "uid": "1"},
                "spec": {"replicas": replicas}, "status": {"replicas": generation}})
        };
        let (now, same) = (yaml(object(1, 1)).unwrap(), yaml(object(1, 2)).unwrap());
        assert_eq!(unified("x/a", &now, &same, false), "");
        let text = unified("x/a", &now, &yaml(object(2, 2)).unwrap(), false);
        assert!(
            text.starts_with("--- x/a as it is\n+++ x/a after apply\n@@ "),
            "{text}"
        );
        assert!(
            text.contains("\n-  replicas: 1\n+  replicas: 2\n"),
            "{text}"
        );
        assert!(text.contains("\n   name: a\n"), "{text}");
    }

    #[test]
    fn a_new_object_is_all_new_and_nothing_in_it_moves_the_cursor() {
        let text = unified("x/a", "", "a: \x1b[2J\n", true);
        assert!(text.contains("\x1b[32m+a: \\u{1b}[2J\x1b[0m\n"), "{text:?}");
    }
}
