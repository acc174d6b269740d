//! Sockets: those calls that never block and are not on the hot path.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_transport::{DialError, ListenError};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// How long a peer's machine may leave what was sent unacknowledged before the lane is lost.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A listening socket that does not block, and its address with the port that was given.
pub(crate) fn listen(address: &str) -> Result<(Arc<OwnedFd>, String), ListenError> {
    let named = || address.to_owned();
    let parsed: SocketAddr =
        address.parse().map_err(|_| ListenError::BadAddress { address: named() })?;
    let refused = |source| ListenError::Io { address: named(), source };
    let listener = TcpListener::bind(parsed).map_err(|source| {
        let in_use = source.kind() == io::ErrorKind::AddrInUse;
        if in_use { ListenError::InUse { address: named() } } else { refused(source) }
    })?;
    listener.set_nonblocking(true).map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((Arc::new(OwnedFd::from(listener)), bound.to_string()))
}

/// A socket that connects. A refusal that is known at once is told beside it, to be reported like
/// one that comes later.
pub(crate) fn dial(address: &str) -> Result<(OwnedFd, Option<io::ErrorKind>), DialError> {
    let named = || address.to_owned();
    let parsed: SocketAddr =
        address.parse().map_err(|_| DialError::BadAddress { address: named() })?;
    let family = if parsed.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|error| DialError::Io { address: named(), source: error.into() })?;
    let refusal = match rustix::net::connect(&socket, &parsed) {
        Ok(()) | Err(Errno::INPROGRESS) => None,
        Err(error) => Some(io::Error::from(error).kind()),
    };
    Ok((socket, refusal))
}

/// The next connection, if there is one. Without a descriptor for it, the reserve is given up for a
/// moment to turn the peer away: left in the queue it would make the listener ready for ever.
pub(crate) fn accept(listener: &OwnedFd, reserve: &mut Option<OwnedFd>) -> Option<OwnedFd> {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => return Some(socket),
            Err(Errno::AGAIN) => return None,
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(Errno::MFILE | Errno::NFILE) if reserve.take().is_some() => {
                tracing::warn!("no descriptors are left (ulimit -n), a peer is refused");
                drop(rustix::net::accept(listener));
                *reserve = spare();
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                return None;
            }
        }
    }
}

/// Sets a connection up. Where an option is refused, the kernel's own choice has to do.
pub(crate) fn set_up(socket: &OwnedFd) {
    // Without it a small write waits for the ack of the one before.
    sockopt::set_tcp_nodelay(socket, true).ok();
    // A machine that is gone says nothing, whether something is on its way to it or not.
    let patience = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, patience).ok();
    sockopt::set_socket_keepalive(socket, true).ok();
    sockopt::set_tcp_keepidle(socket, UNACKNOWLEDGED).ok();
    sockopt::set_tcp_keepintvl(socket, UNACKNOWLEDGED / 4).ok();
}

/// A descriptor to be given up when there are no others left.
pub(crate) fn spare() -> Option<OwnedFd> {
    File::open("/dev/null").ok().map(OwnedFd::from)
}
