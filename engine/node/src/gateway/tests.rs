//! The gateway against a thread that answers in the hot thread's place.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use halfmoon_wire::{InstanceId, SeqNum};
use serde_json::{Value, json};

use super::*;
use crate::command::{
    Appends, Command, Consistency, DeployFailed, Ended, Invoke, Invoked, RootStatus, Wait,
};
use crate::manifest::Deploy;

/// Prints a manifest, whatever the binary is; unless it is called "mute".
struct FakeDescribe;

impl Describe for FakeDescribe {
    fn describe(&self, path: &Path) -> Result<Vec<u8>, DescribeError> {
        let binary = std::fs::read(path).map_err(DescribeError::Start)?;
        if binary.ends_with(b"mute") {
            return Err(DescribeError::Timeout(Duration::from_secs(5)));
        }
        Ok(br#"{"functions":[{"name":"hello"}]}"#.to_vec())
    }
}

struct Fixture {
    gateway: Option<Gateway>,
    wake: mpsc::SyncSender<()>,
    hot: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    /// A gateway whose commands `answer` gets, one by one.
    fn new(mut answer: impl FnMut(Command) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (wake, woken) = mpsc::sync_channel(1024);
        let waker = wake.clone();
        let commands = Commands::new(move || waker.send(()).unwrap());
        commands.set_ready(true);
        let taken = Arc::clone(&commands);
        let hot = thread::spawn(move || {
            while woken.recv().is_ok() {
                match taken.pop() {
                    Some(command) => answer(command),
                    None => return,
                }
            }
        });
        let context = Context {
            commands,
            metrics: Arc::new(Metrics::default()),
            draw: Arc::new(Draw::seeded([1; 32])),
            scratch: directory.path().to_owned(),
            describe: Arc::new(FakeDescribe),
        };
        let gateway = Gateway::start(SocketAddr::from(([127, 0, 0, 1], 0)), context).unwrap();
        Self { gateway: Some(gateway), wake, hot: Some(hot), _directory: directory }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.gateway.as_ref().unwrap().address()).unwrap()
    }

