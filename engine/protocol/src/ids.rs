//! Ids that every attempt derives alike: 128 bits of BLAKE3 over a purpose and its parts.
//!
//! Callee ids and version ids contain the run, so runs that lose live in streams of their own.

use halfmoon_wire::{CellTuple, InstanceId, RunId, SeqNum, VersionId};

use crate::Object;

/// Table that holds large values which belong to an instance: inputs, results, side effects.
const INSTANCE_TABLE: &str = "halfmoon.instance";

struct Hasher(blake3::Hasher);

impl Hasher {
    fn new(purpose: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(purpose))
    }

    fn u64(mut self, part: u64) -> Self {
        self.0.update(&part.to_le_bytes());
        self
    }

    fn u128(mut self, part: u128) -> Self {
        self.0.update(&part.to_le_bytes());
        self
    }

    fn bytes(mut self, part: &[u8]) -> Self {
        self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
        self
    }

    fn id(self) -> u128 {
        let hash = self.0.finalize();
        hash.as_bytes().iter().take(16).rev().fold(0, |id, byte| id << 8 | u128::from(*byte))
    }
}

/// A root under a client's idempotency key.
#[must_use]
pub fn root(function: &str, key: &[u8]) -> InstanceId {
    InstanceId(Hasher::new("halfmoon root").bytes(function.as_bytes()).bytes(key).id())
}

/// The run of a root that starts at `cursor`, of this function, version and input. Attempts from
/// one cursor may differ in these (a key used twice, a deployment in between): they are runs of
/// their own, else they would share streams and version ids.
#[must_use]
pub fn run(
    root: InstanceId,
    cursor: SeqNum,
    function: &str,
    version: &[u8; 32],
    fingerprint: u128,
) -> RunId {
    let hasher = Hasher::new("halfmoon run").u128(root.0).u64(cursor.0);
    if broken!(RunWithoutInput) {
        return RunId(hasher.id());
    }
    RunId(hasher.bytes(function.as_bytes()).bytes(version).u128(fingerprint).id())
}

/// The one run of a detached root: it starts at the record that carries its Init.
#[must_use]
pub fn detached_run(root: InstanceId) -> RunId {
    RunId(Hasher::new("halfmoon detached run").u128(root.0).id())
}

/// A callee. `call` counts the calls that `caller` has *started*, in program order.
#[must_use]
pub fn callee(run: RunId, caller: InstanceId, call: u32) -> InstanceId {
    let hasher = Hasher::new("halfmoon callee").u128(run.0).u128(caller.0);
    InstanceId(hasher.u64(u64::from(call)).id())
}

fn of_step(purpose: &str, run: RunId, instance: InstanceId, step: u64) -> Hasher {
    let run = if broken!(VersionWithoutRun) { RunId(0) } else { run };
    Hasher::new(purpose).u128(run.0).u128(instance.0).u64(step)
}

/// The value that a step writes.
#[must_use]
pub fn version(run: RunId, instance: InstanceId, step: u64) -> VersionId {
    VersionId(of_step("halfmoon version", run, instance, step).id())
}

/// The value that a transaction writes to `object`, its body run at `cursor`.
#[must_use]
pub fn transaction_version(
    run: RunId,
    instance: InstanceId,
    step: u64,
    object: &Object,
    cursor: SeqNum,
) -> VersionId {
    let cursor = if broken!(TransactionVersionWithoutCursor) { SeqNum::ZERO } else { cursor };
    let hasher = of_step("halfmoon transaction", run, instance, step);
    let hasher = hasher.bytes(object.table.as_bytes()).bytes(&object.key);
    VersionId(hasher.u64(cursor.0).id())
}

/// A large value that a step read from a cell. Peers may read different cells at one step, so what
/// was read is in the name.
#[must_use]
pub fn read_version(run: RunId, instance: InstanceId, step: u64, tuple: CellTuple) -> VersionId {
    let tuple = if broken!(ReadVersionWithoutTuple) { CellTuple::default() } else { tuple };
    let hasher = of_step("halfmoon read", run, instance, step).u64(tuple.cursor.0);
    VersionId(hasher.u64(u64::from(tuple.counter)).u128(tuple.instance.0).id())
}

/// A large result of something that is not a function of the log: peers may get different ones at
/// one step, so a nonce is in the name.
#[must_use]
pub fn nonce_version(run: RunId, instance: InstanceId, step: u64, nonce: u128) -> VersionId {
    let nonce = if broken!(SideEffectVersionWithoutNonce) { 0 } else { nonce };
    VersionId(of_step("halfmoon nonce", run, instance, step).u128(nonce).id())
}

/// A large input. The run is named by its fingerprint, too.
#[must_use]
pub fn input_version(run: RunId) -> VersionId {
    VersionId(Hasher::new("halfmoon input").u128(run.0).id())
}

/// Where the state store keeps large values that belong to an instance.
#[must_use]
pub(crate) fn own_object(instance: InstanceId) -> Object {
    Object { table: INSTANCE_TABLE.to_owned(), key: instance.0.to_le_bytes().to_vec() }
}

/// Draw number `index` of an instance.
#[must_use]
pub(crate) fn draw(instance: InstanceId, index: u64) -> [u8; 32] {
    *Hasher::new("halfmoon draw").u128(instance.0).u64(index).0.finalize().as_bytes()
}
