//! `apply`: makes what manifests say.
//!
//! Everything is read and checked before anything is written: the YAML, the kinds, the fields, the
//! artifacts, and by a dry run whatever only the server knows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::Method;
use platctrl_agent::hoist;
use platctrl_framework::model::{KindDefinition, Scope, schema};
use serde_json::Value;

use super::Setting;
use crate::api::{Api, Catalog, Collection, Query, media};
use crate::error::{Code, Failure, Result};
use crate::manifest::{self, Document, Manifests};
use crate::output;
use crate::output::progress::{Bar, Unit};

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    /// A file, a directory of files, or - for standard input
    #[arg(short, long, required = true, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// The namespace of objects that name none
    #[arg(short, long)]
    namespace: Option<String>,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &ApplyArgs, setting: &Setting) -> Result<()> {
    let manifests = Manifests::read_aside(&args.filename).await?;
    let (api, catalog) = match setting.connect().await {
        Ok(server) => server,
        // What is wrong with the files is wrong whatever server there is.
        Err(_) if !manifests.problems.is_empty() => return manifests.check().map(|_| ()),
        Err(failure) => return Err(failure),
    };
    let namespaces = Namespaces::new(args.namespace.as_deref(), setting);
    let prepared = prepare(&api, &catalog, manifests, namespaces).await?;
    if args.dry_run {
        for object in &prepared {
            output::print(format_args!(
                "{} {} (dry run)\n",
                object.title(),
                object.outcome
            ))?;
        }
        return Ok(());
    }
    for object in &prepared {
        let outcome = object.write(&api).await?;
        output::done(format_args!("{} {outcome}\n", object.title()));
    }
    Ok(())
}

/// An object that was found to be in order.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) kind: KindDefinition,
    pub(crate) namespace: String,
    pub(crate) name: String,
    document: Document,
    artifacts: Vec<(hoist::Digest, PathBuf)>,
    /// What the server said that applying it would come to.
    pub(crate) outcome: String,
    /// The object as it would be then.
    pub(crate) result: Value,
}

impl Prepared {
    /// `replicationcontroller/hello`.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.kind.singular, self.name)
    }

    /// The objects of its kind and namespace.
    pub(crate) fn collection(&self) -> Collection {
        Collection::new(&self.kind, Some(&self.namespace))
    }

    /// Uploads what is missing and applies the object.
    pub(crate) async fn write(&self, api: &Api) -> Result<String> {
        for (digest, path) in &self.artifacts {
            upload(api, digest, path).await?;
        }
        let applied = self.apply(api, &Query::default()).await;
        applied
            .map(|(outcome, _)| outcome)
            .map_err(|failure| Failure {
                message: format!("{}: {}", self.title(), failure.message),
                ..failure
            })
    }

    /// What was done, and the object after it.
    async fn apply(&self, api: &Api, query: &Query) -> Result<(String, Value)> {
        let path = query.on(&self.collection().object(&self.name));
        let body = Some((media::APPLY, &self.document.value));
        let answer = api.call(Method::PATCH, &path, body).await?;
        let outcome = answer
            .headers
            .get("platctrl-outcome")
            .and_then(|it| it.to_str().ok());
        let guess = if answer.status == http::StatusCode::CREATED {
            "created"
        } else {
            "configured"
        };
        Ok((outcome.unwrap_or(guess).to_owned(), answer.body))
    }
}

/// The namespaces of objects that name none, and of those that name another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespaces<'a> {
    /// Nothing may be in another one.
    given: Option<&'a str>,
    default: &'a str,
}

impl<'a> Namespaces<'a> {
    /// The one that a command was given, else the context's.
    pub(crate) fn new(given: Option<&'a str>, setting: &'a Setting) -> Self {
        Self {
            given,
            default: setting.namespace(),
        }
    }

    /// This one and no other.
    pub(crate) fn only(namespace: &'a str) -> Self {
        Self {
            given: Some(namespace),
            default: namespace,
        }
    }
}

impl Default for Namespaces<'_> {
    fn default() -> Self {
        Self {
            given: None,
            default: platctrl_kinds::DEFAULT_NAMESPACE,
        }
    }
}

