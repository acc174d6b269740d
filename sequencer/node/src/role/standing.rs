//! Standing by, taking over, and telling those that stand by that this one lives.

use halfmoon_order::Recovery;
use halfmoon_transport::{Endpoint, LaneId, Transport};
use halfmoon_wire::{Epoch, Hello, Message, Role as WireRole, SeqNum};

use super::{Core, HEARTBEAT_NS, READ_PATIENCE_NS, SEAL_PATIENCE_NS, Stage, Violation, standby};
use crate::host::{Now, Reign, Request, Scene};
use crate::peers::Peers;
use crate::standby::{CATCH_UP_BYTES, Due};

impl Core {
    pub(super) fn reign(&mut self, reign: Reign) {
        let Reign { epoch, member_sets } = reign;
        // One reign after another: what was sent for the first is not read in the second, and
        // everybody hears of it on a new lane, as of any successor.
        if !matches!(self.stage, Stage::Standby(_)) {
            self.leave_all();
        }
        self.epoch = epoch;
        self.members = member_sets.last().cloned().unwrap_or_default();
        let recovery = Recovery::new(epoch, member_sets, self.options.window_bytes);
        let nodes = recovery.nodes();
        let before = std::mem::replace(&mut self.stage, Stage::Recovering(Box::new(recovery)));
        if let Stage::Standby(standby) = before {
            if let Some(lane) = standby.lane() {
                self.leave(lane);
            }
            if let Stage::Recovering(recovery) = &mut self.stage {
                recovery.learned(standby.into_learner());
            }
        }
        for lane in self.trio.set_nodes(&nodes) {
            self.leave(lane);
        }
        for lane in self.trio.unsealed_lanes() {
            self.peers.tell(lane, &Message::Seal { epoch });
        }
        self.beat_at_ns = Some(0);
        (self.reigns_since_ns, self.read_until) = (None, None);
    }

    pub(super) fn stand_by(&mut self) {
        tracing::info!(epoch = self.epoch.0, "the reign is over, standing by");
        self.leave_all();
        // Whoever has taken over is there, and gets its time to show life.
        self.stage = Stage::Standby(Box::new(standby(&self.options, true)));
    }

    fn leave_all(&mut self) {
        self.epoch = Epoch(0);
        self.beat_at_ns = None;
        self.closing.extend(self.trio.set_nodes(&[]));
        self.closing.extend_from_slice(self.peers.lanes());
        self.peers = Peers::new();
        self.requests.clear();
        self.failure = None;
    }

    /// Whether a sequencer at the other end is right: this one watches it, or the other way round.
    pub(super) fn is_expected(&self, lane: LaneId, hello: &Hello, dialled: bool) -> bool {
        match &self.stage {
            Stage::Standby(standby) if dialled => {
                standby.lane() == Some(lane) && standby.holder() == Some(hello.node)
            }
            Stage::Standby(_) | Stage::Recovering(_) | Stage::Open(_) => {
                !dialled && hello.node != self.options.node
            }
        }
    }

    pub(super) fn sequencer_up(&mut self, now: Now, lane: LaneId) {
        match &mut self.stage {
            Stage::Standby(standby) if standby.lane() == Some(lane) => {
                standby.up(now.mono_ns, lane);
            }
            Stage::Standby(_) => {}
            Stage::Recovering(_) | Stage::Open(_) => self.beat_at_ns = Some(0),
        }
    }

    pub(super) fn looked(&mut self, now: Now, scene: Scene) {
        let Stage::Standby(standby) = &mut self.stage else { return };
        let members = scene.members.clone();
        let (left, takes_over) = standby.looked(now.mono_ns, scene);
        for lane in left.into_iter().chain(self.trio.set_nodes(&members)) {
            self.leave(lane);
        }
        if takes_over {
            self.take_over(now, "nobody is in charge");
        }
    }

    /// The lane to the one that is watched is down, if it is that one.
    pub(super) fn watched_down(&mut self, now: Now, lane: LaneId) {
        let Stage::Standby(standby) = &mut self.stage else { return };
        if standby.lane() == Some(lane) && standby.down(now.mono_ns) {
            self.take_over(now, "it cannot be reached");
        }
    }

    /// Dials the one that is to be watched, if it is time to. Whether there is something to do at
    /// once: a refusal may be there already.
    pub(super) fn dial_watched<T: Transport>(
        &mut self,
        now: Now,
        endpoint: &mut Endpoint<T>,
    ) -> bool {
        let Stage::Standby(standby) = &mut self.stage else { return false };
        let Some(address) = standby.next_dial() else { return false };
        match endpoint.dial(address) {
            Ok(lane) => standby.dialling(lane),
            Err(error) => {
                tracing::warn!(%error, "the sequencer in charge");
                if standby.gone(now.mono_ns) {
                    self.take_over(now, "it cannot be dialled");
                }
            }
        }
        true
    }

    /// Reads the log that is recovered. A node that gives nothing is left, and another one read: it
    /// may hang with its lane up.
    pub(super) fn recover(&mut self, now: Now) {
        let Stage::Recovering(recovery) = &mut self.stage else { return };
        if let Some((node, request)) = recovery.next_read()
            && let Some(lane) = self.trio.lane_to(node)
        {
            self.peers.tell(lane, &request);
            self.read_until = Some((lane, now.mono_ns.saturating_add(READ_PATIENCE_NS)));
        } else if let Some((lane, _)) = self.read_until.take_if(|(_, at)| *at <= now.mono_ns) {
            tracing::warn!(%lane, "a storage node gives no records, another one is asked");
            self.closing.push(lane);
            self.down(now, lane);
        }
        let Stage::Recovering(recovery) = &mut self.stage else { return };
        if let Some(recovered) = recovery.open(now.wall_ns) {
            self.read_until = None;
            self.open(now, recovered);
        }
    }

