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
        print(&serde_json::to_string_pretty(&answer)?);
    }
    Ok(ExitCode::SUCCESS)
}
