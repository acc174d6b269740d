//! The transport.

mod acts;
mod begin;
mod gone;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_reactor::{Op, SharedReactor, UserId};
use halfmoon_tcp::Tcp;
use halfmoon_transport::{
    Access, Carrier, DialError, DownReason, ExposeError, LaneId, ListenError, Memory, NoRdma,
    Occurrence, PostError, RegionId, RemoteSpan, Share, Source, Token, Traffic, Transport,
};

use crate::alarm::Alarm;
use crate::choice::Choice;
use crate::exposures::Exposures;
use crate::link::{Link, News};
use crate::meeting::Meeting;
use crate::place;
use crate::verbs::{self, Device};
use crate::watched::Watched;

/// How long an address is dialled over TCP only after a lane to it failed over RDMA.
const SHUN_TIME: Duration = Duration::from_secs(30);

/// Addresses that are remembered for that.
const SHUNNED_MAX: usize = 1024;

/// How long a lane that is closed waits for the peer's memory to have all that was posted.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// One-sided writes over RDMA where both sides can, and over TCP where not.
///
/// Every lane begins as one over TCP, and its TCP connection stays: it says when the peer is gone.
pub struct Rdma {
    tcp: Tcp,
    reactor: SharedReactor,
    user: UserId,
    choice: Choice,
    devices: Vec<Rc<Device>>,
    /// Why there are no devices to use, if there are none.
    none: Option<NoRdma>,
    /// Why lanes are not ones over RDMA, as far as it is known of each by itself.
    instead: BTreeMap<LaneId, NoRdma>,
    /// `None`: there are no devices, and will be none.
    alarm: Option<Alarm>,
    /// When it is looked next whether the devices are there.
    look_at: Instant,
    /// Lanes that are, or may become, ones over RDMA. A lane that is not here is one over TCP.
    lanes: BTreeMap<LaneId, Lane>,
    /// What was dialled, of lanes that may become ones over RDMA.
    dialled: BTreeMap<LaneId, String>,
    exposures: Exposures,
    watched: Rc<RefCell<Watched>>,
    /// Until when addresses are dialled over TCP only.
    shunned: BTreeMap<String, Instant>,
    /// Packets of each connection begin at another number, so that none is taken for one of an
    /// earlier connection.
    connections: u32,
    occurrences: Vec<Occurrence>,
    /// Reused between turns.
    heard: Vec<Occurrence>,
    news: Vec<News>,
    /// Bytes of writes that were posted on links.
    bytes: u64,
    /// Bytes that were written over TCP to decide what lanes go over.
    met_bytes: u64,
}

struct Lane {
    dialled: Option<String>,
    /// Until it is decided.
    meeting: Option<Meeting>,
    link: Option<Wired>,
    /// Why it is to go down once all has left, and when it goes down in any case.
    closing: Option<(DownReason, Instant)>,
    /// Why it went down, which the TCP connection does not know.
    verdict: Option<DownReason>,
    /// Since when it is one over RDMA.
    up_since: Option<Instant>,
}

/// A link, and the device that it is on.
struct Wired {
    link: Link,
    device: Rc<Device>,
}

impl Lane {
    fn new(dialled: Option<String>) -> Self {
        let (meeting, link, closing) = (None, None, None);
        Self { dialled, meeting, link, closing, verdict: None, up_since: None }
    }

    fn is_up(&self) -> bool {
        self.meeting.is_none() && self.link.is_some() && self.verdict.is_none()
    }

    /// The link of a lane that carries writes.
    fn up(&mut self) -> Option<&mut Wired> {
        if self.is_up() && self.closing.is_none() { self.link.as_mut() } else { None }
    }
}

impl Rdma {
    /// A transport without lanes. Says in one line what it does when there is no adapter to use.
    #[must_use]
    pub fn new(reactor: SharedReactor, choice: Choice) -> Self {
        let (mut devices, none) = match choice {
            Choice::Tcp => (Vec::new(), Some(NoRdma::NotWanted)),
            Choice::Auto | Choice::Rdma => match open_devices(choice) {
                Ok(devices) => (devices, None),
                Err(why) => (Vec::new(), Some(why)),
            },
        };
        let user = reactor.borrow_mut().register();
        let watched = Rc::new(RefCell::new(Watched::default()));
        reactor.borrow_mut().watch(watched.clone());
        let alarm = match Alarm::of(&devices) {
            Ok(alarm) => Some(alarm),
            Err(error) => {
                tracing::warn!(%error, "RDMA devices cannot be waited for: lanes go over TCP");
                devices.clear();
                None
            }
        };
        if let Some(alarm) = &alarm {
            let op = Op::Readable(Arc::clone(alarm.descriptor()));
            reactor.borrow_mut().start(user, 0, op);
        }
        Self {
            tcp: Tcp::new(reactor.clone()),
            reactor,
            user,
            choice,
            devices,
            none,
            instead: BTreeMap::new(),
            alarm,
            look_at: Instant::now(),
            lanes: BTreeMap::new(),
            dialled: BTreeMap::new(),
            exposures: Exposures::default(),
            watched,
            shunned: BTreeMap::new(),
            connections: 0,
            occurrences: Vec::new(),
            heard: Vec::new(),
            news: Vec::new(),
            bytes: 0,
            met_bytes: 0,
        }
    }

