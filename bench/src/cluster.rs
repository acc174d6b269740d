//! What a benchmark needs of a cluster: where its engines listen, and how to kill its parts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use halfmoon_meta::ClusterInfo;
use halfmoon_wire::NodeId;
use hyper::Method;
use serde::Serialize;
use serde_json::Value;

use crate::http::{Call, Client, Reply, RequestError};
use crate::partition::Way;

/// A part of a cluster that can be killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The engine with this index.
    Engine(usize),
    /// The storage node with this index.
    Storage(usize),
    /// The sequencer in charge.
    Sequencer,
}

/// How far a storage node is on its way to be a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joining {
    /// It is none, nor to become one.
    No,
    /// It is to be one, from the next epoch on.
    Proposed,
    /// It is one, and copies the state.
    Copying,
    /// It has everything.
    Whole,
}

impl Joining {
    /// As the metadata store has it.
    #[must_use]
    pub fn of(info: &ClusterInfo, node: NodeId) -> Self {
        match (info.members.nodes().contains(&node), info.members.committed_in()) {
            (false, _) => Self::No,
            (true, None) => Self::Proposed,
            (true, Some(_)) if info.has_state(node) => Self::Whole,
            (true, Some(_)) => Self::Copying,
        }
    }
}

/// What the lanes of a cluster's nodes carry, all of them together.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Carried {
    /// Ends of lanes that are up over RDMA: a lane between two nodes has two.
    pub rdma_lanes: u64,
    /// Bytes that nodes have written to each other over RDMA, also those that have ended since.
    pub rdma_bytes: u64,
    /// The same over TCP.
    pub tcp_lanes: u64,
    /// The same over TCP.
    pub tcp_bytes: u64,
}

impl Carried {
    /// Adds what another node carries.
    pub fn add(&mut self, other: Self) {
        self.rdma_lanes += other.rdma_lanes;
        self.rdma_bytes += other.rdma_bytes;
        self.tcp_lanes += other.tcp_lanes;
        self.tcp_bytes += other.tcp_bytes;
    }

    /// The same of a node that has ended.
    #[must_use]
    pub const fn ended(self) -> Self {
        Self { rdma_lanes: 0, tcp_lanes: 0, ..self }
    }

    /// In words.
    #[must_use]
    pub fn described(&self) -> String {
        let Self { rdma_bytes, tcp_bytes, .. } = self;
        format!("between nodes: {rdma_bytes} bytes over RDMA, {tcp_bytes} bytes over TCP")
    }
}

/// A running cluster, of whatever kind.
pub trait Cluster: Send + Sync {
    /// How many engines there are.
    fn engines(&self) -> usize;
    /// Where an engine's gateway listens *now*; `None` while it is down.
    fn gateway(&self, engine: usize) -> Option<SocketAddr>;
    /// SIGKILLs a part. Whoever supervises the cluster starts it again.
    fn kill(&self, part: Part) -> anyhow::Result<()> {
        self.kill_for(part, Duration::ZERO)
    }
    /// SIGKILLs a part, which is not started again before so long.
    fn kill_for(&self, part: Part, down: Duration) -> anyhow::Result<()>;
    /// SIGSTOPs a part: it lives, and does nothing. Its process id, for [`Self::resume`].
    fn pause(&self, part: Part) -> anyhow::Result<u32>;
    /// SIGCONTs a process that was paused.
    fn resume(&self, pid: u32) -> anyhow::Result<()>;
    /// Cuts a part off from all others, until [`Self::mend`]. `false`: this cluster has no network that
    /// could be cut.
    fn cut(&self, part: Part, way: Way) -> anyhow::Result<bool>;
    /// Nobody is cut off any more.
    fn mend(&self);
    /// Takes the disk of the storage node with this index away, and SIGKILLs it: it does not come back.
    /// Its number.
    fn lose_storage(&self, index: usize) -> anyhow::Result<u32>;
    /// Puts a spare in the place of the storage node with this number. The number of the new member; an
    /// error when there is no spare, or it is refused.
    fn replace_storage(&self, old: u32) -> anyhow::Result<u32>;
    /// How far a storage node is on its way to be a member.
    fn joining(&self, node: u32) -> anyhow::Result<Joining>;
    /// What goes over which transport, if it is known here. The last moments are missing of nodes that
    /// work, and of those that were killed.
    fn carried(&self) -> Option<Carried>;
    /// SIGKILLs a process of the cluster (a worker). `false`: it was gone already.
    fn kill_process(&self, pid: u32) -> bool;
}

