//! Policies as etcd's roles and users.
//!
//! A [`Policy`] becomes a role of the same name whose permissions are its ranges below the root;
//! a user is in the roles of its policies. What is there already is compared and brought in line,
//! so that giving the same rights again changes nothing. The caller's credential needs etcd's
//! role `root`.

mod wire;

use bytes::Bytes;
use platctrl_framework::store::{Access, Policy, Prefix, Result, Right};
use prost::Message;

use crate::call::Repeat;
use crate::error::{About, Failure, Refusal};
use crate::grpc::Method;
use crate::keys::{Keys, behind};
use crate::location::Location;
use crate::wire::{Acknowledged, Headed};
use crate::{EtcdStore, link::Link};
use wire::{Permission, READ, READWRITE};

/// The users and roles of a store's cluster.
#[derive(Clone, Copy, Debug)]
pub struct AccessControl<'a> {
    store: &'a EtcdStore,
}

impl EtcdStore {
    /// The users and roles of the cluster.
    #[must_use]
    pub fn access_control(&self) -> AccessControl<'_> {
        AccessControl { store: self }
    }
}

fn permission(keys: &Keys, right: &Right) -> Permission {
    let (key, range_end) = keys.range(&right.range);
    let kind = match right.access {
        Access::Read => READ,
        Access::Write => READWRITE,
    };
    Permission {
        kind,
        key,
        range_end,
    }
}

/// What has to be granted and what taken away, so that a role has these permissions and no others.
fn difference(wanted: &[Permission], held: &[Permission]) -> (Vec<Permission>, Vec<Permission>) {
    let same_range = |one: &Permission, other: &Permission| {
        (&one.key, &one.range_end) == (&other.key, &other.range_end)
    };
    let mut grant: Vec<Permission> = Vec::new();
    for permission in wanted {
        if !held.contains(permission) && !grant.contains(permission) {
            grant.push(permission.clone());
        }
    }
    let is_left = |held: &&Permission| !wanted.iter().any(|wanted| same_range(wanted, held));
    (grant, held.iter().filter(is_left).cloned().collect())
}

fn shown(permission: &Permission) -> String {
    let verb = match permission.kind {
        READ => "read",
        READWRITE => "readwrite",
        _ => "write",
    };
    let key = String::from_utf8_lossy(&permission.key);
    if permission.range_end.is_empty() {
        return format!("{verb} {key}");
    }
    if permission.range_end == behind(&permission.key) {
        return format!("{verb} {key} and below");
    }
    let end = String::from_utf8_lossy(&permission.range_end);
    format!("{verb} from {key} to {end}")
}

