//! What is done to a network on purpose.

use std::io;

use halfmoon_transport::{DownReason, LaneId};

use super::{Host, Net, NetProfile, What, Wires};

impl Net {
    /// Nothing that is sent from one host to the other arrives any more; what was on its way waits.
    pub fn cut(&self, from: Host, to: Host) {
        let mut wires = self.0.borrow_mut();
        if wires.cuts.insert((from, to)) {
            wires.counts.cuts += 1;
        }
    }

    /// Ends that.
    pub fn heal(&self, from: Host, to: Host) {
        let mut wires = self.0.borrow_mut();
        if wires.cuts.remove(&(from, to)) {
            wires.go_on();
        }
    }

    /// Ends every cut.
    pub fn heal_all(&self) {
        let mut wires = self.0.borrow_mut();
        wires.cuts.clear();
        wires.go_on();
    }

    /// Whether what one host sends does not reach the other.
    #[must_use]
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        self.0.borrow().cuts.contains(&(from, to))
    }

    /// Breaks the lanes between two hosts: of what is under way any prefix arrives, and the ends
    /// learn of it at different times, within `notice_ns`.
    pub fn break_between(&self, one: Host, other: Host, notice_ns: u64) {
        let mut wires = self.0.borrow_mut();
        let mut ends = Vec::new();
        for site in 0..wires.sites.len() {
            if wires.sites[site].host != one || !wires.sites[site].alive {
                continue;
            }
            for lane in wires.sites[site].lanes.lanes() {
                let out = wires.sites[site].lanes.get(lane).and_then(|found| found.out);
                if let Some(out) = out
                    && wires.sites[wires.wires[out].to].host == other
                {
                    ends.push((site, lane));
                }
            }
        }
        for (site, lane) in ends {
            wires.break_lane(site, lane, notice_ns);
        }
    }

    /// Behaves like this from now on.
    pub fn set_profile(&self, profile: NetProfile) {
        self.0.borrow_mut().profile = profile;
    }
}

impl Wires {
    fn break_lane(&mut self, site: usize, lane: LaneId, notice_ns: u64) {
        let Some(found) = self.sites[site].lanes.get(lane) else { return };
        let (Some(out), Some(inbound)) = (found.out, found.inbound) else { return };
        if self.wires[out].closed || self.wires[inbound].closed {
            return;
        }
        self.counts.broken += 1;
        for wire in [out, inbound] {
            let (to, lane) = self.wires[wire].receiver();
            let at = self.now + self.random.within(1, notice_ns);
            self.sever(wire, Vec::new(), None);
            let reason = DownReason::Lost(io::ErrorKind::ConnectionReset);
            self.schedule(at, What::Break { site: to, lane, reason });
        }
    }

    fn go_on(&mut self) {
        for wire in 0..self.wires.len() {
            if self.wires[wire].is_waiting() {
                self.run(wire);
            }
        }
    }
}
