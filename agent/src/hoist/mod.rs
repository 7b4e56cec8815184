//! Hoist artifacts: a tar.gz with a `bin/launch`, made, looked at, fetched, checked and installed.
//!
//! An artifact is hostile until it has been checked, and it is checked by allow-lists: what is not
//! known to be harmless is refused, and with it the whole artifact ([`Rule`]). [`build`],
//! [`inspect`], [`verify`] and the agent's own install go through one reader, so they agree.
//!
//! [`Store`] keeps a node's artifacts: fetched once into a cache by digest, unpacked once by a
//! short-lived unprivileged process ([`child`]) into a temporary directory, sealed, marked and
//! renamed into place. A crash at any point leaves a complete install, or none.

mod archive;
mod build;
pub mod child;
mod collect;
mod config;
mod digest;
mod download;
mod entries;
mod error;
mod fetch;
mod gzip;
mod http;
mod inspect;
mod install;
mod launch;
mod limits;
mod network;
mod partial;
mod process;
mod prove;
mod rules;
mod s3;
mod sandbox;
mod seccomp;
mod server;
mod source;
mod store;
mod tar;
#[cfg(test)]
mod tests;
mod unpack;

pub use build::{Built, build};
pub use child::{ChildCommand, ChildUser};
pub use collect::{Collected, Use, Water};
pub use config::{Config, Timeouts};
pub(crate) use entries::{entry_point, has_script};
pub use error::{Error, Refusal, Rule};
pub use inspect::{EntryKind, EntrySummary, Summary, Verified, inspect, verify};
pub use install::Install;
pub use launch::{Launch, Program};
pub use limits::Limits;
pub use network::{Network, S3};
pub use platctrl_framework::model::{Digest, InvalidDigest};
pub use server::{Server, TlsServer};
pub use source::Source;
pub use store::Store;

/// `bytes` from outside, fit for a message: control characters escaped, at most 200 characters.
fn escape(bytes: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    let mut escaped = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST {
            escaped.push('…');
            break;
        }
        if c.is_control() {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}
