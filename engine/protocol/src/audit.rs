//! What the steps in a log must be, checked record by record by somebody who had no part in it.

use std::collections::{BTreeMap, BTreeSet};

use halfmoon_wire::{InstanceId, RecordRef, RunId, SeqNum, Tag, VersionId, tag};
use thiserror::Error;

use crate::payload::{Body, Entry, Init, Stored};
use crate::{Object, ids};

/// Reads the records of engines, from a log's first on.
///
/// Its memory grows with the instances in the log.
#[derive(Debug, Default)]
pub struct StepAudit {
    /// The Init of each root.
    roots: BTreeMap<InstanceId, Root>,
    /// Which root has the Init of a run.
    runs: BTreeMap<RunId, InstanceId>,
    /// Roots that somebody asked to be cancelled, before or after their Init.
    cancelled: BTreeSet<InstanceId>,
    instances: BTreeMap<InstanceId, Instance>,
    counts: StepCounts,
}

#[derive(Clone, Copy, Debug)]
struct Root {
    init: SeqNum,
    finished: bool,
}

#[derive(Clone, Copy, Debug)]
struct Instance {
    run: RunId,
    finished: bool,
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StepCounts {
    /// Roots with an Init.
    pub roots: u64,
    /// Of these, without a Finish.
    pub unfinished: u64,
    /// Instances with steps, roots among them.
    pub instances: u64,
    /// Steps.
    pub steps: u64,
    /// Values that lie in the state store.
    pub stored_values: u64,
}

/// What is wrong with a record.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum StepFlaw {
    /// It is not what this program writes.
    #[error("its payload does not parse: {0}")]
    Payload(#[from] halfmoon_wire::DecodeError),
    /// A record belongs to the stream of its instance's steps, and to that of what it is about.
    #[error("{kind} of {instance} lacks a tag that such a record has")]
    MissingTag {
        /// Its kind.
        kind: &'static str,
        /// Whose it is.
        instance: InstanceId,
    },
    /// A root has one Init, at the head of its steps.
    #[error("root {root} has an Init at position {position} of its steps")]
    MisplacedInit {
        /// The root.
        root: InstanceId,
        /// Where.
        position: u64,
    },
    /// No effect of a tree comes before its Init.
    #[error("{kind} of {instance} comes before an Init of its run")]
    BeforeInit {
        /// Its kind.
        kind: &'static str,
        /// Whose it is.
        instance: InstanceId,
    },
    /// All records of an instance are of one run.
    #[error("{kind} of {instance} is of another run than the records before it")]
    ForeignRun {
        /// Its kind.
        kind: &'static str,
        /// Whose it is.
        instance: InstanceId,
    },
    /// Nothing of an instance comes after its end.
    #[error("{kind} of {instance} comes after its end")]
    AfterFinish {
        /// Its kind.
        kind: &'static str,
        /// Whose it is.
        instance: InstanceId,
    },
    /// No step of a tree comes after a request to cancel it.
    #[error("{kind} of {instance} comes after the request to cancel its root")]
    AfterCancel {
        /// Its kind.
        kind: &'static str,
        /// Whose it is.
        instance: InstanceId,
    },
}

/// Where a value lies in the state store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredValue {
    /// Of which object.
    pub object: Object,
    /// Under which name.
    pub version: VersionId,
}

impl StepAudit {
    /// Looks at the next record of an engine. `flaw` is told what is wrong with it, `stored` which
    /// values of the state store it reveals: each must be there (R2).
    pub fn record(
        &mut self,
        record: RecordRef<'_>,
        mut flaw: impl FnMut(StepFlaw),
        mut stored: impl FnMut(StoredValue),
    ) {
        // Deployments are not the protocols'.
        if record.tags().any(|pos| pos.tag() == tag::registry()) {
            return;
        }
        let entry = match Entry::decode(record.payload()) {
            Ok(entry) => entry,
            Err(error) => return flaw(error.into()),
        };
        entry.stored_values(|value| {
            self.counts.stored_values += 1;
            stored(value);
        });
        if let Body::Cancel = entry.body {
            self.cancelled.insert(entry.instance);
            if !has(record, tag::cancel(entry.instance)) {
                flaw(StepFlaw::MissingTag { kind: entry.body.kind(), instance: entry.instance });
            }
            return;
        }
        for init in entry.inits() {
            self.init(init, record, &mut flaw);
        }
        self.entry(&entry, record, &mut flaw);
    }

