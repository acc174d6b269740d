//! What is asked for, parsed; and the waiting for its answer.

use std::str::FromStr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use halfmoon_wire::{InstanceId, SeqNum};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::answer::{self, Problem};
use super::{Context, binary};
use crate::command::{Command, Consistency, Document, Invoke, Invoked, RootStatus, Wait};
use crate::metrics::count;
use crate::names::{DEFAULT_NAMESPACE, FunctionName};

/// Bytes of an invocation's input.
pub(super) const INPUT_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of an idempotency key.
const KEY_MAX_BYTES: usize = 256;
/// How long a caller waits who does not say.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// How long a caller may wait at most.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// How long the hot thread has for a question about the engine.
const QUESTION_WITHIN: Duration = Duration::from_secs(10);
/// How long a request's body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(60);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const DEADLINE_MS: HeaderName = HeaderName::from_static("halfmoon-deadline-ms");
const CONSISTENCY: HeaderName = HeaderName::from_static("halfmoon-consistency");

/// All routes.
pub(super) fn router(context: Context) -> Router {
    Router::new()
        .route("/v1/functions/{name}/invoke", post(invoke))
        .route("/v1/functions/{name}/start", post(start))
        .route("/v1/functions", get(functions))
        .route("/v1/tables", get(tables))
        .route("/v1/invocations/{id}", get(root_status))
        .route("/v1/invocations/{id}/resume", post(resume))
        .route("/v1/invocations/{id}/cancel", post(cancel))
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .layer(DefaultBodyLimit::max(INPUT_MAX_BYTES))
        // Of another size, and streamed to a file: it has a limit of its own.
        .route("/v1/deploy", post(binary::deploy).layer(DefaultBodyLimit::disable()))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(context)
}

async fn invoke(
    State(context): State<Context>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    run(&context, &name, request, Wait::Result).await
}

async fn start(
    State(context): State<Context>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    run(&context, &name, request, Wait::Accepted).await
}

async fn run(context: &Context, name: &str, request: Request, wait: Wait) -> Response {
    let began = Instant::now();
    count(&context.metrics.requests_total);
    let invoke = match parse_invoke(context, name, request, wait, began).await {
        Ok(invoke) => invoke,
        Err(problem) => return problem.into_response(),
    };
    let (id, deadline) = (invoke.id, invoke.deadline);
    let asked = ask(context, deadline, |reply| Command::Invoke(Box::new(invoke), reply)).await;
    let outcome = match asked {
        // Its Init is not durable yet: if this engine goes, nobody else knows of it.
        Ok(Invoked::Running) | Err(Unanswered::Late) if wait == Wait::Accepted => {
            Invoked::Unsure("the log has not taken the invocation yet; it may still run".to_owned())
        }
        Ok(outcome) => outcome,
        Err(Unanswered::Late) => Invoked::Running,
        Err(Unanswered::Full) => {
            Invoked::Overloaded("too many requests wait for this engine".to_owned())
        }
        Err(Unanswered::Gone) => {
            Invoked::Unsure("this engine is stopping; the invocation may go on".to_owned())
        }
    };
    if matches!(outcome, Invoked::Ended { .. }) {
        context.metrics.answered(began.elapsed());
    } else if matches!(outcome, Invoked::Overloaded(_)) {
        count(&context.metrics.requests_refused_total);
    }
    answer::invoked(id, outcome)
}

async fn parse_invoke(
    context: &Context,
    name: &str,
    request: Request,
    wait: Wait,
    began: Instant,
) -> Result<Invoke, Problem> {
    let function = FunctionName::parse(name, DEFAULT_NAMESPACE)
        .map_err(|error| Problem::bad(error).hint("functions are called NAME or NAMESPACE.NAME"))?;
    let headers = request.headers();
    let patience = match number::<u64>(headers, &DEADLINE_MS)? {
        Some(ms) => Duration::from_millis(ms).min(DEADLINE_MAX),
        None => DEADLINE_DEFAULT,
    };
    let cursor = SeqNum(number(headers, &answer::CURSOR)?.unwrap_or(0));
    let consistency = match header_text(headers, &CONSISTENCY)? {
        None | Some("sequential") => Consistency::Sequential,
        Some("linearizable") => Consistency::Linearizable,
        Some(other) => {
            return Err(Problem::bad(format!("{CONSISTENCY}: {other:?} is not known"))
                .hint("linearizable, or sequential (the default)"));
        }
    };
    let key = headers.get(&IDEMPOTENCY_KEY).map(HeaderValue::as_bytes);
    let id = match key {
        Some(key) if key.is_empty() || key.len() > KEY_MAX_BYTES => {
            return Err(Problem::bad(format!(
                "{IDEMPOTENCY_KEY} has {} bytes; 1 to {KEY_MAX_BYTES} are allowed",
                key.len()
            )));
        }
        Some(key) => halfmoon_protocol::ids::root(&function_id(&function), key),
        None => InstanceId(context.draw.draw()),
    };
    let keyed = key.is_some();
    let is_json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().starts_with("application/json"));
    let input = body(request).await?;
    if is_json && let Err(error) = serde_json::from_slice::<IgnoredAny>(&input) {
        return Err(Problem::bad(format!("the body is not JSON: {error}"))
            .hint("send other bytes as application/octet-stream"));
    }
    let deadline = began + patience;
    let input = Vec::from(input);
    Ok(Invoke { id, keyed, function, input, consistency, cursor, wait, deadline })
}

