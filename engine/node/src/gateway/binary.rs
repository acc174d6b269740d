//! Deployments: the binary comes in, says what it is, and goes to the hot thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::json;

use super::Context;
use super::answer::{self, Problem};
use super::routes::ask;
use crate::command::{Command, DeployBinary, DeployFailed};
use crate::manifest::{Manifest, Protocol, Version};
use crate::names::{self, DEFAULT_NAMESPACE};

/// Bytes of a function binary.
pub(super) const BINARY_MAX_BYTES: usize = 256 * 1024 * 1024;
/// How long the whole deployment may take.
const DEPLOY_WITHIN: Duration = Duration::from_secs(120);

/// Asks a binary what it is. Blocks, for a few seconds at most.
pub trait Describe: Send + Sync {
    /// Runs the executable at `path` so that it prints its manifest, and returns that.
    fn describe(&self, path: &Path) -> Result<Vec<u8>, DescribeError>;
}

/// Why a binary did not say what it is.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// It could not be started.
    #[error("it cannot be run on this machine: {0}")]
    Start(std::io::Error),
    /// It took too long.
    #[error("it did not describe itself within {0:?}")]
    Timeout(Duration),
    /// It ended with an error.
    #[error("it ended with {status} when asked to describe itself{}", said(stderr))]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
}

#[derive(Deserialize)]
pub(super) struct Parameters {
    namespace: Option<String>,
    protocol: Option<String>,
}

/// A file that is removed again.
struct Scratch(PathBuf);

pub(super) async fn deploy(
    State(context): State<Context>,
    parameters: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Response {
    let Ok(Query(parameters)) = parameters else {
        return Problem::bad("the query does not parse")
            .hint("POST /v1/deploy?namespace=NAME&protocol=NAME")
            .into_response();
    };
    match try_deploy(&context, parameters, request.into_body()).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn try_deploy(
    context: &Context,
    parameters: Parameters,
    body: Body,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + DEPLOY_WITHIN;
    let namespace = parameters.namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    names::check(&namespace).map_err(Problem::bad)?;
    let protocol = parameters.protocol.as_deref().map(protocol).transpose()?;
    let binary = match tokio::time::timeout_at(deadline.into(), receive(body)).await {
        Ok(binary) => binary?,
        Err(_) => return Err(Problem::bad("the binary did not arrive in time")),
    };
    let version = Version::of(&binary);
    let manifest = describe(context, Arc::clone(&binary)).await?;
    let deploy = DeployBinary { namespace, protocol, manifest, version, binary };
    let asked = ask(context, deadline, |reply| Command::Deploy(Box::new(deploy), reply)).await;
    match asked.map_err(super::routes::Unanswered::problem)? {
        Ok((seq, deploy)) => {
            let value = json!({
                "namespace": deploy.namespace,
                "version": deploy.version,
                "protocol": deploy.protocol,
                "functions": deploy.manifest.functions,
                "tables": deploy.manifest.tables,
                "cursor": seq.0,
            });
            let mut response = answer::document(StatusCode::OK, &value);
            response.headers_mut().insert(answer::CURSOR, seq.0.into());
            Ok(response)
        }
        Err(DeployFailed::Refused(why)) => {
            Err(Problem::new(StatusCode::CONFLICT, "deploy_refused", why))
        }
        Err(DeployFailed::Unavailable(why)) => Err(Problem::unavailable(why)),
    }
}

fn protocol(name: &str) -> Result<Protocol, Problem> {
    Protocol::of_name(name).ok_or_else(|| {
        let known: Vec<&str> = Protocol::ALL.iter().map(|(name, _)| *name).collect();
        Problem::bad(format!("there is no protocol {name:?}")).hint(known.join(", "))
    })
}

async fn receive(mut body: Body) -> Result<Arc<[u8]>, Problem> {
    let mut binary = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if binary.len() + data.len() > BINARY_MAX_BYTES {
            let limit = format!("the binary has more than {BINARY_MAX_BYTES} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", limit)
                .hint("strip it of debug information"));
        }
        binary.extend_from_slice(&data);
    }
    if !binary.starts_with(b"\x7fELF") {
        return Err(Problem::bad("the body is not an executable (ELF)")
            .hint("send the binary itself: curl --data-binary @target/release/NAME"));
    }
    Ok(binary.into())
}

async fn describe(context: &Context, binary: Arc<[u8]>) -> Result<Manifest, Problem> {
    let file = context.scratch.join(format!("deploy-{:032x}", context.draw.draw()));
    let ask = Arc::clone(&context.describe);
    let described = tokio::task::spawn_blocking(move || {
        let scratch = Scratch::write(file, &binary)?;
        ask.describe(&scratch.0)
    });
    let printed = match described.await {
        Ok(Ok(printed)) => printed,
        Ok(Err(error)) => {
            return Err(Problem::bad(format!("the binary does not describe itself: {error}"))
                .hint("link the Halfmoon SDK and end main with its serve call"));
        }
        Err(_) => return Err(Problem::unavailable("the engine is stopping")),
    };
    Manifest::parse(&printed).map_err(|error| {
        Problem::bad(format!("what the binary says about itself is not usable: {error}"))
    })
}

impl Scratch {
    fn write(path: PathBuf, binary: &[u8]) -> Result<Self, DescribeError> {
        crate::binaries::write_executable(&path, binary).map_err(DescribeError::Start)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove");
        }
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}
