//! Tags: 64-bit hashes of typed names. Two names may share a tag, so records carry the full name
//! and readers compare it.

use crate::{InstanceId, RunId, Tag};

/// What a tag names. The kind is part of what is hashed, so streams of different kinds never meet
/// on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    Step = 1,
    Init = 2,
    Object = 3,
    Intent = 4,
    Transition = 5,
    Cancel = 6,
    Promise = 7,
    Registry = 8,
}

fn hash(kind: Kind, name: &[u8]) -> Tag {
    Tag(xxhash_rust::xxh3::xxh3_64_with_seed(name, kind as u64))
}

/// The steps of an instance.
#[must_use]
pub fn step(instance: InstanceId) -> Tag {
    hash(Kind::Step, &instance.0.to_le_bytes())
}

/// The Init of a run: at most one record.
#[must_use]
pub fn init(run: RunId) -> Tag {
    hash(Kind::Init, &run.0.to_le_bytes())
}

/// The write records of an object.
#[must_use]
pub fn object(table: &str, key: &[u8]) -> Tag {
    let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(Kind::Object as u64);
    hasher.update(&(table.len() as u64).to_le_bytes());
    hasher.update(table.as_bytes());
    hasher.update(key);
    Tag(hasher.digest())
}

/// Every Init of a root and its Finish: what a take-over scans.
#[must_use]
pub fn intent() -> Tag {
    hash(Kind::Intent, b"")
}

/// The protocol changes of a table.
#[must_use]
pub fn transition(table: &str) -> Tag {
    hash(Kind::Transition, table.as_bytes())
}

/// Requests to cancel a root.
#[must_use]
pub fn cancel(root: InstanceId) -> Tag {
    hash(Kind::Cancel, &root.0.to_le_bytes())
}

/// A promise, resolved at position 0.
#[must_use]
pub fn promise(name: &[u8]) -> Tag {
    hash(Kind::Promise, name)
}

/// Deployments: which functions and tables exist, in which version.
#[must_use]
pub fn registry() -> Tag {
    hash(Kind::Registry, b"")
}
