//! Watch streams that lose, delay, repeat or tear what they should tell.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use platctrl_framework::store::{
    Change, Prefix, Result, Revision, Store, Transaction, WatchEvent, WatchStream,
};

use super::broken::Bug;

/// Leaves changes out.
pub(super) fn filtered(
    events: WatchStream,
    keep: impl Fn(&Change) -> bool + Send + 'static,
) -> WatchStream {
    events
        .map(move |event| match event {
            Ok(WatchEvent::Changes {
                revision,
                mut changes,
            }) => {
                changes.retain(&keep);
                Ok(if changes.is_empty() {
                    WatchEvent::Progress(revision)
                } else {
                    WatchEvent::Changes { revision, changes }
                })
            }
            event => event,
        })
        .boxed()
}

/// Takes what came right behind the revision it resumes from for something old.
pub(super) fn without_first(events: WatchStream, after: Revision) -> WatchStream {
    let is_first = move |event: &Result<WatchEvent>| match event {
        Ok(WatchEvent::Changes { revision, .. }) => {
            after > Revision::ZERO && *revision == after.next()
        }
        _ => false,
    };
    events
        .filter(move |event| std::future::ready(!is_first(event)))
        .boxed()
}

/// Says nothing where it should say that the revision is ahead of the store.
pub(super) fn silent_from_the_future(events: WatchStream) -> WatchStream {
    let tells = |event: &Result<WatchEvent>| !matches!(event, Ok(WatchEvent::Reset { reason }) if reason.contains("ahead"));
    let told = events.take_while(move |event| std::future::ready(tells(event)));
    told.chain(stream::pending()).boxed()
}

/// Goes on from now, as if nothing had been lost, where it should say that history was.
pub(super) fn going_on_after_reset(
    store: Arc<dyn Store>,
    prefix: Prefix,
    after: Revision,
) -> WatchStream {
    let known = store
        .watch(prefix.clone(), after)
        .take_while(|event| std::future::ready(!matches!(event, Ok(WatchEvent::Reset { .. }))));
    let from_now = async move {
        match store.commit(Transaction::new()).await {
            Ok(now) => store.watch(prefix, now),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    };
    known.chain(stream::once(from_now).flatten()).boxed()
}

/// Loses, reorders, repeats or splits events.
pub(super) fn spoiled(events: WatchStream, bug: Bug) -> WatchStream {
    let state = (events, VecDeque::new(), 0_u64, None);
    stream::unfold(
        state,
        move |(mut events, mut queue, mut count, mut kept)| async move {
            loop {
                if let Some(event) = queue.pop_front() {
                    return Some((event, (events, queue, count, kept)));
                }
                let event = events.next().await?;
                let changes = matches!(event, Ok(WatchEvent::Changes { .. }));
                if bug == Bug::QuietWatchersForgotten
                    && matches!(event, Ok(WatchEvent::Progress(_)))
                {
                    continue;
                }
                if !changes {
                    queue.push_back(event);
                    continue;
                }
                count += 1;
                match bug {
                    Bug::LostEvent if count % 5 == 3 => {}
                    Bug::ReorderedEvents => match kept.take() {
                        None if count % 3 == 2 => kept = Some(event),
                        None => queue.push_back(event),
                        Some(before) => queue.extend([event, before]),
                    },
                    Bug::OldEventAgain => {
                        queue.push_back(event.clone());
                        match kept.take() {
                            None => kept = Some(event),
                            Some(before) => queue.push_back(before),
                        }
                    }
                    Bug::TornEvent => {
                        if let Ok(WatchEvent::Changes { revision, changes }) = event {
                            for change in changes {
                                let changes = vec![change];
                                queue.push_back(Ok(WatchEvent::Changes { revision, changes }));
                            }
                        }
                    }
                    _ => queue.push_back(event),
                }
            }
        },
    )
    .boxed()
}
