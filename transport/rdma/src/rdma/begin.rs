//! How a lane becomes one over RDMA, or does not.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use halfmoon_transport::{DownReason, LaneId, NoRdma, Occurrence, Transport as _};

use super::{Lane, Rdma, Wired};
use crate::choice::Choice;
use crate::deal::{Deal, gid_of};
use crate::link::Link;
use crate::meeting::Meeting;
use crate::place::{self, Place};
use crate::verbs::Device;

/// How long the first writes of both sides may take; then it is TCP.
const DECIDE_TIME: Duration = Duration::from_secs(3);

/// How long the side that was dialled waits for the decision of the other.
const WAIT_TIME: Duration = Duration::from_secs(5);

impl Rdma {
    /// Greets, and offers RDMA if this side can.
    pub(super) fn offer(&mut self, lane: LaneId, greeting: &[u8]) {
        if let Some(address) = self.dialled.remove(&lane) {
            self.lanes.insert(lane, Lane::new(Some(address)));
        }
        let Some(found) = self.lanes.get_mut(&lane) else {
            return self.tcp.greet(lane, greeting);
        };
        found.meeting = Meeting::new(&mut self.tcp, lane);
        match &found.meeting {
            Some(meeting) => {
                self.exposures.skip(meeting.region);
                self.tcp.greet_offering(lane, greeting, meeting.region);
            }
            None => {
                self.lanes.remove(&lane);
                self.tcp.greet(lane, greeting);
            }
        }
    }

    /// Takes what the TCP connections say.
    pub(super) fn hear_tcp(&mut self) {
        let mut heard = std::mem::take(&mut self.heard);
        self.tcp.poll(&mut heard);
        for occurrence in heard.drain(..) {
            match occurrence {
                Occurrence::Incoming { lane } => {
                    if !self.devices.is_empty() {
                        self.lanes.insert(lane, Lane::new(None));
                    }
                    self.occurrences.push(occurrence);
                }
                Occurrence::Greeted { lane, greeting } => self.greeted(lane, greeting),
                Occurrence::Completed { .. } => self.occurrences.push(occurrence),
                Occurrence::Down { lane, reason } => self.down(lane, reason),
            }
        }
        self.heard = heard;
    }

    /// The peer has greeted: if both sides offer RDMA, they say where their ends are.
    fn greeted(&mut self, lane: LaneId, greeting: Vec<u8>) {
        let theirs = self.tcp.offered(lane);
        let found = self.lanes.get_mut(&lane);
        let (Some(theirs), Some(found)) = (theirs, found.filter(|found| found.meeting.is_some()))
        else {
            self.over_tcp(lane);
            return self.occurrences.push(Occurrence::Greeted { lane, greeting });
        };
        let is_dialler = found.dialled.is_some();
        let time = if is_dialler { DECIDE_TIME } else { WAIT_TIME };
        if let Some(meeting) = &mut found.meeting {
            meeting.begin(theirs, greeting, Instant::now() + time);
        }
        match self.wire(lane) {
            Ok(()) => {}
            Err(error) => {
                tracing::info!(%lane, %error, "no RDMA on this lane");
                self.refuse(lane, cause(&error));
            }
        }
    }

    /// Makes this side's end of a link and tells the peer where it is.
    fn wire(&mut self, lane: LaneId) -> io::Result<()> {
        let (this, _) = self.tcp.addresses(lane).ok_or(io::ErrorKind::NotConnected)?;
        let (device, place) = self.place_of(gid_of(this.ip()))?;
        self.connections = self.connections.wrapping_add(0x01_00_01);
        let first_packet = self.connections & 0xff_ff_ff;
        let link = Link::new(&device, place, lane.raw(), first_packet).map_err(explained)?;
        self.watched.borrow_mut().add(lane, Rc::clone(link.completions()));
        let end = link.end();
        let Some(found) = self.lanes.get_mut(&lane) else { return Ok(()) };
        found.link = Some(Wired { link, device });
        self.say(lane, Deal::End(end));
        Ok(())
    }

