//! Checks of an embedder's own, which a server asks before it writes.

use std::fmt;

use platctrl_framework::model::{FieldError, GroupPlural, RawObject};

/// A change that somebody asked for and that is otherwise allowed and valid.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Change<'a> {
    /// Who asks, as the audit record names them.
    pub by: &'a str,
    /// The kind.
    pub kind: &'a GroupPlural,
    /// The object as it is; None when it is to be created.
    pub before: Option<&'a RawObject>,
    /// The object as it would be; None when it is to be removed at once. An object that is to end
    /// has a tombstone.
    pub after: Option<&'a RawObject>,
}

/// What a [`Validator`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// What is wrong: with any of these, nothing is written.
    pub errors: Vec<FieldError>,
    /// What the caller should know though it is done.
    pub warnings: Vec<String>,
}

impl Verdict {
    /// Nothing to say.
    #[must_use]
    pub fn fine() -> Self {
        Self::default()
    }

    /// A field is wrong.
    #[must_use]
    pub fn refuse(mut self, field: &str, problem: impl Into<String>) -> Self {
        self.errors.push(FieldError::new(field, problem));
        self
    }

    /// The caller should know this.
    #[must_use]
    pub fn warn(mut self, text: impl Into<String>) -> Self {
        self.warnings.push(text.into());
        self
    }
}

/// A check of an embedder's own. It sees every change of spec and metadata over the API, also in a
/// dry run, and decides by what it is given: it is asked again when somebody else was faster.
pub trait Validator: fmt::Debug + Send + Sync {
    /// Judges a change.
    fn check(&self, change: &Change<'_>) -> Verdict;
}
