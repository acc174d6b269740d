//! Reads the logs on the disk again and again, slowly, and compares every checksum: what is damaged is
//! to be found while the other members still have it.
//!
//! The embedded engine is not read here. It has checksums of its own, and compares them when it reads.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use halfmoon_log::LogConfig;

use crate::home::{Identity, SegmentDir};
use crate::metrics::{Metrics, add};
use crate::{NodeError, RoleConfig};

/// How often a log that seems damaged is read again before that is believed: the node goes on giving up
/// segments while they are read.
const TRIES_MAX: u32 = 5;

/// How often, and how fast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Pause after all was read.
    pub every: Duration,
    /// Bytes read per second: what is left of the disk belongs to appends.
    pub bytes_per_s: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { every: Duration::from_secs(24 * 60 * 60), bytes_per_s: 8 << 20 }
    }
}

/// The thread that does it, until it is dropped or finds damage.
pub(crate) struct Scrubber {
    stop: Option<Sender<()>>,
    damage: Receiver<NodeError>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    logs: [(SegmentDir, LogConfig); 2],
    pace: Pace,
    stop: Receiver<()>,
    metrics: Arc<Metrics>,
}

/// The node stops.
struct Stopped;

impl Scrubber {
    /// Starts the thread for a node whose directory has an identity.
    pub(crate) fn start(
        config: &RoleConfig,
        pace: Pace,
        metrics: Arc<Metrics>,
    ) -> Result<Self, NodeError> {
        let (stop, stopped) = channel();
        let (tell, damage) = channel();
        let logs = logs(config)?;
        let work = Work { logs, pace, stop: stopped, metrics };
        // Not all nodes at once, and none at its start.
        let first = pace.every / 8 * (config.node.0 % 8 + 1);
        let thread = std::thread::Builder::new()
            .name("storage-scrub".to_owned())
            .spawn(move || {
                if let Err(error) = work.go_on(first) {
                    // A node that is gone has stopped already.
                    tell.send(error).ok();
                }
            })
            .map_err(|source| NodeError::Thread { name: "storage-scrub", source })?;
        Ok(Self { stop: Some(stop), damage, thread: Some(thread) })
    }

    /// What is wrong with the disk, once that is known.
    pub(crate) fn damage(&self) -> Option<NodeError> {
        self.damage.try_recv().ok()
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, there is nobody left to tell.
            thread.join().ok();
        }
    }
}

fn logs(config: &RoleConfig) -> Result<[(SegmentDir, LogConfig); 2], NodeError> {
    let path = config.data_dir.join("identity");
    let identity = Identity::read(&path)?
        .ok_or_else(|| NodeError::directory("read", &path)(std::io::ErrorKind::NotFound.into()))?;
    let dir = |name: &Path| SegmentDir::look(config.data_dir.join(name));
    Ok([
        (dir("log".as_ref()), config.log(identity.log)),
        (dir("state".as_ref()), config.state_log(identity.state)),
    ])
}

impl Work {
    /// Reads until it is stopped, or something is damaged.
    fn go_on(&self, first: Duration) -> Result<(), NodeError> {
        let mut pause = first;
        while self.pause(pause).is_ok() {
            let before = self.metrics.snapshot().scrubbed_bytes;
            let durable = self.metrics.snapshot();
            let [log, state] = &self.logs;
            self.read(log, durable.log_batches)?;
            self.read(state, durable.state_batches)?;
            add(&self.metrics.scrubs, 1);
            let bytes = self.metrics.snapshot().scrubbed_bytes - before;
            tracing::info!(bytes, "the logs on the disk are as they were written");
            pause = self.pace.every;
        }
        Ok(())
    }

    fn read(&self, (dir, config): &(SegmentDir, LogConfig), durable: u64) -> Result<(), NodeError> {
        let rest = |bytes: usize| {
            add(&self.metrics.scrubbed_bytes, bytes as u64);
            let micros = bytes as u64 * 1_000_000 / self.pace.bytes_per_s.max(1);
            self.pause(Duration::from_micros(micros)).is_ok()
        };
        let mut tries = 1;
        loop {
            match dir.scrub(*config, durable, rest) {
                Ok(()) => return Ok(()),
                Err(error) if tries == TRIES_MAX => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, tries, "a log is read again");
                    tries += 1;
                }
            }
        }
    }

    fn pause(&self, pause: Duration) -> Result<(), Stopped> {
        match self.stop.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Stopped),
        }
    }
}
