//! Tables keyed by lane.

use crate::contract::LaneId;

/// Most lanes of one endpoint at once.
pub const MAX_LANES: usize = 1024;

/// Values by lane, in slots. A lane that has gone never finds its successor's value.
#[derive(Debug)]
pub struct LaneMap<T> {
    slots: Vec<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    /// The generation of the value, or of the next one that is added.
    generation: u32,
    value: Option<T>,
}

impl<T> LaneMap<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Adds a value under a lane of its own; `None` if there are [`MAX_LANES`] already.
    pub fn add(&mut self, value: T) -> Option<LaneId> {
        // A slot whose generations are used up is not used again.
        let free = self.slots.iter().position(|s| s.value.is_none() && s.generation < u32::MAX);
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < MAX_LANES => {
                self.slots.push(Slot { generation: 0, value: None });
                self.slots.len() - 1
            }
            None => return None,
        };
        let slot = &mut self.slots[index];
        slot.value = Some(value);
        Some(LaneId::new(u32::try_from(index).ok()?, slot.generation))
    }

    /// Keeps a value under a lane that another table has named. Returns the value of an earlier lane
    /// that is still in its slot: the other table knows that one no more.
    pub fn insert(&mut self, lane: LaneId, value: T) -> Option<(LaneId, T)> {
        while self.slots.len() <= lane.slot() && self.slots.len() < MAX_LANES {
            self.slots.push(Slot { generation: 0, value: None });
        }
        let slot = self.slots.get_mut(lane.slot())?;
        let new = Slot { generation: lane.generation(), value: Some(value) };
        let old = std::mem::replace(slot, new);
        let earlier = LaneId::new(u32::try_from(lane.slot()).ok()?, old.generation);
        old.value.map(|value| (earlier, value))
    }

    /// The value of a lane.
    pub fn get(&self, lane: LaneId) -> Option<&T> {
        let slot = self.slots.get(lane.slot())?;
        if slot.generation == lane.generation() { slot.value.as_ref() } else { None }
    }

    /// The value of a lane, to change it.
    pub fn get_mut(&mut self, lane: LaneId) -> Option<&mut T> {
        let slot = self.slots.get_mut(lane.slot())?;
        if slot.generation == lane.generation() { slot.value.as_mut() } else { None }
    }

    /// Takes the value of a lane out; the lane is never given again.
    pub fn remove(&mut self, lane: LaneId) -> Option<T> {
        let slot = self.slots.get_mut(lane.slot())?;
        if slot.generation != lane.generation() {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.saturating_add(1);
        Some(value)
    }

    /// How many slots there are: `lane_at` of every number below it covers all lanes.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The lane in a slot.
    pub fn lane_at(&self, slot: usize) -> Option<LaneId> {
        let found = self.slots.get(slot)?;
        found.value.as_ref()?;
        Some(LaneId::new(u32::try_from(slot).ok()?, found.generation))
    }

    /// All lanes, in the order of their slots.
    pub fn lanes(&self) -> impl Iterator<Item = LaneId> + '_ {
        (0..self.slots.len()).filter_map(|slot| self.lane_at(slot))
    }

    /// All lanes with their values, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (LaneId, &T)> {
        self.lanes().filter_map(|lane| Some((lane, self.get(lane)?)))
    }
}

impl<T> Default for LaneMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_has_gone_never_finds_its_successor() {
        let mut map = LaneMap::new();
        let first = map.add("first").unwrap();
        assert_eq!(map.remove(first), Some("first"));
        let second = map.add("second").unwrap();
        assert_eq!(first.slot(), second.slot());
        assert_eq!(map.get(first), None);
        assert_eq!(map.remove(first), None);
        assert_eq!(map.get(second), Some(&"second"));
        assert_eq!(map.lanes().collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn the_number_of_lanes_is_bounded() {
        let mut map = LaneMap::new();
        for _ in 0..MAX_LANES {
            map.add(()).unwrap();
        }
        assert_eq!(map.add(()), None);
    }
}
