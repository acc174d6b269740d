//! The transport.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_reactor::{Done, Op, SharedReactor, UserId};
use halfmoon_transport::contract::{MAX_GREETING_BYTES, MAX_WRITE_BYTES};
use halfmoon_transport::endpoint::LANE_VERSION;
use halfmoon_transport::lanes::LaneMap;
use halfmoon_transport::memory;
use halfmoon_transport::regions::{Regions, Target};
use halfmoon_transport::{
    Access, Carrier, DialError, DownReason, ExposeError, LaneId, ListenError, Memory, Occurrence,
    PostError, RegionId, RemoteSpan, Share, Source, Token, Traffic, Transport,
};
use rustix::net::sockopt;

use crate::frame::{HEADER_BYTES, Header, Kind};
use crate::lane::{
    Body, LARGE_BYTES, Lane, QUEUE_BYTES, Segment, Stage, is_transient, lost, not_a_frame,
};
use crate::socket;

/// Lanes at once; see [`LaneMap`].
const LANES_MAX: usize = halfmoon_transport::lanes::MAX_LANES;

/// How long a peer has to connect and greet.
const GREETING_TIME: Duration = Duration::from_secs(5);

/// What a completion belongs to: the token is the lane's number, or this for the listener.
const LISTENER: u64 = u64::MAX;

/// One-sided writes over TCP connections, on a reactor that may be shared.
pub struct Tcp {
    reactor: SharedReactor,
    user: UserId,
    /// To be shut down in the end, because the reactor still watches them.
    listeners: Vec<Arc<OwnedFd>>,
    /// Given up for a moment when there are no descriptors left, to turn a peer away.
    reserve: Option<OwnedFd>,
    /// When to look again for peers that have not greeted.
    look_for_silent: Instant,
    pub(crate) lanes: LaneMap<Lane>,
    regions: Regions,
    occurrences: Vec<Occurrence>,
    /// Bytes of writes that were posted.
    bytes: u64,
}

impl Tcp {
    /// A transport without lanes.
    #[must_use]
    pub fn new(reactor: SharedReactor) -> Self {
        let user = reactor.borrow_mut().register();
        Self {
            reactor,
            user,
            listeners: Vec::new(),
            reserve: socket::spare(),
            look_for_silent: Instant::now() + GREETING_TIME,
            lanes: LaneMap::new(),
            regions: Regions::new(),
            occurrences: Vec::new(),
            bytes: 0,
        }
    }

    fn start(&self, token: u64, op: Op) {
        self.reactor.borrow_mut().start(self.user, token, op);
    }

    fn add(&mut self, socket: OwnedFd, stage: Stage) -> Option<LaneId> {
        socket::set_up(&socket);
        self.lanes.add(Lane::new(Arc::new(socket), stage))
    }

    fn done(&mut self, done: Done) {
        let lane = LaneId::from_raw(done.token);
        match done.op {
            Op::Writable(_) => self.connected(lane),
            Op::Recv { buffer, from, .. } => self.received(lane, buffer, from, done.result),
            Op::RecvMemory { .. } => self.received_body(lane, done.result),
            Op::Send { buffer, from, .. } => {
                self.sent(lane, Segment::Bytes { buffer, from }, done.result);
            }
            Op::SendMemory { memory, offset, len, .. } => {
                self.sent(lane, Segment::Memory { memory, offset, len }, done.result);
            }
            Op::Readable(listener) => self.accept(listener),
            Op::Write { .. } | Op::Read { .. } => {}
        }
    }

    fn accept(&mut self, listener: Arc<OwnedFd>) {
        while let Some(socket) = socket::accept(&listener, &mut self.reserve) {
            match self.add(socket, Stage::Greeting) {
                Some(lane) => {
                    self.occurrences.push(Occurrence::Incoming { lane });
                    self.receive(lane);
                }
                None => tracing::warn!("all {LANES_MAX} lanes are in use, a peer is refused"),
            }
        }
        self.start(LISTENER, Op::Readable(listener));
    }

