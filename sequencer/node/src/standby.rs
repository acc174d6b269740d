//! A sequencer that watches another one: whether that is still alive, and what it orders.
//!
//! - **Alive** is who sends heartbeats. They are sent by the loop that orders and by nothing else,
//!   so they end when that loop does, whatever else of the process goes on.
//! - **Silent** is who has sent none for the time of suspicion. A pause of this process counts for
//!   one step only: what it did not hear then may be waiting to be read.
//! - **Gone** is who cannot be reached any more: a lane that goes down is dialled again at once, and
//!   only who cannot be dialled either is gone. That takes no time where the system says so.
//!
//! - **Of use** is only who reaches a quorum of the storage nodes: one that does not never takes over.
//!
//! Whoever is suspected wrongly loses its epoch and nothing else: the compare-and-set, the promises
//! of the storage nodes and the epoch in every message keep one of two from doing harm.

mod learning;

use halfmoon_order::Learner;
use halfmoon_transport::LaneId;
use halfmoon_wire::{Epoch, NodeId, SeqNum};

use crate::host::{Scene, Watch};

/// Most silence that one turn adds, in ns: several times what a turn may take, so that only a pause
/// of this process, and not its usual pace, is cut.
const SILENCE_STEP_NS: u64 = 50_000_000;

/// Pause before it is looked again who is in charge, when nobody could be reached, in ns.
const LOOK_AGAIN_NS: u64 = 20_000_000;

/// The same, when the metadata store has failed, in ns.
const STORE_FAILED_NS: u64 = 200_000_000;

/// How often it is looked whether the one that is watched still is in charge, in ns.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

/// How long a storage node may take to give records of the log, in ns.
const CATCH_UP_PATIENCE_NS: u64 = 250_000_000;

/// Pause before another storage node is asked for them, in ns.
const CATCH_UP_PAUSE_NS: u64 = 5_000_000;

/// Records before the end of the log from which on the stream is followed. What lies further back is
/// read from storage, though the one in charge may have it: it has appends to order.
const FOLLOW_WITHIN: u64 = 4096;

/// Bytes of the log asked for at once. Whoever gives them has better things to do.
pub(crate) const CATCH_UP_BYTES: u32 = 128 * 1024;

/// After each such piece it rests for so many times what the piece took: on a small machine the
/// others, who are in the middle of a takeover perhaps, need the processors and the disks.
const CATCH_UP_RESTS: u64 = 3;

/// Longest such rest, in ns.
const CATCH_UP_REST_MAX_NS: u64 = 50_000_000;

#[derive(Debug)]
pub(crate) struct Standby {
    own: NodeId,
    suspect_ns: u64,
    scene: Scene,
    state: State,
    /// For how long the one that is watched has shown no life.
    silence_ns: u64,
    last_turn_ns: Option<u64>,
    /// Whether nobody else is waited for once the one in charge is gone.
    is_hasty: bool,
    /// Whether it was heard since it was dialled last.
    is_heard: bool,
    look_at_ns: u64,
    /// The metadata store is asked who is in charge, and has not answered.
    is_looking: bool,
    window_bytes: usize,
    learner: Learner,
    followed: Option<Followed>,
    catch_up: CatchUp,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// To be looked up at this time, in ns.
    Waiting(u64),
    /// The metadata store is asked who is in charge.
    Looking,
    /// To be dialled.
    Due,
    Dialling(LaneId),
    Watching(LaneId),
    /// The metadata store is asked for the next epoch.
    Taking,
}

/// The log that is learned.
#[derive(Clone, Copy, Debug)]
struct Followed {
    epoch: Epoch,
    /// The oldest position that its sequencer streams.
    window_start: SeqNum,
    /// The last position when it said so.
    tail: SeqNum,
}

/// Reading from storage what lies before that.
#[derive(Clone, Copy, Debug)]
struct CatchUp {
    token: u64,
    /// The node that is asked next, as an index.
    turn: usize,
    state: Asking,
}

#[derive(Clone, Copy, Debug)]
enum Asking {
    /// There is nothing to read.
    Nothing,
    /// At this time, in ns.
    At(u64),
    /// Asked on this lane, at this time, in ns.
    Asked(LaneId, u64),
}

/// What came of time passing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    Nothing,
    Look,
    /// The one in charge has shown no life for too long.
    Suspect,
}

/// A question for a storage node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Question {
    pub(crate) lane: LaneId,
    pub(crate) token: u64,
    pub(crate) epoch: Epoch,
    pub(crate) from: SeqNum,
}

