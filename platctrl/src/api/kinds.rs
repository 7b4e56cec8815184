//! The kinds that a server serves, and what people call them.

use platctrl_framework::model::{KindDefinition, Kinds, KnownKind};
use serde_json::Value;

use super::{Api, OTHER_VERSION};
use crate::error::{Code, Failure, Result};
use crate::output;

/// The kinds of a server.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    kinds: Kinds,
}

/// `KIND/NAME`, understood.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) kind: KindDefinition,
    pub(crate) name: String,
}

impl Catalog {
    pub(crate) async fn load(api: &Api) -> Result<Self> {
        let answer = api.get("/kinds").await?;
        Self::parse(&answer)
    }

    fn parse(answer: &Value) -> Result<Self> {
        let list = answer.as_array().or_else(|| answer["items"].as_array());
        let list = list.ok_or_else(|| {
            Failure::failed("the server does not say which kinds it has").hint(OTHER_VERSION)
        })?;
        let mut kinds = Kinds::new();
        for item in list {
            match serde_json::from_value::<KindDefinition>(item.clone()) {
                Ok(definition) => kinds.define(definition),
                // One that a newer program registered in a newer form: the others still work.
                Err(error) => {
                    tracing::warn!(%error, "a kind that the server serves is not understood");
                }
            }
        }
        Ok(Self { kinds })
    }

    pub(crate) fn definitions(&self) -> impl Iterator<Item = &KindDefinition> {
        self.kinds.iter().map(|known| &known.definition)
    }

    /// The kind of a manifest.
    pub(crate) fn of_manifest(&self, api_version: &str, kind: &str) -> Option<&KindDefinition> {
        self.kinds
            .of_manifest(api_version, kind)
            .map(|known| &known.definition)
    }

    /// The kind that a word means: its plural, singular or short name, or the unique beginning of
    /// one of the first two.
    pub(crate) fn named(&self, word: &str) -> Result<KindDefinition> {
        let exact = self.kinds.named(word);
        let lower = word.to_ascii_lowercase();
        let begins = |known: &&KnownKind| {
            let definition = &known.definition;
            !lower.is_empty()
                && (definition.plural.starts_with(&lower)
                    || definition.singular.starts_with(&lower))
        };
        let found = if exact.is_empty() {
            self.kinds.iter().filter(begins).collect()
        } else {
            exact
        };
        match found.as_slice() {
            [one] => Ok(one.definition.clone()),
            [] => Err(self.unknown(word)),
            several => {
                let names = several.iter().map(|known| full_name(&known.definition));
                let names: Vec<_> = names.collect();
                Err(Failure::usage(format!(
                    "`{}` could be {}",
                    output::plain(word),
                    names.join(" or ")
                ))
                .hint("write the kind out"))
            }
        }
    }

    fn unknown(&self, word: &str) -> Failure {
        let names = self.definitions().flat_map(|definition| {
            let short = definition.short_names.iter().map(String::as_str);
            [definition.plural.as_str(), definition.singular.as_str()]
                .into_iter()
                .chain(short)
        });
        let near = output::nearest(&word.to_ascii_lowercase(), names);
        let mut all: Vec<_> = self
            .definitions()
            .map(|definition| definition.plural.as_str())
            .collect();
        all.sort_unstable();
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("kinds are {}", all.join(", ")),
        };
        Failure::usage(format!("there is no kind `{}`", output::plain(word))).hint(hint)
    }

    /// `KIND NAME`, or any number of `KIND/NAME`.
    pub(crate) fn targets(&self, words: &[String]) -> Result<Vec<Target>> {
        let is_pair = words.len() == 2 && words.iter().all(|word| !word.contains('/'));
        match is_pair {
            true => Ok(vec![self.target(words)?]),
            false => words
                .iter()
                .map(|word| self.target(std::slice::from_ref(word)))
                .collect(),
        }
    }

    /// `KIND/NAME`, or the two as two words.
    pub(crate) fn target(&self, words: &[String]) -> Result<Target> {
        let (kind, name) = match words {
            [one] => one.split_once('/').ok_or_else(|| {
                Failure::usage(format!("`{}` names no object", output::plain(one)))
                    .hint("write KIND/NAME, as rc/hello")
            })?,
            [kind, name] if !kind.contains('/') && !name.contains('/') => {
                (kind.as_str(), name.as_str())
            }
            _ => {
                return Err(
                    Failure::usage("that names no object").hint("write KIND/NAME, as rc/hello")
                );
            }
        };
        if name.is_empty() || name.contains('/') {
            return Err(
                Failure::usage(format!("`{}` is no name", output::plain(name)))
                    .hint("write KIND/NAME, as rc/hello"),
            );
        }
        Ok(Target {
            kind: self.named(kind)?,
            name: name.to_owned(),
        })
    }
}

fn full_name(definition: &KindDefinition) -> String {
    format!("{}.{}", definition.plural, definition.group)
}

impl Target {
    /// `replicationcontroller/hello`.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.kind.singular, self.name)
    }

    pub(crate) fn missing(&self, namespace: Option<&str>) -> Failure {
        let place = namespace
            .map(|it| format!(" in namespace `{it}`"))
            .unwrap_or_default();
        Failure::new(
            Code::NotFound,
            format!("there is no {}{place}", self.title()),
        )
    }
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::{Node, Pod, ReplicationController};

    use super::*;

    fn catalog() -> Catalog {
        let kinds = Kinds::new()
            .with::<Node>()
            .with::<Pod>()
            .with::<ReplicationController>();
        Catalog { kinds }
    }

    #[test]
    fn a_kind_has_many_names_and_a_wrong_one_is_corrected() {
        let catalog = catalog();
        for word in [
            "rc",
            "replicationcontroller",
            "ReplicationControllers",
            "rep",
        ] {
            assert_eq!(
                catalog.named(word).unwrap().kind,
                "ReplicationController",
                "{word}"
            );
        }
        let failure = catalog.named("podz").unwrap_err();
        assert_eq!(
            (failure.code, failure.hint.unwrap().as_str()),
            (Code::Usage, "did you mean `pods`?")
        );
        let failure = catalog.named("zebra").unwrap_err();
        assert_eq!(
            failure.hint.unwrap(),
            "kinds are nodes, pods, replicationcontrollers"
        );
    }

    #[test]
    fn an_object_is_named_in_one_word_or_two() {
        let catalog = catalog();
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>()
        };
        for good in [&["rc/hello"][..], &["rc", "hello"]] {
            assert_eq!(
                catalog.target(&words(good)).unwrap().title(),
                "replicationcontroller/hello"
            );
        }
        for bad in [
            &["rc"][..],
            &["rc/"],
            &["rc/a/b"],
            &["rc", "a/b"],
            &["rc/a", "b"],
        ] {
            assert_eq!(
                catalog.target(&words(bad)).unwrap_err().code,
                Code::Usage,
                "{bad:?}"
            );
        }
    }
}
