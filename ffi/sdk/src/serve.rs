//! Running a program: as a worker, or to describe itself.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use halfmoon_channel::{ConnectError, Invocation, WorkerError, WorkerSide, connect_from_env};

use crate::link::Link;
use crate::{App, AppError, Ctx, DESCRIBE_ENV, Error, Result, SDK};

/// Why a program stopped to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Its functions and tables cannot be deployed.
    #[error(transparent)]
    App(#[from] AppError),
    /// It was started by hand.
    #[error("started without an engine")]
    NoEngine,
    /// The channel to the engine could not be taken up.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The channel to the engine broke.
    #[error(transparent)]
    Channel(#[from] WorkerError),
    /// A function panicked, which was reported; what it left behind may be broken.
    #[error("a function panicked: {0}")]
    Panicked(String),
    /// The manifest could not be written.
    #[error("cannot write the manifest: {0}")]
    Manifest(#[source] io::Error),
}

impl ServeError {
    /// The exit status of the process, as in sysexits.h.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::NoEngine => 64,
            Self::App(_) => 65,
            Self::Connect(_) | Self::Channel(_) => 69,
            Self::Panicked(_) => 70,
            Self::Manifest(_) => 74,
        }
    }
}

/// Serves a program's functions to the engine that started it, and ends the process.
///
/// With the environment variable [`DESCRIBE_ENV`] = 1 it prints the program's manifest instead.
/// Started by hand, it says how to deploy it, and ends with status 64.
pub fn serve(app: App) -> ! {
    let status = run(&app, SDK).map_or_else(|error| say(&app, &error), |()| 0);
    std::process::exit(status)
}

/// As [`serve`], for an SDK on top of this one: without ending the process.
pub fn serve_worker(app: &App, sdk: &str) -> Result<(), ServeError> {
    run(app, sdk)
}

fn run(app: &App, sdk: &str) -> Result<(), ServeError> {
    app.check()?;
    if std::env::var_os(DESCRIBE_ENV).is_some_and(|value| value == "1") {
        let mut out = io::stdout().lock();
        return writeln!(out, "{}", app.manifest_of(sdk)).map_err(ServeError::Manifest);
    }
    let worker = connect_from_env(sdk)?.ok_or(ServeError::NoEngine)?;
    serve_on(app, worker)
}

fn say(app: &App, error: &ServeError) -> i32 {
    let mut out = io::stderr().lock();
    let said = if matches!(error, ServeError::NoEngine) {
        let program = std::env::args().next().unwrap_or_else(|| "./program".to_owned());
        let function = app.functions.first().map_or("FUNCTION", |function| &function.name);
        writeln!(
            out,
            "This program holds Halfmoon functions and is run by an engine, not by hand.\n\
             To deploy it:      halfmoon deploy {program}\n\
             To call it then:   halfmoon invoke {function} '{{}}'\n\
             To see what it holds: {DESCRIBE_ENV}=1 {program}"
        )
    } else {
        writeln!(out, "halfmoon: {error}")
    };
    // There is nobody left to tell that it could not be said.
    drop(said);
    error.exit_code()
}

/// Serves until the engine asks for the end.
pub(crate) fn serve_on(app: &App, worker: WorkerSide) -> Result<(), ServeError> {
    let mut ctx = Ctx::new(Link::new(worker));
    while let Some(invocation) = ctx.link.next_invocation()? {
        attempt(app, &mut ctx, invocation)?;
    }
    Ok(())
}

fn attempt(app: &App, ctx: &mut Ctx, invocation: Invocation) -> Result<(), ServeError> {
    let Invocation { function: name, instance, attempt, deadline_ms, input } = invocation;
    ctx.begin(instance, attempt, deadline_ms);
    let Some(function) = app.find(&name) else {
        ctx.link.crashed(&format!("this program has no function {name:?}"))?;
        return Ok(());
    };
    let returned = match catch_unwind(AssertUnwindSafe(|| (function.handler)(ctx, &input))) {
        Ok(returned) => returned,
        Err(panic) => {
            let text = panic_text(&*panic);
            settle(ctx)?;
            ctx.link.crashed(&text)?;
            return Err(ServeError::Panicked(text));
        }
    };
    drop(input);
    settle(ctx)?;
    ctx.link.finish(returned)?;
    Ok(())
}

/// Waits for what is under way. That the attempt is over is for `finish` to say.
fn settle(ctx: &mut Ctx) -> Result<(), WorkerError> {
    let first = ctx.end();
    let again = ctx.link.settle();
    match first.and(again) {
        Err(Error::Channel(error)) => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("without a text"))
}
