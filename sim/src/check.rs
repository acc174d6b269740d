//! What must hold, judged while a world runs. Checkers draw no randomness and change nothing, so a
//! run is the same with and without them.

pub(crate) mod functions;
pub mod log;
pub mod registers;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// What was found to be wrong first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule does not hold.
    pub rule: &'static str,
    /// How.
    pub what: String,
    /// When, in ns.
    pub at_ns: u64,
}

/// Where violations are reported. Clones are handles to the same place.
#[derive(Clone, Default, Debug)]
pub struct Judge(Rc<RefCell<Option<Violation>>>);

impl Judge {
    /// Reports; the first one is kept.
    pub fn object(&self, at_ns: u64, rule: &'static str, what: impl fmt::Display) {
        let mut found = self.0.borrow_mut();
        if found.is_none() {
            *found = Some(Violation { rule, what: what.to_string(), at_ns });
        }
    }

    /// The first violation.
    #[must_use]
    pub fn verdict(&self) -> Option<Violation> {
        self.0.borrow().clone()
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_guilty(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.at_ns / 1_000_000;
        write!(f, "{} (at {millis} ms): {}", self.rule, self.what)
    }
}
