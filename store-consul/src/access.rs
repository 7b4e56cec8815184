//! Policies as Consul's access control: rules, and tokens that have them.
//!
//! A [`Policy`] becomes a policy of Consul, of a name that Consul takes, whose rules are the
//! ranges below the root. Beside its own keys a reader needs the generations by which changes are
//! found, and a writer those that its commits touch: exactly those, because the keys of leases lie
//! beside them, and whoever writes a lease's key ends the lease.
//!
//! A token's accessor follows from its name, so that giving the same rights again finds the same
//! token. The caller's credential needs `acl = "write"`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use bytes::Bytes;
use http::{Method, StatusCode};
use platctrl_framework::model::Digest;
use platctrl_framework::store::{Access, Policy, Prefix, Result, Right, StoreError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ConsulStore;
use crate::layout::{
    CLOCK, GENERATIONS, GENERATIONS_ABOVE, MANY, Scope, bucket_key, top_key, top_over,
};

/// The longest name that Consul takes.
const LONGEST: usize = 128;

/// A token of Consul.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Token {
    /// What it is known by.
    pub accessor: String,
    /// What is shown to Consul.
    pub secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("accessor", &self.accessor)
            .finish_non_exhaustive()
    }
}

/// The policies and tokens of a store's Consul.
#[derive(Clone, Copy, Debug)]
pub struct AccessControl<'a> {
    store: &'a ConsulStore,
}

impl ConsulStore {
    /// The policies and tokens of this Consul.
    #[must_use]
    pub fn access_control(&self) -> AccessControl<'_> {
        AccessControl { store: self }
    }
}

/// The name that a policy has in Consul, which takes letters, digits, `-` and `_` alone: the
/// name's own characters as far as that goes, and a digest of all of it.
#[must_use]
pub fn policy_name(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.chars().all(fits) && name.len() <= LONGEST {
        return name.to_owned();
    }
    let digest = &Digest::of(name).hex()[..10];
    let plain = |c: char| if fits(c) { c } else { '_' };
    let mut shown: String = name.chars().map(plain).take(LONGEST - 11).collect();
    let _ = write!(shown, "-{digest}");
    shown
}

/// The accessor of the token of a name: as random as the name's digest, and always the same.
#[must_use]
pub fn accessor(name: &str) -> String {
    let hex = Digest::of(format!("platctrl token {name}")).hex();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32]
    )
}

/// A policy's rules, in Consul's own language.
#[must_use]
pub fn rules(root: &str, policy: &Policy) -> String {
    let mut lines = BTreeSet::new();
    for right in &policy.rights {
        lines.insert(rule(root, &right.range, right.access));
        generations(root, right, &mut lines);
    }
    let mut text: String = lines.into_iter().collect();
    if policy.leases {
        text.push_str("session_prefix \"\" { policy = \"write\" }\n");
    }
    text
}

fn rule(root: &str, range: &Prefix, access: Access) -> String {
    match range.as_key() {
        Some(key) => key_rule(root, key.as_str(), access),
        None => prefix_rule(root, range.as_str(), access),
    }
}

fn key_rule(root: &str, key: &str, access: Access) -> String {
    let policy = match access {
        Access::Read => "read",
        Access::Write => "write",
    };
    format!("key \"{root}/{key}\" {{ policy = \"{policy}\" }}\n")
}

fn prefix_rule(root: &str, begin: &str, access: Access) -> String {
    // Reading, and listing where Consul asks for that apart (`enable_key_list_policy`).
    let policy = match access {
        Access::Read => "list",
        Access::Write => "write",
    };
    format!("key_prefix \"{root}/{begin}\" {{ policy = \"{policy}\" }}\n")
}

/// What commits to a range touch besides it, and what tells of changes there.
fn generations(root: &str, right: &Right, lines: &mut BTreeSet<String>) {
    lines.insert(prefix_rule(root, GENERATIONS_ABOVE, Access::Read));
    lines.insert(prefix_rule(root, GENERATIONS, Access::Read));
    if right.access == Access::Read {
        return;
    }
    match Scope::around(&right.range) {
        Some(scope) => {
            let bucket = scope.bucket();
            for key in [
                CLOCK.to_owned(),
                MANY.to_owned(),
                top_key(top_over(bucket)),
                bucket_key(bucket),
                scope.generation(),
            ] {
                lines.insert(key_rule(root, &key, Access::Write));
            }
        }
        None => {
            lines.insert(prefix_rule(root, GENERATIONS_ABOVE, Access::Write));
            lines.insert(prefix_rule(root, GENERATIONS, Access::Write));
        }
    }
}