    /// The adapter that has an address.
    fn place_of(&self, gid: [u8; 16]) -> io::Result<(Rc<Device>, Place)> {
        for device in &self.devices {
            if let Some((port, gid_index)) = place::find(device.name(), &gid) {
                let mtu = device.mtu(port)?;
                return Ok((Rc::clone(device), Place { port, gid_index, gid, mtu }));
            }
        }
        let why = "no RDMA device has the address of this connection";
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why))
    }

    fn say(&mut self, lane: LaneId, deal: Deal) {
        if let Some(meeting) = self.lanes.get_mut(&lane).and_then(|found| found.meeting.as_mut()) {
            let before = self.tcp.traffic().tcp.bytes;
            meeting.say(&mut self.tcp, lane, deal);
            self.met_bytes += self.tcp.traffic().tcp.bytes - before;
        }
    }

    /// This side cannot.
    pub(super) fn refuse(&mut self, lane: LaneId, why: NoRdma) {
        self.instead.entry(lane).or_insert(why);
        let Some(found) = self.lanes.get_mut(&lane) else { return };
        if found.dialled.is_some() {
            self.decide(lane, false);
        } else {
            found.link = None;
            self.watched.borrow_mut().remove(lane);
            self.say(lane, Deal::Refused);
        }
    }

    /// The side that dialled has decided.
    fn decide(&mut self, lane: LaneId, rdma: bool) {
        self.say(lane, Deal::Decided(rdma));
        self.decided(lane, rdma);
    }

    fn decided(&mut self, lane: LaneId, rdma: bool) {
        let Some(found) = self.lanes.get_mut(&lane) else { return };
        let Some(meeting) = found.meeting.take() else { return };
        self.tcp.withdraw(meeting.region);
        if rdma {
            if let Some(wired) = &mut found.link {
                found.up_since = Some(Instant::now());
                tracing::info!(%lane, device = wired.device.name(), "the lane is one over RDMA");
                wired.link.begun();
            }
        } else {
            self.over_tcp(lane);
        }
        self.occurrences.push(Occurrence::Greeted { lane, greeting: meeting.greeting });
    }

    /// The lane is one over TCP from now on.
    fn over_tcp(&mut self, lane: LaneId) {
        self.watched.borrow_mut().remove(lane);
        if let Some(found) = self.lanes.remove(&lane) {
            if self.choice == Choice::Rdma && found.dialled.is_some() {
                tracing::warn!(%lane, "RDMA was asked for and cannot be had: the lane is one over TCP");
            }
            if let Some(meeting) = found.meeting {
                self.tcp.withdraw(meeting.region);
            }
        }
        self.exposures.lane_is_tcp(lane);
    }

    /// Takes what peers say of lanes that are not decided.
    pub(super) fn hear_meetings(&mut self) {
        let is_met = |found: &Lane| found.meeting.as_ref().is_some_and(Meeting::has_begun);
        let lanes: Vec<LaneId> =
            self.lanes.iter().filter(|(_, found)| is_met(found)).map(|(lane, _)| *lane).collect();
        for lane in lanes {
            while let Some(meeting) =
                self.lanes.get_mut(&lane).and_then(|found| found.meeting.as_mut())
            {
                match meeting.hear() {
                    None => break,
                    Some(Ok(deal)) => self.heard(lane, deal),
                    Some(Err(_)) => {
                        self.fail(lane, DownReason::Corrupt);
                        break;
                    }
                }
            }
        }
    }

    fn heard(&mut self, lane: LaneId, deal: Deal) {
        let Some(found) = self.lanes.get_mut(&lane) else { return };
        let is_dialler = found.dialled.is_some();
        match deal {
            Deal::End(end) => {
                let Some(wired) = &mut found.link else { return };
                // An end that is elsewhere would have this side write to a third machine.
                let other = self.tcp.addresses(lane).map(|(_, other)| gid_of(other.ip()));
                if other != Some(end.gid) {
                    tracing::warn!(%lane, "the peer's adapter has another address than the peer");
                    return self.refuse(lane, NoRdma::PeerElsewhere);
                }
                if let Err(error) = wired.link.connect(&end) {
                    tracing::info!(%lane, %error, "no RDMA on this lane");
                    return self.refuse(lane, NoRdma::NoConnection);
                }
                if let Err(error) = self.name_regions(lane).map_err(explained) {
                    tracing::warn!(%lane, %error, "no RDMA on this lane");
                    return self.refuse(lane, cause(&error));
                }
                if let Some(wired) = self.lanes.get_mut(&lane).and_then(|found| found.link.as_mut())
                {
                    wired.link.greet();
                }
            }
            Deal::Refused if is_dialler => {
                self.instead.entry(lane).or_insert(NoRdma::PeerCannot);
                self.decide(lane, false);
            }
            Deal::Arrived if is_dialler => {
                if let Some(meeting) = &mut found.meeting {
                    meeting.arrived = true;
                }
                self.decide_if_ready(lane);
            }
            Deal::Decided(rdma) if !is_dialler => {
                let heard = found.meeting.as_ref().is_some_and(|meeting| meeting.heard);
                if rdma && !(heard && found.link.is_some()) {
                    return self.fail(lane, DownReason::Corrupt);
                }
                if !rdma {
                    self.instead.entry(lane).or_insert(NoRdma::PeerCannot);
                }
                self.decided(lane, rdma);
            }
            Deal::Refused | Deal::Arrived | Deal::Decided(_) => {
                self.fail(lane, DownReason::Corrupt);
            }
        }
    }

    /// The peer's first note has come.
    pub(super) fn hello(&mut self, lane: LaneId) {
        let Some(found) = self.lanes.get_mut(&lane) else { return };
        let is_dialler = found.dialled.is_some();
        let is_greeted = found.link.as_ref().is_some_and(|wired| wired.link.is_greeted());
        let Some(meeting) = found.meeting.as_mut().filter(|_| is_greeted) else {
            return self.fail(lane, DownReason::Corrupt);
        };
        meeting.heard = true;
        if is_dialler {
            self.decide_if_ready(lane);
        } else {
            self.say(lane, Deal::Arrived);
        }
    }

    fn decide_if_ready(&mut self, lane: LaneId) {
        let meeting = self.lanes.get(&lane).and_then(|found| found.meeting.as_ref());
        if meeting.is_some_and(|meeting| meeting.heard && meeting.arrived) {
            self.decide(lane, true);
        }
    }

    /// Ends what has taken too long.
    pub(super) fn end_meetings(&mut self) {
        let now = Instant::now();
        let late = |found: &Lane| {
            found
                .meeting
                .as_ref()
                .and_then(|meeting| meeting.until)
                .is_some_and(|until| now > until)
        };
        let lanes: Vec<LaneId> =
            self.lanes.iter().filter(|(_, found)| late(found)).map(|(lane, _)| *lane).collect();
        for lane in lanes {
            if self.lanes.get(&lane).is_some_and(|found| found.dialled.is_some()) {
                tracing::info!(%lane, "the first write over RDMA did not arrive in time");
                self.instead.insert(lane, NoRdma::Late);
                match self.choice {
                    // Both could: they try again.
                    Choice::Rdma => self.fail(lane, DownReason::Lost(io::ErrorKind::TimedOut)),
                    Choice::Auto | Choice::Tcp => self.decide(lane, false),
                }
            } else {
                self.fail(lane, DownReason::Silent);
            }
        }
    }
}

/// What a failure on this side comes to.
fn cause(error: &io::Error) -> NoRdma {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others come from the adapter")]
    match error.kind() {
        io::ErrorKind::OutOfMemory => NoRdma::Memory,
        io::ErrorKind::AddrNotAvailable => NoRdma::NoAddress,
        io::ErrorKind::NetworkDown => NoRdma::PortDown,
        _ => NoRdma::NoConnection,
    }
}

/// Says what an operator can do about it.
pub(super) fn explained(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::OutOfMemory {
        let why = "memory cannot be registered: raise the limit of locked memory \
                   (ulimit -l unlimited, or LimitMEMLOCK=infinity in the service)";
        return io::Error::new(io::ErrorKind::OutOfMemory, why);
    }
    error
}

/// Where an adapter is named in messages.
impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