    /// Sends raw bytes, returns everything that comes back until the connection ends.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // The server may close while we write.
        let _read = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        Answer::parse(&self.raw(&[head.as_bytes(), body.as_bytes()].concat()))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.gateway.take();
        self.wake.send(()).unwrap();
        let ended = self.hot.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {text:?}"));
        Self { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn ended(ended: Ended) -> Invoked {
    let appends = Appends { init: 1, steps: 2, fences: 0, finish: 0 };
    Invoked::Ended { ended, cursor: SeqNum(42), appends }
}

/// Answers every invocation like this, and hands out what was asked.
fn invocations(
    outcome: impl Fn(&Invoke) -> Invoked + Send + 'static,
) -> (Fixture, mpsc::Receiver<Invoke>) {
    let (asked, seen) = mpsc::channel();
    let fixture = Fixture::new(move |command| {
        let Command::Invoke(invoke, reply) = command else { panic!("{command:?}") };
        reply.send(outcome(&invoke)).unwrap();
        asked.send(*invoke).ok();
    });
    (fixture, seen)
}

const INVOKE: &str = "/v1/functions/travel.search/invoke";

#[test]
fn a_result_comes_back_with_its_place_in_the_log() {
    let (fixture, seen) = invocations(|_| ended(Ended::Returned(br#"{"rooms":3}"#.to_vec())));
    let headers = "halfmoon-consistency: linearizable\r\nhalfmoon-cursor: 17\r\n";
    let answer = fixture.send("POST", INVOKE, headers, "input");
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"rooms":3}"#));
    let asked = seen.recv().unwrap();
    for header in [
        "content-type: application/json",
        "halfmoon-cursor: 42",
        "halfmoon-appends: 3",
        "halfmoon-appends-by-kind: init=1,steps=2,fences=0,finish=0",
        &format!("halfmoon-instance: {}", asked.id),
    ] {
        assert!(answer.head.contains(header), "{header} in {}", answer.head);
    }
    assert_eq!(asked.function.to_string(), "travel.search");
    assert_eq!(asked.input, b"input");
    assert_eq!((asked.consistency, asked.cursor), (Consistency::Linearizable, SeqNum(17)));
    assert!(!asked.keyed && asked.wait == Wait::Result);
}

#[test]
fn a_key_names_the_same_root_every_time_and_none_a_new_one() {
    let (fixture, seen) = invocations(|_| ended(Ended::Returned(vec![0xff])));
    let id = |path, headers| {
        assert_eq!(fixture.send("POST", path, headers, "").status, 200);
        let asked = seen.recv().unwrap();
        (asked.keyed, asked.id)
    };
    let keyed = id(INVOKE, "idempotency-key: a\r\n");
    assert!(keyed.0);
    assert_eq!(id(INVOKE, "idempotency-key: a\r\n"), keyed);
    assert_ne!(id(INVOKE, "idempotency-key: b\r\n"), keyed);
    assert_ne!(id("/v1/functions/search/invoke", "idempotency-key: a\r\n"), keyed);
    let same = id("/v1/functions/default.search/invoke", "idempotency-key: a\r\n");
    assert_eq!(id("/v1/functions/search/invoke", "idempotency-key: a\r\n"), same);
    let drawn = id(INVOKE, "");
    assert!(!drawn.0);
    assert_ne!(id(INVOKE, ""), drawn);
}

#[test]
fn every_outcome_has_its_answer() {
    let outcomes = [
        (ended(Ended::Failed("no room".into())), 422, "function_failed"),
        (ended(Ended::Cancelled), 409, "cancelled"),
        (Invoked::BeyondTail { cursor: SeqNum(9), tail: SeqNum(8) }, 400, "bad_request"),
        (Invoked::KeyReused, 409, "key_reused"),
        (Invoked::Parked { error: "it crashed".into() }, 500, "parked"),
        (Invoked::GaveUp { error: "it crashed".into() }, 503, "gave_up"),
        (Invoked::Unknown(vec!["search".into()]), 404, "unknown_function"),
        (Invoked::Overloaded("4096 wait".into()), 429, "overloaded"),
        (Invoked::Unavailable("no sequencer".into()), 503, "unavailable"),
    ];
    let expected = outcomes.clone();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let (fixture, _seen) = invocations(move |_| {
        outcomes[turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed)].0.clone()
    });
    for (_, status, code) in expected {
        let answer = fixture.send("POST", INVOKE, "", "");
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        assert!(answer.head.contains("halfmoon-instance: "), "{}", answer.head);
        assert_eq!(answer.head.contains("retry-after: 1"), [429, 503].contains(&status));
        let hint = answer.json()["error"]["hint"].as_str().unwrap_or_default().to_owned();
        assert_eq!(hint.contains("did you mean search?"), status == 404);
    }
}

#[test]
fn a_caller_whose_deadline_passes_is_told_the_id() {
    // The answer never comes: the sender is kept.
    let mut kept = Vec::new();
    let (asked, seen) = mpsc::channel();
    let fixture = Fixture::new(move |command| {
        if let Command::Invoke(invoke, _) = &command {
            asked.send(invoke.id).unwrap();
        }
        kept.push(command);
    });
    let answer = fixture.send("POST", INVOKE, "halfmoon-deadline-ms: 1\r\n", "");
    let id = seen.recv().unwrap();
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json()["id"], id.to_string());
    assert!(answer.head.contains(&format!("location: /v1/invocations/{id}")), "{}", answer.head);
}

#[test]
fn a_start_is_accepted_with_an_id() {
    let (fixture, seen) = invocations(|_| Invoked::Accepted);
    let answer = fixture.send("POST", "/v1/functions/order/start", "", "{}");
    assert_eq!((answer.status, &answer.json()["status"]), (202, &json!("accepted")));
    assert_eq!(seen.recv().unwrap().wait, Wait::Accepted);
}

#[test]
fn what_is_malformed_is_refused_before_the_hot_thread_sees_it() {
    let fixture = Fixture::new(|command| panic!("{command:?}"));
    let long = format!("idempotency-key: {}\r\n", "k".repeat(300));
    for (path, headers, body, hint) in [
        ("/v1/functions/a.b.c/invoke", "", "", "b.c"),
        ("/v1/functions/%00/invoke", "", "", ""),
        (INVOKE, "content-type: application/json\r\n", "{\"a\":", "not JSON"),
        (INVOKE, "halfmoon-deadline-ms: soon\r\n", "", "soon"),
        (INVOKE, "halfmoon-cursor: -1\r\n", "", "-1"),
        (INVOKE, "halfmoon-consistency: strict\r\n", "", "strict"),
        (INVOKE, "idempotency-key: \r\n", "", "idempotency-key"),
        (INVOKE, &long, "", "300"),
        ("/v1/invocations/xyz/resume", "", "", "xyz"),
        ("/v1/deploy?namespace=a/b", "", "\x7fELF", "a/b"),
        ("/v1/deploy?protocol=raft", "", "\x7fELF", "raft"),
        ("/v1/deploy", "", "#!/bin/sh", "ELF"),
        ("/v1/deploy", "", "\x7fELF mute", "5s"),
    ] {
        let answer = fixture.send("POST", path, headers, body);
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{path}");
        assert!(answer.body.contains(hint), "{hint} in {}", answer.body);
    }
    assert_eq!(fixture.send("GET", "/nothing", "", "").code(), "no_such_path");
    assert_eq!(fixture.send("GET", INVOKE, "", "").code(), "wrong_method");
    let head = format!(
        "POST {INVOKE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99999999\r\n\r\n"
    );
    let answer = Answer::parse(&fixture.raw(head.as_bytes()));
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
}

#[test]
fn malformed_http_harms_nobody_else() {
    let (fixture, _seen) = invocations(|_| ended(Ended::Returned(b"fine".to_vec())));
    for nonsense in [
        &b"\x00\xff\x00\xff\r\n\r\n"[..],
        b"POST\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/functions/a/invoke HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/functions/a/invoke HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        &[b'a'; 100_000],
    ] {
        let answer = fixture.raw(nonsense);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // One that promises a body and goes away.
    let mut stream = fixture.connect();
    stream.write_all(b"POST /v1/functions/a/invoke HTTP/1.1\r\ncontent-length: 9\r\n\r\n").unwrap();
    drop(stream);
    assert_eq!(fixture.send("POST", INVOKE, "", "").body, "fine");
}

#[test]
fn a_root_is_shown_as_it_stands() {
    let outcomes = std::sync::Mutex::new(vec![
        RootStatus::Unknown,
        RootStatus::Running {
            function: Some("f".into()),
            attempts: 2,
            here: true,
            trouble: Some("no answer".into()),
        },
        RootStatus::Parked { function: "f".into(), attempts: 10, error: "crashed".into() },
        RootStatus::Ended { ended: Ended::Returned(b"[1]".to_vec()), cursor: SeqNum(5) },
        RootStatus::Ended { ended: Ended::Returned(vec![0xff]), cursor: SeqNum(5) },
        RootStatus::Ended { ended: Ended::Failed("no".into()), cursor: SeqNum(5) },
    ]);
    let fixture = Fixture::new(move |command| {
        let Command::Status(id, reply) = command else { panic!("{command:?}") };
        assert_eq!(id, InstanceId(0xab));
        reply.send(outcomes.lock().unwrap().remove(0)).unwrap();
    });
    let show = || fixture.send("GET", "/v1/invocations/ab", "", "");
    assert_eq!(show().status, 404);
    assert_eq!(show().json()["attempts"], 2);
    let parked = show().json();
    assert_eq!((&parked["status"], &parked["error"]["code"]), (&json!("parked"), &json!("parked")));
    assert_eq!(show().json()["result"], json!([1]));
    assert_eq!(show().json()["result_bytes"], json!([255]));
    let failed = show().json();
    assert_eq!(failed["status"], "finished");
    assert_eq!(failed["error"]["message"], "no");
}

#[test]
fn resume_and_cancel_reach_the_hot_thread() {
    let fixture = Fixture::new(|command| {
        if let Command::Resume(id, reply) = command {
            reply.send(id == InstanceId(1)).unwrap();
        } else if let Command::Cancel(_, reply) = command {
            reply.send(Ok(())).unwrap();
        } else {
            panic!("{command:?}");
        }
    });
    assert_eq!(fixture.send("POST", "/v1/invocations/1/resume", "", "").status, 202);
    assert_eq!(fixture.send("POST", "/v1/invocations/2/resume", "", "").code(), "not_parked");
    assert_eq!(fixture.send("POST", "/v1/invocations/2/cancel", "", "").status, 202);
}

#[test]
fn a_binary_is_described_and_handed_over() {
    let fixture = Fixture::new(|command| {
        let Command::Deploy(binary, reply) = command else { panic!("{command:?}") };
        let outcome = match binary.namespace.as_str() {
            "full" => Err(DeployFailed::Refused("the cluster is full".into())),
            namespace => Ok((
                SeqNum(9),
                Deploy {
                    namespace: namespace.into(),
                    version: binary.version,
                    bytes: binary.binary.len() as u64,
                    protocol: binary.protocol.unwrap_or_default(),
                    manifest: binary.manifest,
                },
            )),
        };
        reply.send(outcome).unwrap();
    });
    let answer = fixture.send("POST", "/v1/deploy?namespace=n&protocol=boki", "", "\x7fELF code");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    assert_eq!(json["version"], crate::manifest::Version::of(b"\x7fELF code").to_string());
    assert_eq!((&json["functions"][0]["name"], &json["cursor"]), (&json!("hello"), &json!(9)));
    assert_eq!(json["protocol"], "boki");
    let refused = fixture.send("POST", "/v1/deploy?namespace=full", "", "\x7fELF code");
    assert_eq!((refused.status, refused.code().as_str()), (409, "deploy_refused"));
}

#[test]
fn documents_metrics_and_health_are_shown() {
    let fixture = Fixture::new(|command| {
        let Command::Show(what, reply) = command else { panic!("{command:?}") };
        reply.send(json!({ "what": format!("{what:?}") })).unwrap();
    });
    for (path, what) in
        [("/v1/functions", "Functions"), ("/v1/tables", "Tables"), ("/v1/status", "Engine")]
    {
        assert_eq!(fixture.send("GET", path, "", "").json()["what"], what);
    }
    assert!(fixture.send("GET", "/metrics", "", "").body.contains("halfmoon_requests_total 0"));
    assert_eq!(fixture.send("GET", "/healthz", "", "").status, 200);
}

#[test]
fn a_stopped_engine_answers_that_it_is_stopping() {
    let fixture = Fixture::new(drop);
    assert_eq!(fixture.send("POST", INVOKE, "", "").code(), "unknown");
    assert_eq!(fixture.send("GET", "/v1/status", "", "").code(), "unavailable");
}

#[test]
fn a_port_in_use_is_told_as_such() {
    let fixture = Fixture::new(drop);
    let address = fixture.gateway.as_ref().unwrap().address();
    let context = Context {
        commands: Commands::new(|| {}),
        metrics: Arc::new(Metrics::default()),
        draw: Arc::new(Draw::seeded([1; 32])),
        scratch: PathBuf::new(),
        describe: Arc::new(FakeDescribe),
    };
    let error = Gateway::start(address, context).unwrap_err();
    assert!(matches!(error, GatewayError::InUse { .. }), "{error}");
}

#[test]
fn the_end_waits_for_open_requests() {
    let (fixture, _seen) = invocations(|_| ended(Ended::Returned(vec![])));
    let mut fixture = fixture;
    // A connection that is kept alive, with no request in it.
    let mut stream = fixture.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut some = [0; 12];
    stream.read_exact(&mut some).unwrap();
    assert_eq!(&some, b"HTTP/1.1 200");
    fixture.gateway.take().unwrap().stop(Duration::from_secs(60));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_start_is_not_said_to_run_before_that_is_certain() {
    let (fixture, _seen) = invocations(|_| Invoked::Running);
    let answer = fixture.send("POST", "/v1/functions/f/start", "idempotency-key: k\r\n", "");
    assert_eq!((answer.status, answer.code().as_str()), (503, "unknown"));
    assert!(answer.head.contains("halfmoon-instance: "), "{}", answer.head);
    let answer = fixture.send("POST", INVOKE, "", "");
    assert_eq!(answer.status, 202, "who waits for a result has the time");
}

#[test]
fn a_start_that_is_not_answered_in_time_is_not_said_to_run() {
    let mut kept = Vec::new();
    let fixture = Fixture::new(move |command| kept.push(command));
    let headers = "halfmoon-deadline-ms: 1\r\n";
    let answer = fixture.send("POST", "/v1/functions/f/start", headers, "");
    assert_eq!((answer.status, answer.code().as_str()), (503, "unknown"));
}
