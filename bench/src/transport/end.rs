//! The two ends of a lane that is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use halfmoon_reactor::SharedReactor;
use halfmoon_transport::{
    Access, Carrier, Endpoint, EndpointOptions, Event, HeapMemory, LaneId, RegionId, RemoteSpan,
    SendError, Source, Token, Transport,
};

/// Longest message whose delay is measured.
pub const MESSAGE_MAX_BYTES: usize = 1 << 20;

/// Bytes of a small message.
pub(super) const SMALL_BYTES: usize = 64;

/// The ring of both ends: four of the longest messages and their headers.
const RING_BYTES: usize = 8 << 20;

/// Bytes of a large write.
const LARGE_BYTES: usize = 1 << 20;

/// Large writes on their way.
const LARGE_DEPTH: usize = 8;

/// Longest wait for the other end.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the first byte of a message asks for.
const ECHO: u8 = 0;
const TAKE: u8 = 1;

/// An end, with the lane to the other.
pub(super) struct End<T> {
    reactor: SharedReactor,
    endpoint: Endpoint<T>,
    address: String,
    lane: Option<LaneId>,
    /// Where the peer takes large writes.
    region: RegionId,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Up(LaneId, u32),
    Echo(Vec<u8>),
    Written,
    Room,
    Down,
}

impl<T: Transport> End<T> {
    fn new(reactor: SharedReactor, transport: T) -> anyhow::Result<Self> {
        let options = EndpointOptions { hello: Vec::new(), ring_bytes: RING_BYTES };
        let mut endpoint = Endpoint::new(transport, options);
        let region = endpoint.expose(Arc::new(HeapMemory::new(LARGE_BYTES)), Access::Any)?;
        endpoint.set_hello(region.0.to_le_bytes().to_vec());
        Ok(Self { reactor, endpoint, address: String::new(), lane: None, region: RegionId(0) })
    }

    pub(super) fn listener(reactor: SharedReactor, transport: T, at: &str) -> anyhow::Result<Self> {
        let mut end = Self::new(reactor, transport)?;
        end.address = end.endpoint.listen(at)?;
        Ok(end)
    }

    pub(super) fn dialler(reactor: SharedReactor, transport: T, to: &str) -> anyhow::Result<Self> {
        let mut end = Self::new(reactor, transport)?;
        end.endpoint.dial(to)?;
        match end.next(&|came| matches!(came, Came::Up(..)))? {
            Came::Up(lane, region) => (end.lane, end.region) = (Some(lane), RegionId(region)),
            other @ (Came::Echo(_) | Came::Written | Came::Room | Came::Down) => {
                bail!("{other:?} in place of a lane")
            }
        }
        Ok(end)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn carrier(&self) -> Option<Carrier> {
        self.endpoint.transport().carrier(self.lane?)
    }

    /// Answers until the lane goes down.
    pub(super) fn serve(mut self) -> anyhow::Result<()> {
        let mut waiting: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut came = self.turn()?;
            for came in came.drain(..) {
                match came {
                    Came::Up(lane, _) => self.lane = Some(lane),
                    Came::Echo(bytes) => waiting.push(bytes),
                    Came::Down => return Ok(()),
                    Came::Written | Came::Room => {}
                }
            }
            let lane = self.lane.filter(|_| !waiting.is_empty());
            let Some(lane) = lane else { continue };
            while let Some(bytes) = waiting.first() {
                match self.endpoint.send(lane, &[bytes]) {
                    Ok(()) => drop(waiting.remove(0)),
                    Err(SendError::Full) => break,
                    Err(error @ (SendError::Dead | SendError::TooLong { .. })) => bail!(error),
                }
            }
            self.endpoint.flush();
        }
    }