/// The commands by which a person makes these policies and a token that has all of them.
#[must_use]
pub fn commands(root: &str, policies: &[Policy], token: &str) -> Vec<String> {
    let mut lines: Vec<String> = policies
        .iter()
        .map(|policy| {
            let name = policy_name(&policy.name);
            let rules = rules(root, policy);
            format!("consul acl policy create -name {name} -rules - <<'RULES'\n{rules}RULES")
        })
        .collect();
    let names = policies
        .iter()
        .map(|policy| format!(" -policy-name {}", policy_name(&policy.name)));
    let names: String = names.collect();
    lines.push(format!(
        "consul acl token create -accessor {} -description {token}{names}",
        accessor(token)
    ));
    lines
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FoundPolicy {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    #[serde(default)]
    rules: String,
}

#[derive(Deserialize)]
struct FoundToken {
    #[serde(rename = "AccessorID")]
    accessor: String,
    #[serde(rename = "SecretID")]
    secret: String,
    #[serde(rename = "Policies", default)]
    policies: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "Name")]
    name: String,
}

impl AccessControl<'_> {
    /// Makes a policy, or brings the one there is in line. Returns what was changed, in words.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn apply(&self, policy: &Policy) -> Result<Vec<String>> {
        let name = policy_name(&policy.name);
        let rules = rules(self.store.address.root(), policy);
        let what = format!("policy {name}");
        let body = |id: Option<&str>| {
            let mut body = json!({
                "Name": name,
                "Description": format!("platctrl: {}", policy.name),
                "Rules": rules,
            });
            if let Some(id) = id {
                body["ID"] = id.into();
            }
            body
        };
        match self.find(&name).await? {
            Some(found) if found.rules == rules => Ok(Vec::new()),
            Some(found) => {
                let path = format!("/v1/acl/policy/{}", found.id);
                self.put(&path, &body(Some(&found.id)), &what).await?;
                Ok(vec![format!("{what}: other rules")])
            }
            None => {
                self.put("/v1/acl/policy", &body(None), &what).await?;
                Ok(vec![format!("{what} made")])
            }
        }
    }

    async fn find(&self, name: &str) -> Result<Option<FoundPolicy>> {
        let what = format!("looking for policy {name}");
        // Consul 1.8 finds policies by id alone, and lists them without their rules.
        let listed = self
            .ask(Method::GET, "/v1/acl/policies", Bytes::new(), &what)
            .await?;
        let listed: Vec<FoundPolicy> = self.read(&listed, &what)?.unwrap_or_default();
        let Some(listed) = listed.into_iter().find(|policy| policy.name == name) else {
            return Ok(None);
        };
        let path = format!("/v1/acl/policy/{}", listed.id);
        let found = self.ask(Method::GET, &path, Bytes::new(), &what).await?;
        self.read(&found, &what)
    }

    /// Makes the token of a name, with these policies, or gives the one there is these policies.
    /// Returns it with what was changed, in words.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn token(&self, name: &str, policies: &[Policy]) -> Result<(Token, Vec<String>)> {
        let accessor = accessor(name);
        let what = format!("token {accessor} ({name})");
        let wanted: Vec<String> = policies.iter().map(|it| policy_name(&it.name)).collect();
        let linked: Vec<Value> = wanted.iter().map(|name| json!({ "Name": name })).collect();
        let mut body = json!({
            "AccessorID": accessor,
            "Description": name,
            "Policies": linked,
        });
        let Some(found) = self.find_token(&accessor).await? else {
            let made = self.put("/v1/acl/token", &body, &what).await?;
            let made: FoundToken = self.must_read(&made, &what)?;
            return Ok((made.into(), vec![format!("{what} made")]));
        };
        let mut held: Vec<&str> = found.policies.iter().map(|it| it.name.as_str()).collect();
        let mut names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        held.sort_unstable();
        names.sort_unstable();
        if held == names {
            return Ok((found.into(), Vec::new()));
        }
        body["SecretID"] = found.secret.as_str().into();
        let path = format!("/v1/acl/token/{accessor}");
        self.put(&path, &body, &what).await?;
        Ok((found.into(), vec![format!("{what}: other policies")]))
    }

    /// Whether there is a token of a name.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn has_token(&self, name: &str) -> Result<bool> {
        Ok(self.find_token(&accessor(name)).await?.is_some())
    }

    async fn find_token(&self, accessor: &str) -> Result<Option<FoundToken>> {
        let what = format!("looking for token {accessor}");
        let path = format!("/v1/acl/token/{accessor}");
        let answer = self.ask(Method::GET, &path, Bytes::new(), &what).await?;
        // A token that is not there is answered like one that nobody knows.
        if answer.status == StatusCode::FORBIDDEN && answer.text().contains("ACL not found") {
            return Ok(None);
        }
        self.read(&answer, &what)
    }

    /// Removes the token of a name. False when there is none.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn remove_token(&self, name: &str) -> Result<bool> {
        let accessor = accessor(name);
        if self.find_token(&accessor).await?.is_none() {
            return Ok(false);
        }
        self.delete(&format!("/v1/acl/token/{accessor}"), &accessor)
            .await?;
        Ok(true)
    }

    /// Removes a policy. False when there is none.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn remove(&self, name: &str) -> Result<bool> {
        let Some(found) = self.find(&policy_name(name)).await? else {
            return Ok(false);
        };
        self.delete(&format!("/v1/acl/policy/{}", found.id), &found.name)
            .await?;
        Ok(true)
    }

    async fn delete(&self, path: &str, what: &str) -> Result<()> {
        let what = format!("removing {what}");
        let answer = self.ask(Method::DELETE, path, Bytes::new(), &what).await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            _ => Err(self.refused(&answer, &what, true)),
        }
    }

    async fn put(&self, path: &str, body: &Value, what: &str) -> Result<crate::http::Answer> {
        let answer = self
            .ask(Method::PUT, path, body.to_string().into(), what)
            .await?;
        match answer.status {
            StatusCode::OK => Ok(answer),
            _ => Err(self.refused(&answer, what, true)),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        what: &str,
    ) -> Result<crate::http::Answer> {
        self.store.shared.api.acl(method, path, body, what).await
    }

    fn refused(&self, answer: &crate::http::Answer, what: &str, write: bool) -> StoreError {
        let api = &self.store.shared.api;
        let text = answer.text();
        if text.contains("ACL support disabled") {
            let name = api.name();
            return StoreError::Invalid {
                reason: format!(
                    "{name}: {what}: access control is off: set `acl.enabled` in the servers' and agents' configuration"
                ),
            };
        }
        api.refused(answer, what, write)
    }

    fn read<T: for<'de> Deserialize<'de>>(
        &self,
        answer: &crate::http::Answer,
        what: &str,
    ) -> Result<Option<T>> {
        match answer.status {
            StatusCode::OK => self.must_read(answer, what).map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(answer, what, false)),
        }
    }

    fn must_read<T: for<'de> Deserialize<'de>>(
        &self,
        answer: &crate::http::Answer,
        what: &str,
    ) -> Result<T> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            let api = &self.store.shared.api;
            // Nothing of the answer: it may hold a secret.
            let reason = format!("line {}, column {}", error.line(), error.column());
            api.nonsense(what, &reason, false)
        })
    }
}