    /// Whether a lane is one over RDMA.
    #[must_use]
    pub fn is_rdma(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(Lane::is_up)
    }

    /// Takes the events of the adapters, and asks to be told of the next.
    fn take_events(&mut self) {
        let done = self.reactor.borrow_mut().take(self.user);
        let (Some(_), Some(alarm)) = (done, &self.alarm) else { return };
        for device in &self.devices {
            let fired = |key| self.watched.borrow_mut().fired(LaneId::from_raw(key));
            if !device.take_events(fired) {
                self.look_at = Instant::now();
            }
        }
        let op = Op::Readable(Arc::clone(alarm.descriptor()));
        self.reactor.borrow_mut().start(self.user, 0, op);
    }

    /// The lane is of no use any more: its queue pair is gone at once, and the connection with it.
    fn fail(&mut self, lane: LaneId, reason: DownReason) {
        let Some(found) = self.lanes.get_mut(&lane) else { return };
        if found.verdict.is_some() {
            return;
        }
        found.verdict = Some(reason.clone());
        found.meeting = None;
        self.watched.borrow_mut().remove(lane);
        if found.link.take().is_some()
            && !matches!(reason, DownReason::Corrupt | DownReason::OutOfBounds)
            && let Some(address) = found.dialled.clone()
        {
            tracing::warn!(%lane, %address, %reason, "a lane failed over RDMA");
            self.shun(address);
        }
        self.tcp.close(lane, reason);
    }

    /// Has an address dialled over TCP only, for a while.
    fn shun(&mut self, address: String) {
        self.shunned.retain(|_, until| *until > Instant::now());
        if self.shunned.len() < SHUNNED_MAX {
            self.shunned.insert(address, Instant::now() + SHUN_TIME);
        }
    }

    /// The TCP connection of a lane is gone.
    fn down(&mut self, lane: LaneId, reason: DownReason) {
        self.dialled.remove(&lane);
        self.instead.remove(&lane);
        self.watched.borrow_mut().remove(lane);
        let gone = self.lanes.remove(&lane);
        let (mut closing, mut verdict) = (None, None);
        if let Some(mut gone) = gone {
            // The adapter writes nothing any more before anybody is told.
            drop(gone.link.take());
            (closing, verdict) = (gone.closing.map(|(reason, _)| reason), gone.verdict);
            // Whose other side ends it soon may fail over RDMA there, and would again.
            let was_short = gone.up_since.is_some_and(|since| since.elapsed() < SHUN_TIME);
            if was_short
                && closing.is_none()
                && verdict.is_none()
                && let Some(address) = gone.dialled
            {
                self.shun(address);
            }
        }
        self.exposures.lane_down(lane);
        let reason = verdict.or(closing).unwrap_or(reason);
        self.occurrences.push(Occurrence::Down { lane, reason });
    }

    /// Gives up links whose adapter does nothing any more.
    fn end_stalled(&mut self) {
        if self.lanes.is_empty() {
            return;
        }
        let now = Instant::now();
        let stalled =
            |found: &Lane| found.link.as_ref().is_some_and(|wired| wired.link.is_stalled(now));
        let lanes: Vec<LaneId> =
            self.lanes.iter().filter(|(_, found)| stalled(found)).map(|(lane, _)| *lane).collect();
        for lane in lanes {
            self.fail(lane, DownReason::Lost(std::io::ErrorKind::TimedOut));
        }
    }

    /// Ends the lanes that are closed and have nothing on its way.
    fn end_closed(&mut self) {
        let is_over = |found: &Lane| {
            found.closing.as_ref().is_some_and(|(_, until)| {
                found.link.as_ref().is_none_or(|wired| wired.link.is_empty())
                    || Instant::now() >= *until
            })
        };
        let over: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|(_, found)| found.verdict.is_none() && is_over(found))
            .map(|(lane, _)| *lane)
            .collect();
        for lane in over {
            if let Some(found) = self.lanes.get_mut(&lane) {
                found.verdict = found.closing.as_ref().map(|(reason, _)| reason.clone());
                self.watched.borrow_mut().remove(lane);
                drop(found.link.take());
                self.tcp.close(lane, DownReason::Closed);
            }
        }
    }
}

