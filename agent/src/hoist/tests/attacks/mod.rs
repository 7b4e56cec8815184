//! Every attack on the format that we know of, each as the bytes on the wire.

mod ends;
mod gzip;
mod headers;
mod kinds;
mod links;
mod paths;
mod whole;

use super::raw::Raw;
use super::{Canary, rule, tree, verify_bytes};
use crate::hoist::{Limits, Rule};

type Case = (&'static str, Vec<u8>, Rule);

fn refused(cases: impl IntoIterator<Item = Case>) {
    refused_within(&Limits::default(), cases);
}

/// Each artifact is refused for its rule, with nothing outside touched, and says so in plain text.
fn refused_within(limits: &Limits, cases: impl IntoIterator<Item = Case>) {
    for (what, artifact, expected) in cases {
        let canary = Canary::new();
        let error = match canary.unpack(&artifact, limits) {
            Ok(()) => panic!("{what}: was accepted: {:?}", tree(&canary.target())),
            Err(error) => error,
        };
        assert_eq!(rule(&error), Some(expected), "{what}: {error}");
        let text = error.to_string();
        assert!(!text.contains(char::is_control), "{what}: {text:?}");
        // The command says the same.
        let verified = verify_bytes(&artifact, limits).unwrap_err();
        assert_eq!(rule(&verified), Some(expected), "{what}: {verified}");
    }
}

fn accepted(what: &str, artifact: &[u8]) -> Canary {
    let canary = Canary::new();
    if let Err(error) = canary.unpack(artifact, &Limits::default()) {
        panic!("{what}: {error}");
    }
    canary
}

fn with(entry: impl FnOnce(Raw) -> Raw) -> Vec<u8> {
    entry(Raw::good()).gz()
}