    /// What a sequencer says to one that stands by.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are never sent by this role")]
    pub(super) fn sequencer_message(
        &mut self,
        now: Now,
        lane: LaneId,
        message: &Message<'_>,
    ) -> Result<(), Violation> {
        let refused = Violation::NotItsPart { role: WireRole::Sequencer };
        let Stage::Standby(standby) = &mut self.stage else { return Err(refused) };
        if !standby.is_watching(lane) {
            return Err(refused);
        }
        let follow_from = match message {
            Message::Heartbeat { epoch, committed } => {
                standby.heard(*epoch);
                standby.committed(*epoch, *committed)?;
                None
            }
            Message::Stream { epoch, first, records } => {
                standby.streamed(*epoch, *first, records).ok_or(Violation::OtherStream)??;
                None
            }
            Message::Welcome { epoch, history, window_start, tail, members, .. } => {
                let log = (&history[..], *tail);
                let from = standby.welcomed(now.mono_ns, *epoch, log, *window_start);
                for left in self.trio.set_nodes(members) {
                    self.leave(left);
                }
                from
            }
            _ => return Err(refused),
        };
        self.follow_from(follow_from);
        Ok(())
    }

    /// A storage node gives records of the log that is learned.
    pub(super) fn storage_gives(
        &mut self,
        now: Now,
        message: &Message<'_>,
    ) -> Result<(), Violation> {
        let Stage::Standby(standby) = &mut self.stage else { return Ok(()) };
        let Message::LogChunk { token, epoch, records, .. } = message else {
            return Err(Violation::NotItsPart { role: WireRole::Storage });
        };
        match standby.read(now.mono_ns, (*token, *epoch), records) {
            Ok(from) => self.follow_from(from),
            Err(error) => {
                // It begins anew, with another welcome.
                if let Some(lane) = standby.lane() {
                    self.leave(lane);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// What does not come from a message, while it stands by.
    pub(super) fn watch(&mut self, now: Now) {
        let Stage::Standby(standby) = &mut self.stage else { return };
        let lanes = self.trio.unsealed_lanes();
        if let Some(question) = standby.next_question(now.mono_ns, &lanes) {
            let max_bytes = CATCH_UP_BYTES;
            let (token, epoch, raw, from) = (question.token, question.epoch, false, question.from);
            let read = Message::ReadLog { token, epoch, raw, from, max_bytes };
            self.peers.tell(question.lane, &read);
        }
        match standby.pass(now.mono_ns) {
            Due::Nothing => {}
            Due::Look => self.requests.push_back(Request::Look),
            Due::Suspect => self.take_over(now, "it is silent"),
        }
    }

    pub(super) fn standby_deadline(&self) -> Option<u64> {
        match &self.stage {
            Stage::Standby(standby) => standby.deadline_ns(),
            Stage::Recovering(_) | Stage::Open(_) => None,
        }
    }

    /// Tells those that stand by that the loop has come by here.
    pub(super) fn beat(&mut self, now: Now) {
        let since_ns = *self.reigns_since_ns.get_or_insert(now.mono_ns);
        let committed = match &self.stage {
            Stage::Standby(_) => return,
            // Without a quorum it shows no life: another one may reach it.
            Stage::Recovering(recovery)
                if recovery.progress().is_none()
                    && now.mono_ns.saturating_sub(since_ns) > SEAL_PATIENCE_NS =>
            {
                return;
            }
            Stage::Recovering(_) => SeqNum::ZERO,
            Stage::Open(open) => open.commit.committed(),
        };
        if self.beat_at_ns.is_none_or(|at| at > now.mono_ns) {
            return;
        }
        self.beat_at_ns = None;
        for index in 0..self.peers.lanes().len() {
            let lane = self.peers.lanes()[index];
            let Some(peer) = self.peers.find_mut(lane) else { continue };
            if peer.role == WireRole::Sequencer {
                peer.outbox.push(&Message::Heartbeat { epoch: self.epoch, committed });
                self.beat_at_ns = Some(now.mono_ns.saturating_add(HEARTBEAT_NS));
            }
        }
    }

    fn take_over(&mut self, now: Now, why: &'static str) {
        let Stage::Standby(standby) = &mut self.stage else { return };
        let (after, lane) = (standby.epoch(), standby.lane());
        if self.trio.has_quorum() {
            tracing::info!(after = after.0, why, "taking over");
            standby.taking();
            self.requests.push_back(Request::Take { after });
        } else {
            tracing::debug!(after = after.0, why, "no quorum of storage nodes, not taking over");
            standby.hold(now.mono_ns);
        }
        if let Some(lane) = lane {
            self.leave(lane);
        }
    }

    fn follow_from(&mut self, from: Option<SeqNum>) {
        if let (Some(from), Stage::Standby(standby)) = (from, &self.stage)
            && let Some(lane) = standby.lane()
        {
            self.peers.tell(lane, &Message::Follow { from });
        }
    }

    /// Closes a lane, of which nothing is heard any more.
    pub(super) fn leave(&mut self, lane: LaneId) {
        self.peers.remove(lane);
        self.closing.push(lane);
    }
}
