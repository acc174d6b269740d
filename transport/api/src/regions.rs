//! The regions that an endpoint exposes. Transports without a network card use this table to
//! check and apply what peers write.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::contract::{Access, ExposeError, LaneId, RegionId, RemoteSpan};
use crate::memory::{self, Memory};

/// Most regions of one endpoint at once.
pub const MAX_REGIONS: usize = 1 << 16;

/// Regions by id.
#[derive(Default)]
pub struct Regions {
    exposed: FxHashMap<u32, Exposed>,
    /// The last id given. Ids grow and are never reused, so an id up to this one that is not in
    /// the table is one that was withdrawn.
    last: u32,
}

struct Exposed {
    memory: Arc<dyn Memory>,
    access: Access,
}

/// What is to be done with a write of a peer.
pub enum Target<'a> {
    /// Apply it to this memory, in whose bounds it lies.
    Memory(&'a Arc<dyn Memory>),
    /// Drop it: the region has been withdrawn.
    Withdrawn,
    /// Kill the lane: the peer may not write there.
    Forbidden,
}

impl Regions {
    /// A table without regions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a region.
    pub fn expose(
        &mut self,
        memory: Arc<dyn Memory>,
        access: Access,
    ) -> Result<RegionId, ExposeError> {
        let refused = ExposeError::TooManyRegions { limit: MAX_REGIONS };
        if self.exposed.len() >= MAX_REGIONS {
            return Err(refused);
        }
        self.last = self.last.checked_add(1).ok_or(refused)?;
        self.exposed.insert(self.last, Exposed { memory, access });
        Ok(RegionId(self.last))
    }

    /// Takes a region away.
    pub fn withdraw(&mut self, region: RegionId) {
        self.exposed.remove(&region.0);
    }

    /// Takes away the regions that only `lane` could write to.
    pub fn withdraw_lane(&mut self, lane: LaneId) {
        self.exposed.retain(|_, exposed| exposed.access != Access::Lane(lane));
    }

    /// Judges a write of `len` bytes that came on `lane`.
    pub fn target(&self, lane: LaneId, to: RemoteSpan, len: usize) -> Target<'_> {
        let Some(exposed) = self.exposed.get(&to.region.0) else {
            let known = to.region.0 != 0 && to.region.0 <= self.last;
            return if known { Target::Withdrawn } else { Target::Forbidden };
        };
        let allowed = match exposed.access {
            Access::Any => true,
            Access::Lane(only) => only == lane,
        };
        if allowed && memory::check(exposed.memory.words(), to.offset, len).is_ok() {
            Target::Memory(&exposed.memory)
        } else {
            Target::Forbidden
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HeapMemory;

    #[test]
    fn a_write_is_judged_by_bounds_lane_and_life() {
        let mut regions = Regions::new();
        let lane = LaneId::new(0, 0);
        let other = LaneId::new(1, 0);
        let region = regions.expose(Arc::new(HeapMemory::new(64)), Access::Lane(lane)).unwrap();
        let at = |offset| RemoteSpan { region, offset };
        assert!(matches!(regions.target(lane, at(0), 64), Target::Memory(_)));
        assert!(matches!(regions.target(lane, at(1), 64), Target::Forbidden));
        assert!(matches!(regions.target(lane, at(u64::MAX), 64), Target::Forbidden));
        assert!(matches!(regions.target(other, at(0), 8), Target::Forbidden));
        regions.withdraw_lane(lane);
        assert!(matches!(regions.target(lane, at(0), 8), Target::Withdrawn));
        let never = RemoteSpan { region: RegionId(2), offset: 0 };
        assert!(matches!(regions.target(lane, never, 8), Target::Forbidden));
        let zero = RemoteSpan { region: RegionId(0), offset: 0 };
        assert!(matches!(regions.target(lane, zero, 8), Target::Forbidden));
    }
}
