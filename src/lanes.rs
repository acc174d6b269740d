//! What a node's lanes carry, in a file of its directory: storage nodes and sequencers have no HTTP.
//!
//! The file outlives the process, also one that is killed, and is in the form that monitoring reads.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use halfmoon_bench::cluster::Carried;
use halfmoon_transport::{Traffic, TrafficGauge};

/// The file, in a node's directory.
const FILE: &str = "lanes.prom";
/// How often it is written, while there is news.
const WRITE_EVERY: Duration = Duration::from_millis(200);

/// Writes the file until it is dropped.
pub(crate) struct LanesFile {
    ended: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
}

impl LanesFile {
    /// Starts with what `gauge` has now.
    pub(crate) fn start(directory: &Path, gauge: Arc<TrafficGauge>) -> anyhow::Result<Self> {
        // Not every role keeps anything else there.
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let file = directory.join(FILE);
        let (ended, end) = channel::<()>();
        let writer = std::thread::Builder::new().name("lanes".into()).spawn(move || {
            let mut written = None;
            loop {
                let is_over = end.recv_timeout(WRITE_EVERY) != Err(RecvTimeoutError::Timeout);
                let traffic = gauge.read();
                if written != Some(traffic) {
                    match write(&file, traffic) {
                        Ok(()) => written = Some(traffic),
                        Err(error) => tracing::debug!(%error, "what lanes carry is not noted"),
                    }
                }
                if is_over {
                    return;
                }
            }
        })?;
        Ok(Self { ended: Some(ended), writer: Some(writer) })
    }
}

impl Drop for LanesFile {
    fn drop(&mut self) {
        drop(self.ended.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that notes what lanes carry ended by a panic");
        }
    }
}

/// Replaces the file, so that nobody reads half of it.
fn write(file: &Path, traffic: Traffic) -> std::io::Result<()> {
    let Traffic { tcp, rdma } = traffic;
    let text = format!(
        "# process {}\n\
         # TYPE halfmoon_lanes_tcp gauge\n\
         halfmoon_lanes_tcp {}\n\
         # TYPE halfmoon_lanes_rdma gauge\n\
         halfmoon_lanes_rdma {}\n\
         # TYPE halfmoon_lane_bytes_tcp_total counter\n\
         halfmoon_lane_bytes_tcp_total {}\n\
         # TYPE halfmoon_lane_bytes_rdma_total counter\n\
         halfmoon_lane_bytes_rdma_total {}\n",
        std::process::id(),
        tcp.lanes,
        rdma.lanes,
        tcp.bytes,
        rdma.bytes,
    );
    let fresh: PathBuf = file.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, file)
}

/// What the process with this number has written about the node in a directory, if it has.
pub(crate) fn read(directory: &Path, process: u32) -> Option<Carried> {
    parse(&fs::read_to_string(directory.join(FILE)).ok()?, process)
}

fn parse(text: &str, process: u32) -> Option<Carried> {
    let value = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        rest.parse::<u64>().context("no number").ok()
    };
    (value("# process")? == u64::from(process)).then_some(())?;
    Some(Carried {
        rdma_lanes: value("halfmoon_lanes_rdma")?,
        rdma_bytes: value("halfmoon_lane_bytes_rdma_total")?,
        tcp_lanes: value("halfmoon_lanes_tcp")?,
        tcp_bytes: value("halfmoon_lane_bytes_tcp_total")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfmoon_transport::Share;

    #[test]
    fn what_lanes_carried_is_there_when_the_node_has_ended_and_only_of_its_own_process() {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join("sequencer-10");
        let gauge = Arc::new(TrafficGauge::default());
        let file = LanesFile::start(&directory, Arc::clone(&gauge)).unwrap();
        let (tcp, rdma) = (Share { lanes: 1, bytes: 20 }, Share { lanes: 3, bytes: 4000 });
        gauge.note(Traffic { tcp, rdma });
        drop(file);
        let carried = Carried { rdma_lanes: 3, rdma_bytes: 4000, tcp_lanes: 1, tcp_bytes: 20 };
        assert_eq!(read(&directory, std::process::id()), Some(carried));
        assert_eq!(read(&directory, std::process::id() + 1), None);
        assert_eq!(parse("# process 7\nhalfmoon_lanes_tcp 1\n", 7), None);
    }
}