impl Standby {
    pub(crate) fn new(own: NodeId, suspect_ms: u32, window_bytes: usize, is_patient: bool) -> Self {
        Self {
            own,
            suspect_ns: u64::from(suspect_ms) * 1_000_000,
            scene: Scene { epoch: Epoch(0), holder: None, members: Vec::new() },
            state: State::Waiting(0),
            silence_ns: 0,
            last_turn_ns: None,
            is_hasty: !is_patient,
            is_heard: false,
            look_at_ns: 0,
            is_looking: false,
            window_bytes,
            learner: Learner::new(window_bytes),
            followed: None,
            catch_up: CatchUp { token: 0, turn: 0, state: Asking::Nothing },
        }
    }

    /// The last epoch that it knows of.
    pub(crate) const fn epoch(&self) -> Epoch {
        self.scene.epoch
    }

    /// The lane to the one that is watched, also while it comes up.
    pub(crate) const fn lane(&self) -> Option<LaneId> {
        match self.state {
            State::Dialling(lane) | State::Watching(lane) => Some(lane),
            State::Waiting(_) | State::Looking | State::Due | State::Taking => None,
        }
    }

    pub(crate) fn is_watching(&self, lane: LaneId) -> bool {
        matches!(self.state, State::Watching(watched) if watched == lane)
    }

    /// Who is to be at the other end of the lane that is dialled.
    pub(crate) fn holder(&self) -> Option<NodeId> {
        self.scene.holder.as_ref().map(|(node, _)| *node)
    }

    pub(crate) const fn is_taking(&self) -> bool {
        matches!(self.state, State::Taking)
    }

    pub(crate) fn watch(&self) -> Watch {
        let watched = match self.state {
            State::Watching(_) => self.holder(),
            State::Waiting(_)
            | State::Looking
            | State::Due
            | State::Dialling(_)
            | State::Taking => None,
        };
        Watch { watched, learned: self.learner.end(), known: self.learner.known() }
    }

    /// What it has learned; it stands by no longer.
    pub(crate) fn into_learner(self) -> Learner {
        self.learner
    }

    /// Time passes. What has arrived meanwhile was taken before.
    pub(crate) fn pass(&mut self, now_ns: u64) -> Due {
        let passed = now_ns.saturating_sub(self.last_turn_ns.unwrap_or(now_ns));
        self.silence_ns += passed.min(SILENCE_STEP_NS);
        self.last_turn_ns = Some(now_ns);
        let is_silent = self.silence_ns >= self.suspect_ns;
        match self.state {
            State::Dialling(_) | State::Watching(_) if is_silent => Due::Suspect,
            State::Waiting(at) if at <= now_ns => {
                self.state = State::Looking;
                // The answer to an earlier question does as well.
                if std::mem::replace(&mut self.is_looking, true) { Due::Nothing } else { Due::Look }
            }
            State::Watching(_) if self.look_at_ns <= now_ns => {
                self.look_at_ns = now_ns.saturating_add(LOOK_EVERY_NS);
                if std::mem::replace(&mut self.is_looking, true) { Due::Nothing } else { Due::Look }
            }
            State::Waiting(_)
            | State::Looking
            | State::Due
            | State::Dialling(_)
            | State::Watching(_)
            | State::Taking => Due::Nothing,
        }
    }

