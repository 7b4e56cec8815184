//! A collection as it is and as it changes: a list and a watch, and both again when one broke off.

use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use serde_json::Value;

use super::find;
use crate::api::{Api, Collection, Query};
use crate::error::{Code, Failure, Result};

/// Between the end of a watch and the next list.
const AGAIN: Duration = Duration::from_millis(200);

/// What became of a collection.
#[derive(Debug)]
pub(crate) enum Change {
    /// All that there is; what is not in it is gone.
    All(Vec<Value>),
    /// An object is new, or is so now.
    Is(Value),
    /// An object was like this, and is gone.
    Gone(Value),
}

enum State {
    /// All is to be listed, after a watch ended or before the first.
    List {
        again: bool,
    },
    Watch(BoxStream<'static, Result<(String, Value)>>),
    Ended,
}

/// What happens to a collection, without an end. A list that fails is the last word.
pub(crate) fn changes(
    api: &Api,
    collection: Collection,
    query: Query,
) -> impl Stream<Item = Result<Change>> + Send + Unpin + use<> {
    let api = api.clone();
    let begin = (State::List { again: false }, api, collection, query);
    stream::unfold(begin, |(mut state, api, collection, query)| async move {
        loop {
            state = match state {
                State::Ended => return None,
                State::List { again } => {
                    if again {
                        tokio::time::sleep(AGAIN).await;
                    }
                    let listed = listed(&api, &collection, &query).await;
                    let (change, state) = match listed {
                        Ok((items, watch)) => (Ok(Change::All(items)), State::Watch(watch)),
                        Err(failure) => (Err(failure), State::Ended),
                    };
                    return Some((change, (state, api, collection, query)));
                }
                State::Watch(mut events) => {
                    let change = match events.next().await {
                        Some(Ok((what, object))) => match what.as_str() {
                            "BOOKMARK" => None,
                            "DELETED" => Some(Change::Gone(object)),
                            _ => Some(Change::Is(object)),
                        },
                        // A watch may end at any time; the list says how things are.
                        _ => {
                            state = State::List { again: true };
                            continue;
                        }
                    };
                    match change {
                        Some(change) => {
                            let state = State::Watch(events);
                            return Some((Ok(change), (state, api, collection, query)));
                        }
                        None => State::Watch(events),
                    }
                }
            };
        }
    })
    .boxed()
}

type Watch = BoxStream<'static, Result<(String, Value)>>;

async fn listed(api: &Api, collection: &Collection, query: &Query) -> Result<(Vec<Value>, Watch)> {
    let (items, revision) = find::list(api, collection, query).await?;
    let since = revision.as_str().ok_or_else(|| {
        Failure::new(
            Code::Failed,
            "the server's list says of no revision that it is of it",
        )
        .hint("is it a platctrl server of this version? `platctrl version` says so")
    })?;
    let watch = query
        .clone()
        .with("watch", "1")
        .with("resourceVersion", since);
    let events = api.watch(&watch.on(collection.path())).await?;
    Ok((items, events.boxed()))
}
