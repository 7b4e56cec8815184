//! Ctrl-C and `kill`: a command ends in order, so that it leaves no unfinished file behind.
//!
//! Signals are heard on a thread of their own: work that blocks the command's thread is cut off
//! soon after, and at once by a second signal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::INTERRUPTED;

/// How long an orderly end may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// An editor, or whatever else has the terminal, takes Ctrl-C for itself.
static ELSEWHERE: AtomicBool = AtomicBool::new(false);

/// Leaves Ctrl-C to a program that is about to begin, and to what this one does with its result:
/// nobody can tell later which of the two was meant.
pub(crate) fn leave_to_another() {
    ELSEWHERE.store(true, Ordering::SeqCst);
}

/// Ends when somebody interrupts this process. Without a thread to hear it nothing is changed:
/// signals end the process as they always do.
pub(crate) async fn interrupted() {
    let (tell, told) = oneshot::channel();
    let heard = std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || listen(tell));
    match (heard, told.await) {
        (Ok(_), Ok(())) => {}
        _ => std::future::pending().await,
    }
}

fn listen(tell: oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            return;
        };
        next(&mut interrupt, &mut terminate).await;
        let _ = tell.send(());
        tokio::select! {
            () = next(&mut interrupt, &mut terminate) => {}
            () = tokio::time::sleep(PATIENCE) => {}
        }
        std::process::exit(INTERRUPTED.into());
    });
}

/// The next signal that is for this process.
async fn next(interrupt: &mut Signal, terminate: &mut Signal) {
    loop {
        tokio::select! {
            // The terminal sends it to everybody; it was the other program that was meant.
            _ = interrupt.recv() => if !ELSEWHERE.load(Ordering::SeqCst) {
                return;
            },
            _ = terminate.recv() => return,
        }
    }
}
