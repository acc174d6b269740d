//! Has a spare take the place of a storage node that is gone for long.
//!
//! A thread of its own: it greets nodes, which takes as long as they let it. It acts only for the
//! sequencer that holds the last epoch. Should it be wrong about that, nothing is lost: whoever
//! proposes members, the rules of [`cluster::replace_member`] are kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use halfmoon_meta::{ClusterError, ClusterInfo, MetaStore, NodeEntry, cluster, disks, nodes};
use halfmoon_reactor::ReactorError;
use halfmoon_tcp::greet::{Heard, Next, greet};
use halfmoon_wire::{Hello, Incarnation, NodeId, Role};

use crate::Config;

/// Longest time between two looks.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Looks within the time after which a node is replaced.
const LOOKS: u32 = 20;
/// Shortest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(50);
/// How long a node may take to answer a greeting.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The thread. Dropping it ends it.
pub(crate) struct Caretaker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Since when members do not answer.
#[derive(Debug, Default)]
struct Absences {
    since: BTreeMap<NodeId, Instant>,
}

struct Rounds {
    meta: Arc<dyn MetaStore>,
    node: NodeId,
    cluster: u128,
    after: Duration,
    absences: Absences,
}

#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Meta(#[from] ClusterError),
    #[error(transparent)]
    Reactor(#[from] ReactorError),
}

impl Caretaker {
    pub(crate) fn start(config: &Config, cluster: u128) -> std::io::Result<Self> {
        let after = config.replace_after;
        if after.is_zero() {
            return Ok(Self { stop: None, thread: None });
        }
        let (stop, stopped) = channel::<()>();
        let (meta, node, absences) = (config.meta.clone(), config.node, Absences::default());
        let mut rounds = Rounds { meta, node, cluster, after, absences };
        let every = (after / LOOKS).clamp(LOOK_MIN, LOOK_MAX);
        let look = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = rounds.look() {
                    tracing::warn!(%error, "it is not known which storage nodes are gone");
                }
            }
        };
        let thread = std::thread::Builder::new().name("sequencer-care".into()).spawn(look)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Rounds {
    fn look(&mut self) -> Result<(), RoundError> {
        let info = cluster::read(&*self.meta)?;
        let in_charge = info.holder.as_ref().is_some_and(|holder| holder.node() == self.node);
        // A change under way is not met by another.
        if !in_charge || info.members.committed_in().is_none() {
            self.absences.since.clear();
            return Ok(());
        }
        let mut storage = nodes::list(&*self.meta)?;
        storage.retain(|entry| entry.role() == Role::Storage);
        let answer = self.answering(&storage)?;
        let used = disks::list(&*self.meta)?;
        let mut members = info.members.nodes();
        // One that has never served makes its files first, and listens only after that.
        members.retain(|node| used.contains(node));
        let gone = self.absences.note(Instant::now(), &members, &answer);
        let Some(old) = gone.filter(|gone| gone.1 >= self.after).map(|gone| gone.0) else {
            return Ok(());
        };
        let Some(new) = successor(&info, &answer, &used) else { return Ok(()) };
        let after_s = self.after.as_secs();
        tracing::warn!(%old, %new, after_s, "a storage node is gone: a spare takes its place");
        cluster::replace_member(&*self.meta, old, new)?;
        self.absences.since.clear();
        Ok(())
    }

    /// The storage nodes that are there. A process that hangs does not answer, though its system does.
    fn answering(&self, entries: &[NodeEntry]) -> Result<Vec<NodeId>, ReactorError> {
        let addresses: Vec<String> =
            entries.iter().map(|entry| entry.address.to_string()).collect();
        let (cluster, node, role) = (self.cluster, self.node, Role::Observer);
        let hello = Hello { cluster, role, node, incarnation: Incarnation(0) };
        let mut answering = Vec::new();
        greet(&addresses, &hello.to_bytes(), ANSWER_WITHIN, |index, heard| {
            let expected = (cluster, Role::Storage, entries[index].node());
            if let Heard::Hello(bytes) = heard
                && let Ok(hello) = Hello::parse(bytes)
                && (hello.cluster, hello.role, hello.node) == expected
            {
                answering.push(hello.node);
            }
            Next::Done
        })?;
        Ok(answering)
    }
}

impl Absences {
    /// Notes who answers now; who of the members has been gone longest, and for how long.
    fn note(
        &mut self,
        now: Instant,
        members: &[NodeId],
        answer: &[NodeId],
    ) -> Option<(NodeId, Duration)> {
        self.since.retain(|node, _| members.contains(node) && !answer.contains(node));
        for node in members.iter().filter(|node| !answer.contains(node)) {
            self.since.entry(*node).or_insert(now);
        }
        let lasting = |(node, since): (&NodeId, &Instant)| (*node, now - *since);
        self.since.iter().map(lasting).max_by_key(|(node, lasting)| (*lasting, *node))
    }
}

/// Who may take the place of a member that is gone: a spare that answers, has never stored anything,
/// and is sure to become a member, because the others are a quorum.
fn successor(info: &ClusterInfo, answer: &[NodeId], used: &[NodeId]) -> Option<NodeId> {
    if !info.may_recover_from(answer) {
        return None;
    }
    let is_spare = |node: &&NodeId| !info.has_part(**node) && !used.contains(node);
    answer.iter().filter(is_spare).min().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfmoon_meta::{Durability, FileStore};

    const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    #[test]
    fn only_who_is_gone_without_a_break_is_gone_for_long() {
        let (mut absences, begin) = (Absences::default(), Instant::now());
        let at = |s| begin + Duration::from_secs(s);
        let [one, two, three] = MEMBERS;
        assert_eq!(absences.note(at(0), &MEMBERS, &MEMBERS), None);
        assert_eq!(absences.note(at(1), &MEMBERS, &[one, three]), Some((two, Duration::ZERO)));
        let gone = absences.note(at(5), &MEMBERS, &[three]);
        assert_eq!(gone, Some((two, Duration::from_secs(4))));
        // It was there in between.
        assert_eq!(absences.note(at(6), &MEMBERS, &[two, three]).unwrap().0, one);
        let gone = absences.note(at(8), &MEMBERS, &[three]);
        assert_eq!(gone, Some((one, Duration::from_secs(3))));
        // Who is no member any more is nobody's loss.
        let gone = absences.note(at(9), &[two, three, NodeId(4)], &[three, NodeId(4)]);
        assert_eq!(gone, Some((two, Duration::from_secs(1))));
    }

    #[test]
    fn a_successor_is_there_and_new_and_becomes_a_member_for_sure() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let info = cluster::create(&store, 7, Durability::Flush, &MEMBERS).unwrap();
        let [four, five] = [4, 5].map(NodeId);
        let who = |answer: &[u32], used: &[NodeId]| {
            let answer: Vec<NodeId> = answer.iter().copied().map(NodeId).collect();
            successor(&info, &answer, used)
        };
        assert_eq!(who(&[1, 2], &MEMBERS), None, "there is none");
        assert_eq!(who(&[1, 2, 5, 4], &MEMBERS), Some(four));
        assert_eq!(who(&[1, 2, 4, 5], &[NodeId(1), four]), Some(five), "it was replaced itself");
        assert_eq!(who(&[1, 4, 5], &MEMBERS), None, "of the members there is no quorum");
    }
}
