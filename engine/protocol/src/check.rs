//! The exhaustive tests: a mock world, small programs, a judge, and an explorer of every
//! interleaving; and the list of broken variants that they must catch.
//!
//! Bounds: one or two attempts of a root and one or two strangers, at most five objects, two to four
//! operations each, two levels of callees or two in parallel, initial cursors anywhere. A crash is
//! not a move: an attempt that makes no further move *is* crashed, and every state is judged.

mod explore;
mod judge;
mod mock;
pub mod mutants;
mod program;
mod scenarios;
mod session;
mod stage;
mod takeover;
mod world;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
