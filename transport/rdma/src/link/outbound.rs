//! What leaves.

use std::io;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use halfmoon_transport::contract::MAX_WRITE_BYTES;
use halfmoon_transport::{PostError, RemoteSpan, Source, Token, memory};

use super::{
    DIRECT_BYTES, Flight, ITEM_BYTES, Item, Link, Load, PIECE_BYTES, QUEUE_BYTES, Queued,
    STAGING_AT,
};
use crate::note::{Note, Say};
use crate::verbs::{NOTES_DEPTH, Registration, SEND_DEPTH};
use crate::work::{What, Work};

/// Notes that only give room back may use the last one that the peer has room for, so that two sides
/// which both have much to say never wait for each other.
const RESERVED_NOTES: u32 = 1;

/// Room is given back when so many notes were taken.
const RETURN_AFTER: u32 = NOTES_DEPTH / 2;

/// What is to leave in one chain.
#[derive(Default)]
struct Chain {
    steps: Vec<Step>,
    sources: Vec<Rc<Registration>>,
    /// Whether a write came after the last note.
    open: bool,
}

enum Step {
    /// From `staging`, at this offset, or from the source of this index.
    Write {
        from: Option<usize>,
        offset: usize,
        len: usize,
        address: u64,
        rkey: u32,
    },
    Note(Note),
}

impl Link {
    /// Queues a write. `registered` is the registration of its source, if that is memory which has one.
    pub(crate) fn push_write(
        &mut self,
        to: RemoteSpan,
        source: Source<'_>,
        token: Option<Token>,
        registered: Option<Rc<Registration>>,
    ) -> Result<(), PostError> {
        if self.queued > QUEUE_BYTES {
            return Err(PostError::Full);
        }
        let len = source.len();
        if len > MAX_WRITE_BYTES {
            return Err(PostError::BadSource);
        }
        let load = match source {
            Source::Bytes { head, parts, tail } => {
                let all = std::iter::once(head).chain(parts.iter().copied()).chain([tail]);
                let since = self.staging.position();
                match self.stage_now(len) {
                    Some(at) => {
                        self.copy_to_staging(at, all);
                        if self.grows(to, len, at, token) {
                            return Ok(());
                        }
                        Load::Staged { at, since }
                    }
                    None => {
                        let mut bytes = Vec::with_capacity(len);
                        all.for_each(|part| bytes.extend_from_slice(part));
                        self.unstaged += 1;
                        Load::Bytes(bytes)
                    }
                }
            }
            Source::Memory { memory, offset, len } => {
                let offset =
                    memory::check(memory.words(), offset, len).map_err(|_| PostError::BadSource)?;
                match registered.filter(|_| len >= DIRECT_BYTES) {
                    Some(from) => Load::Registered { from, offset },
                    None => {
                        self.unstaged += 1;
                        Load::Memory { memory, offset }
                    }
                }
            }
        };
        self.push(Item::Write(Queued { to, len, done: 0, load, token }));
        self.tokens.extend(token);
        Ok(())
    }

    /// Queues a note after all writes that were queued before.
    pub(crate) fn push_note(&mut self, say: Say) {
        self.push(Item::Note(say));
    }

    /// Queues a note that does not wait for writes.
    pub(crate) fn push_urgent(&mut self, say: Say) {
        self.urgent.push_back(say);
    }

    pub(super) fn push(&mut self, item: Item) {
        self.queued += item.cost();
        self.queue.push_back(item);
    }

    /// Room in `staging` for bytes that are here now.
    fn stage_now(&mut self, len: usize) -> Option<usize> {
        if self.unstaged > 0 || len > PIECE_BYTES { None } else { self.staging.take(len) }
    }

