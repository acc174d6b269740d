//! Blocks, and the writes to them that are under way.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use halfmoon_reactor::AlignedBuffer;
use halfmoon_storage::DiskDone;

use super::DiskCounts;
use crate::random::Random;

/// What is written and survives as a whole, in a good case.
const BLOCK: usize = 4096;
/// What a device writes at once: a block may tear between these.
const SECTOR: usize = 512;

type Block = Box<[u8]>;

/// A file: its blocks by number. One that was never written is zero.
#[derive(Default)]
pub(crate) struct File {
    blocks: BTreeMap<u64, Block>,
    /// What stood in blocks that are written and not durable yet.
    unsynced: BTreeMap<u64, Option<Block>>,
}

#[derive(Default)]
pub(crate) struct Platter {
    pub(super) files: Vec<File>,
    pub(super) flying: Vec<Op>,
    pub(super) done: VecDeque<DiskDone>,
}

/// An operation under way.
pub(crate) struct Op {
    pub(super) ready_at: u64,
    pub(super) serial: u64,
    pub(super) token: u64,
    pub(super) effect: Effect,
    pub(super) buffer: AlignedBuffer,
}

pub(crate) enum Effect {
    Write { file: usize, offset: u64, len: usize, durable: bool },
    Read { file: usize, offset: u64, len: usize },
}

/// What becomes of one block of a write that is under way when its node dies.
enum Fate {
    Old,
    New,
    Torn,
    Flipped,
    Elsewhere,
}

impl File {
    /// All blocks, whether written or not, as a file of `size` bytes.
    pub(super) fn read_whole(&self, size: usize, out: &mut Vec<u8>) {
        out.clear();
        out.resize(size, 0);
        for (number, block) in &self.blocks {
            let at = usize::try_from(*number).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            if let Some(place) = out.get_mut(at..at.saturating_add(BLOCK)) {
                place.copy_from_slice(block);
            }
        }
    }

    /// All that was written is durable.
    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
    }

    fn put(&mut self, number: u64, bytes: &[u8], durable: bool) {
        if durable {
            self.unsynced.remove(&number);
        } else if !self.unsynced.contains_key(&number) {
            self.unsynced.insert(number, self.blocks.get(&number).cloned());
        }
        match self.blocks.get_mut(&number) {
            Some(block) => block.copy_from_slice(bytes),
            None => drop(self.blocks.insert(number, bytes.into())),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        for (number, place) in (offset / BLOCK as u64..).zip(out.chunks_mut(BLOCK)) {
            match self.blocks.get(&number) {
                Some(block) => place.copy_from_slice(&block[..place.len()]),
                None => place.fill(0),
            }
        }
    }

    /// Of what was not durable, any blocks are as before.
    fn lose(&mut self, random: &mut Random, counts: &mut DiskCounts) {
        for (number, old) in std::mem::take(&mut self.unsynced) {
            if random.chance(500_000) {
                counts.lost += 1;
                match old {
                    Some(old) => drop(self.blocks.insert(number, old)),
                    None => drop(self.blocks.remove(&number)),
                }
            }
        }
    }
}

impl Platter {
    /// The operation that has been done for the longest.
    pub(super) fn next_ready(&mut self, now: u64) -> Option<Op> {
        let ready = self.flying.iter().enumerate().filter(|(_, op)| op.ready_at <= now);
        let (index, _) = ready.min_by_key(|(_, op)| (op.ready_at, op.serial))?;
        Some(self.flying.swap_remove(index))
    }

    pub(super) fn finish(&mut self, op: Op, fails: bool, random: &mut Random) -> DiskDone {
        let Op { token, effect, mut buffer, .. } = op;
        let result = match effect {
            Effect::Write { file, offset, len, durable } => {
                let short = fails && random.chance(300_000);
                let wanted = if short { len / 2 / BLOCK * BLOCK } else { len };
                let blocks = buffer.bytes()[..wanted].chunks(BLOCK);
                for (number, block) in (offset / BLOCK as u64..).zip(blocks) {
                    if !fails || short || random.chance(500_000) {
                        self.files[file].put(number, block, durable);
                    }
                }
                if fails && !short { Err(io::ErrorKind::Other.into()) } else { Ok(wanted) }
            }
            Effect::Read { file, offset, len } => {
                self.files[file].read(offset, &mut buffer.bytes_mut()[..len]);
                Ok(len)
            }
        };
        DiskDone { token, result, buffer }
    }

    /// The node is gone: what was under way is there in part. Without loss of power the device goes
    /// on with what it was given, so blocks are whole and in their place.
    pub(super) fn crash(&mut self, power: bool, random: &mut Random, counts: &mut DiskCounts) {
        self.done.clear();
        let mut flying = std::mem::take(&mut self.flying);
        flying.sort_by_key(|op| op.serial);
        for op in flying {
            let Effect::Write { file, offset, len, durable } = op.effect else { continue };
            // All, nothing, or some.
            let mood = random.below(4);
            let first = offset / BLOCK as u64;
            let count = (len / BLOCK) as u64;
            for (number, block) in (first..).zip(op.buffer.bytes()[..len].chunks(BLOCK)) {
                let fate = match mood {
                    0 => Fate::Old,
                    1 => Fate::New,
                    _ => fate(power, random),
                };
                let elsewhere = first + random.below(count.max(1));
                self.meet(file, number, block, (fate, elsewhere), durable && power, random, counts);
            }
        }
        if power {
            for file in &mut self.files {
                file.lose(random, counts);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one block and all that decides on it")]
    fn meet(
        &mut self,
        file: usize,
        number: u64,
        new: &[u8],
        (fate, elsewhere): (Fate, u64),
        durable: bool,
        random: &mut Random,
        counts: &mut DiskCounts,
    ) {
        let file = &mut self.files[file];
        match fate {
            Fate::Old => counts.lost += 1,
            Fate::New => file.put(number, new, durable),
            Fate::Torn => {
                counts.damaged += 1;
                let mut mixed = vec![0; BLOCK];
                file.read(number * BLOCK as u64, &mut mixed);
                for (old, new) in mixed.chunks_mut(SECTOR).zip(new.chunks(SECTOR)) {
                    if random.chance(500_000) {
                        old.copy_from_slice(new);
                    }
                }
                file.put(number, &mixed, durable);
            }
            Fate::Flipped => {
                counts.damaged += 1;
                let mut flipped = new.to_vec();
                flipped[random.index(BLOCK)] ^= 1 << random.below(8);
                file.put(number, &flipped, durable);
            }
            Fate::Elsewhere => {
                counts.damaged += 1;
                file.put(elsewhere, new, durable);
            }
        }
    }
}

fn fate(power: bool, random: &mut Random) -> Fate {
    match random.below(20) {
        0..8 => Fate::Old,
        17 if power => Fate::Torn,
        18 if power => Fate::Flipped,
        19 if power => Fate::Elsewhere,
        _ => Fate::New,
    }
}
