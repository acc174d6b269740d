//! The floor under every message: the one-way delay D, measured as half the round trip of a 64-byte
//! message between two threads that wait as the nodes of a cluster do.

use std::time::{Duration, Instant};

use halfmoon_reactor::{Options, Reactor, ReactorError};
use halfmoon_transport::{Endpoint, EndpointOptions, Event, LaneId, ListenError};

use crate::Tcp;

/// Why D could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// No reactor.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// No address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The two ends did not come together, or came apart.
    #[error("the two ends of the measurement lost each other")]
    Lost,
}

/// Longest wait for the other end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Half the round trip, once per round. Rounds begin `every` so often, or at once after the one
/// before if that is zero: a machine that has gone to sleep between two messages takes longer.
pub fn one_way_delays(
    rounds: usize,
    every: Duration,
    options: Options,
) -> Result<Vec<Duration>, FloorError> {
    let (tell, told) = std::sync::mpsc::channel();
    let echo = std::thread::spawn(move || echo(options, &tell));
    let address = told.recv().map_err(|_| FloorError::Lost)?;
    let samples = ping(&address, rounds, every, options);
    echo.join().map_err(|_| FloorError::Lost)??;
    samples
}

struct End {
    reactor: halfmoon_reactor::SharedReactor,
    endpoint: Endpoint<Tcp>,
}

impl End {
    fn new(options: Options) -> Result<Self, FloorError> {
        let reactor = Reactor::shared(options)?;
        let endpoint = Endpoint::new(Tcp::new(reactor.clone()), EndpointOptions::new(Vec::new()));
        Ok(Self { reactor, endpoint })
    }

    /// Waits for the next event that `wanted` takes.
    fn next<R>(&mut self, mut wanted: impl FnMut(Event<'_>) -> Option<R>) -> Result<R, FloorError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut found = None;
            self.endpoint.poll(&mut |event| found = found.take().or_else(|| wanted(event)));
            if let Some(found) = found {
                return Ok(found);
            }
            if Instant::now() > end {
                return Err(FloorError::Lost);
            }
            self.reactor.borrow_mut().wait(PATIENCE)?;
        }
    }
}

fn echo(options: Options, tell: &std::sync::mpsc::Sender<String>) -> Result<(), FloorError> {
    let mut end = End::new(options)?;
    let address = end.endpoint.listen("127.0.0.1:0")?;
    tell.send(address).map_err(|_| FloorError::Lost)?;
    loop {
        let message: Option<(LaneId, Vec<u8>)> = end.next(|event| match event {
            Event::Message { lane, bytes } => Some(Some((lane, bytes.to_vec()))),
            Event::Down { .. } => Some(None),
            Event::Up { .. } | Event::Written { .. } | Event::Room { .. } => None,
        })?;
        let Some((lane, bytes)) = message else { return Ok(()) };
        end.endpoint.send(lane, &[&bytes]).map_err(|_| FloorError::Lost)?;
        end.endpoint.flush();
    }
}

fn ping(
    address: &str,
    rounds: usize,
    every: Duration,
    options: Options,
) -> Result<Vec<Duration>, FloorError> {
    let mut end = End::new(options)?;
    let lane = end.endpoint.dial(address).map_err(|_| FloorError::Lost)?;
    let up = |event: Event<'_>| matches!(event, Event::Up { .. }).then_some(());
    end.next(up)?;
    let mut samples = Vec::with_capacity(rounds);
    let mut due = Instant::now();
    for _ in 0..rounds {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += every;
        let begin = Instant::now();
        end.endpoint.send(lane, &[&[7; 64]]).map_err(|_| FloorError::Lost)?;
        end.endpoint.flush();
        end.next(|event| matches!(event, Event::Message { .. }).then_some(()))?;
        samples.push(begin.elapsed() / 2);
    }
    end.endpoint.close(lane);
    end.endpoint.flush();
    end.next(|event| matches!(event, Event::Down { .. }).then_some(()))?;
    Ok(samples)
}
