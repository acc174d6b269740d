//! What comes back: ends of works, and notes.

use std::time::Instant;

use halfmoon_transport::regions::MAX_REGIONS;
use halfmoon_transport::{DownReason, Token};

use super::{ANSWERS_MAX, Link, NOTE_STRIDE, RECEIVE, Remote, reason};
use crate::note::{NOTE_BYTES, Note, Say};
use crate::verbs::NOTES_DEPTH;
use crate::work::Finished;

/// What the transport has to know of what came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The peer's first note.
    Hello,
    /// A write with a token is in the peer's memory.
    Completed(Token),
    /// The peer asks for a region.
    Where(u32),
    /// The peer writes to a withdrawn region no more.
    Left(u32),
    /// The link is of no use any more.
    Failed(DownReason),
}

impl Link {
    /// Takes note of an end.
    pub(crate) fn finished(&mut self, finished: Finished, news: &mut Vec<News>) {
        if let Some(failure) = finished.failure {
            return news.push(News::Failed(reason(failure)));
        }
        if finished.id & RECEIVE == 0 {
            return self.sent(finished.id);
        }
        let slot = (finished.id & !RECEIVE) as usize;
        let note = self.note_slot(slot).filter(|_| finished.len as usize == NOTE_BYTES);
        let Some(note) = note.as_ref().and_then(Note::parse) else {
            return news.push(News::Failed(DownReason::Corrupt));
        };
        let room = self.pair.receive(finished.id, &self.desk, slot * NOTE_STRIDE);
        if let Err(error) = room {
            return news.push(News::Failed(DownReason::Lost(error.kind())));
        }
        self.counts.notes_taken = self.counts.notes_taken.wrapping_add(1);
        if self.count(note, news).is_none() || self.is_overburdened() {
            return news.push(News::Failed(DownReason::Corrupt));
        }
        self.said(note.say, news);
    }

    /// The adapter has done this work, and all before it.
    fn sent(&mut self, id: u64) {
        while self.flights.front().is_some_and(|flight| flight.id <= id) {
            let Some(flight) = self.flights.pop_front() else { return };
            self.works -= flight.works;
            self.staging.give_back(flight.staged);
        }
        self.last_progress = Instant::now();
    }

    /// Notes that were taken, and for which the peer was not told that there is room again.
    pub(crate) fn untold(&self) -> u32 {
        self.counts.notes_taken.wrapping_sub(self.counts.told_taken)
    }

    /// Whether the peer asks for more than any that also listens: notes, answers and names would pile
    /// up. Their limits are named in the decision on what a peer can make a node hold.
    fn is_overburdened(&self) -> bool {
        self.untold() > NOTES_DEPTH
            || self.urgent.len() + self.answers > ANSWERS_MAX
            || self.remotes.len() > MAX_REGIONS
    }

    /// Takes the counts of a note; `None` if they cannot be.
    fn count(&mut self, note: Note, news: &mut Vec<News>) -> Option<()> {
        let counts = &mut self.counts;
        let returned = note.taken.wrapping_sub(counts.notes_returned);
        if returned > counts.notes_sent.wrapping_sub(counts.notes_returned) {
            return None;
        }
        counts.notes_returned = note.taken;
        if note.signalled < counts.their_signalled || note.placed > counts.signalled {
            return None;
        }
        counts.their_signalled = note.signalled;
        let placed = note.placed.checked_sub(counts.placed)?;
        counts.placed = note.placed;
        for _ in 0..placed {
            news.push(News::Completed(self.tokens.pop_front()?));
        }
        Some(())
    }

    fn said(&mut self, say: Say, news: &mut Vec<News>) {
        match say {
            Say::Writes => {}
            Say::Hello => news.push(News::Hello),
            Say::Exposed { address, len, .. } if address.checked_add(len).is_none() => {
                news.push(News::Failed(DownReason::Corrupt));
            }
            Say::Exposed { region, rkey, address, len } => {
                self.remotes.insert(region, Remote { address, len, rkey });
                self.answered(region);
            }
            Say::Withdrawn { region } => {
                self.remotes.remove(&region);
                self.push_note(Say::Left { region });
                self.answers += 1;
                if self.asked == Some(region) {
                    self.dropped = Some(region);
                }
                self.answered(region);
            }
            Say::Left { region } => news.push(News::Left(region)),
            Say::Where { region } => news.push(News::Where(region)),
            Say::Beyond { .. } => news.push(News::Failed(DownReason::OutOfBounds)),
        }
    }

    fn answered(&mut self, region: u32) {
        if self.asked == Some(region) {
            self.asked = None;
        }
    }
}
