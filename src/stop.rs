//! When to stop: SIGTERM, Ctrl-C, or the end of standard input.

use std::io::Read;

/// Calls `stop` once, when the process is asked to end. With `stdin`, the end of standard input is
/// such a request too: the pipe of a supervisor closes however the supervisor ends.
pub(crate) fn on_request(
    stdin: bool,
    stop: impl Fn() + Send + Clone + 'static,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let on_signal = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(wait_for_signal());
        on_signal();
    })?;
    if stdin {
        std::thread::Builder::new().name("supervisor".into()).spawn(move || {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
            stop();
        })?;
    }
    Ok(())
}

/// Waits for SIGTERM or Ctrl-C.
pub(crate) async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be watched; Ctrl-C still works");
            tokio::signal::ctrl_c().await.ok();
        }
    }
}
