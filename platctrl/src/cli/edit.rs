//! `edit`: an object in the editor of whoever sits there, and back.
//!
//! What is wrong with it is written above it, and the editor is opened again. What cannot be
//! written stays in its file: nobody's work is lost.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use http::Method;
use platctrl_framework::model::{KindDefinition, schema};
use serde_json::Value;

use super::{Setting, find, interrupt};
use crate::api::{Collection, media};
use crate::error::{Code, Failure, Result};
use crate::{manifest, output};

/// The variables that name an editor, the first that is set wins.
const EDITORS: [&str; 3] = ["PLATCTRL_EDITOR", "VISUAL", "EDITOR"];

#[derive(Debug, clap::Args)]
#[command(after_help = "The editor is PLATCTRL_EDITOR, VISUAL, EDITOR or vi.")]
pub(crate) struct EditArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    what: Vec<String>,
    #[command(flatten)]
    namespace: super::NamespaceFlag,
}

pub(crate) async fn run(args: &EditArgs, setting: &Setting) -> Result<()> {
    let editor = editor()?;
    let (api, catalog) = setting.connect().await?;
    let target = catalog.target(&args.what)?;
    let object = find::exact(&api, &target, &args.namespace.namespace).await?;
    let namespace = object["metadata"]["namespace"].as_str();
    let path = Collection::new(&target.kind, namespace).object(&target.name);

    let original = text_of(object.clone())?;
    let file = Draft::new()?;
    let (mut text, mut problems) = (original.clone(), Vec::new());
    loop {
        file.write(&with_problems(&text, &problems))?;
        open(&editor, file.path()).await?;
        let edited = without_comments(&file.read()?);
        if edited.trim().is_empty() || edited == original {
            file.discard();
            output::note("nothing was changed");
            return Ok(());
        }
        if !problems.is_empty() && edited == text {
            let message = format!("it is still not right\n  {}", problems.join("\n  "));
            return Err(file.kept(Failure::failed(message)));
        }
        text = edited;
        let wanted = match read(&text, &target.kind, &object) {
            Ok(wanted) => wanted,
            Err(found) => {
                problems = found;
                continue;
            }
        };
        match api
            .call(Method::PUT, &path, Some((media::JSON, &wanted)))
            .await
        {
            Ok(_) => {
                file.discard();
                return output::print(format_args!("{} edited\n", target.title()));
            }
            // The server found what could not be seen from here.
            Err(failure) if failure.code == Code::Failed => {
                problems = failure
                    .message
                    .lines()
                    .map(|it| it.trim().to_owned())
                    .collect();
            }
            Err(failure) => return Err(file.kept(failure)),
        }
    }
}

/// The command of the editor.
fn editor() -> Result<String> {
    let set = EDITORS.iter().find_map(|name| std::env::var(name).ok());
    match set.filter(|editor| !editor.trim().is_empty()) {
        Some(editor) => Ok(editor),
        None if std::io::stdin().is_terminal() => Ok("vi".to_owned()),
        None => Err(Failure::usage("there is no terminal to edit at").hint(
            "set EDITOR to a program that changes the file it is given, or use `platctrl apply`",
        )),
    }
}

/// The object as it is edited: what others report about it is no part of that.
fn text_of(mut object: Value) -> Result<String> {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    output::yaml_text(&object)
}

fn with_problems(text: &str, problems: &[String]) -> String {
    let mut whole = String::from(
        "# Change the object, save and leave. Lines that begin with # are ignored;\n# an empty file, or one without changes, changes nothing.\n",
    );
    if !problems.is_empty() {
        whole.push_str("#\n# This is not right:\n");
        for line in problems.iter().flat_map(|problem| problem.lines()) {
            whole.push_str(&format!("#   {}\n", output::plain(line)));
        }
    }
    whole.push_str(text);
    whole
}

