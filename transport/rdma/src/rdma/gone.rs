//! Adapters that are taken out of the machine while lanes go over them.

use std::io;
use std::time::{Duration, Instant};

use halfmoon_transport::{DownReason, LaneId, NoRdma};

use super::{Lane, Rdma};
use crate::verbs::Device;

/// How often it is looked whether the adapters are still there. Soft-RoCE ends nothing by itself: the
/// removal waits until all programs have let go, and lanes work until then.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Rdma {
    /// Lets go of adapters that are being removed: their lanes go down, and are dialled again.
    pub(super) fn let_go(&mut self) {
        let now = Instant::now();
        if self.devices.is_empty() || now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        let all = std::mem::take(&mut self.devices);
        let (there, gone) = all.into_iter().partition(|device| device.door.is_there());
        self.devices = there;
        if self.devices.is_empty() {
            self.none = Some(NoRdma::NoDevice);
        }
        for device in gone {
            tracing::warn!(device = device.name(), "an RDMA device is removed: its lanes end");
            self.end_lanes_of(&device);
            self.exposures.forget(&device);
        }
    }

    fn end_lanes_of(&mut self, device: &Device) {
        let is_of = |found: &Lane| {
            found.link.as_ref().is_some_and(|wired| std::ptr::eq(&raw const *wired.device, device))
        };
        let lanes: Vec<LaneId> =
            self.lanes.iter().filter(|(_, found)| is_of(found)).map(|(lane, _)| *lane).collect();
        for lane in lanes {
            self.lost(lane, DownReason::Lost(io::ErrorKind::NetworkDown));
        }
    }
}
