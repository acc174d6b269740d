//! Running functions without a cluster, against an engine in memory.
//!
//! ```
//! use halfmoon::{App, Ctx, Table};
//! use halfmoon::testing::{Ended, harness};
//!
//! fn set(ctx: &mut Ctx, input: &[u8]) -> halfmoon::Result<Vec<u8>> {
//!     ctx.write("names", "first", input)?;
//!     Ok(b"done".to_vec())
//! }
//!
//! let mut engine = harness(&App::new().table("names").function("set", set)).unwrap();
//! assert_eq!(engine.invoke("set", b"Ada").unwrap(), Ended::Returned(b"done".to_vec()));
//! assert_eq!(engine.object("names", b"first"), Some(&b"Ada"[..]));
//! ```

use std::io;
use std::os::fd::OwnedFd;

use halfmoon_channel::WorkerSide;
use halfmoon_channel::testing::ThreadLaunch;
pub use halfmoon_channel::testing::{Ended, FakeEngine, FakeError, ProcessLaunch};

use crate::serve::serve_on;
use crate::{App, SDK};

/// An engine in memory that runs the functions of `app` on threads of this process.
pub fn harness(app: &App) -> io::Result<FakeEngine> {
    let workers = app.clone();
    let mut engine = FakeEngine::new(ThreadLaunch(move |memory, doorbell| {
        serve_in_process(&workers, &memory, doorbell);
    }))?;
    for table in &app.tables {
        engine.declare_table(&table.name);
    }
    Ok(engine)
}

/// Serves the functions of `app` on this thread to an engine in this process, until the engine asks
/// for the end. `memory` and `doorbell` are the channel's.
pub fn serve_in_process(app: &App, memory: &OwnedFd, doorbell: OwnedFd) {
    // The engine sees how it ended by that it ended.
    if let Ok(worker) = WorkerSide::connect_in_process(memory, doorbell, SDK) {
        drop(serve_on(app, worker));
    }
}