/// The adapters that may be used. Says in one line which, or why none.
fn open_devices(choice: Choice) -> Result<Vec<Rc<Device>>, NoRdma> {
    let all = verbs::devices().map_err(|why| {
        tracing::info!(%why, "no RDMA here: lanes go over TCP");
        NoRdma::NoLibrary
    })?;
    let why = if all.is_empty() { NoRdma::NoDevice } else { NoRdma::SoftwareOnly };
    let devices = place::usable(all, choice);
    let names: Vec<&str> = devices.iter().map(|device| device.name()).collect();
    if !names.is_empty() {
        tracing::info!(?names, "RDMA devices");
        return Ok(devices);
    }
    tracing::info!(%why, "no RDMA here: lanes go over TCP");
    Err(why)
}

impl Transport for Rdma {
    fn listen(&mut self, address: &str) -> Result<String, ListenError> {
        self.tcp.listen(address)
    }

    fn dial(&mut self, address: &str) -> Result<LaneId, DialError> {
        let lane = self.tcp.dial(address)?;
        let is_shunned = self.shunned.get(address).is_some_and(|until| *until > Instant::now());
        if !self.devices.is_empty() && (self.choice == Choice::Rdma || !is_shunned) {
            self.dialled.insert(lane, address.to_owned());
        } else if is_shunned {
            self.instead.insert(lane, NoRdma::FailedBefore);
        }
        Ok(lane)
    }

    fn greet(&mut self, lane: LaneId, greeting: &[u8]) {
        self.offer(lane, greeting);
    }

    fn close(&mut self, lane: LaneId, reason: DownReason) {
        match self.lanes.get_mut(&lane) {
            Some(found) if found.is_up() => {
                let until = Instant::now() + CLOSE_TIME;
                found.closing.get_or_insert((reason, until));
            }
            Some(_) | None => self.tcp.close(lane, reason),
        }
    }

    fn expose(&mut self, memory: Arc<dyn Memory>, access: Access) -> Result<RegionId, ExposeError> {
        let region = self.tcp.expose(memory.clone(), access)?;
        self.exposures.add(region, memory, access);
        self.announce(region.0, access);
        Ok(region)
    }

    fn withdraw(&mut self, region: RegionId) {
        self.tcp.withdraw(region);
        self.unannounce(region);
    }

    fn post_write(
        &mut self,
        lane: LaneId,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
    ) -> Result<(), PostError> {
        let Some(found) = self.lanes.get_mut(&lane) else {
            return self.tcp.post_write(lane, to, source, token);
        };
        let wired = found.up().ok_or(PostError::Dead)?;
        let registered = match &source {
            Source::Memory { memory, .. } => self.exposures.source(memory, &wired.device),
            Source::Bytes { .. } => None,
        };
        let len = source.len() as u64;
        wired.link.push_write(to, source, token, registered)?;
        self.bytes += len;
        Ok(())
    }

    fn has_room(&self, lane: LaneId) -> bool {
        let Some(found) = self.lanes.get(&lane) else { return self.tcp.has_room(lane) };
        found.is_up()
            && found.closing.is_none()
            && found.link.as_ref().is_some_and(|wired| wired.link.has_room())
    }

    fn flush(&mut self) {
        self.flush_links();
        self.end_closed();
        self.tcp.flush();
    }

    fn poll(&mut self, occurrences: &mut Vec<Occurrence>) {
        self.take_events();
        self.let_go();
        self.hear_tcp();
        self.hear_meetings();
        self.hear_links();
        self.end_closed();
        self.end_meetings();
        self.end_stalled();
        self.exposures.revoke_late();
        occurrences.append(&mut self.occurrences);
    }

    fn traffic(&self) -> Traffic {
        let lanes = self.lanes.values().filter(|found| found.is_up()).count() as u64;
        let mut traffic = self.tcp.traffic();
        // Their connections are up as well, and carry nothing.
        traffic.tcp.lanes = traffic.tcp.lanes.saturating_sub(lanes);
        traffic.tcp.bytes -= self.met_bytes;
        traffic.rdma = Share { lanes, bytes: self.bytes };
        traffic
    }

    fn carrier(&self, lane: LaneId) -> Option<Carrier> {
        match self.lanes.get(&lane) {
            Some(found) => found.is_up().then_some(Carrier::Rdma),
            // A lane for which nothing else is known is one that the peer did not offer it on.
            None => self.tcp.carrier(lane).map(|_| {
                let why = self.instead.get(&lane).copied().or(self.none);
                Carrier::Tcp(why.unwrap_or(NoRdma::NotOffered))
            }),
        }
    }
}

impl Drop for Rdma {
    /// The reactor may outlive this, and with it what it watches.
    fn drop(&mut self) {
        let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
        for lane in lanes {
            self.watched.borrow_mut().remove(lane);
        }
    }
}

#[cfg(test)]
mod tests;