/// How a function is named where its name goes into an id: always with its namespace.
fn function_id(function: &FunctionName) -> String {
    format!("{}.{}", function.namespace(), function.name())
}

async fn body(request: Request) -> Result<Bytes, Problem> {
    // Told at once, not after the bytes have come.
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok());
    if announced.and_then(|len| len.parse().ok()).is_some_and(|len: usize| len > INPUT_MAX_BYTES) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, &()));
    match read.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) => Err(body_problem(&rejection)),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body did not arrive within {} s", BODY_WITHIN.as_secs()),
        )),
    }
}

fn body_problem(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    Problem::bad(rejection.body_text())
}

fn too_large() -> Problem {
    let limit = format!("the body has more than {INPUT_MAX_BYTES} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", limit)
        .hint("write large data to a table and pass its key")
}

async fn functions(State(context): State<Context>) -> Response {
    show(&context, Document::Functions).await
}

async fn tables(State(context): State<Context>) -> Response {
    show(&context, Document::Tables).await
}

async fn status(State(context): State<Context>) -> Response {
    show(&context, Document::Engine).await
}

async fn show(context: &Context, what: Document) -> Response {
    let deadline = Instant::now() + QUESTION_WITHIN;
    match ask(context, deadline, |reply| Command::Show(what, reply)).await {
        Ok(value) => answer::document(StatusCode::OK, &value),
        Err(unanswered) => unanswered.problem().into_response(),
    }
}

async fn root_status(State(context): State<Context>, Path(id): Path<String>) -> Response {
    let id = match instance(&id) {
        Ok(id) => id,
        Err(problem) => return problem.into_response(),
    };
    let deadline = Instant::now() + QUESTION_WITHIN;
    let status = match ask(&context, deadline, |reply| Command::Status(id, reply)).await {
        Ok(status) => status,
        Err(unanswered) => RootStatus::Unavailable(unanswered.problem().message),
    };
    answer::root_status(id, status)
}

async fn resume(State(context): State<Context>, Path(id): Path<String>) -> Response {
    let id = match instance(&id) {
        Ok(id) => id,
        Err(problem) => return problem.into_response(),
    };
    let deadline = Instant::now() + QUESTION_WITHIN;
    match ask(&context, deadline, |reply| Command::Resume(id, reply)).await {
        Ok(true) => answer::invoked(id, Invoked::Running),
        Ok(false) => {
            Problem::new(StatusCode::CONFLICT, "not_parked", format!("{id} is not parked here"))
                .hint("GET /v1/status of each engine lists what it has parked")
                .into_response()
        }
        Err(unanswered) => unanswered.problem().into_response(),
    }
}

async fn cancel(State(context): State<Context>, Path(id): Path<String>) -> Response {
    let id = match instance(&id) {
        Ok(id) => id,
        Err(problem) => return problem.into_response(),
    };
    let deadline = Instant::now() + QUESTION_WITHIN;
    match ask(&context, deadline, |reply| Command::Cancel(id, reply)).await {
        Ok(Ok(())) => answer::invoked(id, Invoked::Running),
        Ok(Err(why)) => Problem::unavailable(why).into_response(),
        Err(unanswered) => unanswered.problem().into_response(),
    }
}

async fn metrics(State(context): State<Context>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(CONTENT_TYPE, kind)], context.metrics.to_prometheus()).into_response()
}

async fn healthz(State(context): State<Context>) -> Response {
    if context.commands.is_ready() {
        return answer::document(StatusCode::OK, &json!({ "status": "ready" }));
    }
    Problem::unavailable("the engine has not seen the end of the log yet, or is stopping")
        .into_response()
}

async fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_such_path", "there is nothing at this path")
        .hint("POST /v1/functions/{name}/invoke runs a function")
}

async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "this path takes another method")
}

/// Why the hot thread did not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unanswered {
    /// Not in time.
    Late,
    /// Its queue is full.
    Full,
    /// It has stopped.
    Gone,
}

impl Unanswered {
    pub(super) fn problem(self) -> Problem {
        Problem::unavailable(match self {
            Self::Late => "the engine did not answer in time",
            Self::Full => "too many requests wait for this engine",
            Self::Gone => "the engine is stopping",
        })
    }
}

/// Asks the hot thread, and waits until `deadline` at most.
pub(super) async fn ask<T>(
    context: &Context,
    deadline: Instant,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Unanswered> {
    let (reply, answer) = oneshot::channel();
    context.commands.push(command(reply)).map_err(|_| Unanswered::Full)?;
    match timeout_at(deadline.into(), answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Unanswered::Gone),
        Err(_) => Err(Unanswered::Late),
    }
}

fn instance(text: &str) -> Result<InstanceId, Problem> {
    InstanceId::from_str(text).map_err(|_| {
        Problem::bad(format!("{text:?} is not an invocation's id"))
            .hint("32 hexadecimal digits, as in the halfmoon-instance header")
    })
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    value.to_str().map(Some).map_err(|_| Problem::bad(format!("{name} is not text")))
}

fn number<T: FromStr>(headers: &HeaderMap, name: &HeaderName) -> Result<Option<T>, Problem> {
    let Some(text) = header_text(headers, name)? else { return Ok(None) };
    let parsed = text
        .trim()
        .parse()
        .map_err(|_| Problem::bad(format!("{name}: {text:?} is not a number")).hint("digits only"));
    parsed.map(Some)
}