    fn connected(&mut self, lane: LaneId) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        match sockopt::socket_error(&found.socket) {
            Ok(Ok(())) => {
                // The ring waits by itself on a socket that blocks; one that does not would have
                // every receive come back at once.
                rustix::io::ioctl_fionbio(&found.socket, false).ok();
                found.stage = Stage::Greeting;
                self.receive(lane);
            }
            Ok(Err(error)) | Err(error) => {
                let kind = io::Error::from(error).kind();
                self.down(lane, DownReason::Unreachable(kind));
            }
        }
    }

    /// Has the reactor receive more, unless it is at it.
    fn receive(&mut self, lane: LaneId) {
        let Some(found) = self.lanes.get_mut(lane).filter(|found| !found.receiving) else { return };
        found.receiving = true;
        let socket = Arc::clone(&found.socket);
        let op = match &found.body {
            Some(Body { memory: Some(memory), header, done }) => Op::RecvMemory {
                socket,
                memory: Arc::clone(memory),
                offset: usize::try_from(header.offset).unwrap_or(usize::MAX).saturating_add(*done),
                len: header.len as usize - done,
            },
            Some(Body { memory: None, .. }) | None => {
                // What was not taken apart moves to the front: less than a frame that is not large.
                found.inbox.copy_within(found.taken..found.filled, 0);
                let from = found.filled - found.taken;
                (found.taken, found.filled) = (0, 0);
                Op::Recv { socket, buffer: std::mem::take(&mut found.inbox), from }
            }
        };
        self.start(lane.raw(), op);
    }

    fn received(&mut self, lane: LaneId, buffer: Vec<u8>, from: usize, result: io::Result<usize>) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        found.receiving = false;
        found.inbox = buffer;
        found.filled = from;
        match result {
            Ok(0) => self.down(lane, DownReason::PeerClosed),
            Ok(count) => {
                found.filled += count;
                if self.take_apart(lane).is_some() {
                    self.receive(lane);
                }
            }
            Err(error) if is_transient(&error) => self.receive(lane),
            Err(error) => self.down(lane, lost(&error)),
        }
    }

    fn received_body(&mut self, lane: LaneId, result: io::Result<usize>) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        found.receiving = false;
        match result {
            Ok(0) => return self.down(lane, DownReason::PeerClosed),
            Ok(count) => {
                if let Some(body) = &mut found.body {
                    body.done += count;
                    if body.done >= body.header.len as usize {
                        found.owed_acks += u64::from(body.header.kind == Kind::Signalled);
                        found.body = None;
                    }
                }
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return self.down(lane, lost(&error)),
        }
        self.receive(lane);
    }

    /// Applies all whole frames; `None` when the lane has gone down by it.
    fn take_apart(&mut self, lane: LaneId) -> Option<()> {
        loop {
            let found = self.lanes.get_mut(lane)?;
            if let Some(body) = &mut found.body {
                // What is here of a body that began in an earlier receive.
                let here = &found.inbox[found.taken..found.filled];
                let count = here.len().min(body.header.len as usize - body.done);
                if let Some(memory) = &body.memory {
                    let at = body.header.offset + body.done as u64;
                    memory::copy_in(memory.words(), at, &here[..count]).ok()?;
                }
                body.done += count;
                found.taken += count;
                if body.done < body.header.len as usize {
                    return Some(());
                }
                found.owed_acks += u64::from(body.header.kind == Kind::Signalled);
                found.body = None;
            }
            let Some(head) = found.rest().first_chunk::<HEADER_BYTES>() else { return Some(()) };
            let (stage, header) = (found.stage, Header::parse(head));
            let Some(header) = header else {
                self.down(lane, not_a_frame(stage));
                return None;
            };
            match self.frame(lane, header) {
                Ok(true) => {}
                Ok(false) => return Some(()),
                Err(reason) => {
                    self.down(lane, reason);
                    return None;
                }
            }
        }
    }

    /// Applies one frame. `false`: it is not whole yet.
    fn frame(&mut self, lane: LaneId, header: Header) -> Result<bool, DownReason> {
        let Some(found) = self.lanes.get_mut(lane) else { return Ok(false) };
        let len = header.len as usize;
        let begin = found.taken + HEADER_BYTES;
        let whole = found.filled - begin >= len;
        match (header.kind, found.stage) {
            (Kind::Greeting, Stage::Greeting) => {
                if len > MAX_GREETING_BYTES {
                    return Err(DownReason::NotHalfmoon);
                }
                if !whole {
                    return Ok(false);
                }
                let greeting = found.inbox[begin..begin + len].to_vec();
                found.stage = Stage::Up;
                let understood = header.offset == u64::from(LANE_VERSION);
                found.offered = if understood { header.region } else { 0 };
                found.taken = begin + len;
                self.occurrences.push(Occurrence::Greeted { lane, greeting });
            }
            (Kind::Ack, Stage::Up) => {
                found.taken = begin;
                for _ in 0..header.offset {
                    let token = found.out.tokens.pop_front().ok_or(DownReason::Corrupt)?;
                    self.occurrences.push(Occurrence::Completed { lane, token });
                }
            }
            (Kind::Write | Kind::Signalled, Stage::Up) => {
                return self.write_here(lane, header, whole);
            }
            (_, stage) => return Err(not_a_frame(stage)),
        }
        Ok(true)
    }

    /// Applies a write of the peer. `false`: its body is not here yet.
    fn write_here(
        &mut self,
        lane: LaneId,
        header: Header,
        whole: bool,
    ) -> Result<bool, DownReason> {
        let len = header.len as usize;
        if len > MAX_WRITE_BYTES {
            return Err(DownReason::Corrupt);
        }
        let to = RemoteSpan { region: RegionId(header.region), offset: header.offset };
        let memory = match self.regions.target(lane, to, len) {
            Target::Memory(memory) => Some(memory),
            Target::Withdrawn => None,
            Target::Forbidden => return Err(DownReason::OutOfBounds),
        };
        let Some(found) = self.lanes.get_mut(lane) else { return Ok(false) };
        let begin = found.taken + HEADER_BYTES;
        if whole {
            if let Some(memory) = memory {
                let body = &found.inbox[begin..begin + len];
                memory::copy_in(memory.words(), header.offset, body)
                    .map_err(|_| DownReason::OutOfBounds)?;
            }
            found.taken = begin + len;
            found.owed_acks += u64::from(header.kind == Kind::Signalled);
            return Ok(true);
        }
        if len < LARGE_BYTES && memory.is_some() {
            return Ok(false);
        }
        let body = Body { header, memory: memory.cloned(), done: 0 };
        found.taken = begin;
        found.body = Some(body);
        Ok(true)
    }

    fn sent(&mut self, lane: LaneId, segment: Segment, result: io::Result<usize>) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        match result {
            Ok(sent) => found.out.left(segment, sent),
            Err(error) if is_transient(&error) => found.out.left(segment, 0),
            Err(error) => {
                // The peer may have said why it went. The receive that is under way ends with that,
                // or with the error.
                found.out.left(segment, 0);
                found.out.broken = true;
                if !found.receiving {
                    return self.down(lane, lost(&error));
                }
            }
        }
        self.send_next(lane);
    }

    fn send_next(&mut self, lane: LaneId) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        if found.stage == Stage::Connecting {
            return;
        }
        let socket = Arc::clone(&found.socket);
        let op = match found.out.next() {
            Some(Segment::Bytes { buffer, from }) => Op::Send { socket, buffer, from },
            Some(Segment::Memory { memory, offset, len }) => {
                Op::SendMemory { socket, memory, offset, len }
            }
            None => {
                if !found.out.sending
                    && let Some(reason) = found.closing.take()
                {
                    self.down(lane, reason);
                }
                return;
            }
        };
        self.start(lane.raw(), op);
    }

    /// Takes down the lanes whose peers have had their time to greet.
    fn end_silent(&mut self) {
        let now = Instant::now();
        if now < self.look_for_silent {
            return;
        }
        self.look_for_silent = now + GREETING_TIME / 10;
        let silent = |found: &Lane| found.stage != Stage::Up && now > found.since + GREETING_TIME;
        let lanes: Vec<LaneId> =
            self.lanes.iter().filter(|(_, found)| silent(found)).map(|(lane, _)| lane).collect();
        for lane in lanes {
            self.down(lane, DownReason::Silent);
        }
    }

    fn down(&mut self, lane: LaneId, reason: DownReason) {
        if let Some(gone) = self.lanes.remove(lane) {
            // Ends what the reactor still does on the socket, which it keeps open.
            rustix::net::shutdown(&gone.socket, rustix::net::Shutdown::Both).ok();
            self.regions.withdraw_lane(lane);
            let reason = gone.closing.unwrap_or(reason);
            self.occurrences.push(Occurrence::Down { lane, reason });
        }
    }
}