impl From<FoundToken> for Token {
    fn from(found: FoundToken) -> Self {
        Self {
            accessor: found.accessor,
            secret: found.secret,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rights: impl IntoIterator<Item = Right>) -> Policy {
        Policy::new("p", rights)
    }

    fn prefix(text: &str) -> Prefix {
        Prefix::new(text).unwrap()
    }

    #[test]
    fn a_writer_of_one_scope_writes_its_generations_and_no_lease() {
        let own = prefix("o/reality/platctrl.dev/pods/web1/");
        let text = rules("prod", &policy([Right::write(own)]));
        let scope = Scope::around(&prefix("o/reality/platctrl.dev/pods/web1/")).unwrap();
        let bucket = format!("{:02x}", scope.bucket());
        let (top, generation) = (&bucket[..1], scope.generation());
        let mut expected = [
            r#"key_prefix "prod/o/reality/platctrl.dev/pods/web1/" { policy = "write" }"#
                .to_owned(),
            r#"key_prefix "prod/x/gen/" { policy = "list" }"#.to_owned(),
            r#"key_prefix "prod/x/gen1/" { policy = "list" }"#.to_owned(),
            r#"key "prod/x/gen1/now" { policy = "write" }"#.to_owned(),
            r#"key "prod/x/gen1/many" { policy = "write" }"#.to_owned(),
            format!(r#"key "prod/x/gen1/top-{top}" {{ policy = "write" }}"#),
            format!(r#"key "prod/x/gen1/{bucket}" {{ policy = "write" }}"#),
            format!(r#"key "prod/{generation}" {{ policy = "write" }}"#),
        ];
        expected.sort();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_writer_of_several_scopes_writes_all_generations() {
        let text = rules("prod", &policy([Right::write(prefix("o/"))]).with_leases());
        assert!(text.contains(r#"key_prefix "prod/x/gen1/" { policy = "write" }"#));
        assert!(text.contains(r#"session_prefix "" { policy = "write" }"#));
        // What is only read is not written.
        let text = rules("prod", &policy([Right::read(prefix("o/"))]));
        assert!(!text.contains("write"), "{text}");
    }

    #[test]
    fn names_that_consul_does_not_take_stay_apart() {
        let names = [
            "agent-a.b@prod",
            "agent-a_b@prod",
            "agent-a-b@prod",
            "agent-a@b/prod",
        ];
        let given: BTreeSet<String> = names.iter().map(|name| policy_name(name)).collect();
        assert_eq!(given.len(), names.len(), "{given:?}");
        let long = format!("agent-{}@{}", "n".repeat(63), "r".repeat(128));
        assert!(policy_name(&long).len() <= LONGEST);
        assert_eq!(policy_name("plain"), "plain");
        assert_eq!(accessor("a").len(), 36);
        assert_ne!(accessor("a"), accessor("b"));
    }
}
