//! When the operating system asks the program to end.

/// Completes when this process is asked to end, by SIGTERM or Ctrl-C: give it to
/// [`Runtime::shutdown_on`](super::Runtime::shutdown_on). Where signals cannot be listened to, it
/// never completes, and they end the process as they would without it.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use platctrl_framework::controller::{Runtime, end_signal};
/// # async fn run(runtime: Runtime) -> Result<(), platctrl_framework::controller::RunError> {
/// runtime.shutdown_on(end_signal()).run().await
/// # }
/// ```
pub async fn end_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = || {
            let interrupt = signal(SignalKind::interrupt())?;
            Ok::<_, std::io::Error>((interrupt, signal(SignalKind::terminate())?))
        };
        match listen() {
            Ok((mut interrupt, mut terminate)) => tokio::select! {
                biased;
                _ = terminate.recv() => tracing::info!("asked to end by SIGTERM"),
                _ = interrupt.recv() => tracing::info!("asked to end by SIGINT"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot listen to signals");
                std::future::pending::<()>().await;
            }
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
