//! `halfmoon functions` and `halfmoon status`, and how commands print.

use std::io::Write as _;
use std::process::ExitCode;

use halfmoon_bench::http::Reply;
use serde_json::Value;

use crate::cli::Target;
use crate::client::{Send, send};

/// A line on standard output. Whoever reads it may have gone; the command goes on.
pub(crate) fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// What a reply that is no success says, with its hint.
pub(crate) fn complaint(reply: &Reply) -> String {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
    let error = &body["error"];
    match (error["message"].as_str(), error["hint"].as_str()) {
        (Some(message), Some(hint)) => format!("{message} ({hint})"),
        (Some(message), None) => message.to_owned(),
        (None, _) => format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
    }
}

fn fetch(target: &Target, path: &str) -> anyhow::Result<Value> {
    let reply = send(target, &Send::get(path))?;
    anyhow::ensure!(reply.status.is_success(), "{}", complaint(&reply));
    Ok(serde_json::from_slice(&reply.body)?)
}

pub(crate) fn functions(target: &Target) -> anyhow::Result<ExitCode> {
    let answer = fetch(target, "/v1/functions")?;
    if target.json {
        print(&answer.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let functions = answer["functions"].as_array().cloned().unwrap_or_default();
    if functions.is_empty() {
        print("no functions yet; add some with `halfmoon deploy ./your-binary`");
    }
    for function in functions {
        let text = |field: &str| function[field].as_str().unwrap_or("").to_owned();
        let version = text("version");
        let read_only = if function["read_only"] == true { "read only" } else { "" };
        print(&format!(
            "{:<32} {:<16} {}",
            text("name"),
            version.get(..12).unwrap_or(&version),
            read_only
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn status(target: &Target) -> anyhow::Result<ExitCode> {
    let answer = fetch(target, "/v1/status")?;
    if target.json {
        print(&answer.to_string());
    } else {
        described(&answer).iter().for_each(|line| print(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// What goes over which transport.
fn carried(transport: &Value) -> String {
    let share = |name: &str| {
        let (lanes, bytes) = (&transport[name]["lanes"], &transport[name]["bytes"]);
        (lanes != 0 || bytes != 0).then(|| format!("{name}: {lanes} lanes, {bytes} bytes written"))
    };
    let shares: Vec<String> = ["tcp", "rdma"].into_iter().filter_map(share).collect();
    if shares.is_empty() { "no lanes".to_owned() } else { shares.join("; ") }
}

/// A lane of the engine: to whom, over what, and why.
fn lane(lane: &Value) -> String {
    let text = |of: &Value| of.as_str().unwrap_or("").to_owned();
    let to =
        format!("  to {} {} over {}", text(&lane["role"]), lane["node"], text(&lane["transport"]));
    match lane["why"].as_str() {
        Some(why) => format!("{to}: {why}"),
        None => to,
    }
}

/// What an engine says of itself and its cluster, for a person.
fn described(answer: &Value) -> Vec<String> {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let text = |of: &Value| of.as_str().unwrap_or("").to_owned();
    let state = match (answer["stopping"] == true, answer["open"] == true) {
        (true, _) => "is stopping",
        (false, true) => "serves",
        (false, false) => "waits for a sequencer",
    };
    let mut lines = vec![format!(
        "engine {} (incarnation {}) {state}; epoch {}",
        answer["node"], answer["incarnation"], answer["epoch"]
    )];
    lines.push(format!(
        "log: committed to {}, applied to {}, safe point {}; {} appends unanswered",
        answer["committed"], answer["applied"], answer["safe_point"], answer["unanswered_appends"]
    ));
    lines.push(format!(
        "durability {}; {}; {}",
        text(&answer["durability"]),
        carried(&answer["transport"]),
        text(&answer["backend"])
    ));
    lines.extend(list(&answer["transport"]["lanes"]).iter().map(lane));
    let sequencers: Vec<String> = list(&answer["sequencers"])
        .iter()
        .map(|one| {
            let gone = if one["connected"] == true { "" } else { ", not connected" };
            format!("{} ({}{gone})", one["node"], text(&one["role"]))
        })
        .collect();
    lines.push(format!("sequencers: {}", sequencers.join(", ")));
    let workers = list(&answer["workers"]);
    let busy = workers.iter().filter(|worker| !worker["function"].is_null()).count();
    lines.push(format!("workers: {}, {busy} of them at work", workers.len()));
    lines.push(format!(
        "unfinished invocations: {} here, {} in the cluster",
        answer["unfinished_roots"], answer["unfinished_roots_of_cluster"]
    ));
    for root in list(&answer["roots"]) {
        let trouble = match (root["parked"].as_str(), root["trouble"].as_str()) {
            (Some(error), _) => format!("parked: {error}"),
            (None, Some(trouble)) => trouble.to_owned(),
            (None, None) => "running".to_owned(),
        };
        lines.push(format!(
            "  {} {} attempt {}, since position {}: {trouble}",
            text(&root["id"]),
            text(&root["function"]),
            root["attempts"],
            root["cursor"]
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_told_in_words() {
        let answer = json!({
            "node": 21, "incarnation": 3, "epoch": 4, "open": true, "stopping": false,
            "sequencers": [
                { "node": 10, "role": "active", "connected": true },
                { "node": 11, "role": "standby", "connected": false },
            ],
            "applied": 40, "committed": 41, "safe_point": 30, "unanswered_appends": 0,
            "unfinished_roots": 2, "unfinished_roots_of_cluster": 5,
            "roots": [
                { "id": "7a", "function": "order", "attempts": 3, "cursor": 30, "parked": "broke" },
                { "id": "7b", "function": "pay", "attempts": 1, "cursor": 38, "parked": null },
            ],
            "workers": [{ "pid": 1, "function": "pay" }, { "pid": 2, "function": null }],
            "transport": {
                "tcp": { "lanes": 1, "bytes": 80 }, "rdma": { "lanes": 5, "bytes": 9 },
                "lanes": [
                    { "role": "sequencer", "node": 10, "transport": "rdma", "why": null },
                    { "role": "storage", "node": 2, "transport": "tcp", "why": "there is none" },
                ],
            },
            "durability": "flush", "backend": "uring",
        });
        let expected = [
            "engine 21 (incarnation 3) serves; epoch 4",
            "log: committed to 41, applied to 40, safe point 30; 0 appends unanswered",
            "durability flush; tcp: 1 lanes, 80 bytes written; rdma: 5 lanes, 9 bytes written; uring",
            "  to sequencer 10 over rdma",
            "  to storage 2 over tcp: there is none",
            "sequencers: 10 (active), 11 (standby, not connected)",
            "workers: 2, 1 of them at work",
            "unfinished invocations: 2 here, 5 in the cluster",
            "  7a order attempt 3, since position 30: parked: broke",
            "  7b pay attempt 1, since position 38: running",
        ];
        assert_eq!(described(&answer), expected);
    }
}
