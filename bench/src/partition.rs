//! Partitions of a cluster whose nodes all run on one machine, without rights on it.
//!
//! In front of every node that others dial there is a relay: the node listens on one loopback address
//! and is known to the others by another, on the same port, where the relay listens. A relay passes
//! bytes on. While a node is cut off, what it sends, what it is sent, or both, waits in the relays, as
//! it waits in the kernel of a machine whose network is gone; so do connections that are made or ended
//! meanwhile. Afterwards all of it arrives, late.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use halfmoon_wire::NodeId;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// Where nodes listen: an address of this machine that nothing else is usual on.
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Bytes that a relay takes at once.
const PIECE_BYTES: usize = 64 << 10;
/// Pause after a connection that could not be taken, such as for want of descriptors.
const REST: Duration = Duration::from_millis(10);

/// What does not get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// What the node sends, and what it is sent.
    Both,
    /// What it is sent.
    In,
    /// What it sends.
    Out,
}

impl Way {
    /// One after the other.
    #[must_use]
    pub const fn by_turn(turn: u32) -> Self {
        match turn % 3 {
            0 => Self::Both,
            1 => Self::In,
            _ => Self::Out,
        }
    }
}

/// Who is cut off, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The node.
    pub node: NodeId,
    /// What does not get through.
    pub way: Way,
}

impl Cut {
    /// Whether it holds up what one sends to another; `None`: somebody who is no node.
    fn holds(self, from: Option<NodeId>, to: Option<NodeId>) -> bool {
        let sends = from == Some(self.node) && self.way != Way::In;
        let is_sent = to == Some(self.node) && self.way != Way::Out;
        sends || is_sent
    }
}

/// Where a node is behind its relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Where it is to listen.
    pub listen: SocketAddr,
    /// Where others find it.
    pub advertise: SocketAddr,
}

/// The process of each node.
type Processes = Arc<Mutex<BTreeMap<NodeId, u32>>>;

/// The relays of a cluster, on a thread of their own.
pub struct Relays {
    runtime: tokio::runtime::Handle,
    cut: watch::Sender<Option<Cut>>,
    places: Mutex<BTreeMap<NodeId, Place>>,
    processes: Processes,
    /// Dropped with this, and then the thread ends.
    _alive: oneshot::Sender<()>,
}

impl Relays {
    /// None yet.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, over) = oneshot::channel::<()>();
        std::thread::Builder::new().name("relays".into()).spawn(move || {
            runtime.block_on(over).ok();
        })?;
        let (cut, places) = (watch::Sender::new(None), Mutex::default());
        Ok(Self { runtime: handle, cut, places, processes: Processes::default(), _alive: alive })
    }

    /// A node runs as this process from now on: what the process dials, the node does.
    pub fn runs(&self, node: NodeId, pid: u32) {
        lock(&self.processes).insert(node, pid);
    }

    /// The place of a node, behind a relay that is there from the first call on.
    ///
    /// # Errors
    /// When no port is to be had.
    pub fn place(&self, node: NodeId) -> io::Result<Place> {
        let mut places = lock(&self.places);
        if let Some(place) = places.get(&node) {
            return Ok(*place);
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let advertise = listener.local_addr()?;
        let place = Place { listen: SocketAddr::new(BEHIND, advertise.port()), advertise };
        let (cut, processes) = (self.cut.subscribe(), Arc::clone(&self.processes));
        self.runtime.spawn(async move {
            if let Err(error) = relay(listener, node, place, processes, cut).await {
                tracing::error!(%error, %node, "a relay ended");
            }
        });
        places.insert(node, place);
        Ok(place)
    }

    /// Cuts a node off, or with `None` nobody any more.
    pub fn set(&self, cut: Option<Cut>) {
        self.cut.send_replace(cut);
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes connections to a node, for ever.
async fn relay(
    listener: std::net::TcpListener,
    node: NodeId,
    place: Place,
    processes: Processes,
    cut: watch::Receiver<Option<Cut>>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (near, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Of one connection, not of the listener.
            Err(error) => {
                tracing::debug!(%error, "a connection was not taken");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let dialler = dialler(from, &processes);
        let cut = cut.clone();
        tokio::spawn(async move {
            if let Err(error) = join(near, dialler, node, place.listen, cut).await {
                tracing::debug!(%error, "a connection through a relay ended");
            }
        });
    }
}

/// Connects to a node for somebody, and passes on what both say, until either end ends.
async fn join(
    near: TcpStream,
    dialler: Option<NodeId>,
    node: NodeId,
    listen: SocketAddr,
    cut: watch::Receiver<Option<Cut>>,
) -> io::Result<()> {
    // It takes a word in each direction to connect.
    let mut until = cut.clone();
    let met = |cut: &Option<Cut>| {
        !cut.is_some_and(|cut| cut.holds(dialler, Some(node)) || cut.holds(Some(node), dialler))
    };
    until.wait_for(met).await.map_err(io::Error::other)?;
    let far = TcpStream::connect(listen).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        ended = pass(near_in, far_out, (dialler, Some(node)), cut.clone()) => ended,
        ended = pass(far_in, near_out, (Some(node), dialler), cut) => ended,
    }
}

/// Passes on what comes, and its end, when nothing holds it up.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (sender, receiver): (Option<NodeId>, Option<NodeId>),
    mut cut: watch::Receiver<Option<Cut>>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = from.read(&mut piece).await;
        let free = |cut: &Option<Cut>| !cut.is_some_and(|cut| cut.holds(sender, receiver));
        cut.wait_for(free).await.map_err(io::Error::other)?;
        match read? {
            0 => return to.shutdown().await,
            read => to.write_all(&piece[..read]).await?,
        }
    }
}

