//! As much HTTP as these tests need.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;

/// How long an answer may take unless said otherwise. Every request is answered before its deadline,
/// if only with "still running"; this is longer.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// What is asked of a server.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// Headers beside those that every request has.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
    /// How long each part of the exchange may take.
    pub(crate) patience: Duration,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Posts with an idempotency key.
pub(crate) fn post(to: SocketAddr, path: &str, key: &str, body: &[u8]) -> anyhow::Result<Reply> {
    let headers = [("idempotency-key", key)];
    send(to, &Request { method: "POST", path, headers: &headers, body, patience: ANSWER_MAX })
}

/// Sends a request on a connection of its own.
pub(crate) fn send(to: SocketAddr, request: &Request<'_>) -> anyhow::Result<Reply> {
    let Request { method, path, headers, body, patience } = request;
    let mut stream = TcpStream::connect_timeout(&to, *patience)?;
    stream.set_read_timeout(Some(*patience))?;
    stream.set_write_timeout(Some(*patience))?;
    let len = body.len();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: {len}\r\n\
         content-type: application/octet-stream\r\n"
    );
    for (name, value) in *headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// Takes an answer apart, and refuses one that was cut off.
fn parse(bytes: &[u8]) -> anyhow::Result<Reply> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("no whole answer")?;
    let (head, body) = (&bytes[..end], &bytes[end + 4..]);
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let len = headers.find(|(name, _)| *name == "content-length").context("no length")?;
    anyhow::ensure!(len.1.trim().parse() == Ok(body.len()), "an answer that was cut off");
    Ok(Reply { status, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let reply = parse(whole).unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "hi"));
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "{len}");
        }
    }
}