    /// Half the time that a message takes there and back, so many times, in ns.
    pub(super) fn delays(&mut self, bytes: usize, pings: usize) -> anyhow::Result<Vec<u64>> {
        let lane = self.lane.context("no lane")?;
        let mut message = vec![7; bytes];
        if let Some(first) = message.first_mut() {
            *first = ECHO;
        }
        let mut times = Vec::with_capacity(pings);
        for _ in 0..pings {
            let begin = Instant::now();
            self.endpoint.send(lane, &[&message])?;
            self.endpoint.flush();
            self.next(&|came| matches!(came, Came::Echo(_)))?;
            times.push(u64::try_from(begin.elapsed().as_nanos() / 2).unwrap_or(u64::MAX));
        }
        Ok(times)
    }

    /// Sends so many small messages, as fast as they are taken, and waits for the last to be answered.
    pub(super) fn stream(&mut self, messages: usize) -> anyhow::Result<()> {
        let lane = self.lane.context("no lane")?;
        let mut left = messages;
        while left > 0 {
            // The last asks for an answer: then all are there.
            let message = [if left == 1 { ECHO } else { TAKE }; SMALL_BYTES];
            match self.endpoint.send(lane, &[&message]) {
                Ok(()) => left -= 1,
                Err(SendError::Full) => drop(self.next(&|came| *came == Came::Room)?),
                Err(error @ (SendError::Dead | SendError::TooLong { .. })) => bail!(error),
            }
        }
        self.endpoint.flush();
        self.next(&|came| matches!(came, Came::Echo(_))).map(drop)
    }

    /// Makes so many large writes, some at once; returns their bytes once all are in place.
    pub(super) fn write_large(&mut self, writes: usize) -> anyhow::Result<usize> {
        let lane = self.lane.context("no lane")?;
        let memory = Arc::new(HeapMemory::new(LARGE_BYTES));
        let to = RemoteSpan { region: self.region, offset: 0 };
        let (mut posted, mut done) = (0, 0);
        while done < writes {
            while posted < writes && posted - done < LARGE_DEPTH {
                let source = Source::Memory { memory: memory.clone(), offset: 0, len: LARGE_BYTES };
                match self.endpoint.write(lane, to, source, Some(Token(posted as u64))) {
                    Ok(()) => posted += 1,
                    Err(SendError::Full) => break,
                    Err(error @ (SendError::Dead | SendError::TooLong { .. })) => bail!(error),
                }
            }
            self.endpoint.flush();
            let came = self.turn()?;
            anyhow::ensure!(!came.contains(&Came::Down), "the other end went away");
            done += came.iter().filter(|came| **came == Came::Written).count();
        }
        Ok(writes * LARGE_BYTES)
    }

    /// Closes the lane; the other end ends by it.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
        let lane = self.lane.context("no lane")?;
        self.endpoint.close(lane);
        self.endpoint.flush();
        self.next(&|came| *came == Came::Down).map(drop)
    }

    /// The next that is wanted; what else comes is passed over.
    fn next(&mut self, is_wanted: &dyn Fn(&Came) -> bool) -> anyhow::Result<Came> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            for came in self.turn()? {
                if is_wanted(&came) {
                    return Ok(came);
                }
                anyhow::ensure!(came != Came::Down, "the other end went away");
            }
        }
        bail!("the other end did not answer in time")
    }

    /// Takes what came; waits for it if there is nothing.
    fn turn(&mut self) -> anyhow::Result<Vec<Came>> {
        let mut came = Vec::new();
        let turn = self.endpoint.poll(&mut |event| match event {
            Event::Up { lane, hello, .. } => {
                let region = hello.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                came.push(Came::Up(lane, region));
            }
            Event::Message { bytes, .. } if bytes.first() == Some(&ECHO) => {
                came.push(Came::Echo(bytes.to_vec()));
            }
            Event::Message { .. } => {}
            Event::Written { .. } => came.push(Came::Written),
            Event::Room { .. } => came.push(Came::Room),
            Event::Down { .. } => came.push(Came::Down),
        });
        if came.is_empty() && !turn.more {
            self.reactor.borrow_mut().wait(PATIENCE)?;
        }
        Ok(came)
    }
}