    /// When there is something to do though nothing arrives, in ns.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        let last = self.last_turn_ns.unwrap_or(0);
        let silent = last.saturating_add(self.suspect_ns.saturating_sub(self.silence_ns));
        let state = match self.state {
            State::Waiting(at) => Some(at),
            State::Dialling(_) => Some(silent),
            State::Watching(_) => Some(silent.min(self.look_at_ns)),
            State::Due => Some(last),
            State::Looking | State::Taking => None,
        };
        let reading = match self.catch_up.state {
            Asking::At(at) => Some(at),
            Asking::Asked(_, at) => Some(at.saturating_add(CATCH_UP_PATIENCE_NS)),
            Asking::Nothing => None,
        };
        state.into_iter().chain(reading).min()
    }

    /// The metadata store has told who is in charge. Whether the lane that there was is of no more
    /// use, and whether this sequencer is to take over.
    pub(crate) fn looked(&mut self, now_ns: u64, scene: Scene) -> (Option<LaneId>, bool) {
        self.is_looking = false;
        let lane = self.lane();
        let is_later = scene.epoch > self.scene.epoch;
        let is_busy = lane.is_some() || self.is_taking();
        if is_busy && !is_later {
            return (None, false);
        }
        if is_later {
            // Whoever has taken this epoch gets its time to show life: until now nobody could tell
            // who was silent.
            self.silence_ns = 0;
        }
        if is_busy {
            // Somebody was faster.
            self.is_hasty = false;
        }
        self.scene = scene;
        self.unfollow();
        let reachable = matches!(&self.scene.holder, Some((node, Some(_))) if *node != self.own);
        if reachable {
            self.state = State::Due;
            return (lane, false);
        }
        (lane, self.gone(now_ns))
    }

    /// Where to dial, if it is time to.
    pub(crate) fn next_dial(&self) -> Option<&str> {
        match (&self.state, &self.scene.holder) {
            (State::Due, Some((_, Some(address)))) => Some(address),
            _ => None,
        }
    }

    pub(crate) const fn dialling(&mut self, lane: LaneId) {
        self.state = State::Dialling(lane);
    }

    /// The lane is up, to whom it was meant for.
    pub(crate) const fn up(&mut self, now_ns: u64, lane: LaneId) {
        self.state = State::Watching(lane);
        self.look_at_ns = now_ns.saturating_add(LOOK_EVERY_NS);
        self.is_heard = false;
    }

    /// The one in charge lives.
    pub(crate) const fn heard(&mut self, epoch: Epoch) {
        if epoch.0 >= self.scene.epoch.0 {
            self.scene.epoch = epoch;
            self.silence_ns = 0;
            self.is_hasty = true;
            self.is_heard = true;
        }
    }

    /// The lane to the one that is watched is down. Whether this sequencer is to take over.
    pub(crate) fn down(&mut self, now_ns: u64) -> bool {
        self.unfollow();
        match self.state {
            State::Watching(_) if self.is_heard => {
                self.state = State::Due;
                false
            }
            State::Watching(_) => {
                self.state = State::Waiting(now_ns.saturating_add(LOOK_AGAIN_NS));
                false
            }
            State::Waiting(_)
            | State::Looking
            | State::Due
            | State::Dialling(_)
            | State::Taking => self.gone(now_ns),
        }
    }

    /// Nobody is there to be watched. Whether this sequencer is to take over.
    pub(crate) fn gone(&mut self, now_ns: u64) -> bool {
        if self.is_hasty || self.silence_ns >= self.suspect_ns {
            return true;
        }
        self.state = State::Waiting(now_ns.saturating_add(LOOK_AGAIN_NS));
        false
    }

    /// This sequencer is of no use: it reaches no quorum. It looks again whether somebody else is.
    pub(crate) const fn hold(&mut self, now_ns: u64) {
        self.unfollow();
        self.state = State::Waiting(now_ns.saturating_add(LOOK_AGAIN_NS));
    }

    /// The next epoch is being taken.
    pub(crate) const fn taking(&mut self) {
        self.unfollow();
        self.state = State::Taking;
    }

    /// The metadata store has failed.
    pub(crate) const fn store_failed(&mut self, now_ns: u64) {
        self.is_looking = false;
        // It could not be told who is in charge, so nobody was silent.
        self.silence_ns = 0;
        if matches!(self.state, State::Looking | State::Taking) {
            self.state = State::Waiting(now_ns.saturating_add(STORE_FAILED_NS));
        }
    }

    const fn unfollow(&mut self) {
        self.followed = None;
        self.catch_up.state = Asking::Nothing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// One that watches sequencer 10, which holds epoch 5, on this lane.
    fn watching(lane: LaneId) -> Standby {
        let mut standby = Standby::new(NodeId(11), 250, 0, true);
        let holder = Some((NodeId(10), Some("somewhere".to_owned())));
        assert_eq!(standby.pass(0), Due::Look);
        standby.looked(0, Scene { epoch: Epoch(5), holder, members: vec![] });
        assert_eq!(standby.next_dial(), Some("somewhere"));
        standby.dialling(lane);
        standby.up(0, lane);
        standby
    }

    #[test]
    fn only_heartbeats_of_the_epoch_that_it_watches_or_of_a_later_one_are_signs_of_life() {
        for (epoch, expected) in [(4, Due::Suspect), (5, Due::Nothing), (6, Due::Nothing)] {
            let mut standby = watching(LaneId::from_raw(1));
            for ms in (0..260).step_by(10) {
                standby.heard(Epoch(epoch));
                let due = standby.pass(ms * MS);
                assert!(due == Due::Nothing || ms >= 250, "{ms}");
            }
            assert_eq!(standby.pass(260 * MS), expected, "epoch {epoch}");
        }
    }
}
