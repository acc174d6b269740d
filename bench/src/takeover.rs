//! How long it takes until all that ran on a dead engine has ended on another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::{Gateways, Part};
use crate::http::Call;

/// Pause between two looks at the engines: the error of what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long one engine may take to say how it is.
const STATUS_WITHIN: Duration = Duration::from_secs(1);

/// One life of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Life {
    /// The engine's id.
    pub node: u32,
    /// Which of its lives.
    pub incarnation: u64,
}

/// A take-over, as the heir tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct Takeover {
    engine: u32,
    incarnation: u64,
    /// Roots that were unfinished when the engine was taken out of the log.
    pub roots: u64,
    /// From there to the end of the last of them, in µs; `None`: not all have ended.
    pub took_us: Option<u64>,
}

/// What is read of an engine's status.
#[derive(Debug, Deserialize)]
struct Status {
    #[serde(flatten)]
    life: Life,
    unfinished_roots: u64,
    takeovers: Vec<Takeover>,
}

/// The life that an engine is in, and how many roots are unfinished there.
pub async fn life(gateways: &Gateways, engine: usize) -> Option<(Life, u64)> {
    let status = status(gateways, engine).await?;
    Some((status.life, status.unfinished_roots))
}

/// Waits until some engine has ended all roots of a life; `None`: that did not come in time.
pub async fn until_taken_over(
    gateways: &Gateways,
    life: Life,
    within: Duration,
) -> Option<Takeover> {
    let end = Instant::now() + within;
    while Instant::now() < end {
        for engine in 0..gateways.cluster().engines() {
            let Some(status) = status(gateways, engine).await else { continue };
            let is_of = |one: &Takeover| {
                (one.engine, one.incarnation) == (life.node, life.incarnation)
                    && one.took_us.is_some()
            };
            if let Some(over) = status.takeovers.into_iter().find(is_of) {
                return Some(over);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

/// Watches over the roots of engines that die, while other things happen.
pub struct Watch {
    gateways: Arc<Gateways>,
    watched: JoinSet<Option<(u64, Duration)>>,
}

/// How long a take-over is watched.
const WATCHED_FOR: Duration = Duration::from_secs(30);

impl Watch {
    /// Nobody has died yet.
    #[must_use]
    pub fn new(gateways: Arc<Gateways>) -> Self {
        Self { gateways, watched: JoinSet::new() }
    }

    /// A part is about to be killed, or to be stopped for long. Only engines are watched.
    pub async fn dies(&mut self, part: Part) {
        let Part::Engine(engine) = part else { return };
        let Some((life, _)) = life(&self.gateways, engine).await else { return };
        let (gateways, died) = (Arc::clone(&self.gateways), Instant::now());
        self.watched.spawn(async move {
            let over = until_taken_over(&gateways, life, WATCHED_FOR).await?;
            Some((over.roots, died.elapsed()))
        });
    }

    /// For each that had unfinished roots: how long it took from its death until all of them had
    /// ended, in ms.
    pub async fn ended_ms(mut self) -> Vec<f64> {
        let mut ended = Vec::new();
        while let Some(watched) = self.watched.join_next().await {
            match watched {
                Ok(Some((roots, took))) if roots > 0 => ended.push(took.as_secs_f64() * 1e3),
                Ok(Some(_)) => {}
                Ok(None) => tracing::warn!("no engine tells that it has ended a dead one's roots"),
                Err(error) => tracing::warn!(%error, "a take-over was not watched"),
            }
        }
        ended
    }
}

async fn status(gateways: &Gateways, engine: usize) -> Option<Status> {
    let call = Call {
        method: Method::GET,
        path: "/v1/status",
        headers: &[],
        body: Bytes::new(),
        timeout: STATUS_WITHIN,
    };
    let reply = gateways.client(engine)?.send(call).await.ok()?;
    serde_json::from_slice(&reply.body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_of_take_overs_that_are_over_and_of_those_that_are_not() {
        let text = r#"{"node": 22, "incarnation": 4, "epoch": 9, "unfinished_roots": 3,
            "takeovers": [
                {"engine": 21, "incarnation": 7, "at": 55, "roots": 2, "unfinished": 1, "took_us": null},
                {"engine": 21, "incarnation": 8, "at": 66, "roots": 1, "unfinished": 0, "took_us": 12}
            ]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.life, Life { node: 22, incarnation: 4 });
        assert_eq!(status.unfinished_roots, 3);
        let took: Vec<_> = status.takeovers.iter().map(|one| one.took_us).collect();
        assert_eq!(took, [None, Some(12)]);
    }
}
