//! What is done with what comes over RDMA, and with regions.

use std::io;
use std::rc::Rc;

use halfmoon_transport::{Access, DownReason, LaneId, NoRdma, Occurrence, RegionId};

use super::begin::explained;
use super::{Lane, Rdma};
use crate::exposures::Answer;
use crate::link::News;
use crate::note::Say;
use crate::verbs::Registration;

impl Rdma {
    /// Takes what the adapters have finished.
    pub(super) fn hear_links(&mut self) {
        self.watched.borrow_mut().gather();
        loop {
            let next = self.watched.borrow_mut().next();
            let Some((lane, finished)) = next else { return };
            let mut news = std::mem::take(&mut self.news);
            if let Some(wired) = self.lanes.get_mut(&lane).and_then(|found| found.link.as_mut()) {
                wired.link.finished(finished, &mut news);
            }
            for news in news.drain(..) {
                self.act(lane, news);
            }
            self.news = news;
        }
    }

    fn act(&mut self, lane: LaneId, news: News) {
        match news {
            News::Hello => self.hello(lane),
            News::Completed(token) => {
                if self.lanes.get(&lane).is_some_and(Lane::is_up) {
                    self.occurrences.push(Occurrence::Completed { lane, token });
                }
            }
            News::Where(region) => self.answer(region, lane),
            News::Left(region) => self.exposures.left(region, lane),
            News::Failed(reason) => self.lost(lane, reason),
        }
    }

    /// A link has failed. Before the lane is up that says only that it is to be one over TCP.
    pub(super) fn lost(&mut self, lane: LaneId, reason: DownReason) {
        let is_met = self.lanes.get(&lane).is_some_and(|found| found.meeting.is_some());
        if is_met && reason != DownReason::Corrupt {
            tracing::info!(%lane, %reason, "no RDMA on this lane");
            return self.refuse(lane, NoRdma::NoConnection);
        }
        self.fail(lane, reason);
    }

    fn answer(&mut self, region: u32, lane: LaneId) {
        let wired = self.lanes.get_mut(&lane).and_then(|found| found.link.as_mut());
        let Some(wired) = wired else { return };
        match self.exposures.ask(region, lane, &wired.device) {
            Answer::Here(say) => wired.link.push_urgent(say),
            Answer::Withdrawn => wired.link.push_urgent(Say::Withdrawn { region }),
            Answer::Forbidden => self.fail(lane, DownReason::OutOfBounds),
            Answer::Refused(error) => self.unregistered(lane, error),
        }
    }

    fn unregistered(&mut self, lane: LaneId, error: io::Error) {
        let kind = error.kind();
        let error = explained(error);
        tracing::warn!(%lane, %error, "a region cannot be registered");
        self.fail(lane, DownReason::Lost(kind));
    }

    /// Names all regions that are for the peer of a lane, which is now connected. What is for all peers
    /// is registered, and so pinned, when the first of them asks for it: it is large, like the memory
    /// of workers, and hardly any peer writes to it.
    pub(super) fn name_regions(&mut self, lane: LaneId) -> io::Result<()> {
        for region in self.exposures.of_lane(lane) {
            self.name_region(region, lane)?;
        }
        Ok(())
    }

    fn name_region(&mut self, region: u32, lane: LaneId) -> io::Result<()> {
        let wired = self.lanes.get_mut(&lane).and_then(|found| found.link.as_mut());
        let Some(wired) = wired.filter(|wired| wired.link.is_connected()) else { return Ok(()) };
        match self.exposures.ask(region, lane, &wired.device) {
            Answer::Here(say) => wired.link.push_note(say),
            Answer::Refused(error) => return Err(error),
            Answer::Withdrawn | Answer::Forbidden => {}
        }
        Ok(())
    }

    /// Names a new region to the peer that it is for.
    pub(super) fn announce(&mut self, region: u32, access: Access) {
        if let Access::Lane(lane) = access
            && let Err(error) = self.name_region(region, lane)
        {
            self.unregistered(lane, error);
        }
    }

    /// Tells those who may write to a region that they may no longer.
    pub(super) fn unannounce(&mut self, region: RegionId) {
        let Some(access) = self.exposures.access(region) else { return };
        let mut told = Vec::new();
        for lane in self.lanes_of(access) {
            let wired = self.lanes.get_mut(&lane).and_then(|found| found.link.as_mut());
            if let Some(wired) = wired.filter(|wired| wired.link.is_connected()) {
                wired.link.push_note(Say::Withdrawn { region: region.0 });
                told.push(lane);
            }
        }
        let registrations = self.exposures.withdraw(region, told);
        if !registrations.is_empty() {
            self.release(&registrations);
        }
    }

    /// Has no queued write keep registered what is to be out of reach.
    fn release(&mut self, registrations: &[Rc<Registration>]) {
        let mut failed = Vec::new();
        for (lane, found) in &mut self.lanes {
            if let Some(wired) = &mut found.link
                && let Err(error) = wired.link.release(registrations, &wired.device)
            {
                failed.push((*lane, error));
            }
        }
        for (lane, error) in failed {
            self.unregistered(lane, error);
        }
    }

    fn lanes_of(&self, access: Access) -> Vec<LaneId> {
        match access {
            Access::Any => self.lanes.keys().copied().collect(),
            Access::Lane(lane) => vec![lane],
        }
    }

    /// Hands over what may leave on each link.
    pub(super) fn flush_links(&mut self) {
        let mut failed = Vec::new();
        for (lane, found) in &mut self.lanes {
            if let Some(wired) = &mut found.link
                && wired.link.is_connected()
                && let Err(error) = wired.link.flush()
            {
                failed.push((*lane, error.kind()));
            }
        }
        for (lane, kind) in failed {
            self.fail(lane, DownReason::Lost(kind));
        }
    }
}
