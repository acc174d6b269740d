//! What a program holds: its functions and its tables.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_channel::limits::{FUNCTION_NAME_MAX_BYTES, TABLE_NAME_MAX_BYTES};

use crate::{Ctx, Result};

/// How reads and writes of a table are logged.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Protocol {
    /// The system chooses.
    #[default]
    Auto,
    /// Reads append nothing to the log, a write is one record.
    HalfmoonRead,
    /// Writes append nothing to the log, a read is one record.
    HalfmoonWrite,
    /// Everything is logged.
    Boki,
    /// Nothing is logged and nothing is promised: a crash may lose or double an effect.
    Unlogged,
}

impl Protocol {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::HalfmoonRead => "halfmoon-read",
            Self::HalfmoonWrite => "halfmoon-write",
            Self::Boki => "boki",
            Self::Unlogged => "unlogged",
        }
    }
}

/// In which order others may see the operations of one instance that are not logged.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Order {
    /// As in some sequential history.
    #[default]
    Sequential,
    /// One total order per object. [`Ctx::fence`] orders more, where it is called.
    Relaxed,
}

/// A table that the program's functions use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) order: Order,
    pub(crate) transactional: bool,
}

impl Table {
    /// A table for which the system chooses the protocol.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let (protocol, order) = (Protocol::default(), Order::default());
        Self { name: name.to_owned(), protocol, order, transactional: false }
    }

    /// How it is logged.
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// In which order others may see operations on it.
    #[must_use]
    pub fn order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// Transactions ([`Ctx::transaction`], [`Ctx::update`]) use it. It is logged as
    /// [`Protocol::HalfmoonRead`].
    #[must_use]
    pub fn transactional(self) -> Self {
        Self { transactional: true, ..self }
    }
}

impl From<&str> for Table {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

pub(crate) type Handler = dyn Fn(&mut Ctx, &[u8]) -> Result<Vec<u8>> + Send + Sync;

/// A function and what is to be known about it. What is not set is the engine's to choose.
#[derive(Clone)]
pub struct Function {
    pub(crate) name: String,
    pub(crate) handler: Arc<Handler>,
    pub(crate) read_only: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) concurrency: Option<u32>,
}

impl Function {
    /// A function under a name.
    pub fn new<F>(name: &str, handler: F) -> Self
    where
        F: Fn(&mut Ctx, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
    {
        Self {
            name: name.to_owned(),
            handler: Arc::new(handler),
            read_only: false,
            timeout: None,
            max_attempts: None,
            concurrency: None,
        }
    }

    /// It reads and calls other read-only functions, and has no effect. What it does besides that
    /// is refused. Calls to it cost less.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Time that one attempt may take; after that its process is killed. In whole milliseconds, at
    /// least one.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Attempts before an instance is parked with its error, at least one.
    #[must_use]
    pub fn max_attempts(self, attempts: u32) -> Self {
        Self { max_attempts: Some(attempts), ..self }
    }

    /// Processes of it that one engine runs at once, at most.
    #[must_use]
    pub fn concurrency(self, processes: u32) -> Self {
        Self { concurrency: Some(processes), ..self }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The functions and tables of a program.
#[derive(Clone, Default, Debug)]
pub struct App {
    pub(crate) functions: Vec<Function>,
    pub(crate) tables: Vec<Table>,
}

/// A program whose functions and tables cannot be deployed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// Nothing to call.
    #[error("the program has no functions; register one with App::function")]
    NoFunctions,
    /// A name that is not allowed.
    #[error(
        "{name:?} cannot be a name: letters, digits, '_', '-', '.' and '/', {limit} bytes at most"
    )]
    Name {
        /// The name.
        name: String,
        /// Bytes that it may have.
        limit: usize,
    },
    /// A name that stands for two things.
    #[error("there are two {kind}s named {name:?}")]
    Twice {
        /// Function or table.
        kind: &'static str,
        /// The name.
        name: String,
    },
}

impl App {
    /// Without functions and tables.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table: a name, or a [`Table`] with its properties.
    #[must_use]
    pub fn table(mut self, table: impl Into<Table>) -> Self {
        self.tables.push(table.into());
        self
    }

    /// Adds a function.
    #[must_use]
    pub fn function<F>(self, name: &str, handler: F) -> Self
    where
        F: Fn(&mut Ctx, &[u8]) -> Result<Vec<u8>> + Send + Sync + 'static,
    {
        self.function_with(Function::new(name, handler))
    }

    /// Adds a function with its properties.
    #[must_use]
    pub fn function_with(mut self, function: Function) -> Self {
        self.functions.push(function);
        self
    }

    /// Whether it can be deployed.
    pub fn check(&self) -> Result<(), AppError> {
        if self.functions.is_empty() {
            return Err(AppError::NoFunctions);
        }
        let functions = self.functions.iter().map(|function| function.name.as_str());
        check_names("function", functions, FUNCTION_NAME_MAX_BYTES / 2)?;
        let tables = self.tables.iter().map(|table| table.name.as_str());
        // Half is left for the namespace.
        check_names("table", tables, TABLE_NAME_MAX_BYTES / 2)
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }
}

fn check_names<'a>(
    kind: &'static str,
    names: impl Iterator<Item = &'a str>,
    limit: usize,
) -> Result<(), AppError> {
    let mut seen = BTreeSet::new();
    for name in names {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        if name.is_empty() || name.len() > limit || !name.chars().all(good) {
            return Err(AppError::Name { name: name.to_owned(), limit });
        }
        if !seen.insert(name) {
            return Err(AppError::Twice { kind, name: name.to_owned() });
        }
    }
    Ok(())
}
