//! `halfmoon deploy`: make the functions of a binary available.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use crate::cli::Deploy;
use crate::client::{Send, send};
use crate::commands::show::{complaint, print};

/// How long a deployment may take: the binary is stored on two of three nodes and run once.
const WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn run(options: &Deploy) -> anyhow::Result<ExitCode> {
    let binary = std::fs::read(&options.binary).with_context(|| {
        format!(
            "cannot read {}; build it first, then name the executable",
            options.binary.display()
        )
    })?;
    let mut path = String::from("/v1/deploy?");
    for (name, value) in [("namespace", &options.namespace), ("protocol", &options.protocol)] {
        if let Some(value) = value {
            anyhow::ensure!(
                value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')),
                "--{name} {value}: only letters, digits, '-' and '_'"
            );
            write!(path, "{name}={value}&").context("a string takes all that is written to it")?;
        }
    }
    let reply = send(
        &options.target,
        &Send {
            method: Method::POST,
            path: &path,
            headers: &[("content-type", "application/octet-stream")],
            body: Bytes::from(binary),
            timeout: WITHIN,
        },
    )?;
    if !reply.status.is_success() {
        // A file that cannot be a function binary is most often one that was not meant.
        let hint = if reply.status.as_u16() == 400 {
            "; a function binary is an executable whose main ends with halfmoon::serve(app), or in C \
             with hm_serve(app)"
        } else {
            ""
        };
        anyhow::bail!("{} is not deployed: {}{hint}", options.binary.display(), complaint(&reply));
    }
    let deployed: Value = serde_json::from_slice(&reply.body)?;
    if options.target.json {
        print(&deployed.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let version = deployed["version"].as_str().unwrap_or("?");
    print(&format!("deployed version {}", version.get(..16).unwrap_or(version)));
    for function in deployed["functions"].as_array().into_iter().flatten() {
        let name = function["name"].as_str().unwrap_or("?");
        let name = match &options.namespace {
            Some(namespace) => format!("{namespace}.{name}"),
            None => name.to_owned(),
        };
        print(&format!("  {name}"));
    }
    Ok(ExitCode::SUCCESS)
}
