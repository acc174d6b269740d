//! `halfmoon invoke`: call a function.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;

use crate::cli::Invoke;
use crate::client::{Send, send};
use crate::commands::show::{complaint, print};

/// Bytes of an input. The engine has the same limit; it answers and closes before so long a body has
/// gone, which the sender sees only as a broken connection.
const INPUT_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Exit code when the function has not ended: it goes on, and may be asked for.
const STILL_RUNNING: u8 = 75;

pub(crate) fn run(options: &Invoke) -> anyhow::Result<ExitCode> {
    let input = if options.input == "-" {
        let mut input = Vec::new();
        std::io::stdin().read_to_end(&mut input).context("cannot read standard input")?;
        input
    } else {
        options.input.clone().into_bytes()
    };
    anyhow::ensure!(
        input.len() <= INPUT_MAX_BYTES,
        "the input has {} bytes, more than the {INPUT_MAX_BYTES} that are allowed; write large data \
         to a table and pass its key",
        input.len()
    );
    let what = if options.asynchronous { "start" } else { "invoke" };
    let path = format!("/v1/functions/{}/{what}", options.function);
    let deadline = (options.timeout * 1000).to_string();
    let mut headers = vec![("halfmoon-deadline-ms", deadline.as_str())];
    headers.extend(options.key.as_deref().map(|key| ("idempotency-key", key)));
    let reply = send(
        &options.target,
        &Send {
            method: Method::POST,
            path: &path,
            headers: &headers,
            body: Bytes::from(input),
            timeout: Duration::from_secs(options.timeout + 5),
        },
    )?;
    match reply.status.as_u16() {
        200 => {
            let mut out = std::io::stdout().lock();
            out.write_all(&reply.body).and_then(|()| out.write_all(b"\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        202 => {
            let id = reply.header("halfmoon-instance").unwrap_or("?");
            print(&format!("running as {id}"));
            Ok(if options.asynchronous { ExitCode::SUCCESS } else { STILL_RUNNING.into() })
        }
        _ => anyhow::bail!("{}: {}", options.function, complaint(&reply)),
    }
}
