//! Work that blocks: files, control groups, supervisors that answer.
//!
//! When hundreds of pods start at once, a thread for each of them gains nothing (they share one
//! disk) and costs each thread's stack and what the allocator keeps for it. So only so many pieces
//! of work are done at once. What takes long keeps its thread and gives its place back, so that it
//! does not hold up others: soon, where it waits for somebody else ([`waiting`]), who may never
//! answer; late, where it only uses the node's own files ([`blocking`]), for which all wait alike.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// So much is done at once, in the whole process.
const AT_ONCE: usize = 6;
/// How long a place is kept by what waits for somebody else.
const QUICK: Duration = Duration::from_millis(50);
/// How long it is kept by what uses files.
const SLOW: Duration = Duration::from_secs(1);

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);

/// Does something with the node's own files in a thread, when it is its turn.
///
/// # Errors
/// When it panicked.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, JoinError>> + Send {
    among(&PLACES, SLOW, Box::new(work))
}

/// The same with something that may wait for somebody else: a supervisor, another program, a list
/// of users, files on other machines.
///
/// # Errors
/// When it panicked.
pub(crate) fn waiting<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, JoinError>> + Send {
    among(&PLACES, QUICK, Box::new(work))
}

// The work is boxed, because it is large and whoever waits for it would hold it several times.
async fn among<T: Send + 'static>(
    places: &Semaphore,
    patience: Duration,
    work: Box<dyn FnOnce() -> T + Send>,
) -> Result<T, JoinError> {
    // They are never closed; without a place the work would only be done sooner.
    let place = places.acquire().await.ok();
    let mut task = tokio::task::spawn_blocking(work);
    tokio::select! {
        biased;
        outcome = &mut task => return outcome,
        () = tokio::time::sleep(patience) => {}
    }
    drop(place);
    task.await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc as gates};

    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    use super::*;

    /// Work that begins, says so, and goes on until its gate is dropped.
    struct Gated {
        places: Arc<Semaphore>,
        work: JoinSet<Result<(), JoinError>>,
        gates: Vec<gates::Sender<()>>,
        begun: mpsc::UnboundedReceiver<()>,
        say: mpsc::UnboundedSender<()>,
    }

    impl Gated {
        fn new() -> Self {
            let (say, begun) = mpsc::unbounded_channel();
            Self {
                places: Arc::new(Semaphore::new(AT_ONCE)),
                work: JoinSet::new(),
                gates: Vec::new(),
                begun,
                say,
            }
        }

        fn add(&mut self) {
            let (open, gate) = gates::channel();
            let (say, places) = (self.say.clone(), Arc::clone(&self.places));
            self.gates.push(open);
            let work = move || {
                let _ = say.send(());
                let _ = gate.recv();
            };
            let work = Box::new(work);
            (self.work).spawn(async move { among(&places, QUICK, work).await });
        }

        async fn begun(&mut self, count: usize) {
            for _ in 0..count {
                self.begun.recv().await.unwrap();
            }
        }

        async fn end(mut self) {
            self.gates.clear();
            while let Some(outcome) = self.work.join_next().await {
                outcome.unwrap().unwrap();
            }
        }
    }

    // Time stands still while anything blocks: nothing gives its place up unless the test says so.
    #[tokio::test(start_paused = true)]
    async fn so_much_begins_at_once_and_what_takes_long_gives_its_place_to_the_next() {
        let mut gated = Gated::new();
        for _ in 0..2 * AT_ONCE {
            gated.add();
        }
        gated.begun(AT_ONCE).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(gated.begun.try_recv().is_err(), "more began at once");
        tokio::time::advance(2 * QUICK).await;
        gated.begun(AT_ONCE).await;
        tokio::time::advance(2 * QUICK).await;
        // All places were taken twice by what does not end.
        assert_eq!(
            among(&gated.places, QUICK, Box::new(|| 7)).await.unwrap(),
            7
        );
        gated.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_keeps_no_place() {
        let mut gated = Gated::new();
        for _ in 0..AT_ONCE {
            gated.add();
        }
        gated.begun(AT_ONCE).await;
        gated.work.abort_all();
        while gated.work.join_next().await.is_some() {}
        assert_eq!(
            among(&gated.places, QUICK, Box::new(|| 7)).await.unwrap(),
            7
        );
        gated.end().await;
    }

    #[tokio::test]
    async fn a_panic_is_told_and_costs_no_place() {
        let places = Semaphore::new(AT_ONCE);
        for _ in 0..2 * AT_ONCE {
            let work = Box::new(|| panic!("on purpose"));
            let failed: Result<(), JoinError> = among(&places, QUICK, work).await;
            assert!(failed.unwrap_err().is_panic());
        }
        assert_eq!(places.available_permits(), AT_ONCE);
    }
}
