//! Graceful shutdown: Ctrl-C or SIGTERM ends a command after the current step, so that no event is half done.

use std::future::Future;

use futures_util::future::select_all;

/// Completes at SIGINT or SIGTERM. The handlers are installed by the call, not by the first poll: otherwise a Ctrl-C
/// during the first step would kill the process.
pub(crate) fn wait_for_interrupt() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    async {
        let mut signals: Vec<_> = signals.into_iter().flatten().collect();
        if signals.is_empty() {
            std::future::pending().await
        }
        select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
    }
}
