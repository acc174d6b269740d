//! Requests of the command line to an engine's gateway.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use halfmoon_bench::http::{Call, Client, Reply};
use halfmoon_meta::nodes;
use hyper::Method;

use crate::cli::Target;
use crate::layout::Layout;

/// What to send.
pub(crate) struct Send<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
}

impl<'a> Send<'a> {
    /// A GET.
    pub(crate) fn get(path: &'a str) -> Self {
        let (headers, body): (&[_], _) = (&[], Bytes::new());
        Self { method: Method::GET, path, headers, body, timeout: Duration::from_secs(10) }
    }
}

/// Sends to the target's server, or to the engines of the target's data directory until one takes it.
pub(crate) fn send(target: &Target, send: &Send<'_>) -> anyhow::Result<Reply> {
    let servers = servers(target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut last = None;
    for server in servers {
        let call = Call {
            method: send.method.clone(),
            path: send.path,
            headers: send.headers,
            body: send.body.clone(),
            timeout: send.timeout,
        };
        match runtime.block_on(Client::new(server).send(call)) {
            Ok(reply) => return Ok(reply),
            // Only what never left may be sent elsewhere.
            Err(error @ halfmoon_bench::http::RequestError::NotSent { .. }) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    let error = last.context("no engine is running; start a cluster with `halfmoon dev`")?;
    Err(anyhow::Error::new(error).context("no engine answers; is the cluster running?"))
}

fn servers(target: &Target) -> anyhow::Result<Vec<SocketAddr>> {
    if let Some(server) = &target.server {
        let server = server.trim_start_matches("http://").trim_end_matches('/');
        let addresses = server
            .to_socket_addrs()
            .with_context(|| format!("{server} is not an address of the form host:port"))?;
        return Ok(addresses.collect());
    }
    let store = Layout::new(target.data_dir.clone())?.open()?;
    Ok(nodes::list(&*store)?.into_iter().filter_map(|node| node.gateway).collect())
}
