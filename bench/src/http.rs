//! A small HTTP/1.1 client on kept-alive connections, which tells "was not sent" from "unknown".

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Idle connections kept per server; more than that are closed after their request.
const IDLE_MAX: usize = 512;

/// Connections to one server.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Status line's code.
    pub status: StatusCode,
    /// All headers.
    pub headers: hyper::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request never left: it has had no effect.
    #[error("cannot connect to {address}: {source}")]
    NotSent {
        /// The server.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke after the request may have been taken: whether it took effect is not
    /// known.
    #[error("the connection broke before the answer: {0}")]
    Unknown(#[from] hyper::Error),
    /// No answer in time: whether it took effect is not known.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The request itself is malformed.
    #[error("malformed request: {0}")]
    Malformed(#[from] hyper::http::Error),
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// GET, POST, …
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// Body.
    pub body: Bytes,
    /// How long to wait for the whole answer.
    pub timeout: Duration,
}

impl Client {
    /// A client of the server at `address`; connects when first used.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::new(Vec::new()) }
    }

    /// The server.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and waits for the whole answer.
    pub async fn send(&self, call: Call<'_>) -> Result<Reply, RequestError> {
        let timeout = call.timeout;
        match tokio::time::timeout(timeout, self.exchange(call)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::Timeout(timeout)),
        }
    }

    async fn exchange(&self, call: Call<'_>) -> Result<Reply, RequestError> {
        let mut sender = match self.take_idle() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.path)
            .header("host", self.address.to_string());
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(call.body))?).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await?.to_bytes();
        self.give_back(sender);
        Ok(Reply { status, headers, body })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn give_back(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, RequestError> {
        let address = self.address;
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| RequestError::NotSent { address, source })?;
        stream.set_nodelay(true).map_err(|source| RequestError::NotSent { address, source })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to {address} ended");
            }
        });
        Ok(sender)
    }
}

impl Reply {
    /// A header's value, if it is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
