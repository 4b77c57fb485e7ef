//! Stopping: SIGTERM or SIGINT (Ctrl-C) asks for a clean stop; a second one after `ONE_SIGNAL` ends at once.
//!
//! Invariant: nothing here ends the process; `main` returns, so destructors run and the broker takes back unsettled
//! deliveries.

use std::io;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Signals within this time count as one: timeout(1) signals its child and then the whole group, so the child gets two.
const ONE_SIGNAL: Duration = Duration::from_millis(500);

/// What the signals ask for.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: stop pulling, drain, settle, return.
    pub stop: CancellationToken,
    /// Cancelled by the second: return now.
    pub at_once: CancellationToken,
}

impl Shutdown {
    /// Listens for signals from now on. Must be called inside a runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = shutdown.clone();
        tokio::spawn(async move {
            for token in [listener.stop, listener.at_once] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(target: "vogeler::shutdown", signal = name, "stopping");
                token.cancel();
                tokio::time::sleep(ONE_SIGNAL).await;
                _ = terminate.recv().now_or_never();
                _ = interrupt.recv().now_or_never();
            }
        });
        Ok(shutdown)
    }
}

/// Calls `act` at each SIGHUP from now on; without a handler SIGHUP ends a process. Must be called inside a runtime.
pub fn on_hangup(mut act: impl FnMut() + Send + 'static) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            act();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the first signal asks only for a clean stop, even if it comes twice at once; the next one asks for the
    /// end.
    #[tokio::test]
    async fn the_first_signal_stops_the_second_ends() {
        let shutdown = Shutdown::on_signals().unwrap();
        let send = |signal| {
            rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
        };
        send(rustix::process::Signal::TERM);
        shutdown.stop.cancelled().await;
        send(rustix::process::Signal::TERM);
        let again = tokio::time::timeout(ONE_SIGNAL * 3, shutdown.at_once.cancelled());
        assert!(again.await.is_err(), "one signal, sent twice, is one");
        send(rustix::process::Signal::INT);
        shutdown.at_once.cancelled().await;
    }
}
