//! How a node's agent sees whether a pod can do its work, and whether it still lives.
//!
//! Readiness and liveness are asked separately. A pod that is not ready gets no work; one that is
//! not alive is restarted, once somebody who knows all pods of the workload granted it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use platctrl_framework::model::{FieldError, Uid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Port, Span};

/// A check that is made again and again. It has one of `http`, `tcp` and `exec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Ask over HTTP: any 2xx answer is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Connect: whoever accepts is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// Run a command with the pod's user, cgroup and environment: 0 is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecCheck>,
    /// Time between checks. Default 10s.
    #[serde(default = "ten_seconds")]
    pub interval: Span,
    /// Time for one check. Default 1s.
    #[serde(default = "one_second")]
    pub timeout: Span,
    /// Failures in a row that make a healthy pod unhealthy. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 1))]
    pub failure_threshold: u32,
    /// Successes in a row that make an unhealthy pod healthy. Default 1. One that changes again
    /// and again needs more, up to eight times as many.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub success_threshold: u32,
    /// After a start, checks come quickly and failures do not count for so long. Default 10s.
    #[serde(default = "ten_seconds")]
    pub grace: Span,
}

fn ten_seconds() -> Span {
    Span::from_secs(10)
}

fn one_second() -> Span {
    Span::from_secs(1)
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

/// An HTTP request on a port of the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// The name of the port.
    pub port: String,
    /// The path, beginning with `/`. Default `/_status`.
    #[serde(default = "status_path")]
    pub path: String,
    /// Http or Https. Default Http.
    #[serde(default, skip_serializing_if = "Scheme::is_http")]
    pub scheme: Scheme,
    /// The name that the certificate of an https server has to be for. Without it the certificate
    /// has to come from the authority that the agent was given, for whatever name; an agent that
    /// was given none believes any, since it asks its own machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

fn status_path() -> String {
    "/_status".to_owned()
}

/// How an HTTP check is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scheme {
    /// In the clear.
    #[default]
    Http,
    /// Over TLS, with the agent's certificate if it has one.
    Https,
}

impl Scheme {
    fn is_http(&self) -> bool {
        *self == Self::Http
    }
}

/// A connection to a port of the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpCheck {
    /// The name of the port.
    pub port: String,
}

/// A command that is run beside a program of the pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecCheck {
    /// The command and its arguments, without a shell. A name without `/` is looked up in the
    /// program's PATH, a relative path in its artifact.
    pub command: Vec<String>,
    /// The launchable whose user, limits and environment it gets. Default: the first by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launchable: Option<String>,
}

/// What an agent does about a pod that is not alive while the store is away, so that nobody can
/// grant a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LivenessOffline {
    /// Wait until somebody can.
    #[default]
    Hold,
    /// Restart it, one pod of the node at a time.
    Restart,
}

impl LivenessOffline {
    /// It is what holds when nothing is said.
    #[must_use]
    pub fn is_hold(&self) -> bool {
        *self == Self::Hold
    }
}

/// What controllers tell the agent of a pod: the pod's record among the grants. Permission to
/// restart it, written together with the entry in the workload's ledger; and that another pod has
/// its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The pod.
    pub uid: Uid,
    /// The request that is granted. One of another id is not; none has an empty one.
    #[serde(default)]
    pub request: String,
    /// Who granted it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// An older pod of the same namespace and name lives on another node: this one is not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_taken: Option<NameTaken>,
}

/// The pod that has a name which another one was given, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NameTaken {
    /// Where it is.
    pub node: String,
    /// Which it is.
    pub uid: Uid,
}

impl Health {
    /// The name of the port that is asked, if any is.
    #[must_use]
    pub fn port(&self) -> Option<&str> {
        let http = self.http.as_ref().map(|http| http.port.as_str());
        http.or_else(|| self.tcp.as_ref().map(|tcp| tcp.port.as_str()))
    }

