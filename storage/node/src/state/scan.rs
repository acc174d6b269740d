//! The pages of a scan: all that is stored, by key, for a member that copies the state.
//!
//! What this node acknowledged before it promised the scan's epoch must be on the pages, because after
//! that promise nobody writes to the members of before any more, and whoever copies relies on having
//! heard of all that they held. So a page waits until the embedded engine has every write that was
//! accepted before the promise. Writes of the epoch itself need not be on any page: a quorum of the
//! new members has them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use halfmoon_transport::LaneId;
use halfmoon_wire::limits::{SCAN_ITEMS_MAX, SCAN_PAGE_BYTES};
use halfmoon_wire::{Epoch, StateReply, Stored, broken};

use crate::lanes::Lanes;
use crate::limits::SCANS_MAX;
use crate::state::answer::{Ask, What};
use crate::state::{Reading, State};

/// A key with its value, both as they are stored.
pub type Pair = (Arc<[u8]>, Arc<[u8]>);

/// Some of what an engine has, by key.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Page {
    /// Keys and values as they are stored, ascending. The last may be longer than a page.
    pub items: Vec<Pair>,
    /// Nothing comes after.
    pub end: bool,
}

impl Page {
    /// As much of the items as a page takes.
    ///
    /// # Errors
    /// The first that there is among the items.
    pub fn take<E>(items: impl IntoIterator<Item = Result<Pair, E>>) -> Result<Self, E> {
        let (mut page, mut bytes) = (Self::default(), 0);
        for item in items {
            if bytes >= SCAN_PAGE_BYTES || page.items.len() == SCAN_ITEMS_MAX {
                return Ok(page);
            }
            let (key, value) = item?;
            bytes += key.len() + value.len();
            page.items.push((key, value));
        }
        page.end = true;
        Ok(page)
    }
}

/// Scans under way.
#[derive(Default)]
pub(super) struct Scans {
    /// The promise is durable.
    promise_is_kept: bool,
    /// The entry accepted last before the promise.
    fence: u64,
    /// Questions for pages, until the engine has all up to the fence.
    waiting: VecDeque<Ask>,
    /// Long values of which a part was sent, until the rest is asked for.
    cut: BTreeMap<LaneId, Cut>,
}

/// A long value of which a part was sent.
struct Cut {
    /// The key before it.
    after: Arc<[u8]>,
    key: Arc<[u8]>,
    value: Arc<[u8]>,
}

impl Scans {
    pub(super) fn lane_down(&mut self, lane: LaneId) {
        self.waiting.retain(|ask| ask.lane != lane);
        self.cut.remove(&lane);
    }
}

impl<F: Clone> State<F> {
    /// The node has promised to this epoch, perhaps not durably yet. Whoever is still in an older one
    /// may know other members than those who hold the state by now: nothing of it is read or written
    /// here any more.
    pub(crate) fn promised(&mut self, epoch: Epoch, is_durable: bool) {
        if epoch > self.promised {
            self.scans.fence = self.log.accepted().end.0;
        }
        (self.promised, self.scans.promise_is_kept) = (epoch, is_durable);
    }

    /// A question for a page, of a peer that is in `epoch`.
    pub(super) fn scan(&mut self, ask: Ask, epoch: Epoch, offset: u32, lanes: &mut Lanes) {
        let is_promised = epoch <= self.promised && self.scans.promise_is_kept;
        if !is_promised {
            // Were it answered now, the node could still acknowledge writes of an epoch before.
            return ask.answer(StateReply::Failed("the epoch is not promised here yet"), lanes);
        }
        let What::Scan(after) = &ask.what else { return };
        let cut = self.scans.cut.remove(&ask.lane);
        if offset > 0 {
            let offset = offset as usize;
            let cut = cut.filter(|cut| cut.after == *after && offset < cut.value.len());
            return match cut {
                Some(cut) => self.go_on_with(cut, offset, &ask, lanes),
                None => ask.answer(StateReply::Failed("that value is to be begun anew"), lanes),
            };
        }
        if self.scans.waiting.len() >= SCANS_MAX {
            return ask.answer(StateReply::Failed("busy: too many scans"), lanes);
        }
        self.scans.waiting.push_back(ask);
        self.read_pages(lanes);
    }

    /// Asks the engine for pages, if it has all that was written before the promise.
    pub(super) fn read_pages(&mut self, lanes: &mut Lanes) {
        let has_all = self.applied >= self.scans.fence || self.has_caught_up();
        if !has_all && !broken!(ScanMissesOverlay) {
            return;
        }
        while let Some(ask) = self.scans.waiting.pop_front() {
            let What::Scan(after) = &ask.what else { continue };
            if self.reading.len() >= crate::limits::STATE_READS_MAX {
                ask.answer(StateReply::Failed("busy: too many reads"), lanes);
                continue;
            }
            self.last_read += 1;
            self.engine.scan(self.last_read, after.clone());
            let (applies, shadowed) = (self.applies, false);
            self.reading.insert(self.last_read, Reading { ask, applies, shadowed });
        }
    }

    /// The engine has answered with a page: of its last value so much is sent as there is room for.
    pub(super) fn page(&mut self, ask: &Ask, page: &Page, lanes: &mut Lanes) {
        let What::Scan(after) = &ask.what else { return };
        let (mut room, mut last) = (SCAN_PAGE_BYTES, after);
        let mut items = Vec::with_capacity(page.items.len());
        let mut end = page.end;
        for (key, value) in &page.items {
            room = room.saturating_sub(key.len());
            let bytes = &value[..value.len().min(room)];
            let stored = stored(key, value, bytes);
            if !stored.is_whole() {
                end = false;
                if bytes.is_empty() {
                    // It begins the next page.
                    break;
                }
                if lanes.get(ask.lane).is_some() {
                    let (after, key, value) = (last.clone(), key.clone(), value.clone());
                    self.scans.cut.insert(ask.lane, Cut { after, key, value });
                }
            }
            room -= bytes.len();
            last = key;
            items.push(stored);
        }
        ask.answer(StateReply::Page { items, end }, lanes);
    }

    fn go_on_with(&mut self, cut: Cut, offset: usize, ask: &Ask, lanes: &mut Lanes) {
        let room = SCAN_PAGE_BYTES - cut.key.len();
        let upto = cut.value.len().min(offset + room);
        let items = vec![stored(&cut.key, &cut.value, &cut.value[offset..upto])];
        ask.answer(StateReply::Page { items, end: false }, lanes);
        if upto < cut.value.len() {
            self.scans.cut.insert(ask.lane, cut);
        }
    }
}

fn stored<'a>(key: &'a [u8], value: &[u8], bytes: &'a [u8]) -> Stored<'a> {
    let total = u32::try_from(value.len()).unwrap_or(u32::MAX);
    Stored { key, total, bytes }
}