impl Transport for Tcp {
    fn listen(&mut self, address: &str) -> Result<String, ListenError> {
        let (listener, bound) = socket::listen(address)?;
        self.listeners.push(Arc::clone(&listener));
        self.start(LISTENER, Op::Readable(listener));
        Ok(bound)
    }

    fn dial(&mut self, address: &str) -> Result<LaneId, DialError> {
        let (socket, refusal) = socket::dial(address)?;
        let lane = self
            .add(socket, Stage::Connecting)
            .ok_or(DialError::TooManyLanes { limit: LANES_MAX })?;
        match refusal {
            Some(kind) => self.down(lane, DownReason::Unreachable(kind)),
            None => {
                if let Some(found) = self.lanes.get(lane) {
                    self.start(lane.raw(), Op::Writable(Arc::clone(&found.socket)));
                }
            }
        }
        Ok(lane)
    }

    fn greet(&mut self, lane: LaneId, greeting: &[u8]) {
        self.greet_offering(lane, greeting, RegionId(0));
    }

    fn close(&mut self, lane: LaneId, reason: DownReason) {
        let Some(found) = self.lanes.get_mut(lane) else { return };
        if found.stage == Stage::Connecting {
            return self.down(lane, reason);
        }
        found.closing = Some(reason);
        self.send_next(lane);
    }