/// Checks all documents; fails with every problem, each with its file, line and field.
pub(crate) async fn prepare(
    api: &Api,
    catalog: &Catalog,
    manifests: Manifests,
    namespaces: Namespaces<'_>,
) -> Result<Vec<Prepared>> {
    let Manifests {
        documents,
        mut problems,
    } = manifests;
    let mut prepared = Vec::new();
    let mut artifacts = Artifacts::default();
    let mut seen: BTreeMap<(String, String, String), String> = BTreeMap::new();
    for mut document in documents {
        let before = problems.len();
        let Some(kind) = kind_of(&document, catalog, &mut problems) else {
            continue;
        };
        let found = schema::check_object(&kind, &document.value);
        problems.extend(
            found
                .iter()
                .map(|error| document.problem(&error.path, &error.problem)),
        );
        let namespace = match namespace_of(&document, &kind, namespaces) {
            Ok(namespace) => namespace,
            Err(problem) => {
                problems.push(document.problem("metadata.namespace", &problem));
                continue;
            }
        };
        let name = document.text("/metadata/name").to_owned();
        let place = format!("{}:{}", document.file, document.line("kind"));
        if let Some(other) = seen.insert(
            (kind.plural.clone(), namespace.clone(), name.clone()),
            place,
        ) {
            problems.push(document.problem(
                "metadata.name",
                &format!("is also that of the object at {other}"),
            ));
        }
        let local = artifacts.resolve(api, &mut document, &mut problems).await?;
        if problems.len() == before {
            let outcome = String::new();
            prepared.push(Prepared {
                kind,
                namespace,
                name,
                document,
                artifacts: local,
                outcome,
                result: Value::Null,
            });
        }
    }
    // What only the server can know, of what is in order as far as can be seen from here.
    let dry_run = Query::default().with("dryRun", "All");
    for object in &mut prepared {
        match object.apply(api, &dry_run).await {
            Ok((outcome, result)) => (object.outcome, object.result) = (outcome, result),
            Err(failure) if failure.code == Code::Failed || failure.code == Code::Conflict => {
                problems.extend(told(&object.document, &failure));
            }
            Err(failure) => return Err(failure),
        }
    }
    if problems.is_empty() {
        Ok(prepared)
    } else {
        Err(manifest::problems(&problems))
    }
}

/// What the server refused, at the lines of the fields that it named.
fn told(document: &Document, failure: &Failure) -> Vec<String> {
    if failure.fields.is_empty() {
        return vec![document.problem("metadata.name", &failure.message)];
    }
    failure
        .fields
        .iter()
        .map(|(field, problem)| document.problem(field, problem))
        .collect()
}

fn kind_of(
    document: &Document,
    catalog: &Catalog,
    problems: &mut Vec<String>,
) -> Option<KindDefinition> {
    let (api_version, kind) = (document.text("/apiVersion"), document.text("/kind"));
    if let Some(definition) = catalog.of_manifest(api_version, kind) {
        return Some(definition.clone());
    }
    let same = catalog
        .definitions()
        .find(|definition| definition.kind == kind);
    problems.push(match same {
        _ if kind.is_empty() => {
            document.problem("kind", "is required, as `kind: ReplicationController`")
        }
        Some(same) if api_version.is_empty() => document.problem(
            "apiVersion",
            &format!("is required: `{}`", same.api_version()),
        ),
        Some(same) => {
            let problem = format!(
                "`{api_version}` has no {kind}; did you mean `{}`?",
                same.api_version()
            );
            document.problem("apiVersion", &problem)
        }
        None => {
            let known: Vec<_> = catalog.definitions().map(|it| it.kind.as_str()).collect();
            let hint = match nearest_kind(kind, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("kinds are {}", known.join(", ")),
            };
            document.problem("kind", &format!("there is no kind `{kind}`; {hint}"))
        }
    });
    None
}

fn nearest_kind<'a>(kind: &str, known: &[&'a str]) -> Option<&'a str> {
    let same = known
        .iter()
        .copied()
        .find(|name| name.eq_ignore_ascii_case(kind));
    same.or_else(|| output::nearest(kind, known.iter().copied()))
}

fn namespace_of(
    document: &Document,
    kind: &KindDefinition,
    namespaces: Namespaces<'_>,
) -> Result<String, String> {
    let own = document
        .value
        .pointer("/metadata/namespace")
        .and_then(Value::as_str);
    let Namespaces { given, default } = namespaces;
    match (own, given) {
        (Some(_), _) if kind.scope == Scope::Cluster => {
            Err(format!("a {} belongs to no namespace", kind.kind))
        }
        (Some(own), Some(given)) if own != given => Err(format!(
            "`{own}` is not the namespace that was given, `{given}`"
        )),
        (Some(own), _) => Ok(own.to_owned()),
        (None, _) => Ok(given.unwrap_or(default).to_owned()),
    }
}

/// Where the specs of pods are in objects.
pub(crate) const POD_SPECS: [(&str, &str); 2] = [
    ("/spec/launchables", "spec.launchables"),
    (
        "/spec/template/spec/launchables",
        "spec.template.spec.launchables",
    ),
];

/// Local artifacts that were looked at: each once, however many objects name it.
#[derive(Debug, Default)]
struct Artifacts {
    known: BTreeMap<PathBuf, Result<hoist::Digest, String>>,
}

