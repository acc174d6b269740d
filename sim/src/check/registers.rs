//! The state store: a cell is a register that only grows, and a version is there for ever.

use std::rc::Rc;

use halfmoon_wire::{CellTuple, VersionId};
use rustc_hash::FxHashMap;

use super::Judge;
use crate::shared::Shared;

const CELL: &str = "a cell read returns nothing older than what was written or read before it";
const VERSION: &str = "a version that was put is read as it was put";

/// What is known of cells and versions.
pub struct Registers {
    shared: Rc<Shared>,
    judge: Judge,
    cells: FxHashMap<Vec<u8>, Register>,
    versions: FxHashMap<VersionId, Version>,
    operations: u64,
}

#[derive(Default)]
struct Register {
    /// Every write that was begun.
    begun: FxHashMap<CellTuple, Vec<u8>>,
    /// The largest tuple that a write which has ended bore, or a read has returned.
    least: Option<CellTuple>,
}

struct Version {
    value: Vec<u8>,
    is_there: bool,
}

impl Registers {
    /// Nothing was written.
    #[must_use]
    pub fn new(shared: Rc<Shared>, judge: Judge) -> Self {
        let (cells, versions) = (FxHashMap::default(), FxHashMap::default());
        Self { shared, judge, cells, versions, operations: 0 }
    }

    /// Operations so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// A write of a cell begins.
    pub fn put_begins(&mut self, key: &[u8], tuple: CellTuple, value: &[u8]) {
        self.operations += 1;
        self.cell(key).begun.insert(tuple, value.to_vec());
    }

    /// It has ended.
    pub fn put_ends(&mut self, key: &[u8], tuple: CellTuple) {
        let cell = self.cell(key);
        cell.least = cell.least.max(Some(tuple));
    }

    /// The least that a read which begins now may return.
    pub fn get_begins(&mut self, key: &[u8]) -> Option<CellTuple> {
        self.operations += 1;
        self.cell(key).least
    }

    /// It has returned this.
    pub fn get_ends(
        &mut self,
        key: &[u8],
        least: Option<CellTuple>,
        found: Option<(CellTuple, &[u8])>,
    ) {
        let tuple = found.map(|(tuple, _)| tuple);
        let (judge, now) = (self.judge.clone(), self.shared.now());
        let cell = self.cell(key);
        if tuple < least {
            judge.object(now, CELL, format!("{tuple:?} is read, after {least:?}"));
        }
        if let Some((tuple, value)) = found
            && cell.begun.get(&tuple).is_none_or(|written| written != value)
        {
            judge.object(now, CELL, format!("{tuple:?} is read with a value that nobody wrote"));
        }
        cell.least = cell.least.max(tuple);
    }

    /// A version is about to be put.
    pub fn version_begins(&mut self, id: VersionId, value: &[u8]) {
        self.operations += 1;
        self.versions.insert(id, Version { value: value.to_vec(), is_there: false });
    }

    /// It is durable.
    pub fn version_ends(&mut self, id: VersionId) {
        if let Some(version) = self.versions.get_mut(&id) {
            version.is_there = true;
        }
    }

    /// Whether a version has to be there from now on.
    #[must_use]
    pub fn is_there(&self, id: VersionId) -> bool {
        self.versions.get(&id).is_some_and(|version| version.is_there)
    }

    /// A version was read; `was_there` is what [`Self::is_there`] said before.
    pub fn version_read(&mut self, id: VersionId, was_there: bool, found: Option<&[u8]>) {
        self.operations += 1;
        let right = match (self.versions.get(&id), found) {
            (Some(version), Some(found)) => version.value == found,
            (_, None) => !was_there,
            (None, Some(_)) => false,
        };
        if !right {
            self.judge.object(self.shared.now(), VERSION, format!("{id} is read as {found:?}"));
        }
    }

    fn cell(&mut self, key: &[u8]) -> &mut Register {
        if !self.cells.contains_key(key) {
            self.cells.insert(key.to_vec(), Register::default());
        }
        self.cells.entry(key.to_vec()).or_default()
    }
}
