//! The engine's door to the outside: HTTP/1.1 on threads of its own.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/functions/{name}/invoke` | 200 with the result, or 202 with an id when the deadline passes |
//! | `POST /v1/functions/{name}/start` | 202 with an id once the root is sure to run |
//! | `GET /v1/invocations/{id}` | how it stands |
//! | `POST /v1/invocations/{id}/resume`, `/cancel` | takes a parked root up again; asks for an end |
//! | `GET /v1/functions`, `/v1/tables`, `/v1/status` | JSON documents |
//! | `POST /v1/deploy?namespace=&protocol=` | the body is the binary |
//! | `GET /metrics`, `/healthz` | for Prometheus; 200 once requests are taken |
//!
//! The hot thread is reached by [`Commands`] only. Every request has a deadline, connections and
//! bodies are bounded, and whatever comes in is answered or closed; none of it reaches the hot
//! thread unparsed.

mod answer;
mod binary;
mod routes;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub use binary::{Describe, DescribeError};

use crate::command::Commands;
use crate::ids::Draw;
use crate::metrics::Metrics;

/// Threads of the gateway.
const THREADS: usize = 2;
/// How long open requests may take to be answered at the end.
pub const DRAIN_FOR: Duration = Duration::from_secs(5);

/// What the gateway needs of the engine.
#[derive(Clone)]
pub struct Context {
    /// The way to the hot thread.
    pub commands: Arc<Commands>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where drawn ids come from.
    pub draw: Arc<Draw>,
    /// Where binaries lie while they are looked at.
    pub scratch: PathBuf,
    /// Asks a binary what it is.
    pub describe: Arc<dyn Describe>,
}

/// A running gateway; dropping it stops it at once.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Somebody else listens there.
    #[error("the HTTP address {address} is in use; stop what listens there or choose another port")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses.
    #[error("cannot serve HTTP on {address}: {source}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Gateway {
    /// Listens on `address` (port 0: any) and serves.
    pub fn start(address: SocketAddr, context: Context) -> Result<Self, GatewayError> {
        let io = |source: std::io::Error| {
            if source.kind() == std::io::ErrorKind::AddrInUse {
                return GatewayError::InUse { address };
            }
            GatewayError::Io { address, source }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("gateway")
            .enable_all()
            .build()
            .map_err(io)?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let (stop, stopped) = watch::channel(false);
        runtime.spawn(serve::accept(listener, routes::router(context), stopped));
        Ok(Self { address, stop, runtime: Some(runtime) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections; open ones end after the request they are in.
    pub fn close(&self) {
        self.stop.send_replace(true);
    }

    /// Ends it, giving open requests up to `within` to be answered.
    pub fn stop(mut self, within: Duration) {
        self.close();
        if let Some(runtime) = self.runtime.take() {
            let drained = async {
                // Every connection holds a receiver; the last one closes the channel.
                tokio::time::timeout(within, self.stop.closed()).await.is_ok()
            };
            if !runtime.block_on(drained) {
                tracing::warn!("requests were open at the end; their callers get no answer");
            }
            runtime.shutdown_background();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests;
