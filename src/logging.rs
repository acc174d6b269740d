//! Log lines on standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging. `HALFMOON_LOG` (a `tracing` filter) wins over `--verbose`.
pub(crate) fn start(verbose: u8, wanted: bool) {
    let level = match (verbose, wanted) {
        (0, true) => "info",
        (0, false) => "error",
        (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("HALFMOON_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}
