//! What a transport that is built on this one needs: to find its like on the other side.
//!
//! A greeting may offer a region. A peer that knows what it is for writes to it; any other takes no
//! notice, and the lane carries writes over TCP like every lane.

use std::net::SocketAddr;

use halfmoon_transport::endpoint::LANE_VERSION;
use halfmoon_transport::{LaneId, RegionId};

use crate::Tcp;
use crate::frame::{Header, Kind};

impl Tcp {
    /// Says `greeting`, as [`greet`](halfmoon_transport::Transport::greet) does, and offers a region
    /// that was exposed to the lane. Region 0 offers nothing.
    pub fn greet_offering(&mut self, lane: LaneId, greeting: &[u8], offer: RegionId) {
        if let Some(found) = self.lanes.get_mut(lane) {
            let len = u32::try_from(greeting.len()).unwrap_or(u32::MAX);
            let offset = u64::from(LANE_VERSION);
            let header = Header { kind: Kind::Greeting, region: offer.0, offset, len };
            found.out.push(header, [greeting, &[]], &[]);
        }
    }

    /// The region that the peer offered in its greeting. A peer of another version offers nothing: what
    /// would be said through that region may have changed.
    #[must_use]
    pub fn offered(&self, lane: LaneId) -> Option<RegionId> {
        self.lanes.get(lane).map(|found| RegionId(found.offered)).filter(|region| region.0 != 0)
    }

    /// The addresses of this end of a lane and of the other, once it is connected.
    #[must_use]
    pub fn addresses(&self, lane: LaneId) -> Option<(SocketAddr, SocketAddr)> {
        let socket = &self.lanes.get(lane)?.socket;
        let this = rustix::net::getsockname(&**socket).ok()?;
        let other = rustix::net::getpeername(&**socket).ok()??;
        Some((this.try_into().ok()?, other.try_into().ok()?))
    }
}
