//! Paths of the API.

use std::fmt::Write as _;

use platctrl_framework::model::{KindDefinition, Scope};

/// Appends `text` to a URL, with everything but letters, digits and `-._~` escaped.
fn escape(url: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
}

/// A name as a part of a path.
pub(crate) fn segment(name: &str) -> String {
    let mut text = String::new();
    escape(&mut text, name);
    text
}

/// The objects of one kind, in one namespace or in all.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    path: String,
}

impl Collection {
    pub(crate) fn new(kind: &KindDefinition, namespace: Option<&str>) -> Self {
        let mut path = format!("/apis/{}/{}/", kind.group, kind.version);
        if let (Some(namespace), true) = (namespace, kind.scope != Scope::Cluster) {
            path.push_str("namespaces/");
            escape(&mut path, namespace);
            path.push('/');
        }
        path.push_str(&kind.plural);
        Self { path }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// One object of it.
    pub(crate) fn object(&self, name: &str) -> String {
        let mut path = format!("{}/", self.path);
        escape(&mut path, name);
        path
    }

    /// A part of one object.
    pub(crate) fn part(&self, name: &str, part: &str) -> String {
        format!("{}/{part}", self.object(name))
    }
}

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    text: String,
}

impl Query {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.text.push(if self.text.is_empty() { '?' } else { '&' });
        self.text.push_str(name);
        self.text.push('=');
        escape(&mut self.text, value);
        self
    }

    /// The path with these parameters.
    pub(crate) fn on(&self, path: &str) -> String {
        format!("{path}{}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use platctrl_kinds::{Node, Pod};

    use super::*;

    #[test]
    fn paths_hold_what_was_asked_for_and_nothing_else() {
        let pods = Collection::new(&KindDefinition::of::<Pod>(), Some("default"));
        let object = pods.object("a/../b?c");
        assert_eq!(
            object,
            "/apis/platctrl.dev/v1/namespaces/default/pods/a%2F..%2Fb%3Fc"
        );
        let nodes = Collection::new(&KindDefinition::of::<Node>(), Some("default"));
        assert_eq!(nodes.path(), "/apis/platctrl.dev/v1/nodes");
        let query = Query::default()
            .with("labelSelector", "a in (b,c)")
            .with("limit", "5");
        assert_eq!(
            query.on("/x"),
            "/x?labelSelector=a%20in%20%28b%2Cc%29&limit=5"
        );
    }
}
