//! Where sequencer and storage nodes are. Looked up when a lane is missing, never on the way of an
//! append.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use halfmoon_meta::{ClusterError, MetaStore, cluster, nodes};
use halfmoon_transport::Wake;
use halfmoon_wire::{NodeId, Role};

/// What is known of the nodes that an engine talks to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// The sequencers that have published themselves, the one in charge and those that stand by.
    pub sequencers: Vec<(NodeId, String)>,
    /// The members of the log, with their addresses as far as they have published them.
    pub storage: Vec<(NodeId, Option<String>)>,
}

/// Knows the addresses of nodes, without blocking.
pub trait Directory {
    /// Asks for what is known now.
    fn ask(&mut self);

    /// The answer to the last [`ask`](Self::ask), once it is there. A look-up that failed has no
    /// answer: the next `ask` tries again.
    fn poll(&mut self) -> Option<Places>;
}

/// The metadata store as a directory, read by a thread of its own.
#[derive(Debug)]
pub struct MetaDirectory {
    questions: SyncSender<()>,
    answers: Receiver<Places>,
}

/// Places that do not change, or that a test changes.
#[derive(Clone, Debug, Default)]
pub struct FixedDirectory {
    /// What it answers.
    pub places: Places,
    asked: bool,
}

impl MetaDirectory {
    /// Reads `store`; `wake` ends the wait of the thread that polls. The thread ends with this.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(store: Arc<dyn MetaStore>, wake: impl Wake) -> Result<Self, std::io::Error> {
        // One question waits at most: the answer to it is as good as one to a second.
        let (questions, asked) = sync_channel(1);
        let (found, answers) = sync_channel(1);
        thread::Builder::new().name("directory".to_owned()).spawn(move || {
            while let Ok(()) = asked.recv() {
                match look_up(&*store) {
                    Ok(places) => match found.send(places) {
                        Ok(()) => wake.wake(),
                        Err(_) => return,
                    },
                    Err(error) => tracing::warn!(%error, "cannot look up the cluster's nodes"),
                }
            }
        })?;
        Ok(Self { questions, answers })
    }
}

impl Directory for MetaDirectory {
    fn ask(&mut self) {
        match self.questions.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => tracing::error!("the directory has ended"),
        }
    }

    fn poll(&mut self) -> Option<Places> {
        self.answers.try_recv().ok()
    }
}

impl FixedDirectory {
    /// Always answers this.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Self { places, asked: false }
    }
}

impl Directory for FixedDirectory {
    fn ask(&mut self) {
        self.asked = true;
    }

    fn poll(&mut self) -> Option<Places> {
        std::mem::take(&mut self.asked).then(|| self.places.clone())
    }
}

/// Reads where everybody is from the metadata store. Blocks.
///
/// # Errors
/// When the store fails.
pub fn look_up(store: &dyn MetaStore) -> Result<Places, ClusterError> {
    let members = cluster::read(store)?.members.nodes();
    let published = nodes::list(store)?;
    let of = |role| published.iter().filter(move |entry| entry.role() == role);
    let sequencers =
        of(Role::Sequencer).map(|entry| (entry.node(), entry.address.to_string())).collect();
    let address = |node| {
        let found = of(Role::Storage).find(|entry| entry.node() == node);
        found.map(|entry| entry.address.to_string())
    };
    let storage = members.into_iter().map(|node| (node, address(node))).collect();
    Ok(Places { sequencers, storage })
}