/// The node whose process has a connection from this address; `None`: it is none of them.
fn dialler(from: SocketAddr, processes: &Processes) -> Option<NodeId> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = format!("socket:[{}]", inode(&table, from)?);
    let has_it = |pid: u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|file| file == Path::new(&socket))
    };
    lock(processes).iter().find(|(_, pid)| has_it(**pid)).map(|(node, _)| *node)
}

/// The number of the socket with this local address in `/proc/net/tcp`, where addresses are numbers in
/// the order of bytes of this machine, and ports are not.
fn inode(table: &str, local: SocketAddr) -> Option<&str> {
    let IpAddr::V4(ip) = local.ip() else { return None };
    let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), local.port());
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.nth(1)? == wanted).then(|| fields.nth(7))?
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const NODE: NodeId = NodeId(1);
    const DIALLER: NodeId = NodeId(2);

    #[test]
    fn a_cut_holds_up_what_its_direction_says() {
        let both = |way| {
            let cut = Cut { node: NODE, way };
            (cut.holds(Some(NODE), Some(DIALLER)), cut.holds(None, Some(NODE)))
        };
        assert_eq!(both(Way::Both), (true, true));
        assert_eq!(both(Way::In), (false, true));
        assert_eq!(both(Way::Out), (true, false));
        let other = Cut { node: NodeId(3), way: Way::Both };
        assert!(!other.holds(Some(NODE), Some(DIALLER)) && !other.holds(None, None));
    }

    #[test]
    fn sockets_are_found_by_their_local_address() {
        let table = "  sl  local_address rem_address   st tx rx tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0200007F:1F90 0100007F:B2C1 01 00000000:00000000 00:00000000 00000000     0        0 4711 1\n\
            1: short\n";
        let at = |port| inode(table, SocketAddr::from(([127, 0, 0, 2], port)));
        // As a machine with the low byte first writes it.
        if cfg!(target_endian = "little") {
            assert_eq!((at(8080), at(8081)), (Some("4711"), None));
        }
    }

    /// A node that echoes, behind a relay; this process is the one that dials.
    fn echo() -> (Relays, std::net::TcpStream) {
        let relays = Relays::start().unwrap();
        relays.runs(DIALLER, std::process::id());
        let place = relays.place(NODE).unwrap();
        assert_eq!(place, relays.place(NODE).unwrap());
        let listener = std::net::TcpListener::bind(place.listen).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let stream = std::net::TcpStream::connect(place.advertise).unwrap();
        stream.set_nodelay(true).unwrap();
        (relays, stream)
    }

    #[test]
    fn what_is_said_to_and_by_a_node_that_is_cut_off_arrives_when_it_is_not_any_more() {
        // By the node that is dialled, and by the one that dials.
        for node in [NODE, DIALLER] {
            for way in [Way::Both, Way::In, Way::Out] {
                let (relays, mut stream) = echo();
                let mut byte = [0];
                stream.write_all(b"a").unwrap();
                stream.read_exact(&mut byte).unwrap();
                assert_eq!(&byte, b"a");
                relays.set(Some(Cut { node, way }));
                stream.write_all(b"b").unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                assert!(stream.read_exact(&mut byte).is_err(), "{node} was not cut off");
                relays.set(None);
                stream.set_read_timeout(None).unwrap();
                stream.read_exact(&mut byte).unwrap();
                assert_eq!(&byte, b"b");
            }
        }
    }

    #[test]
    fn the_end_of_a_connection_gets_through() {
        let (relays, stream) = echo();
        let place = relays.place(NODE).unwrap();
        drop(stream);
        // The echo has ended, and with it its listener: the relay has nobody to connect to.
        let mut second = std::net::TcpStream::connect(place.advertise).unwrap();
        assert!(matches!(second.read(&mut [0]), Ok(0) | Err(_)));
    }
}
