//! What objects are found by besides their keys: owners, labels, and what programs declare.

use std::sync::Arc;

use super::entry::Entry;
use super::options::KindOptions;
use super::sorted::Sorted;
use crate::model::ObjectKey;

/// What is known of those that are looked for.
pub(super) enum By<'q> {
    /// The uid of an owner.
    Owner(&'q str),
    /// A label's name and value.
    Label(&'q str, &'q str),
    /// The name of an index and the value that it says.
    Index(&'q str, &'q str),
}

impl By<'_> {
    /// All that is found by the same lies together, in the order of paths. No part of a key can
    /// have the separator, a value that has it is found with those that have a space there, and
    /// looked at again.
    fn text(&self, path: &str) -> String {
        let (tag, name, value) = match self {
            Self::Owner(uid) => ('o', "", *uid),
            Self::Label(name, value) => ('l', *name, *value),
            Self::Index(name, value) => ('i', *name, *value),
        };
        let clean = |text: &str| text.replace('\0', " ");
        format!("{tag}{}\0{}\0{path}", clean(name), clean(value))
    }
}

/// Finds keys of objects. Clones share structure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    keys: Sorted<(Arc<str>, Arc<ObjectKey>)>,
}

/// Calls `each` with all that an object is found by.
fn all(entry: &Entry, options: Option<&KindOptions>, mut each: impl FnMut(String)) {
    let path = entry.key.path();
    for owner in entry.owners() {
        each(By::Owner(owner.uid.as_str()).text(path));
    }
    let Some(options) = options else { return };
    for name in &options.labels {
        let value = entry.labels.as_ref().and_then(|labels| labels.get(&**name));
        if let Some(value) = value {
            each(By::Label(name, value).text(path));
        }
    }
    for (name, values) in &options.indexes {
        // Called functions of a controller's author: what they do wrong is theirs.
        let values = std::panic::AssertUnwindSafe(|| values(entry));
        match std::panic::catch_unwind(values) {
            Ok(values) => {
                for value in values {
                    each(By::Index(name, &value).text(path));
                }
            }
            Err(_) => tracing::error!(key = %entry.key, index = name, "an index panicked"),
        }
    }
}

impl Found {
    /// Lets an object be found as it is, and not any more as it was.
    pub(super) fn replace(
        &mut self,
        before: Option<&Entry>,
        after: Option<&Entry>,
        options: Option<&KindOptions>,
    ) {
        if let (Some(before), Some(after)) = (before, after)
            && options.is_none_or(|options| options.indexes.is_empty())
            && before.owners() == after.owners()
            && before.labels == after.labels
        {
            return;
        }
        if let Some(entry) = before {
            all(entry, options, |text| {
                self.keys.remove(&text);
            });
        }
        if let Some(entry) = after {
            all(entry, options, |text| {
                self.keys.insert((text.into(), entry.key.clone()));
            });
        }
    }

    /// The keys below `path`, which ends with `/`, in the order of their paths.
    pub(super) fn by(&self, by: &By<'_>, path: &str) -> Vec<&Arc<ObjectKey>> {
        let text = by.text(path);
        let found = self.keys.below(&text);
        found.map(|(_, key)| key).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}