    fn copy_to_staging<'a>(&self, at: usize, parts: impl Iterator<Item = &'a [u8]>) {
        let words = self.desk.memory().words();
        let mut at = (STAGING_AT + at) as u64;
        for part in parts {
            memory::copy_in(words, at, part).expect("the room was taken for these bytes");
            at += part.len() as u64;
        }
    }

    /// Makes a write one with the one before it, if it goes on where that ends on both sides.
    fn grows(&mut self, to: RemoteSpan, len: usize, at: usize, token: Option<Token>) -> bool {
        let Some(Item::Write(last)) = self.queue.back_mut() else { return false };
        let Load::Staged { at: begin, .. } = last.load else { return false };
        let goes_on = last.token.is_none()
            && token.is_none()
            && last.to.region == to.region
            && last.to.offset.checked_add(last.len as u64) == Some(to.offset)
            && begin + last.len == at
            && last.len + len <= PIECE_BYTES;
        if goes_on {
            last.len += len;
            self.queued += len;
        }
        goes_on
    }

    /// Hands all over that may leave.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut chain = Chain::default();
        while self.has_note_left(RESERVED_NOTES) && self.has_work_left(&chain) {
            let Some(say) = self.urgent.pop_front() else { break };
            self.note(&mut chain, say);
        }
        while self.asked.is_none()
            && self.has_note_left(RESERVED_NOTES)
            && self.has_work_left(&chain)
        {
            match self.queue.front() {
                Some(Item::Note(say)) => {
                    let say = *say;
                    self.pop();
                    self.note(&mut chain, say);
                }
                Some(Item::Write(_)) => {
                    if !self.write(&mut chain) {
                        break;
                    }
                }
                None => break,
            }
        }
        // The writes of the chain were allowed only while there was a note left to end them.
        let owes_room =
            self.counts.notes_taken.wrapping_sub(self.counts.told_taken) >= RETURN_AFTER;
        let owes_news = self.counts.their_signalled > self.counts.told_placed;
        let spare = self.has_work_left(&chain);
        let must = chain.open || owes_room && spare && self.has_note_left(0);
        if must || owes_news && spare && self.has_note_left(RESERVED_NOTES) {
            self.note(&mut chain, Say::Writes);
        }
        // A question that came up on the way.
        if self.has_note_left(RESERVED_NOTES)
            && self.has_work_left(&chain)
            && let Some(say) = self.urgent.pop_front()
        {
            self.note(&mut chain, say);
        }
        self.hand_over(chain)
    }

    /// Whether the peer has room for another note, besides so many.
    fn has_note_left(&self, besides: u32) -> bool {
        let under_way = self.counts.notes_sent.wrapping_sub(self.counts.notes_returned);
        under_way + besides < NOTES_DEPTH
    }

    /// Whether the adapter takes another work, and a note after it.
    fn has_work_left(&self, chain: &Chain) -> bool {
        self.works + chain.steps.len() + 2 <= SEND_DEPTH
    }

    fn pop(&mut self) {
        if let Some(item) = self.queue.pop_front() {
            self.queued = self.queued.saturating_sub(item.cost());
            if let Item::Write(gone) = &item {
                self.unstaged -= usize::from(gone.load.is_unstaged());
                self.counts.signalled += u64::from(gone.token.is_some());
            }
        }
    }

    fn note(&mut self, chain: &mut Chain, say: Say) {
        let counts = &mut self.counts;
        counts.notes_sent = counts.notes_sent.wrapping_add(1);
        counts.told_taken = counts.notes_taken;
        counts.told_placed = counts.their_signalled;
        let (taken, signalled, placed) =
            (counts.notes_taken, counts.signalled, counts.their_signalled);
        chain.steps.push(Step::Note(Note { say, taken, signalled, placed }));
        chain.open = false;
    }

    /// Adds the first of the queued writes, or a piece of it. `false`: it has to wait.
    fn write(&mut self, chain: &mut Chain) -> bool {
        let Some(Item::Write(first)) = self.queue.front_mut() else { return false };
        let region = first.to.region.0;
        let Some(remote) = self.remotes.get(&region).copied() else {
            if self.dropped == Some(region) {
                self.pop();
                // Its completion is told by a note, like those of all others.
                chain.open = true;
                return true;
            }
            self.asked = Some(region);
            self.urgent.push_back(Say::Where { region });
            return false;
        };
        let end = first.to.offset.checked_add(first.len as u64);
        if end.is_none_or(|end| end > remote.len) {
            // The peer takes the lane down, as it would if it had received the write.
            self.asked = Some(region);
            self.urgent.push_back(Say::Beyond { region });
            return false;
        }
        let left = first.len - first.done;
        let len = left.min(PIECE_BYTES);
        let address = remote.address + first.to.offset + first.done as u64;
        let rkey = remote.rkey;
        let step = match &first.load {
            Load::Staged { at, .. } => {
                let offset = STAGING_AT + at + first.done;
                Step::Write { from: None, offset, len, address, rkey }
            }
            Load::Registered { from, offset } => {
                let offset = offset + first.done;
                chain.sources.push(Rc::clone(from));
                let from = Some(chain.sources.len() - 1);
                Step::Write { from, offset, len, address, rkey }
            }
            Load::Bytes(_) | Load::Memory { .. } => {
                let least = len.min(DIRECT_BYTES);
                let len = len.min(self.staging.longest(least));
                if len < least {
                    return false;
                }
                let Some(at) = self.staging.take(len) else { return false };
                let offset = STAGING_AT + at;
                first.copy_to(self.desk.memory().words(), offset, len);
                first.done += len;
                self.left(chain, len, Step::Write { from: None, offset, len, address, rkey });
                return true;
            }
        };
        first.done += len;
        self.left(chain, len, step);
        true
    }

    /// A piece of the first write has left; the write is over with its last.
    fn left(&mut self, chain: &mut Chain, len: usize, step: Step) {
        chain.open = true;
        if len > 0 {
            chain.steps.push(step);
        }
        if matches!(self.queue.front(), Some(Item::Write(first)) if first.done >= first.len) {
            self.pop();
        }
    }

    fn hand_over(&mut self, chain: Chain) -> io::Result<()> {
        let count = chain.steps.len();
        if count == 0 {
            return Ok(());
        }
        let first_id = self.next_id;
        self.next_id += count as u64;
        let works: Vec<Work<'_>> = chain
            .steps
            .iter()
            .zip(first_id..)
            .map(|(step, id)| {
                let what = match step {
                    Step::Note(note) => What::Note(note.encode()),
                    Step::Write { from, offset, len, address, rkey } => What::Write {
                        from: from.map_or(&self.desk, |index| &chain.sources[index]),
                        offset: *offset,
                        len: *len,
                        address: *address,
                        rkey: *rkey,
                    },
                };
                Work { id, signalled: id + 1 == self.next_id, what }
            })
            .collect();
        self.pair.post(&works)?;
        drop(works);
        self.works += count;
        if self.flights.is_empty() {
            self.last_progress = Instant::now();
        }
        self.flights.push_back(Flight {
            id: self.next_id - 1,
            works: count,
            staged: self.staged_until(),
            _sources: chain.sources,
        });
        Ok(())
    }

    /// Up to where `staging` belongs to works that the adapter has: what is queued behind them has
    /// taken its room already.
    fn staged_until(&self) -> u64 {
        let since = |item: &Item| match item {
            Item::Write(Queued { load: Load::Staged { since, .. }, .. }) => Some(*since),
            Item::Write(_) | Item::Note(_) => None,
        };
        self.queue.iter().find_map(since).unwrap_or_else(|| self.staging.position())
    }
}

impl Item {
    fn cost(&self) -> usize {
        match self {
            Self::Note(_) => ITEM_BYTES,
            Self::Write(queued) => ITEM_BYTES + queued.len,
        }
    }
}

impl Load {
    const fn is_unstaged(&self) -> bool {
        matches!(self, Self::Bytes(_) | Self::Memory { .. })
    }
}

impl Queued {
    /// Copies its next `len` bytes, which are not in registered memory, to where they are.
    fn copy_to(&self, words: &[AtomicU64], at: usize, len: usize) {
        let copied = match &self.load {
            Load::Bytes(bytes) => {
                memory::copy_in(words, at as u64, &bytes[self.done..self.done + len])
            }
            Load::Memory { memory, offset } => {
                let mut bytes = Vec::with_capacity(len);
                let from = (offset + self.done) as u64;
                memory::append_out(memory.words(), from, len, &mut bytes)
                    .and_then(|()| memory::copy_in(words, at as u64, &bytes))
            }
            Load::Staged { .. } | Load::Registered { .. } => Ok(()),
        };
        copied.expect("the source was checked when it was posted, and the room was taken for it");
    }
}
