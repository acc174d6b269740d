//! What a standby takes in of the log that it watches.

use halfmoon_order::{LearnError, Learner};
use halfmoon_transport::LaneId;
use halfmoon_wire::{Epoch, EpochStart, SeqNum};

use super::{
    Asking, CATCH_UP_PATIENCE_NS, CATCH_UP_PAUSE_NS, CATCH_UP_REST_MAX_NS, CATCH_UP_RESTS,
    FOLLOW_WITHIN, Followed, Question, Standby,
};

impl Standby {
    /// The sequencer that is watched has told which log it orders. Where its stream is to begin, if
    /// it can begin now: what lies before its window is read from storage first.
    pub(crate) fn welcomed(
        &mut self,
        now_ns: u64,
        epoch: Epoch,
        (history, tail): (&[EpochStart], SeqNum),
        window_start: SeqNum,
    ) -> Option<SeqNum> {
        if epoch < self.epoch() {
            return None;
        }
        self.heard(epoch);
        self.learner.agree(history, tail);
        self.followed = Some(Followed { epoch, window_start, tail });
        self.go_on(now_ns)
    }

    /// Records of its stream. `None`: they are of another log, or do not continue this one.
    pub(crate) fn streamed(
        &mut self,
        epoch: Epoch,
        first: SeqNum,
        records: &[u8],
    ) -> Option<Result<(), LearnError>> {
        let is_next = first <= self.learner.end().next();
        let is_of_it = self.followed.is_some_and(|followed| followed.epoch == epoch);
        (is_of_it && is_next).then(|| self.take(records))
    }

    /// The log is committed up to here.
    pub(crate) fn committed(&mut self, epoch: Epoch, up_to: SeqNum) -> Result<(), LearnError> {
        match self.followed {
            Some(followed) if followed.epoch == epoch => self.learner.committed(up_to),
            Some(_) | None => Ok(()),
        }
    }

    /// Records from storage. Where the stream is to begin, if it can begin now.
    pub(crate) fn read(
        &mut self,
        now_ns: u64,
        (token, epoch): (u64, Epoch),
        records: &[u8],
    ) -> Result<Option<SeqNum>, LearnError> {
        let Asking::Asked(_, asked_ns) = self.catch_up.state else { return Ok(None) };
        let is_of_it = self.followed.is_some_and(|followed| followed.epoch == epoch);
        if token != self.catch_up.token || !is_of_it {
            return Ok(None);
        }
        if records.is_empty() {
            self.ask_another(now_ns);
            // Rather from the one in charge than not at all.
            return Ok(self.streamable());
        }
        self.take(records)?;
        let took_ns = now_ns.saturating_sub(asked_ns);
        let rest_ns = took_ns.saturating_mul(CATCH_UP_RESTS).min(CATCH_UP_REST_MAX_NS);
        Ok(self.go_on(now_ns.saturating_add(rest_ns)))
    }

    /// The next question for storage, if one is due; `lanes` are those that are up.
    pub(crate) fn next_question(&mut self, now_ns: u64, lanes: &[LaneId]) -> Option<Question> {
        match self.catch_up.state {
            Asking::Asked(lane, at)
                if at.saturating_add(CATCH_UP_PATIENCE_NS) <= now_ns || !lanes.contains(&lane) =>
            {
                self.ask_another(now_ns);
                return None;
            }
            Asking::At(at) if at <= now_ns => {}
            Asking::At(_) | Asking::Asked(..) | Asking::Nothing => return None,
        }
        let epoch = self.followed?.epoch;
        let Some(lane) = lanes.get(self.catch_up.turn % lanes.len().max(1)).copied() else {
            self.ask_another(now_ns);
            return None;
        };
        self.catch_up.token += 1;
        self.catch_up.state = Asking::Asked(lane, now_ns);
        let (token, from) = (self.catch_up.token, self.learner.end().next());
        Some(Question { lane, token, epoch, from })
    }

    fn take(&mut self, records: &[u8]) -> Result<(), LearnError> {
        let taken = self.learner.extend(records);
        if taken.is_err() {
            // Another attempt begins anew: by then the log may be told better.
            self.learner = Learner::new(self.window_bytes);
            self.followed = None;
            self.catch_up.state = Asking::Nothing;
        }
        taken
    }

    /// Where the stream is to begin; or it is read on, at that time.
    fn go_on(&mut self, at_ns: u64) -> Option<SeqNum> {
        let is_near = self.learner.end().0.saturating_add(FOLLOW_WITHIN) >= self.followed?.tail.0;
        if is_near && let Some(from) = self.streamable() {
            return Some(from);
        }
        self.catch_up.state = Asking::At(at_ns);
        None
    }

    /// Where the stream is to begin, if the one in charge has that; then nothing is read any more.
    fn streamable(&mut self) -> Option<SeqNum> {
        let from = self.learner.end().next();
        let is_there = from >= self.followed?.window_start;
        if is_there {
            self.catch_up.state = Asking::Nothing;
        }
        is_there.then_some(from)
    }

    fn ask_another(&mut self, now_ns: u64) {
        self.catch_up.turn = self.catch_up.turn.wrapping_add(1);
        self.catch_up.state = Asking::At(now_ns.saturating_add(CATCH_UP_PAUSE_NS));
    }
}
