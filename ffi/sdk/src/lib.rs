//! Write exactly-once stateful functions in Rust.
//!
//! ```no_run
//! use halfmoon::{App, Ctx, Table};
//!
//! fn count(ctx: &mut Ctx, input: &[u8]) -> halfmoon::Result<Vec<u8>> {
//!     let new = ctx.update("visits", input, |old| {
//!         let count = old.and_then(|old| old.try_into().ok()).map_or(0, u64::from_le_bytes);
//!         (count + 1).to_le_bytes().to_vec()
//!     })?;
//!     Ok(new)
//! }
//!
//! fn main() {
//!     let app = App::new().table(Table::new("visits").transactional()).function("count", count);
//!     halfmoon::serve(app)
//! }
//! ```
//! `halfmoon deploy ./program` asks the program what it holds and hands it to the engines, which
//! start it as worker processes. One process runs one invocation at a time.
//!
//! # What exactly once means here
//! An invocation may be *attempted* more than once: its process is killed, its engine dies. Each
//! attempt runs the function from its beginning; what an earlier attempt has done is not done
//! again but answered from the log. For that, a function must do the same operations with the same
//! arguments in every attempt. What it reads through [`Ctx`] is the same in every attempt:
//! values, [`Ctx::now`], [`Ctx::random`]. What it takes from elsewhere (a clock, a file, the
//! network, a map's order of iteration, a `static`) is not, unless it is wrapped in
//! [`Ctx::side_effect`].
//!
//! # How a function ends
//! - `Ok(bytes)`: its result, recorded.
//! - `Err` of its own making ([`Error::app`]), or one that an operation answered and the function
//!   passed on: also a *result*. It is recorded, the caller gets it, nothing is attempted again.
//! - A panic, a killed process, a deadline that passed: this *attempt* has failed. The engine makes
//!   another, up to the function's `max_attempts`.
//! - [`Error::Ended`]: this attempt is over for a reason outside the function. Every further
//!   operation answers so; return, by `?`. Whatever the function returns then is ignored.
#![forbid(unsafe_code)]

mod app;
mod ctx;
mod error;
#[cfg(feature = "json")]
mod json;
mod link;
mod manifest;
mod serve;
#[cfg(feature = "testing")]
pub mod testing;
mod txn;
mod value;

pub use app::{App, AppError, Function, Order, Protocol, Table};
pub use ctx::{Ctx, Pending, Uuid};
pub use error::{Error, Result};
pub use halfmoon_channel::limits;
pub use halfmoon_channel::{AllocError, Draft, EndReason, Level, Refusal};
#[cfg(feature = "json")]
pub use json::json;
pub use serve::{ServeError, serve, serve_worker};
pub use txn::Txn;
pub use value::Value;

/// Environment variable: with `1`, the program prints its manifest and ends.
pub const DESCRIBE_ENV: &str = "HALFMOON_DESCRIBE";
/// What the program says it was built with.
pub const SDK: &str = concat!("rust ", env!("CARGO_PKG_VERSION"));
