//! What can go wrong for a function.

use std::fmt;

use halfmoon_channel::{AllocError, EndReason, Refusal, TooLong, WorkerError};

/// Result of an operation, and of a function.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation, or a function, did not return a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The function's own error, in its own words.
    #[error("{}", String::from_utf8_lossy(.0))]
    App(Vec<u8>),
    /// A function that was called returned an error.
    #[error("{function}: {}", String::from_utf8_lossy(.error))]
    Callee {
        /// Which function.
        function: String,
        /// Its error, in its words.
        error: Vec<u8>,
    },
    /// The engine refused the operation.
    #[error("{text}")]
    Refused {
        /// Why.
        code: Refusal,
        /// The same, for people.
        text: String,
    },
    /// A name, a key or a text is too long.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The value does not have the form it is asked for.
    #[error("the value is no {wanted}: {why}")]
    Form {
        /// What it was to be.
        wanted: &'static str,
        /// Why it is not.
        why: String,
    },
    /// No state buffer is free for a value: the function holds on to too many. The attempt fails.
    #[error(transparent)]
    Arena(#[from] AllocError),
    /// This attempt is over: return.
    #[error("this attempt is over: {0:?}")]
    Ended(EndReason),
    /// The engine is gone, or the channel to it is broken: return. The process ends.
    #[error(transparent)]
    Channel(WorkerError),
}

impl Error {
    /// The function's own error.
    pub fn app(text: impl fmt::Display) -> Self {
        Self::App(text.to_string().into_bytes())
    }

    /// The function's own error, as bytes that its caller understands.
    #[must_use]
    pub const fn app_bytes(bytes: Vec<u8>) -> Self {
        Self::App(bytes)
    }

    /// Whether the function may be at fault for what depends on this attempt alone: then the
    /// attempt fails, and the error is not recorded as the function's result.
    pub(crate) const fn is_of_attempt(&self) -> bool {
        match self {
            Self::Arena(AllocError::Full { .. } | AllocError::TooMany)
            | Self::Refused { code: Refusal::ArenaFull, .. }
            | Self::Ended(_)
            | Self::Channel(_) => true,
            Self::App(_)
            | Self::Callee { .. }
            | Self::Refused { .. }
            | Self::TooLong(_)
            | Self::Form { .. }
            | Self::Arena(_) => false,
        }
    }

    /// The error as its function's caller gets it.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::App(bytes) => bytes,
            other @ (Self::Callee { .. }
            | Self::Refused { .. }
            | Self::TooLong(_)
            | Self::Form { .. }
            | Self::Arena(_)
            | Self::Ended(_)
            | Self::Channel(_)) => other.to_string().into_bytes(),
        }
    }
}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::App(text.into_bytes())
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self::App(text.as_bytes().to_vec())
    }
}

impl From<WorkerError> for Error {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all but one say that the channel broke")]
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::TooLong(too_long) => Self::TooLong(too_long),
            other => Self::Channel(other),
        }
    }
}