    /// What was read so far.
    #[must_use]
    pub fn counts(&self) -> StepCounts {
        let unfinished = self.roots.values().filter(|root| !root.finished).count() as u64;
        let (roots, instances) = (self.roots.len() as u64, self.instances.len() as u64);
        StepCounts { roots, unfinished, instances, ..self.counts }
    }

    /// The roots that have an Init and no Finish, and where that Init is.
    pub fn unfinished(&self) -> impl Iterator<Item = (InstanceId, SeqNum)> {
        let open = self.roots.iter().filter(|(_, root)| !root.finished);
        open.map(|(id, root)| (*id, root.init))
    }

    fn init(&mut self, init: &Init, record: RecordRef<'_>, flaw: &mut impl FnMut(StepFlaw)) {
        let (root, run) = (init.root, init.run());
        let all = [tag::step(root), tag::init(run), tag::intent()];
        if !all.iter().all(|tag| has(record, *tag)) {
            flaw(StepFlaw::MissingTag { kind: Body::Init.kind(), instance: root });
        }
        let position = position(record, tag::step(root)).unwrap_or_default();
        let known = Root { init: record.seq(), finished: false };
        if position > 0 || self.roots.insert(root, known).is_some() {
            flaw(StepFlaw::MisplacedInit { root, position });
        }
        self.runs.insert(run, root);
    }

    fn entry(&mut self, entry: &Entry, record: RecordRef<'_>, flaw: &mut impl FnMut(StepFlaw)) {
        let (instance, run, kind) = (entry.instance, entry.run, entry.body.kind());
        let complete = has(record, tag::step(instance))
            && entry.written().all(|object| has(record, tag::object(&object.table, &object.key)));
        if !complete {
            flaw(StepFlaw::MissingTag { kind, instance });
        }
        let is_end = matches!(entry.body, Body::Finish { .. });
        self.counts.steps += u64::from(!is_end && !matches!(entry.body, Body::Init));
        let Some(root) = self.runs.get(&run) else {
            return flaw(StepFlaw::BeforeInit { kind, instance });
        };
        if self.cancelled.contains(root) && !is_end {
            flaw(StepFlaw::AfterCancel { kind, instance });
        }
        let known = self.instances.entry(instance).or_insert(Instance { run, finished: false });
        if known.run != run {
            flaw(StepFlaw::ForeignRun { kind, instance });
        }
        if known.finished {
            flaw(StepFlaw::AfterFinish { kind, instance });
        }
        known.finished |= is_end;
        if is_end && let Some(root) = self.roots.get_mut(&instance) {
            root.finished = true;
        }
    }
}

impl Entry {
    fn inits(&self) -> impl Iterator<Item = &Init> {
        self.init.iter().chain(self.body.detached())
    }

    /// The objects whose write records this is.
    fn written(&self) -> impl Iterator<Item = &Object> {
        let one = if let Body::Write { object, .. } = &self.body { Some(object) } else { None };
        let several = if let Body::Commit { writes, .. } = &self.body { &writes[..] } else { &[] };
        one.into_iter().chain(several.iter().map(|(object, _)| object))
    }

    fn stored_values(&self, mut take: impl FnMut(StoredValue)) {
        let mut see = |object: &Object, value: &Stored| {
            if let Stored::Version(version) = value {
                take(StoredValue { object: object.clone(), version: *version });
            }
        };
        for init in self.inits() {
            see(&ids::own_object(init.root), &init.input);
        }
        let own = ids::own_object(self.instance);
        if let Body::Write { object, value: Some(value) }
        | Body::Read { object, value: Some(value) } = &self.body
        {
            see(object, value);
        } else if let Body::Commit { writes, .. } = &self.body {
            for (object, value) in writes {
                value.iter().for_each(|value| see(object, value));
            }
        } else if let Body::SideEffect { result }
        | Body::CallDone { result, .. }
        | Body::Finish { result, .. } = &self.body
        {
            see(&own, result);
        }
    }
}

fn position(record: RecordRef<'_>, tag: Tag) -> Option<u64> {
    record.tags().find(|pos| pos.tag() == tag).map(|pos| pos.position())
}

fn has(record: RecordRef<'_>, tag: Tag) -> bool {
    position(record, tag).is_some()
}

#[cfg(test)]
mod tests;
