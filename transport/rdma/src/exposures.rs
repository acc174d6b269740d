//! The regions of this endpoint, and their registrations.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_transport::{Access, LaneId, Memory, RegionId};

use crate::note::Say;
use crate::verbs::{Device, Reach, Registration};

/// How long peers have to leave a region that was withdrawn. Then it is revoked: who still writes to it
/// finds its lane dead, and no byte of it arrives.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// Regions by id.
#[derive(Default)]
pub(crate) struct Exposures {
    exposed: BTreeMap<u32, Exposure>,
    /// The last id given.
    last: u32,
    /// Withdrawn, and not revoked yet.
    leaving: BTreeMap<u32, Leaving>,
}

struct Exposure {
    memory: Arc<dyn Memory>,
    access: Access,
    /// One for each adapter that needed it.
    registrations: Vec<Rc<Registration>>,
}

struct Leaving {
    registrations: Vec<Rc<Registration>>,
    /// Lanes whose peers may still write to it.
    lanes: Vec<LaneId>,
    until: Instant,
}

/// What a peer is to be told that asks for a region.
pub(crate) enum Answer {
    Here(Say),
    Withdrawn,
    /// It may not write there.
    Forbidden,
    /// It cannot be registered.
    Refused(io::Error),
}

impl Exposures {
    /// Adds a region under the id that it was given.
    pub(crate) fn add(&mut self, region: RegionId, memory: Arc<dyn Memory>, access: Access) {
        self.last = self.last.max(region.0);
        let registrations = Vec::new();
        self.exposed.insert(region.0, Exposure { memory, access, registrations });
    }

    /// An id that was given to something else.
    pub(crate) fn skip(&mut self, region: RegionId) {
        self.last = self.last.max(region.0);
    }

    /// The regions that only a lane's peer may write to.
    pub(crate) fn of_lane(&self, lane: LaneId) -> Vec<u32> {
        let of_lane = |(_, exposure): &(&u32, &Exposure)| exposure.access == Access::Lane(lane);
        self.exposed.iter().filter(of_lane).map(|(region, _)| *region).collect()
    }

    /// What the peer of a lane is told of a region.
    pub(crate) fn ask(&mut self, region: u32, lane: LaneId, device: &Rc<Device>) -> Answer {
        let Some(exposure) = self.exposed.get_mut(&region) else {
            let known = region != 0 && region <= self.last;
            return if known { Answer::Withdrawn } else { Answer::Forbidden };
        };
        if !exposure.is_for(lane) {
            return Answer::Forbidden;
        }
        match exposure.registration(device) {
            Ok(registration) => Answer::Here(Say::Exposed {
                region,
                rkey: registration.rkey(),
                address: registration.address(),
                len: registration.len() as u64,
            }),
            Err(error) => Answer::Refused(error),
        }
    }

    /// The registration of memory that an adapter may reach anyway.
    pub(crate) fn source(
        &self,
        memory: &Arc<dyn Memory>,
        device: &Rc<Device>,
    ) -> Option<Rc<Registration>> {
        let start = memory.words().as_ptr() as u64;
        let same = |found: &&Rc<Registration>| {
            let covers = found.len() >= size_of_val(memory.words());
            found.address() == start && covers && found.is_of(device)
        };
        let all = self.exposed.values().flat_map(|exposure| &exposure.registrations);
        all.into_iter().find(same).cloned()
    }

    /// Takes a region away. It stays registered until the peers of these lanes have left it. Returns its
    /// registrations: whoever still holds one keeps the region within reach.
    pub(crate) fn withdraw(
        &mut self,
        region: RegionId,
        lanes: Vec<LaneId>,
    ) -> Vec<Rc<Registration>> {
        let Some(gone) = self.exposed.remove(&region.0) else { return Vec::new() };
        let registrations = gone.registrations.clone();
        if !registrations.is_empty() && !lanes.is_empty() {
            let until = Instant::now() + LEAVE_TIME;
            let leaving = Leaving { registrations: gone.registrations, lanes, until };
            self.leaving.insert(region.0, leaving);
        }
        registrations
    }

    /// Whether a region is only for one lane, or for all.
    pub(crate) fn access(&self, region: RegionId) -> Option<Access> {
        self.exposed.get(&region.0).map(|exposure| exposure.access)
    }

    /// The peer of a lane writes to a region no more.
    pub(crate) fn left(&mut self, region: u32, lane: LaneId) {
        if let Some(leaving) = self.leaving.get_mut(&region) {
            leaving.lanes.retain(|of| *of != lane);
            if leaving.lanes.is_empty() {
                self.leaving.remove(&region);
            }
        }
    }

    /// A lane is down, and its queue pair is gone.
    pub(crate) fn lane_down(&mut self, lane: LaneId) {
        self.exposed.retain(|_, exposure| exposure.access != Access::Lane(lane));
        for leaving in self.leaving.values_mut() {
            leaving.lanes.retain(|of| *of != lane);
        }
        self.leaving.retain(|_, leaving| !leaving.lanes.is_empty());
    }

    /// A lane goes on over TCP.
    pub(crate) fn lane_is_tcp(&mut self, lane: LaneId) {
        for exposure in self.exposed.values_mut() {
            if exposure.access == Access::Lane(lane) {
                exposure.registrations.clear();
            }
        }
    }

    /// Lets go of an adapter; no lane uses it any more.
    pub(crate) fn forget(&mut self, device: &Rc<Device>) {
        let exposed = self.exposed.values_mut().map(|exposure| &mut exposure.registrations);
        let leaving = self.leaving.values_mut().map(|leaving| &mut leaving.registrations);
        for registrations in exposed.chain(leaving) {
            registrations.retain(|registration| !registration.is_of(device));
        }
    }

    /// Revokes what peers had their time to leave.
    pub(crate) fn revoke_late(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let now = Instant::now();
        self.leaving.retain(|region, leaving| {
            let stays = now < leaving.until;
            if !stays {
                let lanes = &leaving.lanes;
                tracing::warn!(
                    region,
                    ?lanes,
                    "peers did not leave a region in time: it is revoked"
                );
            }
            stays
        });
    }
}

#[cfg(test)]
impl Exposures {
    /// Whether a withdrawn region can still be written to.
    pub(crate) fn is_leaving(&self, region: RegionId) -> bool {
        self.leaving.contains_key(&region.0)
    }
}

impl Exposure {
    fn is_for(&self, lane: LaneId) -> bool {
        match self.access {
            Access::Any => true,
            Access::Lane(only) => only == lane,
        }
    }

    fn registration(&mut self, device: &Rc<Device>) -> io::Result<&Rc<Registration>> {
        let found = self.registrations.iter().position(|found| found.is_of(device));
        let index = match found {
            Some(index) => index,
            None => {
                let memory = Arc::clone(&self.memory);
                let made = Registration::new(device, memory, Reach::Peer)?;
                self.registrations.push(Rc::new(made));
                self.registrations.len() - 1
            }
        };
        Ok(&self.registrations[index])
    }
}
