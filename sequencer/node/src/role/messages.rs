//! What peers say, and what becomes of it.

use halfmoon_order::SealedLog;
use halfmoon_transport::LaneId;
use halfmoon_wire::{
    AppendView, Epoch, Incarnation, LocalId, Message, NodeId, Role as WireRole, SeqNum, append_view,
};

use super::{Core, Stage, Violation};
use crate::host::{Now, Request, RoleError};

impl Core {
    pub(super) fn message(
        &mut self,
        now: Now,
        lane: LaneId,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        // A lane that is being closed is no longer known, and not heard.
        let Some(peer) = self.peers.find(lane) else { return Ok(()) };
        let (role, node, incarnation) = (peer.role, peer.node, peer.incarnation);
        if let Some(parsed) = append_view(bytes) {
            let (epoch, append) = parsed?;
            if role != WireRole::Engine {
                return Err(Violation::NotItsPart { role });
            }
            self.append(now, (lane, node, incarnation), epoch, &append);
            return Ok(());
        }
        match (role, Message::parse(bytes)?) {
            (WireRole::Engine, Message::Report { applied, safe_point, answered }) => {
                self.report(now, (node, incarnation), (applied, safe_point), answered);
                Ok(())
            }
            (WireRole::Engine | WireRole::Observer, Message::AskTail { token }) => {
                let Stage::Open(open) = &mut self.stage else { return Ok(()) };
                Ok(open.tails.ask((lane, token), open.order.tail())?)
            }
            (_, Message::Follow { from }) => self.follow(lane, from),
            (WireRole::Storage, message) => self.storage_message(now, lane, node, &message),
            (WireRole::Sequencer, message) => self.sequencer_message(now, lane, &message),
            (role, _) => Err(Violation::NotItsPart { role }),
        }
    }

    fn append(
        &mut self,
        now: Now,
        (lane, engine, incarnation): (LaneId, NodeId, Incarnation),
        epoch: Epoch,
        append: &AppendView<'_>,
    ) {
        let Stage::Open(open) = &mut self.stage else { return };
        if epoch != self.epoch {
            self.counted.misdirected += 1;
            return;
        }
        let refused = open.append(now, engine, incarnation, append, &mut self.counted);
        if let Some(refusal) = refused {
            let local = append.local;
            self.peers.tell(lane, &Message::Refused { epoch, local, refusal });
        }
    }

    fn report(
        &mut self,
        now: Now,
        (engine, incarnation): (NodeId, Incarnation),
        (applied, safe_point): (SeqNum, SeqNum),
        answered: LocalId,
    ) {
        let Stage::Open(open) = &mut self.stage else { return };
        open.order.answered(engine, incarnation, answered);
        let renewed = open.leases.report(now.mono_ns, engine, incarnation, applied, safe_point);
        // An incarnation that is over learns it from the stream, and from what it appends.
        renewed.unwrap_or_else(|over| tracing::debug!(engine = engine.0, "{over}"));
    }

    fn follow(&mut self, lane: LaneId, from: SeqNum) -> Result<(), Violation> {
        let Stage::Open(open) = &self.stage else { return Ok(()) };
        if from > open.window.next() || from == SeqNum::ZERO {
            return Err(Violation::BeyondTheEnd { from });
        }
        if let Some(peer) = self.peers.find_mut(lane) {
            peer.next = Some(from);
        }
        Ok(())
    }

    fn storage_message(
        &mut self,
        now: Now,
        lane: LaneId,
        node: NodeId,
        message: &Message<'_>,
    ) -> Result<(), Violation> {
        let own = self.epoch;
        match (message, &mut self.stage) {
            (message, Stage::Standby(_)) => self.storage_gives(now, message)?,
            (Message::Sealed { promised, .. }, _) if *promised > own => {
                self.failure = Some(RoleError::Deposed { own, promised: *promised });
            }
            (Message::Sealed { promised, history, end }, Stage::Recovering(recovery)) => {
                self.trio.sealed(lane);
                let log = SealedLog { history: history.clone(), end: *end };
                recovery.sealed(node, *promised, log)?;
            }
            (Message::Sealed { .. }, Stage::Open(open)) => {
                self.trio.sealed(lane);
                let (welcome, round) = (open.welcome(), open.tails.last_round());
                self.peers.tell(lane, &welcome);
                if let Some(token) = round {
                    self.peers.tell(lane, &Message::Confirm { epoch: own, token });
                }
            }
            (Message::LogChunk { token, records, .. }, Stage::Recovering(recovery)) => {
                recovery.chunk(node, *token, records)?;
            }
            (Message::Durable { epoch, seq }, Stage::Open(open)) if *epoch == own => {
                self.trio.proven(node);
                if open.durable(node, *seq) {
                    tracing::info!(epoch = own.0, "the opening record is committed");
                    self.requests.push_back(Request::MarkCommitted(own));
                    // Whoever is no member any more has given what it had.
                    for left in self.trio.set_nodes(&self.members) {
                        self.leave(left);
                    }
                }
            }
            (Message::Confirmed { epoch, token }, Stage::Open(open)) if *epoch == own => {
                open.tails.confirmed(node, *token);
            }
            // Late, or of an epoch before.
            (Message::LogChunk { .. } | Message::Durable { .. } | Message::Confirmed { .. }, _) => {
            }
            _ => return Err(Violation::NotItsPart { role: WireRole::Storage }),
        }
        Ok(())
    }
}
