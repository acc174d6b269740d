//! What a table promises, and how a tree of calls is logged.

/// How reads and writes of a table are logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Protocol {
    /// The system chooses; `halfmoon-read` until it can measure.
    #[default]
    Auto,
    /// Reads append nothing, a write is one record.
    HalfmoonRead,
    /// Writes append nothing, a read is one record.
    HalfmoonWrite,
    /// Everything is logged: the baseline as published.
    Boki,
    /// Nothing is logged and nothing is promised.
    Unlogged,
}

/// In which order others may see the log-free operations of one instance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Order {
    /// As in some sequential history; costs fences.
    #[default]
    Sequential,
    /// One total order per object; a log-free write takes effect for others no later than the
    /// next step or the end of its instance. `fence()` is there to be called.
    Relaxed,
}

/// A table as it is declared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableSpec {
    /// Full name, namespace included.
    pub name: String,
    /// How it is logged.
    pub protocol: Protocol,
    /// What order it promises.
    pub order: Order,
    /// Transactions use it, so it is pinned to `halfmoon-read`.
    pub transactional: bool,
}

/// How starts, calls and ends of a whole tree are logged. Decided once, by the root, and inherited.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(u8)]
pub enum Mode {
    /// Ours: calls append nothing, Init rides on the first step.
    #[default]
    Halfmoon = 0,
    /// As published for Boki: root start and finish are waited for, a call is four appends.
    Boki = 1,
    /// Nothing is logged; operations on logged tables are refused.
    Unlogged = 2,
}

impl TableSpec {
    /// A table of this protocol, sequential, not used by transactions.
    #[must_use]
    pub fn new(name: &str, protocol: Protocol) -> Self {
        let name = name.to_owned();
        Self { name, protocol, order: Order::Sequential, transactional: false }
    }

    /// The protocol that is in force; never [`Protocol::Auto`].
    #[must_use]
    pub const fn effective(&self) -> Protocol {
        match (self.protocol, self.transactional) {
            (Protocol::Auto, _) | (_, true) => Protocol::HalfmoonRead,
            (chosen, false) => chosen,
        }
    }
}
