//! What peers say, and what becomes of it.

use std::sync::atomic::Ordering;

use halfmoon_log::{StreamOutcome, WelcomeInfo};
use halfmoon_transport::{Event, LaneId, RegionId};
use halfmoon_wire::{
    Epoch, Hello, Message, NodeId, NodeStatus, Role as PeerRole, SeqNum, StateRequest,
};

use super::Core;
use crate::disk::Disk;
use crate::fetch::Step;
use crate::reads::Question;

impl<D: Disk> Core<D> {
    pub(super) fn handle(&mut self, event: Event<'_>) {
        match event {
            Event::Up { lane, hello, .. } => self.up(lane, hello),
            Event::Message { lane, bytes } => match Message::parse(bytes) {
                Ok(message) => self.message(lane, message),
                Err(error) => self.lanes.doom(lane, &error),
            },
            Event::Down { lane, reason } => {
                if let Some(gone) = self.lanes.remove(lane) {
                    tracing::info!(%lane, peer = %gone.hello.node, role = ?gone.hello.role,
                        %reason, "a lane is down");
                } else if reason.is_for_operators() {
                    tracing::warn!(%lane, %reason, "a peer is turned away");
                }
                self.replica.forget(lane.raw());
                self.state.lane_down(lane);
                if let Some(fetch) = &mut self.fetch {
                    fetch.down(lane, self.now);
                }
                if let Some(copy) = self.copying.under_way() {
                    copy.down(lane, self.now);
                }
                self.sequencer = self.sequencer.filter(|of| *of != lane);
            }
            Event::Written { .. } | Event::Room { .. } => {}
        }
    }

    fn up(&mut self, lane: LaneId, hello: &[u8]) {
        let hello = match Hello::parse(hello) {
            Ok(hello) if hello.cluster == self.config.cluster => hello,
            Ok(hello) => {
                tracing::warn!(%lane, cluster = %format_args!("{:032x}", hello.cluster),
                    "refusing a node of another cluster");
                return self.closing.push(lane);
            }
            Err(error) => {
                tracing::warn!(%lane, %error, "refusing a peer");
                return self.closing.push(lane);
            }
        };
        // Whoever only reads leaves no values.
        if hello.role == PeerRole::Engine {
            self.unstaged.push(lane);
        }
        if self.copying.under_way().is_some_and(|copy| !copy.up(lane, &hello, self.now)) {
            tracing::warn!(%lane, found = %hello.node, "another node answers than was dialled");
            return self.closing.push(lane);
        }
        self.lanes.add(lane, hello);
        let step = self.fetch.as_mut().map_or(Step::Wait, |fetch| fetch.up(lane, self.now));
        self.ask_peer(step);
    }

    fn message(&mut self, lane: LaneId, message: Message<'_>) {
        let Some(role) = self.lanes.get(lane).map(|lane| lane.hello.role) else { return };
        let from_sequencer = role == PeerRole::Sequencer;
        match message {
            Message::Stream { epoch, first, records } if from_sequencer => {
                if let Err(error) = self.replica.stream(epoch, first, records) {
                    self.lanes.doom(lane, &error);
                }
            }
            Message::Seal { epoch } if from_sequencer => self.replica.seal(lane.raw(), epoch),
            Message::Welcome { epoch, history, window_start, tail, members, .. }
                if from_sequencer =>
            {
                let info = WelcomeInfo { epoch, history: &history, window_start, tail };
                match self.replica.welcome(info) {
                    Ok(()) if self.replica.epoch() == Some(epoch) => {
                        self.welcomed(lane, epoch, members);
                    }
                    Ok(()) => {}
                    Err(error) => self.lanes.doom(lane, &error),
                }
            }
            Message::Confirm { epoch, token } => {
                if self.replica.log().accepted().promised <= epoch {
                    self.lanes.send(lane, &Message::Confirmed { epoch, token });
                }
            }
            Message::WatermarkHere { epoch, region } => {
                self.lanes.watermark_here(lane, epoch, RegionId(region));
            }
            Message::ReadLog { token, epoch, raw, from, max_bytes } => {
                let question = Question { lane, token, epoch, raw, from, max_bytes };
                if !self.reads.ask(question, &self.replica, &mut self.lanes, &self.metrics) {
                    self.lanes.doom(lane, &"too many of its reads wait");
                }
            }
            Message::LogChunk { token, epoch, first, records, .. } => {
                self.chunk(lane, token, (epoch, first), records);
            }
            Message::State { token, epoch, request } => {
                self.state_request(lane, role, (token, epoch), &request);
            }
            Message::AskStatus => self.lanes.send(lane, &Message::Status(self.status())),
            Message::StateAnswer { token, reply } if role == PeerRole::Storage => {
                self.copied((lane, token), &reply);
            }
            Message::Append { .. }
            | Message::Report { .. }
            | Message::Follow { .. }
            | Message::AskTail { .. }
            | Message::Tail { .. }
            | Message::Refused { .. }
            | Message::Welcome { .. }
            | Message::Stream { .. }
            | Message::Seal { .. }
            | Message::Sealed { .. }
            | Message::Heartbeat { .. }
            | Message::Durable { .. }
            | Message::Confirmed { .. }
            | Message::Staging { .. }
            | Message::StateAnswer { .. }
            | Message::Status(_) => self.unexpected(lane, &message),
        }
    }

    /// This node is in an epoch that has these members.
    fn welcomed(&mut self, lane: LaneId, epoch: Epoch, members: Vec<NodeId>) {
        self.sequencer = Some(lane);
        if let Some(copy) = self.copying.under_way() {
            copy.welcome(epoch, &members, self.now);
        }
        if self.members != members {
            // Who was asked may have left, and have nothing any more.
            self.fetch = None;
        }
        self.members = members;
    }

    fn state_request(
        &mut self,
        lane: LaneId,
        role: PeerRole,
        asked: (u64, Epoch),
        request: &StateRequest<'_>,
    ) {
        if matches!(request, StateRequest::Scan { .. }) && role != PeerRole::Storage {
            return self.lanes.doom(lane, &"it asked for all of the state, and is no storage node");
        }
        self.note_promise();
        if let Err(why) = self.state.request(lane, asked, request, &mut self.lanes) {
            self.lanes.doom(lane, &why);
        }
    }

    fn status(&self) -> NodeStatus {
        let (epoch, durable) = self.replica.watermark().unwrap_or_default();
        let copied_bytes = self.metrics.copied_bytes.load(Ordering::Relaxed);
        let accepted = self.replica.log().accepted();
        let (promised, end) = (accepted.promised, accepted.end);
        NodeStatus { promised, end, epoch, durable, copied_bytes }
    }

    fn unexpected(&mut self, lane: LaneId, message: &Message<'_>) {
        let what = format!("{message:?}");
        let name = what.split([' ', '{']).next().unwrap_or_default();
        self.lanes.doom(lane, &format_args!("it sent {name}, which is not for it to send here"));
    }

    fn chunk(&mut self, lane: LaneId, token: u64, (epoch, first): (Epoch, SeqNum), records: &[u8]) {
        let Some(fetch) = self.fetch.as_mut().filter(|fetch| fetch.token == token) else { return };
        match self.replica.fetched(epoch, first, records) {
            Ok(StreamOutcome::Ignored) => fetch.fail(self.now),
            Ok(_) => {}
            Err(error) => {
                fetch.fail(self.now);
                self.lanes.doom(lane, &error);
            }
        }
    }
}
