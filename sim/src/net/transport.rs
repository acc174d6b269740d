//! One site's end of the network, as an endpoint uses it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use halfmoon_transport::contract::MAX_WRITE_BYTES;
use halfmoon_transport::lanes::MAX_LANES;
use halfmoon_transport::memory;
use halfmoon_transport::{
    Access, DialError, DownReason, ExposeError, LaneId, ListenError, Memory, Occurrence, PostError,
    RegionId, RemoteSpan, Source, Token, Transport,
};

use super::wire::{Load, Parcel};
use super::{Lane, QUEUE_BYTES, WRITE_BYTES, What, Wires};

/// The transport of one site. Dropping it is a crash.
pub struct SimTransport {
    wires: Rc<RefCell<Wires>>,
    site: usize,
}

impl SimTransport {
    pub(super) fn new(wires: Rc<RefCell<Wires>>, site: usize) -> Self {
        Self { wires, site }
    }

    /// Which site it is: what [`super::Net::next_news`] names.
    #[must_use]
    pub fn site(&self) -> usize {
        self.site
    }
}

impl Transport for SimTransport {
    /// An address that ends with `:0` is given a port that nobody has.
    fn listen(&mut self, address: &str) -> Result<String, ListenError> {
        let mut wires = self.wires.borrow_mut();
        let mut name = address.to_owned();
        if let Some(host) = address.strip_suffix(":0") {
            wires.ports += 1;
            name = format!("{host}:{}", wires.ports);
        }
        if wires.listening.contains_key(&name) {
            return Err(ListenError::InUse { address: name });
        }
        wires.listening.insert(name.clone(), self.site);
        Ok(name)
    }

    fn dial(&mut self, address: &str) -> Result<LaneId, DialError> {
        let mut wires = self.wires.borrow_mut();
        let lane = wires.sites[self.site].lanes.add(Lane::default());
        let lane = lane.ok_or(DialError::TooManyLanes { limit: MAX_LANES })?;
        let at = wires.now + wires.delay();
        let (site, to) = (self.site, wires.listening.get(address).copied());
        let what = match to {
            Some(to) => What::Dial { site, lane, to, tries: 0 },
            None => {
                let reason = DownReason::Unreachable(io::ErrorKind::ConnectionRefused);
                What::Break { site, lane, reason }
            }
        };
        wires.schedule(at, what);
        Ok(lane)
    }

    fn greet(&mut self, lane: LaneId, greeting: &[u8]) {
        let mut wires = self.wires.borrow_mut();
        let Some(found) = wires.sites[self.site].lanes.get_mut(lane) else { return };
        match found.out {
            Some(out) => wires.send(out, [Parcel::Greeting(greeting.to_vec())]),
            None => found.greeting = Some(greeting.to_vec()),
        }
    }

    fn close(&mut self, lane: LaneId, reason: DownReason) {
        self.wires.borrow_mut().down(self.site, lane, reason);
    }

    fn expose(&mut self, memory: Arc<dyn Memory>, access: Access) -> Result<RegionId, ExposeError> {
        let site = &mut self.wires.borrow_mut().sites[self.site];
        if let Access::Lane(lane) = access
            && site.lanes.get(lane).is_none()
        {
            return Err(ExposeError::Dead);
        }
        site.regions.expose(memory, access)
    }

    fn withdraw(&mut self, region: RegionId) {
        self.wires.borrow_mut().sites[self.site].regions.withdraw(region);
    }

    fn post_write(
        &mut self,
        lane: LaneId,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
    ) -> Result<(), PostError> {
        let site = &mut self.wires.borrow_mut().sites[self.site];
        let found = site.lanes.get_mut(lane).filter(|found| found.up).ok_or(PostError::Dead)?;
        if found.load > QUEUE_BYTES {
            return Err(PostError::Full);
        }
        let len = source.len();
        if len > MAX_WRITE_BYTES {
            return Err(PostError::BadSource);
        }
        let load = match source {
            Source::Bytes { head, parts, tail } => {
                let mut bytes = Vec::with_capacity(len);
                bytes.extend_from_slice(head);
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                bytes.extend_from_slice(tail);
                Load::Bytes(bytes)
            }
            Source::Memory { memory, offset, len } => {
                memory::check(memory.words(), offset, len).map_err(|_| PostError::BadSource)?;
                Load::Memory { memory, offset, len }
            }
        };
        found.load += len + WRITE_BYTES;
        let signalled = token.is_some();
        found.tokens.extend(token);
        if found.posted.is_empty() {
            site.dirty.push(lane);
        }
        found.posted.push(Parcel::Write { to, load, signalled });
        Ok(())
    }

    fn has_room(&self, lane: LaneId) -> bool {
        let wires = self.wires.borrow();
        let found = wires.sites[self.site].lanes.get(lane);
        found.is_some_and(|found| found.up && found.load <= QUEUE_BYTES)
    }

    fn flush(&mut self) {
        let mut wires = self.wires.borrow_mut();
        let dirty = std::mem::take(&mut wires.sites[self.site].dirty);
        for lane in &dirty {
            let Some(found) = wires.sites[self.site].lanes.get_mut(*lane) else { continue };
            let posted = std::mem::take(&mut found.posted);
            if let Some(out) = found.out {
                wires.send(out, posted);
            }
        }
        let mut dirty = dirty;
        dirty.clear();
        wires.sites[self.site].dirty = dirty;
    }

    fn poll(&mut self, occurrences: &mut Vec<Occurrence>) {
        occurrences.append(&mut self.wires.borrow_mut().sites[self.site].occurrences);
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        let mut wires = self.wires.borrow_mut();
        let site = self.site;
        wires.listening.retain(|_, at| *at != site);
        wires.sites[site].alive = false;
        let (chance, latest) = wires.profile.silent;
        let silent = wires.random.chance(chance);
        let lanes: Vec<LaneId> = wires.sites[site].lanes.lanes().collect();
        for lane in lanes {
            let Some(gone) = wires.sites[site].lanes.remove(lane) else { continue };
            if let Some(inbound) = gone.inbound {
                wires.wires[inbound].dead = true;
            }
            let notice = match silent {
                true => wires.random.within(1, latest),
                false => wires.delay(),
            };
            if let Some(out) = gone.out {
                wires.sever(out, gone.posted, Some(notice));
            }
        }
        wires.sites[site].occurrences.clear();
        wires.sites[site].regions = halfmoon_transport::regions::Regions::new();
    }
}
