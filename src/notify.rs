//! Tells the service manager (systemd, `Type=notify`) how far this process is, if it wants to know.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The environment variable that names the manager's socket.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";

/// This process does what it was started for.
pub(crate) fn ready() {
    tell("READY=1");
}

/// It was asked to end, and is about to.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

/// Whether somebody wants to know.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(SOCKET).is_some()
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, ?socket, "the service manager cannot be told {state}");
    }
}
