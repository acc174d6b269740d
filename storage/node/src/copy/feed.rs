//! What one peer has sent of its state and is not merged yet.

use std::collections::VecDeque;
use std::sync::Arc;

use halfmoon_wire::limits::SCAN_PAGE_BYTES;
use halfmoon_wire::{StateRequest, Stored};

use crate::state::{Item, Pair};

/// A page that no scan of a state store gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PageError {
    #[error("a page of its state holds what no version of this code has written")]
    Unknown,
    #[error("a page of its state does not go on where the one before ended")]
    Order,
    #[error("a page of its state has nothing, and more is to come")]
    Nothing,
}

/// A peer's state, page by page.
#[derive(Debug)]
pub(super) struct Feed {
    pairs: VecDeque<Pair>,
    bytes: usize,
    /// The last key that came with all of its value.
    last: Arc<[u8]>,
    /// The value after it, as far as it came.
    cut: Option<Cut>,
    end: bool,
}

#[derive(Debug)]
struct Cut {
    key: Arc<[u8]>,
    total: u32,
    value: Vec<u8>,
}

impl Feed {
    /// Begins after this key.
    pub(super) fn after(key: Arc<[u8]>) -> Self {
        Self { pairs: VecDeque::new(), bytes: 0, last: key, cut: None, end: false }
    }

    /// What to ask for next, unless enough is here or nothing more comes.
    pub(super) fn wants(&self) -> Option<StateRequest<'_>> {
        if self.end || (self.cut.is_none() && self.bytes >= SCAN_PAGE_BYTES) {
            return None;
        }
        let have = self.cut.as_ref().map_or(0, |cut| cut.value.len());
        let offset = u32::try_from(have).unwrap_or(u32::MAX);
        Some(StateRequest::Scan { after: &self.last, offset })
    }

    /// Takes the page that was asked for. Returns its bytes.
    pub(super) fn take(&mut self, items: &[Stored<'_>], end: bool) -> Result<usize, PageError> {
        let is_empty = |item: &Stored<'_>| item.bytes.is_empty() && !item.is_whole();
        if (items.is_empty() && !end) || items.iter().any(is_empty) {
            return Err(PageError::Nothing);
        }
        let mut bytes = 0;
        for item in items {
            bytes += item.key.len() + item.bytes.len();
            let begun = self.cut.take();
            if begun.is_none() && *item.key <= *self.last {
                return Err(PageError::Order);
            }
            self.take_item(begun, item)?;
        }
        if end && self.cut.is_some() {
            return Err(PageError::Order);
        }
        self.end = end;
        Ok(bytes)
    }

    /// The value that was cut is to be begun anew.
    pub(super) fn forget_cut(&mut self) {
        self.cut = None;
    }

    /// The next key with its value.
    pub(super) fn front(&self) -> Option<&Pair> {
        self.pairs.front()
    }

    pub(super) fn pop(&mut self) -> Option<Pair> {
        let (key, value) = self.pairs.pop_front()?;
        self.bytes -= key.len() + value.len();
        Some((key, value))
    }

    /// All that the peer has is merged.
    pub(super) fn is_over(&self) -> bool {
        self.end && self.pairs.is_empty()
    }

    fn take_item(&mut self, begun: Option<Cut>, item: &Stored<'_>) -> Result<(), PageError> {
        let (key, mut value) = match begun {
            Some(cut) if *cut.key != *item.key || cut.total != item.total => {
                return Err(PageError::Order);
            }
            Some(cut) => (cut.key, cut.value),
            None => (item.key.into(), Vec::new()),
        };
        value.extend_from_slice(item.bytes);
        let (have, total) = (value.len(), item.total as usize);
        if have < total {
            self.cut = Some(Cut { key, total: item.total, value });
            return Ok(());
        }
        if have > total {
            return Err(PageError::Order);
        }
        if Item::parse(&key, &value).is_none() {
            return Err(PageError::Unknown);
        }
        self.bytes += key.len() + have;
        self.last = key.clone();
        self.pairs.push_back((key, value.into()));
        Ok(())
    }
}