    fn expose(&mut self, memory: Arc<dyn Memory>, access: Access) -> Result<RegionId, ExposeError> {
        if let Access::Lane(lane) = access
            && self.lanes.get(lane).is_none()
        {
            return Err(ExposeError::Dead);
        }
        self.regions.expose(memory, access)
    }

    fn withdraw(&mut self, region: RegionId) {
        self.regions.withdraw(region);
    }

    fn post_write(
        &mut self,
        lane: LaneId,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
    ) -> Result<(), PostError> {
        let found = self.lanes.get_mut(lane).ok_or(PostError::Dead)?;
        if found.stage != Stage::Up || found.closing.is_some() {
            return Err(PostError::Dead);
        }
        if found.out.queued > QUEUE_BYTES {
            return Err(PostError::Full);
        }
        let len = source.len();
        if len > MAX_WRITE_BYTES {
            return Err(PostError::BadSource);
        }
        let kind = if token.is_some() { Kind::Signalled } else { Kind::Write };
        let len_u32 = u32::try_from(len).map_err(|_| PostError::BadSource)?;
        let header = Header { kind, region: to.region.0, offset: to.offset, len: len_u32 };
        match source {
            Source::Bytes { head, parts, tail } => found.out.push(header, [head, tail], parts),
            Source::Memory { memory, offset, len } => {
                let at =
                    memory::check(memory.words(), offset, len).map_err(|_| PostError::BadSource)?;
                found.out.push(header, [&[], &[]], &[]);
                found.out.push_memory(memory, at, len);
            }
        }
        found.out.tokens.extend(token);
        self.bytes += len as u64;
        Ok(())
    }

    fn has_room(&self, lane: LaneId) -> bool {
        self.lanes.get(lane).is_some_and(|found| {
            found.stage == Stage::Up && found.closing.is_none() && found.out.queued <= QUEUE_BYTES
        })
    }

    fn flush(&mut self) {
        for slot in 0..self.lanes.slots() {
            let Some(lane) = self.lanes.lane_at(slot) else { continue };
            if let Some(found) = self.lanes.get_mut(lane)
                && found.owed_acks > 0
            {
                let count = std::mem::take(&mut found.owed_acks);
                let ack = Header { kind: Kind::Ack, region: 0, offset: count, len: 0 };
                found.out.push(ack, [&[], &[]], &[]);
            }
            self.send_next(lane);
        }
    }

    fn poll(&mut self, occurrences: &mut Vec<Occurrence>) {
        loop {
            let done = self.reactor.borrow_mut().take(self.user);
            let Some(done) = done else { break };
            self.done(done);
        }
        self.end_silent();
        occurrences.append(&mut self.occurrences);
    }

    fn traffic(&self) -> Traffic {
        let lanes = self.lanes.iter().filter(|(_, found)| found.stage == Stage::Up).count() as u64;
        Traffic { tcp: Share { lanes, bytes: self.bytes }, ..Traffic::default() }
    }

    fn carrier(&self, lane: LaneId) -> Option<Carrier> {
        self.lanes.get(lane).and_then(Lane::carrier)
    }
}

impl Drop for Tcp {
    /// Peers learn at once, whatever the reactor still holds of the sockets.
    fn drop(&mut self) {
        let sockets = self.lanes.iter().map(|(_, lane)| &lane.socket);
        for socket in sockets.chain(&self.listeners) {
            rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok();
        }
    }
}
