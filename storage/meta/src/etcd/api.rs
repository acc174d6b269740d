//! Questions and answers of etcd's JSON gateway. Bytes are base64, numbers above 2³² are text, and
//! what has its default value is left out.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{CasError, Entry, MetaError, Revision};

/// Largest answer that is read: every value at its limit, in base64, would be more, but a cluster
/// has a few hundred values of a few hundred bytes.
const ANSWER_MAX_BYTES: u64 = 32 << 20;

/// No answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    endpoint: String,
    why: String,
    /// The question may have been seen, and carried out.
    sent: bool,
}

#[derive(Serialize, Default)]
pub(super) struct Range {
    pub(super) key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) range_end: String,
    pub(super) limit: u64,
    pub(super) count_only: bool,
}

#[derive(Serialize)]
pub(super) struct Txn {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Op>,
    pub(super) failure: Vec<Op>,
}

#[derive(Serialize)]
pub(super) struct Compare {
    key: String,
    target: &'static str,
    result: &'static str,
    mod_revision: u64,
}

#[derive(Serialize)]
pub(super) enum Op {
    #[serde(rename = "request_range")]
    Range(Range),
    #[serde(rename = "request_put")]
    Put { key: String, value: String },
    #[serde(rename = "request_delete_range")]
    Delete { key: String },
}

#[derive(Deserialize)]
pub(super) struct RangeReply {
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    #[serde(default, deserialize_with = "number")]
    pub(super) count: u64,
}

#[derive(Deserialize)]
pub(super) struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
}

#[derive(Deserialize)]
pub(super) struct TxnReply {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    pub(super) responses: Vec<Response>,
}

#[derive(Deserialize)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) revision: u64,
}

#[derive(Deserialize)]
pub(super) struct Response {
    #[serde(rename = "response_range")]
    pub(super) range: Option<RangeReply>,
}

/// What etcd says of a failure.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
}

impl Range {
    /// One key.
    pub(super) fn one(key: &[u8]) -> Self {
        Self { key: STANDARD.encode(key), ..Self::default() }
    }

    /// All keys that begin with `prefix`, which ends below 0xff: keys are ASCII.
    pub(super) fn under(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        Self { range_end: STANDARD.encode(end), ..Self::one(prefix) }
    }
}

impl Compare {
    /// The key was last written at `revision`; never, if that is 0.
    pub(super) fn modified_at(key: &[u8], revision: Revision) -> Self {
        let key = STANDARD.encode(key);
        Self { key, target: "MOD", result: "EQUAL", mod_revision: revision.0 }
    }
}

impl Op {
    pub(super) fn put(key: &[u8], value: &[u8]) -> Self {
        Self::Put { key: STANDARD.encode(key), value: STANDARD.encode(value) }
    }

    pub(super) fn delete(key: &[u8]) -> Self {
        Self::Delete { key: STANDARD.encode(key) }
    }
}

impl KeyValue {
    pub(super) fn name(&self) -> Result<String, MetaError> {
        let bytes = STANDARD.decode(&self.key).map_err(|error| corrupt(&self.key, &error))?;
        String::from_utf8(bytes).map_err(|error| corrupt(&self.key, &error))
    }

    pub(super) fn entry(self) -> Result<Entry, MetaError> {
        let value = STANDARD.decode(&self.value).map_err(|error| corrupt(&self.key, &error))?;
        Ok(Entry { value, revision: Revision(self.mod_revision) })
    }
}

fn corrupt(key: &str, why: &dyn std::fmt::Display) -> MetaError {
    MetaError::Corrupt { place: format!("etcd's key {key} (base64)"), why: why.to_string() }
}

impl Unanswered {
    /// No endpoint was left to ask.
    pub(super) fn out_of_time() -> Self {
        Self { endpoint: "every endpoint".to_owned(), why: "time is up".to_owned(), sent: false }
    }

    pub(super) const fn was_sent(&self) -> bool {
        self.sent
    }
}

impl From<Unanswered> for MetaError {
    fn from(unanswered: Unanswered) -> Self {
        Self::Etcd { endpoint: unanswered.endpoint, why: unanswered.why }
    }
}

impl From<Unanswered> for CasError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered.sent {
            true => Self::Unknown { source: unanswered.into() },
            false => Self::Failed(unanswered.into()),
        }
    }
}

/// Connections are not kept: questions are rare, and one that is sent on a connection which the
/// other end has just closed would be unknown for no reason.
pub(super) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_idle_connections(0)
        .max_redirects(0)
        .proxy(None)
        .build()
        .into()
}

/// Asks one endpoint.
pub(super) fn post<Q: Serialize, A: DeserializeOwned>(
    agent: &ureq::Agent,
    endpoint: &str,
    path: &str,
    question: &Q,
    within: Duration,
) -> Result<A, Unanswered> {
    let unanswered = |why: String, sent| Unanswered { endpoint: endpoint.to_owned(), why, sent };
    let body =
        serde_json::to_vec(question).map_err(|error| unanswered(error.to_string(), false))?;
    let request = agent
        .post(format!("http://{endpoint}{path}"))
        .config()
        .timeout_connect(Some(within / 2))
        .timeout_global(Some(within))
        .build()
        .content_type("application/json");
    let mut response =
        request.send(&body[..]).map_err(|error| unanswered(error.to_string(), was_sent(&error)))?;
    let answer = response.body_mut().with_config().limit(ANSWER_MAX_BYTES).read_to_vec();
    let answer = answer.map_err(|error| unanswered(error.to_string(), true))?;
    let status = response.status();
    if !status.is_success() {
        let refusal = serde_json::from_slice::<Refusal>(&answer).map(|refusal| refusal.error);
        let why = format!("{status}: {}", refusal.unwrap_or_default());
        // What the client did wrong has no effect; of all else etcd itself may not know.
        return Err(unanswered(why, !status.is_client_error()));
    }
    serde_json::from_slice(&answer)
        .map_err(|error| unanswered(format!("its answer is not understood: {error}"), true))
}

/// Whether the other end may have seen the question.
fn was_sent(error: &ureq::Error) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable};
    let refused = [ConnectionRefused, HostUnreachable, AddrNotAvailable];
    let is_refused = matches!(error, ureq::Error::Io(error) if refused.contains(&error.kind()));
    let unsent = matches!(
        error,
        ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::BadUri(_)
            | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve)
    );
    !is_refused && !unsent
}

/// A number, as text or as itself.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Itself(u64),
    }
    match Number::deserialize(from)? {
        Number::Text(text) => text.parse().map_err(D::Error::custom),
        Number::Itself(number) => Ok(number),
    }
}
