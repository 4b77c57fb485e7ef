//! Stopping: SIGTERM or SIGINT (Ctrl-C) asks for a clean stop, a second one for an end at once.
//!
//! Invariant: nothing here ends the process; `main` returns, so destructors run and the broker takes back what is
//! unsettled.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

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
            }
        });
        Ok(shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the first signal asks for a clean stop and nothing more, the second for the end.
    #[tokio::test]
    async fn the_first_signal_stops_the_second_ends() {
        let shutdown = Shutdown::on_signals().unwrap();
        let this = rustix::process::getpid();
        rustix::process::kill_process(this, rustix::process::Signal::TERM).unwrap();
        shutdown.stop.cancelled().await;
        assert!(!shutdown.at_once.is_cancelled());
        rustix::process::kill_process(this, rustix::process::Signal::INT).unwrap();
        shutdown.at_once.cancelled().await;
    }
}
