//! One descriptor that can be read when any adapter has an event.
//!
//! The reactor waits for this one and not for those of the adapters: what it waits for it holds, and an
//! adapter that is to be removed has to be let go.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io;

use crate::verbs::Device;

/// The adapters whose events are waited for. One that is closed is not among them any more.
pub(crate) struct Alarm {
    epoll: Arc<OwnedFd>,
}

impl Alarm {
    /// Waits for the events of these adapters.
    pub(crate) fn of(devices: &[Rc<Device>]) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for device in devices {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&epoll, device.events(), data, epoll::EventFlags::IN)?;
        }
        Ok(Self { epoll: Arc::new(epoll) })
    }

    /// Can be read when an adapter has an event.
    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }
}