impl AccessControl<'_> {
    fn link(&self) -> &Link {
        &self.store.reads
    }

    async fn call<Q, A>(&self, method: Method, request: &Q, repeat: Repeat) -> Result<A, Failure>
    where
        Q: Message,
        A: Message + Default + Headed,
    {
        self.link().call(method, request, repeat).await
    }

    async fn change<Q: Message>(&self, method: Method, request: &Q, what: &str) -> Result<()> {
        let done = self
            .call::<_, Acknowledged>(method, request, Repeat::Freely)
            .await;
        done.map(|_| ()).map_err(failed(what))
    }

    /// Whether users are asked who they are; None where the server cannot tell (etcd 3.4).
    ///
    /// # Errors
    /// The store's.
    pub async fn is_enabled(&self) -> Result<Option<bool>> {
        let request = wire::Nothing {};
        match self
            .call::<_, wire::AuthStatus>(wire::AUTH_STATUS, &request, Repeat::Freely)
            .await
        {
            Ok(status) => Ok(Some(status.enabled)),
            Err(failure) if failure.is_refused_as(Refusal::Invalid) => Ok(None),
            Err(failure) => Err(failed("ask whether users are asked who they are")(failure)),
        }
    }

    /// Makes the role of a policy, or brings the one there is in line. Returns what was changed,
    /// in words.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn apply(&self, policy: &Policy) -> Result<Vec<String>> {
        let role = &policy.name;
        let named = wire::Named { name: role.clone() };
        let what = format!("look at role {role}");
        let found = self
            .call::<_, wire::Role>(wire::ROLE_GET, &named, Repeat::Freely)
            .await;
        let mut changed = Vec::new();
        let held = match found {
            Ok(found) => found.permissions,
            Err(failure) if failure.is_refused_as(Refusal::Missing) => {
                let added = self
                    .call::<_, Acknowledged>(wire::ROLE_ADD, &named, Repeat::Freely)
                    .await;
                match added {
                    // Somebody else made it meanwhile, or the first attempt did.
                    Err(failure) if failure.is_refused_as(Refusal::Exists) => {}
                    added => {
                        added.map_err(failed(&format!("make role {role}")))?;
                    }
                }
                changed.push(format!("role {role} made"));
                Vec::new()
            }
            Err(failure) => return Err(failed(&what)(failure)),
        };
        let keys = &self.store.shared.keys;
        let wanted: Vec<_> = policy
            .rights
            .iter()
            .map(|it| permission(keys, it))
            .collect();
        let (grant, revoke) = difference(&wanted, &held);
        for permission in grant {
            let text = format!("role {role}: {}", shown(&permission));
            let request = wire::Grant {
                role: role.clone(),
                permission: Some(permission),
            };
            self.change(wire::ROLE_GRANT, &request, &text).await?;
            changed.push(text);
        }
        for permission in revoke {
            let text = format!("role {role}: no longer {}", shown(&permission));
            let request = wire::Revoke {
                role: role.clone(),
                key: permission.key,
                range_end: permission.range_end,
            };
            self.change(wire::ROLE_REVOKE, &request, &text).await?;
            changed.push(text);
        }
        Ok(changed)
    }

    /// The roles that a user is in; None when there is no such user.
    ///
    /// # Errors
    /// `Denied` when the credential may not; the store's.
    pub async fn roles_of(&self, user: &str) -> Result<Option<Vec<String>>> {
        let named = wire::Named {
            name: user.to_owned(),
        };
        match self
            .call::<_, wire::User>(wire::USER_GET, &named, Repeat::Freely)
            .await
        {
            Ok(user) => Ok(Some(user.roles)),
            Err(failure) if failure.is_refused_as(Refusal::Missing) => Ok(None),
            Err(failure) => Err(failed(&format!("look at user {user}"))(failure)),
        }
    }

    /// Makes a user with a password, or one that shows a certificate with its name. False when
    /// there is one already, which stays as it is.
    ///
    /// # Errors
    /// `Unknown` when it may have been made; `Denied`; the store's.
    pub async fn add_user(&self, user: &str, password: Option<&str>) -> Result<bool> {
        let request = wire::UserWithPassword {
            name: user.to_owned(),
            password: password.unwrap_or_default().to_owned(),
            options: Some(wire::UserOptions {
                no_password: password.is_none(),
            }),
        };
        match self
            .call::<_, Acknowledged>(wire::USER_ADD, &request, Repeat::Never)
            .await
        {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_refused_as(Refusal::Exists) => Ok(false),
            Err(failure) => Err(failed(&format!("make user {user}"))(failure)),
        }
    }

    /// Gives a user another password, which ends what it is logged in with.
    ///
    /// # Errors
    /// `Denied`; the store's.
    pub async fn change_password(&self, user: &str, password: &str) -> Result<()> {
        let request = wire::UserWithPassword {
            name: user.to_owned(),
            password: password.to_owned(),
            options: None,
        };
        let what = format!("give user {user} another password");
        self.change(wire::USER_PASSWORD, &request, &what).await
    }

    /// Puts a user into a role.
    ///
    /// # Errors
    /// `Denied`; the store's.
    pub async fn grant_role(&self, user: &str, role: &str) -> Result<()> {
        let request = wire::UserRole {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        let what = format!("put user {user} into role {role}");
        self.change(wire::USER_GRANT, &request, &what).await
    }

    /// Removes a user. False when there is none.
    ///
    /// # Errors
    /// `Denied`; the store's.
    pub async fn remove_user(&self, user: &str) -> Result<bool> {
        self.remove(wire::USER_DELETE, user, &format!("remove user {user}"))
            .await
    }

    /// Removes a role. False when there is none.
    ///
    /// # Errors
    /// `Denied`; the store's.
    pub async fn remove_role(&self, role: &str) -> Result<bool> {
        self.remove(wire::ROLE_DELETE, role, &format!("remove role {role}"))
            .await
    }

    async fn remove(&self, method: Method, name: &str, what: &str) -> Result<bool> {
        let named = wire::Named {
            name: name.to_owned(),
        };
        match self
            .call::<_, Acknowledged>(method, &named, Repeat::Freely)
            .await
        {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_refused_as(Refusal::Missing) => Ok(false),
            Err(failure) => Err(failed(what)(failure)),
        }
    }
}

