//! The sequencers: the one in charge, and those that stand by.
//!
//! There is a lane to each that has published itself. Whoever says welcome on it is in charge, if
//! its epoch is above that of the one before: so a takeover costs neither a look-up nor a dial, also
//! when the one before is not dead but merely stuck. Who stands by says nothing.

use halfmoon_transport::{Endpoint, LaneId, Transport};
use halfmoon_wire::NodeId;

use super::Session;
use super::links::Link;
use crate::calls::Peer;
use crate::core::Core;
use crate::core::SequencerLane;
use crate::directory::Directory;

/// While nobody is in charge the directory is asked this often, in ns.
const ASK_EVERY_NS: u64 = 32_000_000;

/// Pause before one that stands by is dialled again while another is in charge, in ns.
const IDLE_PAUSE_NS: u64 = 1_000_000_000;

/// See the module.
#[derive(Default)]
pub(super) struct Sequencers {
    links: Vec<SequencerLink>,
    in_charge: Option<LaneId>,
    ask_at_ns: u64,
}

struct SequencerLink {
    node: NodeId,
    link: Link,
}

impl Sequencers {
    /// The lane to the one in charge.
    pub(super) const fn in_charge(&self) -> Option<LaneId> {
        self.in_charge
    }

    /// Whether the lane is to one of them, and up.
    pub(super) fn is_up(&self, lane: LaneId) -> bool {
        self.links.iter().any(|found| found.link.lane_up() == Some(lane))
    }

    /// Those whose lanes are up.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (NodeId, LaneId)> {
        self.links.iter().filter_map(|found| Some((found.node, found.link.lane_up()?)))
    }

    /// Who was dialled on a lane.
    pub(super) fn node_of(&self, lane: LaneId) -> Option<NodeId> {
        let found = self.links.iter().find(|found| found.link.lane() == Some(lane))?;
        Some(found.node)
    }

    /// When there is something to do even if nothing comes from the network.
    pub(super) fn wake_at_ns(&self) -> Option<u64> {
        let ask = self.in_charge.is_none().then_some(self.ask_at_ns);
        self.links.iter().map(|found| found.link.retry_at_ns()).chain([ask]).flatten().min()
    }

    fn find(&mut self, lane: LaneId) -> Option<&mut SequencerLink> {
        self.links.iter_mut().find(|found| found.link.lane() == Some(lane))
    }

    fn show(&self, core: &Core) {
        let lane = |found: &SequencerLink| SequencerLane {
            node: found.node,
            is_up: found.link.lane_up().is_some(),
            is_in_charge: self.in_charge.is_some() && found.link.lane() == self.in_charge,
        };
        *core.sequencers.borrow_mut() = self.links.iter().map(lane).collect();
    }
}

impl<D: Directory> Session<D> {
    /// Takes where they are now.
    pub(super) fn learn_sequencers<T: Transport>(
        &mut self,
        places: &[(NodeId, String)],
        endpoint: &mut Endpoint<T>,
    ) {
        let links = &mut self.sequencers.links;
        for (node, address) in places {
            let Some(found) = links.iter_mut().find(|found| found.node == *node) else {
                links.push(SequencerLink { node: *node, link: Link::default() });
                continue;
            };
            found.link.moved(address);
            if let Some(lane) = found.link.lane().filter(|_| !found.link.is_at(address)) {
                tracing::info!(%node, %address, "a sequencer is elsewhere now");
                endpoint.close(lane);
            }
        }
        let is_known = |node| places.iter().any(|(known, _)| *known == node);
        links.retain(|found| is_known(found.node) || found.link.lane().is_some());
        self.sequencers.show(&self.core);
    }

    /// Dials whoever is due, and asks where they are while nobody is in charge.
    pub(super) fn dial_sequencers<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) {
        let Self { core, places, sequencers, directory, .. } = self;
        let now_ns = core.executor.now_ns();
        for SequencerLink { node, link } in &mut sequencers.links {
            if link.retry_at_ns().is_some_and(|at| at <= now_ns) {
                let place = places.sequencers.iter().find(|(known, _)| known == node);
                link.dial(core, place.map(|(_, address)| address.as_str()), endpoint);
            }
        }
        if sequencers.in_charge.is_none() && sequencers.ask_at_ns <= now_ns {
            sequencers.ask_at_ns = now_ns.saturating_add(ASK_EVERY_NS);
            directory.ask();
        }
    }

    /// A lane to one of them is up; it hears nothing before it has said welcome.
    pub(super) fn sequencer_up(&mut self, lane: LaneId) {
        if let Some(found) = self.sequencers.find(lane) {
            found.link.is_up(lane);
        }
        self.sequencers.show(&self.core);
    }

    /// The one on this lane is in charge. It may have been before.
    pub(super) fn put_in_charge(&mut self, lane: LaneId) {
        if let Some(found) = self.sequencers.find(lane) {
            found.link.worked();
        }
        if self.sequencers.in_charge != Some(lane) {
            if let Some(deposed) = self.sequencers.in_charge {
                self.to_close.push(deposed);
                self.no_sequencer();
            }
            self.sequencers.in_charge = Some(lane);
        }
        self.sequencers.show(&self.core);
        // Who else stands by now, or has gone.
        self.directory.ask();
    }

    /// A lane to one of them is down. Whether it was one.
    pub(super) fn sequencer_down(&mut self, lane: LaneId) -> bool {
        let now_ns = self.core.executor.now_ns();
        let was_in_charge = self.sequencers.in_charge == Some(lane);
        let is_idle = !was_in_charge && self.sequencers.in_charge.is_some();
        let core = self.core.clone();
        let Some(found) = self.sequencers.find(lane) else { return false };
        if is_idle {
            found.link.rest_until(now_ns.saturating_add(IDLE_PAUSE_NS));
        } else {
            found.link.failed(&core);
        }
        if was_in_charge {
            self.no_sequencer();
        }
        self.sequencers.show(&core);
        true
    }

    /// The one in charge is lost: whoever takes over must be found soon.
    fn no_sequencer(&mut self) {
        self.sequencers.in_charge = None;
        self.sequencers.links.iter_mut().for_each(|found| found.link.hurry());
        self.welcome = None;
        self.visit.set(self.visit.get() + 1);
        self.core.submissions.borrow_mut().lane_lost();
        self.core.lost(Peer::Sequencer);
    }
}