    /// Adds what is wrong with a check that lies at `path` of some object, of a pod with these
    /// ports and launchables.
    pub(crate) fn validate<T>(
        &self,
        path: &str,
        ports: &BTreeMap<String, Port>,
        launchables: &BTreeMap<String, T>,
        errors: &mut Vec<FieldError>,
    ) {
        let kinds = [self.http.is_some(), self.tcp.is_some(), self.exec.is_some()];
        match kinds.iter().filter(|is| **is).count() {
            1 => {}
            0 => errors.push(FieldError::new(
                path,
                "asks nothing: give one of http, tcp and exec",
            )),
            _ => errors.push(FieldError::new(
                path,
                "asks in several ways: give one of http, tcp and exec",
            )),
        }
        let mut wrong = |field: &str, problem: String| {
            errors.push(FieldError::new(format!("{path}.{field}"), problem));
        };
        let ports = |field: &str, port: &str| {
            let missing = !ports.contains_key(port);
            missing.then(|| {
                (
                    field.to_owned(),
                    format!("`{port}` is not one of the pod's ports"),
                )
            })
        };
        if let Some(http) = &self.http {
            if let Some((field, problem)) = ports("http.port", &http.port) {
                wrong(&field, problem);
            }
            let unfit = |byte: u8| byte <= b' ' || byte == 0x7f;
            if !http.path.starts_with('/') || http.path.bytes().any(unfit) {
                let problem = "must begin with `/` and hold no spaces or control characters";
                wrong("http.path", problem.into());
            }
            if let Some(name) = &http.server_name {
                if http.scheme != Scheme::Https {
                    wrong("http.serverName", "is for `scheme: Https` alone".into());
                }
                if name.is_empty() || name.len() > 253 || name.bytes().any(unfit) {
                    wrong("http.serverName", "is not a host name".into());
                }
            }
        }
        if let Some(tcp) = &self.tcp
            && let Some((field, problem)) = ports("tcp.port", &tcp.port)
        {
            wrong(&field, problem);
        }
        if let Some(exec) = &self.exec {
            if exec.command.first().is_none_or(String::is_empty) {
                wrong("exec.command", "is empty: name a program".into());
            }
            if exec.command.iter().any(|word| word.contains('\0')) {
                wrong("exec.command", "holds a NUL character".into());
            }
            if let Some(name) = &exec.launchable
                && !launchables.contains_key(name)
            {
                let problem = format!("`{name}` is not one of the pod's launchables");
                wrong("exec.launchable", problem);
            }
        }
        for (field, span) in [("interval", self.interval), ("timeout", self.timeout)] {
            if span < Span::from_millis(10) {
                wrong(field, "is below 10ms".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn problems(check: Value) -> Vec<String> {
        let check: Health = serde_json::from_value(check).unwrap();
        let ports = BTreeMap::from([("http".to_owned(), Port::default())]);
        let launchables = BTreeMap::from([("web".to_owned(), ())]);
        let mut errors = Vec::new();
        check.validate("spec.health", &ports, &launchables, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_way_to_ask_is_taken_alone() {
        for check in [
            json!({"http": {"port": "http"}}),
            json!({"http": {"port": "http", "scheme": "Https", "serverName": "web.example"}}),
            json!({"tcp": {"port": "http"}}),
            json!({"exec": {"command": ["bin/check", "-v"], "launchable": "web"}}),
        ] {
            assert_eq!(problems(check.clone()), [] as [String; 0], "{check}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (check, field) in [
            (json!({}), "spec.health:"),
            (
                json!({"tcp": {"port": "http"}, "http": {"port": "http"}}),
                "spec.health:",
            ),
            (json!({"http": {"port": "admin"}}), "spec.health.http.port"),
            (
                json!({"http": {"port": "http", "path": "x"}}),
                "spec.health.http.path",
            ),
            (
                json!({"http": {"port": "http", "serverName": "a"}}),
                "spec.health.http.serverName",
            ),
            (json!({"tcp": {"port": "admin"}}), "spec.health.tcp.port"),
            (json!({"exec": {"command": []}}), "spec.health.exec.command"),
            (
                json!({"exec": {"command": ["a"], "launchable": "db"}}),
                "spec.health.exec.launchable",
            ),
            (
                json!({"tcp": {"port": "http"}, "interval": "1ms"}),
                "spec.health.interval",
            ),
        ] {
            let found = problems(check.clone());
            assert!(
                found.len() == 1 && found[0].starts_with(field),
                "{check}: {found:?}"
            );
        }
    }

    #[test]
    fn a_check_is_written_as_it_was_read() {
        let old = json!({
            "http": {"port": "http", "path": "/_status"}, "interval": "10s", "timeout": "1s",
            "failureThreshold": 3, "successThreshold": 1, "grace": "10s",
        });
        let check: Health = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(serde_json::to_value(check).unwrap(), old);
    }
}