/// The text below the comments at its beginning: a # further down may be part of a value.
fn without_comments(text: &str) -> String {
    let mut rest = text;
    while rest.starts_with('#') {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    rest.to_owned()
}

/// The edited object, or what is wrong with it.
fn read(text: &str, kind: &KindDefinition, before: &Value) -> Result<Value, Vec<String>> {
    let documents =
        manifest::parse("line", Path::new(""), text).map_err(|problem| vec![problem])?;
    let [document] = documents.as_slice() else {
        return Err(vec!["there must be exactly one document".to_owned()]);
    };
    let mut problems: Vec<String> = Vec::new();
    for field in [
        "/apiVersion",
        "/kind",
        "/metadata/name",
        "/metadata/namespace",
    ] {
        if document.value.pointer(field) != before.pointer(field) {
            let name = field[1..].replace('/', ".");
            problems
                .push(document.problem(&name, "cannot be changed: it says which object this is"));
        }
    }
    if problems.is_empty() {
        let found = schema::check_object(kind, &document.value);
        problems.extend(
            found
                .iter()
                .map(|error| document.problem(&error.path, &error.problem)),
        );
    }
    match problems.is_empty() {
        true => Ok(document.value.clone()),
        false => Err(problems),
    }
}

async fn open(editor: &str, file: &Path) -> Result<()> {
    interrupt::leave_to_another();
    // The shell splits the editor's command, as `code --wait`, and passes the file on as it is.
    let ended = tokio::process::Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$@\""))
        .arg(editor)
        .arg(file)
        .status()
        .await;
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::failed(format!(
            "the editor `{}` ended with {status}; nothing was changed",
            output::plain(editor)
        ))),
        Err(error) => Err(Failure::failed(format!(
            "the editor `{}` cannot be started: {error}",
            output::plain(editor)
        ))),
    }
}

/// The file that is edited: only its owner can read it.
#[derive(Debug)]
struct Draft {
    file: tempfile::TempPath,
}

impl Draft {
    fn new() -> Result<Self> {
        let file = tempfile::Builder::new()
            .prefix("platctrl-edit-")
            .suffix(".yaml")
            .tempfile();
        let file =
            file.map_err(|error| Failure::failed(format!("cannot make a file to edit: {error}")))?;
        Ok(Self {
            file: file.into_temp_path(),
        })
    }

    fn path(&self) -> &Path {
        &self.file
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::failed(format!("{}: {error}", self.file.display()))
    }

    fn write(&self, text: &str) -> Result<()> {
        let opened = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.file);
        let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| self.failed(&error))
    }

    fn read(&self) -> Result<String> {
        std::fs::read_to_string(&self.file).map_err(|error| self.failed(&error))
    }

    fn discard(self) {
        // A file that is left in the directory for temporary ones harms nobody.
        let _ = self.file.close();
    }

    /// The failure, with the place of what was written.
    fn kept(self, failure: Failure) -> Failure {
        match self.file.keep() {
            Ok(path) => failure.hint(kept_hint(&path)),
            Err(error) => failure.hint(format!("what was written is lost, too: {error}")),
        }
    }
}

fn kept_hint(path: &Path) -> String {
    format!("what was written is kept in {}", path.display())
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::ReplicationController;
    use serde_json::json;

    use super::*;

    #[test]
    fn comments_are_ignored_only_above_the_object() {
        let text = "a: 1\nb: |\n  # kept\n";
        assert_eq!(
            without_comments(&with_problems(text, &["x\ny".to_owned()])),
            text
        );
        assert_eq!(without_comments("# only\n#"), "");
    }

    #[test]
    fn an_object_cannot_become_another_one() {
        let kind = KindDefinition::of::<ReplicationController>();
        let before = json!({"apiVersion": "platctrl.dev/v1", "kind": "ReplicationController", "metadata": {"name": "a", "namespace": "default"}});
        let text = text_of(before.clone())
            .unwrap()
            .replace("name: a", "name: b");
        let problems = read(&text, &kind, &before).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains("metadata.name: cannot be changed"),
            "{problems:?}"
        );
        assert!(read("a: [", &kind, &before).is_err());
        assert!(read("a: 1\n---\nb: 1\n", &kind, &before).is_err());
    }
}