fn failed(what: &str) -> impl Fn(Failure) -> platctrl_framework::store::StoreError {
    move |failure| {
        failure.into_store_error(About {
            what: what.to_owned(),
            ..About::default()
        })
    }
}

/// The commands by which a person makes the roles of these policies, and a user that is in all of
/// them. etcdctl asks for the password of a user that has one.
#[must_use]
pub fn commands(
    location: &Location,
    policies: &[Policy],
    user: &str,
    with_password: bool,
) -> Vec<String> {
    let keys = Keys::new(location.root());
    let mut lines = Vec::new();
    for Policy { name, rights, .. } in policies {
        lines.push(format!("etcdctl role add {name}"));
        lines.extend(rights.iter().map(|right| grant_command(&keys, name, right)));
    }
    let option = if with_password { "" } else { " --no-password" };
    lines.push(format!("etcdctl user add {user}{option}"));
    let names = policies.iter().map(|policy| &policy.name);
    lines.extend(names.map(|name| format!("etcdctl user grant-role {user} {name}")));
    lines
}

fn grant_command(keys: &Keys, role: &str, right: &Right) -> String {
    let Permission { kind, key, .. } = permission(keys, right);
    let verb = if kind == READ { "read" } else { "readwrite" };
    let key = text(&key);
    let prefix = if is_single(&right.range) {
        ""
    } else {
        " --prefix=true"
    };
    format!("etcdctl role grant-permission{prefix} {role} {verb} {key}")
}

fn is_single(range: &Prefix) -> bool {
    range.as_key().is_some()
}

fn text(key: &Bytes) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use platctrl_framework::store::Key;

    use super::*;

    fn rights() -> Vec<Right> {
        vec![
            Right::read(Prefix::only(&Key::new("x/anchor").unwrap())),
            Right::write(Prefix::new("o/reality/pods/web1/").unwrap()),
        ]
    }

    #[test]
    fn a_policy_is_a_role_whose_ranges_end_at_their_slash() {
        let location = "etcd://a/prod".parse().unwrap();
        let policy = Policy::new("agent-web1@prod", rights());
        assert_eq!(
            commands(&location, &[policy], "web1", false),
            [
                "etcdctl role add agent-web1@prod",
                "etcdctl role grant-permission agent-web1@prod read prod/x/anchor",
                "etcdctl role grant-permission --prefix=true agent-web1@prod readwrite prod/o/reality/pods/web1/",
                "etcdctl user add web1 --no-password",
                "etcdctl user grant-role web1 agent-web1@prod",
            ]
        );
        let keys = Keys::new("prod");
        let own = permission(&keys, &rights()[1]);
        assert_eq!(&own.range_end[..], b"prod/o/reality/pods/web10");
        assert!(permission(&keys, &rights()[0]).range_end.is_empty());
    }

    #[test]
    fn only_what_differs_is_granted_or_taken_away() {
        let keys = Keys::new("prod");
        let wanted: Vec<_> = rights().iter().map(|it| permission(&keys, it)).collect();
        assert_eq!(difference(&wanted, &wanted), (vec![], vec![]));
        // The same range with less, and one too many.
        let mut held = wanted.clone();
        held[1].kind = READ;
        held.push(permission(&keys, &Right::write(Prefix::all())));
        let (grant, revoke) = difference(&wanted, &held);
        assert_eq!(grant, wanted[1..]);
        assert_eq!(revoke, held[2..]);
    }
}
