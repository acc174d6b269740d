//! Answers: results, "still running", and errors that say what to do.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use halfmoon_wire::InstanceId;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::command::{Ended, Invoked, RootStatus};

/// The root's id.
pub(super) const INSTANCE: HeaderName = HeaderName::from_static("halfmoon-instance");
/// A place in the log: in a request a lower bound, in a reply the root's end.
pub(super) const CURSOR: HeaderName = HeaderName::from_static("halfmoon-cursor");
/// Appends that the root's tree made before the reply.
pub(super) const APPENDS: HeaderName = HeaderName::from_static("halfmoon-appends");
/// The same by kind.
const APPENDS_BY_KIND: HeaderName = HeaderName::from_static("halfmoon-appends-by-kind");

/// Results up to this long are looked at to find out whether they are JSON.
const SNIFF_MAX_BYTES: usize = 64 * 1024;
/// What a refused client is told to wait, in seconds.
const RETRY_AFTER_S: &str = "1";

/// An error as the client sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl ToString) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    pub(super) fn bad(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn unavailable(why: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", why)
            .hint("try again, here or at another engine")
    }

    fn value(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(hint) = &self.hint {
            error["hint"] = Value::from(hint.as_str());
        }
        error
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = document(self.status, &json!({ "error": self.value() }));
        let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if busy.contains(&self.status) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}

/// A JSON document.
pub(super) fn document(status: StatusCode, value: &Value) -> Response {
    let json = HeaderValue::from_static("application/json");
    (status, [(CONTENT_TYPE, json)], format!("{value}\n")).into_response()
}

/// The answer to an invocation.
pub(super) fn invoked(id: InstanceId, outcome: Invoked) -> Response {
    let mut response = match outcome {
        Invoked::Ended { ended, cursor, appends } => {
            let mut response = match ended {
                Ended::Returned(result) => bytes(result),
                Ended::Failed(message) => failed(message).into_response(),
                Ended::Cancelled => cancelled().into_response(),
            };
            let headers = response.headers_mut();
            headers.insert(CURSOR, HeaderValue::from(cursor.0));
            headers.insert(APPENDS, HeaderValue::from(appends.total()));
            let kinds = format!(
                "init={},steps={},fences={},finish={}",
                appends.init, appends.steps, appends.fences, appends.finish
            );
            text(headers, APPENDS_BY_KIND, &kinds);
            response
        }
        Invoked::Accepted => running(id, "accepted"),
        Invoked::Running => running(id, "running"),
        Invoked::Unsure(why) => unsure(id, why).into_response(),
        Invoked::Parked { error } => parked(id, &error).into_response(),
        Invoked::GaveUp { error } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "gave_up", error)
                .hint("it has had no effect; send the request again")
                .into_response()
        }
        Invoked::KeyReused => Problem::new(
            StatusCode::CONFLICT,
            "key_reused",
            "the idempotency key was used before with another input",
        )
        .hint("use a fresh key for every request, and the same one only to repeat it")
        .into_response(),
        Invoked::BeyondTail { cursor, tail } => {
            Problem::bad(format!("{CURSOR}: {cursor} lies beyond the end of the log, {tail}"))
                .hint("pass on what a reply of this cluster said, or nothing")
                .into_response()
        }
        Invoked::Unknown(near) => unknown_function(&near).into_response(),
        Invoked::Overloaded(why) => Problem::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", why)
            .hint("slow down, or add engines")
            .into_response(),
        Invoked::Unavailable(why) => Problem::unavailable(why).into_response(),
    };
    text(response.headers_mut(), INSTANCE, &id.to_string());
    response
}

/// The answer to a question about a root. That a root failed is no failure of the question.
pub(super) fn root_status(id: InstanceId, status: RootStatus) -> Response {
    let value = match status {
        RootStatus::Unknown => {
            return Problem::new(
                StatusCode::NOT_FOUND,
                "unknown_invocation",
                format!("nothing of {id} is in the log, nor on this engine"),
            )
            .hint(
                "it may still run on the engine that it was sent to; else it left no trace, or \
                 ended long ago. Under an idempotency key it can be sent again",
            )
            .into_response();
        }
        RootStatus::Unavailable(why) => return Problem::unavailable(why).into_response(),
        RootStatus::Running { function, attempts, here, trouble } => json!({
            "status": "running",
            "function": function,
            "attempts": attempts,
            "here": here,
            "trouble": trouble,
        }),
        RootStatus::Parked { function, attempts, error } => {
            let error = parked(id, &error).value();
            json!({ "status": "parked", "function": function, "attempts": attempts, "error": error })
        }
        RootStatus::Ended { ended, cursor } => {
            let mut value = json!({ "status": "finished", "cursor": cursor.0 });
            match ended {
                Ended::Returned(result) => put_result(&mut value, &result),
                Ended::Failed(message) => value["error"] = failed(message).value(),
                Ended::Cancelled => value["error"] = cancelled().value(),
            }
            value
        }
    };
    let mut value = value;
    value["id"] = Value::from(id.to_string());
    let mut response = document(StatusCode::OK, &value);
    text(response.headers_mut(), INSTANCE, &id.to_string());
    response
}

/// A result that is JSON is shown as it is, another one as text or as an array of bytes.
fn put_result(value: &mut Value, result: &[u8]) {
    if let Ok(json) = serde_json::from_slice::<Value>(result) {
        value["result"] = json;
    } else if let Ok(text) = std::str::from_utf8(result) {
        value["result_text"] = Value::from(text);
    } else {
        value["result_bytes"] = Value::from(result);
    }
}

fn bytes(result: Vec<u8>) -> Response {
    let is_json =
        result.len() <= SNIFF_MAX_BYTES && serde_json::from_slice::<IgnoredAny>(&result).is_ok();
    let kind = if is_json { "application/json" } else { "application/octet-stream" };
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], Body::from(result)).into_response()
}

fn running(id: InstanceId, status: &str) -> Response {
    let value = json!({ "id": id.to_string(), "status": status });
    let mut response = document(StatusCode::ACCEPTED, &value);
    text(response.headers_mut(), LOCATION, &format!("/v1/invocations/{id}"));
    response
}

fn failed(message: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "function_failed", message)
}

fn cancelled() -> Problem {
    Problem::new(StatusCode::CONFLICT, "cancelled", "the invocation was cancelled")
}

fn parked(id: InstanceId, error: &str) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "parked", error)
        .hint(format!("mend the cause, then POST /v1/invocations/{id}/resume"))
}

fn unsure(id: InstanceId, why: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unknown", why).hint(format!(
        "ask for it: GET /v1/invocations/{id}; or send it again, under the same idempotency key"
    ))
}

fn unknown_function(near: &[String]) -> Problem {
    let problem =
        Problem::new(StatusCode::NOT_FOUND, "unknown_function", "there is no such function");
    match near {
        [] => problem.hint("GET /v1/functions lists them; `halfmoon deploy` adds some"),
        near => problem.hint(format!("did you mean {}?", near.join(" or "))),
    }
}

fn text(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
