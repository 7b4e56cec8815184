//! A download that an agent did not live to see the end of.

use std::fs;
use std::path::PathBuf;

use super::node::{Node, wait_until};
use super::raw::Raw;
use super::web_server::{Answer, WebServer, cut, file};
use crate::hoist::{Digest, Error, Source, Store};

/// Bytes of the first half that have arrived at least.
const ARRIVED: u64 = 100_000;

/// An artifact that is not small when it is compressed.
pub(super) fn large() -> Vec<u8> {
    let noise = (0u32..20_000).flat_map(|i| Digest::of(i.to_le_bytes()).hex().into_bytes());
    Raw::good().file("noise", &noise.collect::<Vec<u8>>()).gz()
}

/// What is left of it.
pub(super) struct BrokenOff {
    /// Fell silent half-way the first time, and answers in full from then on.
    pub(super) server: WebServer,
    pub(super) source: Source,
    /// What has arrived.
    pub(super) part: PathBuf,
    /// The next agent's.
    pub(super) store: Store,
}

impl BrokenOff {
    /// Has an agent begin to fetch this artifact, and end on the way.
    pub(super) async fn new(node: &Node, artifact: &[u8]) -> Self {
        let (digest, half) = (Digest::of(artifact), artifact.len() / 2);
        let body = artifact.to_owned();
        let server = WebServer::plain(move |asked, number| match number {
            0 => match cut(file(asked, &body, "\"one\""), half) {
                Answer::Bytes(bytes) => Answer::Silence(bytes),
                other => other,
            },
            _ => file(asked, &body, "\"one\""),
        })
        .await;
        let store = node.open();
        let source = server.source("/a");
        let asking = {
            let (store, source) = (store.clone(), source.clone());
            tokio::spawn(async move { store.ensure(&digest, &source).await })
        };
        let part = node.path(&format!("data/cache/partial/{}.part", digest.hex()));
        wait_until("a part", || {
            fs::metadata(&part).is_ok_and(|it| it.len() > ARRIVED)
        })
        .await;
        asking.abort();
        let _ = asking.await;
        drop(store);
        let store = loop {
            // The thread that writes may hold it for a moment longer.
            match Store::open(node.config()) {
                Err(Error::Busy { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        };
        Self {
            server,
            source,
            part,
            store,
        }
    }
}