/// Requests to whichever engine answers.
pub struct Gateways {
    cluster: Arc<dyn Cluster>,
    clients: Vec<std::sync::Mutex<Option<Arc<Client>>>>,
    turn: AtomicUsize,
}

/// Pause before a request that may be repeated is sent to another engine.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl Gateways {
    /// Spreads requests over the cluster's engines.
    #[must_use]
    pub fn new(cluster: Arc<dyn Cluster>) -> Self {
        let clients = (0..cluster.engines()).map(|_| std::sync::Mutex::new(None)).collect();
        Self { cluster, clients, turn: AtomicUsize::new(0) }
    }

    /// The cluster behind.
    #[must_use]
    pub fn cluster(&self) -> &Arc<dyn Cluster> {
        &self.cluster
    }

    /// A client of an engine, where it listens now.
    #[must_use]
    pub fn client(&self, engine: usize) -> Option<Arc<Client>> {
        let address = self.cluster.gateway(engine)?;
        let mut client =
            self.clients[engine].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*client {
            Some(client) if client.address() == address => Some(Arc::clone(client)),
            _ => {
                let fresh = Arc::new(Client::new(address));
                *client = Some(Arc::clone(&fresh));
                Some(fresh)
            }
        }
    }

    fn next(&self) -> Option<Arc<Client>> {
        let engines = self.cluster.engines();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..engines).find_map(|step| self.client((turn + step) % engines))
    }

    /// Sends to the next engine, once.
    pub async fn once(&self, call: Call<'_>) -> Result<Reply, RequestError> {
        match self.next() {
            Some(client) => client.send(call).await,
            None => Err(RequestError::NotSent {
                address: SocketAddr::from(([0, 0, 0, 0], 0)),
                source: std::io::Error::new(
                    std::io::ErrorKind::NotConnected,
                    "no engine is listening",
                ),
            }),
        }
    }

    /// Sends until some engine gives a final answer or the deadline has passed. Only for requests
    /// that may be sent again: reads, and requests with an idempotency key.
    pub async fn until_answered(&self, call: Call<'_>, deadline: Duration) -> Option<Reply> {
        let end = tokio::time::Instant::now() + deadline;
        while tokio::time::Instant::now() < end {
            match self.once(call.clone()).await {
                Ok(reply) if is_final(&reply) => return Some(reply),
                Ok(reply) => tracing::debug!(status = %reply.status, "not final, asking again"),
                Err(error) => tracing::debug!(%error, "asking another engine"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        None
    }

    /// Invokes a function with a JSON input until it is answered.
    pub async fn invoke(
        &self,
        function: &str,
        input: &Value,
        headers: &[(&str, &str)],
        deadline: Duration,
    ) -> anyhow::Result<Value> {
        let path = format!("/v1/functions/{function}/invoke");
        let call = Call {
            method: Method::POST,
            path: &path,
            headers,
            body: Bytes::from(input.to_string()),
            timeout: deadline,
        };
        let reply = self
            .until_answered(call, deadline)
            .await
            .ok_or_else(|| anyhow::anyhow!("no answer from {function} within {deadline:?}"))?;
        anyhow::ensure!(
            reply.status.is_success(),
            "{function} answered {}: {}",
            reply.status,
            String::from_utf8_lossy(&reply.body)
        );
        Ok(serde_json::from_slice(&reply.body)?)
    }
}

/// Whether asking again cannot change the answer: a result, or the caller's own mistake.
fn is_final(reply: &Reply) -> bool {
    match reply.status.as_u16() {
        202 | 408 | 429 => false,
        status => status < 500,
    }
}

/// Waits until every engine answers its health check.
pub async fn wait_until_up(gateways: &Gateways, within: Duration) -> anyhow::Result<()> {
    let end = tokio::time::Instant::now() + within;
    for engine in 0..gateways.cluster().engines() {
        loop {
            if let Some(client) = gateways.client(engine)
                && is_healthy(&client).await
            {
                break;
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < end,
                "engine {engine} did not come up within {within:?}; its log says why"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

async fn is_healthy(client: &Client) -> bool {
    let call = Call {
        method: Method::GET,
        path: "/healthz",
        headers: &[],
        body: Bytes::new(),
        timeout: Duration::from_secs(1),
    };
    client.send(call).await.is_ok_and(|reply| reply.status == 200)
}
