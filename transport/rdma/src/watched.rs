//! The completion queues of all lanes, as the reactor watches them: looked at while it spins, and
//! armed before it sleeps.

use std::collections::VecDeque;
use std::rc::Rc;

use halfmoon_reactor::Watch;
use halfmoon_transport::LaneId;

use crate::verbs::CompletionQueue;
use crate::work::Finished;

/// Queues, and what was taken from them.
#[derive(Default)]
pub(crate) struct Watched {
    queues: Vec<Entry>,
    taken: VecDeque<(LaneId, Finished)>,
}

struct Entry {
    lane: LaneId,
    queue: Rc<CompletionQueue>,
    /// An event comes with the next completion.
    armed: bool,
}

impl Watched {
    /// Watches the queue of a lane.
    pub(crate) fn add(&mut self, lane: LaneId, queue: Rc<CompletionQueue>) {
        self.queues.push(Entry { lane, queue, armed: false });
    }

    /// Forgets a lane; what it has finished is of no use to anybody.
    pub(crate) fn remove(&mut self, lane: LaneId) {
        self.queues.retain(|entry| entry.lane != lane);
        self.taken.retain(|(of, _)| *of != lane);
    }

    /// The event of a lane's queue was taken.
    pub(crate) fn fired(&mut self, lane: LaneId) {
        for entry in self.queues.iter_mut().filter(|entry| entry.lane == lane) {
            entry.armed = false;
        }
    }

    /// The next that has finished, in the order of its queue.
    pub(crate) fn next(&mut self) -> Option<(LaneId, Finished)> {
        self.taken.pop_front()
    }

    /// Takes all that has finished by now.
    pub(crate) fn gather(&mut self) {
        for entry in &self.queues {
            entry.queue.take(|finished| self.taken.push_back((entry.lane, finished)));
        }
    }
}

impl Watch for Watched {
    fn ready(&mut self) -> bool {
        self.gather();
        !self.taken.is_empty()
    }

    fn arm(&mut self) -> bool {
        for entry in self.queues.iter_mut().filter(|entry| !entry.armed) {
            match entry.queue.arm() {
                Ok(()) => entry.armed = true,
                Err(error) => {
                    tracing::warn!(%error, lane = %entry.lane, "no event can be asked for")
                }
            }
        }
        // What came before it was armed makes no event.
        self.ready()
    }
}
