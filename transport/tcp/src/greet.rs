//! Who answers at some addresses: a lane to each, a greeting, and perhaps a question.
//!
//! A system accepts connections for a process that hangs; only its loop answers a greeting.

use std::time::{Duration, Instant};

use halfmoon_reactor::{Options, Reactor, ReactorError};
use halfmoon_transport::{Endpoint, EndpointOptions, Event, LaneId};

use crate::Tcp;

/// What a peer said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard<'a> {
    /// Its hello.
    Hello(&'a [u8]),
    /// A message.
    Message(&'a [u8]),
}

/// What is to come of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing more is wanted of this peer.
    Done,
    /// More is to come.
    Wait,
    /// It is asked this, and more is to come.
    Ask(Vec<u8>),
}

/// Dials all addresses at once and says `hello` to each; `heard` is given the index of an address and
/// what the peer there said. It ends when nothing more is wanted of any, or after `within`; whoever
/// has said nothing by then does not answer. Blocks.
///
/// # Errors
/// When the system gives no reactor.
pub fn greet(
    addresses: &[String],
    hello: &[u8],
    within: Duration,
    mut heard: impl FnMut(usize, Heard<'_>) -> Next,
) -> Result<(), ReactorError> {
    let reactor = Reactor::shared(Options::default())?;
    let options = EndpointOptions::new(hello.to_vec());
    let mut endpoint = Endpoint::new(Tcp::new(reactor.clone()), options);
    let dial = |address: &String| endpoint.dial(address).ok();
    let mut lanes: Vec<Option<LaneId>> = addresses.iter().map(dial).collect();
    let end = Instant::now() + within;
    while lanes.iter().any(Option::is_some) {
        let mut questions = Vec::new();
        let turn = endpoint.poll(&mut |event| {
            let (lane, said) = match event {
                Event::Up { lane, hello, .. } => (lane, Some(Heard::Hello(hello))),
                Event::Message { lane, bytes } => (lane, Some(Heard::Message(bytes))),
                Event::Down { lane, .. } => (lane, None),
                Event::Written { .. } | Event::Room { .. } => return,
            };
            let Some(index) = lanes.iter().position(|of| *of == Some(lane)) else { return };
            match said.map_or(Next::Done, |said| heard(index, said)) {
                Next::Done => lanes[index] = None,
                Next::Wait => {}
                Next::Ask(question) => questions.push((lane, question)),
            }
        });
        for (lane, question) in questions {
            // A lane that does not take it is down, and tells so.
            endpoint.send(lane, &[&question]).ok();
        }
        endpoint.flush();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        reactor.borrow_mut().wait(if turn.more { Duration::ZERO } else { left })?;
    }
    Ok(())
}