impl Artifacts {
    /// Checks the local artifacts that a document names and rewrites their locations.
    async fn resolve(
        &mut self,
        api: &Api,
        document: &mut Document,
        problems: &mut Vec<String>,
    ) -> Result<Vec<(hoist::Digest, PathBuf)>> {
        let mut found = Vec::new();
        for (pointer, field) in POD_SPECS {
            let Some(Value::Object(launchables)) = document.value.pointer(pointer).cloned() else {
                continue;
            };
            for (name, launchable) in launchables {
                let field = schema::child_path(field, &name);
                let Some(path) = launchable["location"]
                    .as_str()
                    .and_then(|it| local(&document.base, it))
                else {
                    continue;
                };
                let digest = match self.look(api, &path).await? {
                    Ok(digest) => digest,
                    Err(problem) => {
                        problems.push(document.problem(&format!("{field}.location"), &problem));
                        continue;
                    }
                };
                match launchable["digest"].as_str() {
                    Some(stated) if stated != digest.to_string() => {
                        let problem = format!(
                            "is not that of {}, which is {digest}: correct it, or leave it out and it is filled in",
                            path.display()
                        );
                        problems.push(document.problem(&format!("{field}.digest"), &problem));
                        continue;
                    }
                    _ => {}
                }
                let launchable = document
                    .value
                    .pointer_mut(pointer)
                    .and_then(|it| it.get_mut(&name));
                if let Some(launchable) = launchable {
                    launchable["location"] = format!("artifact:{digest}").into();
                    launchable["digest"] = digest.to_string().into();
                }
                found.push((digest, path));
            }
        }
        Ok(found)
    }

    /// The digest of a file, once it is certain that an agent would take it.
    async fn look(&mut self, api: &Api, path: &Path) -> Result<Result<hoist::Digest, String>> {
        if let Some(known) = self.known.get(path) {
            return Ok(known.clone());
        }
        let file = path.to_owned();
        let digest = blocking(move || digest_of(&file)).await?;
        let checked = match digest {
            // It was checked when it was uploaded; its name is what it holds.
            Ok(digest) if api.exists(&artifact_path(&digest)).await? => Ok(digest),
            Ok(_) => {
                let file = path.to_owned();
                let verified = blocking(move || hoist::verify(&file, None)).await?;
                verified
                    .map(|verified| verified.digest)
                    .map_err(|error| super::hoist::problem(path, &error))
            }
            Err(problem) => Err(problem),
        };
        self.known.insert(path.to_owned(), checked.clone());
        Ok(checked)
    }
}

fn digest_of(path: &Path) -> Result<hoist::Digest, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "there is no file {}: the path starts from the manifest's directory; `platctrl hoist build DIR -o FILE` makes an artifact",
            path.display()
        ),
        _ => format!("cannot read {}: {error}", path.display()),
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!(
            "{} is not a file: `platctrl hoist build DIR -o FILE` makes an artifact of a directory",
            path.display()
        ));
    }
    let file = std::fs::File::open(path).map_err(unreadable)?;
    hoist::Digest::of_reader(file)
        .map(|(digest, _)| digest)
        .map_err(unreadable)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        Failure::failed(format!("a check of an artifact was not finished: {error}"))
    })
}

/// The file that a location means, when it is a path and no URL.
fn local(base: &Path, location: &str) -> Option<PathBuf> {
    let has_scheme = location.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    (!has_scheme && !location.is_empty()).then(|| base.join(location))
}

fn artifact_path(digest: &hoist::Digest) -> String {
    format!("/artifacts/sha256/{}", digest.hex())
}

async fn upload(api: &Api, digest: &hoist::Digest, path: &Path) -> Result<()> {
    let target = artifact_path(digest);
    if api.exists(&target).await? {
        return Ok(());
    }
    let unreadable =
        |error: std::io::Error| Failure::failed(format!("cannot read {}: {error}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let size = file.metadata().await.map_err(unreadable)?.len();
    let mut bar = Bar::new(
        format!("uploading {}", path.display()),
        Unit::Bytes,
        Some(size),
    );
    api.upload(&target, file, size, move |sent| bar.show(sent))
        .await
        .map_err(|failure| Failure {
            message: format!("cannot upload {}: {}", path.display(), failure.message),
            ..failure
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_local() {
        let base = Path::new("/m");
        assert_eq!(local(base, "../a.tar.gz"), Some("/m/../a.tar.gz".into()));
        assert_eq!(local(base, "/a:b.tar.gz"), Some("/a:b.tar.gz".into()));
        for location in ["https://a/b", "artifact:sha256:00", "file:/a", ""] {
            assert_eq!(local(base, location), None, "{location}");
        }
    }
}
