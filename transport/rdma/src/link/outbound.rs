//! What leaves.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use halfmoon_transport::contract::MAX_WRITE_BYTES;
use halfmoon_transport::memory::WORD;
use halfmoon_transport::{HeapMemory, Memory as _, PostError, RemoteSpan, Source, Token, memory};

use super::{
    DIRECT_BYTES, Flight, ITEM_BYTES, Item, Link, Load, PIECE_BYTES, QUEUE_BYTES, Queued,
    STAGING_AT, TOLD_BYTES,
};
use crate::note::{NOTE_BYTES, Note, Say};
use crate::verbs::{Device, NOTES_DEPTH, Reach, Registration, SEND_DEPTH};
use crate::work::{What, Work};

/// Notes that only give room back may use the last one that the peer has room for, so that two sides
/// which both have much to say never wait for each other.
const RESERVED_NOTES: u32 = 1;

/// Room is given back when so many notes were taken.
const RETURN_AFTER: u32 = NOTES_DEPTH / 2;

/// What is to leave in one chain.
#[derive(Default)]
pub(super) struct Chain {
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
    Note([u8; NOTE_BYTES]),
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

    /// Has what is queued hold none of these registrations: what it is to send from there is copied. What
    /// the adapter has already is done, or given up, in a few seconds.
    pub(crate) fn release(
        &mut self,
        registrations: &[Rc<Registration>],
        device: &Rc<Device>,
    ) -> io::Result<()> {
        for item in &mut self.queue {
            if let Item::Write(Queued { load: Load::Registered { from, offset }, len, .. }) = item
                && registrations.iter().any(|gone| Rc::ptr_eq(gone, from))
            {
                let copy = Arc::new(HeapMemory::new(*len));
                let mut bytes = Vec::with_capacity(*len);
                memory::append_out(from.memory().words(), *offset as u64, *len, &mut bytes)
                    .and_then(|()| memory::copy_in(copy.words(), 0, &bytes))
                    .map_err(io::Error::other)?;
                *from = Rc::new(Registration::new(device, copy, Reach::Local)?);
                *offset = 0;
            }
        }
        Ok(())
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
        let mut chain = std::mem::take(&mut self.chain);
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
        let owes_room = self.untold() >= RETURN_AFTER;
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
        let handed_over = self.hand_over(&mut chain);
        chain.steps.clear();
        chain.sources.clear();
        self.chain = chain;
        handed_over
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
            match &item {
                Item::Write(gone) => {
                    self.unstaged -= usize::from(gone.load.is_unstaged());
                    self.counts.signalled += u64::from(gone.token.is_some());
                }
                Item::Note(Say::Left { .. }) => self.answers -= 1,
                Item::Note(_) => {}
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
        chain.steps.push(Step::Note(Note { say, taken, signalled, placed }.encode()));
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
        let address = remote.address + first.to.offset + first.done as u64;
        let len = piece(address, left, PIECE_BYTES);
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
                let room = self.staging.longest(least);
                if room < least {
                    return false;
                }
                let len = piece(address, len, room);
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

    fn hand_over(&mut self, chain: &mut Chain) -> io::Result<()> {
        let count = chain.steps.len();
        if count == 0 {
            return Ok(());
        }
        let first_id = self.next_id;
        self.next_id += count as u64;
        let (desk, sources) = (&self.desk, &chain.sources);
        let works = ends_told(chain.steps.iter().map(Step::len))
            .zip(&chain.steps)
            .zip(first_id..)
            .map(|((signalled, step), id)| {
                let what = match step {
                    Step::Note(bytes) => What::Note(bytes),
                    Step::Write { from, offset, len, address, rkey } => What::Write {
                        from: from.map_or(desk, |index| &sources[index]),
                        offset: *offset,
                        len: *len,
                        address: *address,
                        rkey: *rkey,
                    },
                };
                Work { id, signalled, what }
            });
        self.pair.post(works)?;
        self.works += count;
        if self.flights.is_empty() {
            self.last_progress = Instant::now();
        }
        let (staged, mut begin) = (self.staged_until(), first_id);
        let ends = ends_told(chain.steps.iter().map(Step::len));
        for (id, _) in (first_id..).zip(ends).filter(|(_, told)| *told) {
            let works = usize::try_from(id + 1 - begin).unwrap_or(count);
            begin = id + 1;
            self.flights.push_back(Flight { id, works, staged: 0, _sources: Vec::new() });
        }
        // What the chain holds is given back with its last work.
        if let Some(last) = self.flights.back_mut() {
            (last.staged, last._sources) = (staged, std::mem::take(&mut chain.sources));
        }
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

impl Step {
    const fn len(&self) -> usize {
        match self {
            Self::Write { len, .. } => *len,
            Self::Note(_) => 0,
        }
    }
}

/// Which of the works of a chain, of these lengths, have their end told: the last, and others so that
/// no more than [`TOLD_BYTES`] come between.
fn ends_told(lens: impl ExactSizeIterator<Item = usize>) -> impl Iterator<Item = bool> {
    let (count, mut since) = (lens.len(), 0);
    lens.enumerate().map(move |(index, len)| {
        since += len;
        let told = index + 1 == count || since >= TOLD_BYTES;
        if told {
            since = 0;
        }
        told
    })
}

/// How long the next piece is of a write of which `left` bytes go to `address` on, if it may have
/// `most`. Only the last may end within a word: an adapter writes a word of eight bytes whole only if
/// all of it is in one piece.
fn piece(address: u64, left: usize, most: usize) -> usize {
    if left <= most {
        return left;
    }
    let beyond = usize::try_from((address + most as u64) % WORD as u64).unwrap_or(0);
    if beyond < most { most - beyond } else { most }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_but_the_last_ends_within_a_word_of_the_target() {
        for (address, len, most) in
            [(4096, 1 << 20, 256 << 10), (4099, 1 << 20, 16 << 10), (7, 90, 33)]
        {
            let (mut done, mut ends) = (0, Vec::new());
            while done < len {
                let piece = piece(address + done as u64, len - done, most);
                assert!(piece > 0 && piece <= most);
                done += piece;
                ends.push(address + done as u64);
            }
            assert_eq!((done, ends.pop()), (len, Some(address + len as u64)));
            assert!(ends.iter().all(|end| end.is_multiple_of(8)), "{ends:?}");
        }
    }

    #[test]
    fn a_long_chain_tells_on_the_way_what_is_done() {
        let pieces = 4 * TOLD_BYTES / PIECE_BYTES;
        let told = ends_told([PIECE_BYTES; 4 * TOLD_BYTES / PIECE_BYTES].into_iter());
        let told: Vec<bool> = told.collect();
        let ends: Vec<usize> = (0..pieces).filter(|index| told[*index]).collect();
        let apart = TOLD_BYTES / PIECE_BYTES;
        assert_eq!(ends, [apart - 1, 2 * apart - 1, 3 * apart - 1, pieces - 1]);
        assert!(ends_told([8, 8, 0].into_iter()).eq([false, false, true]));
    }
}
