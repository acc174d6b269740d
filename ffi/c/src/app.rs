//! Programs: tables, functions, serving; and the parsing of pointers.

use std::ffi::{CStr, c_char, c_void};
use std::time::Duration;

use halfmoon::{App, Ctx, DESCRIBE_ENV, Function, Order, Protocol, ServeError, Table};

use crate::ctx::hm_ctx;

/// It is done.
pub const HM_OK: i32 = 0;
/// The object does not exist.
pub const HM_ABSENT: i32 = 1;
/// The function that was called returned an error, or this function does.
pub const HM_FAILED: i32 = 2;
/// The engine refused the operation. The function may go on.
pub const HM_REFUSED: i32 = 3;
/// This attempt is over: return this status at once.
pub const HM_ENDED: i32 = 4;
/// A pointer, length, text or number that is not allowed.
pub const HM_INVALID: i32 = 5;

/// The system chooses how a table is logged.
pub const HM_PROTOCOL_AUTO: i32 = 0;
/// Reads append nothing to the log, a write is one record.
pub const HM_PROTOCOL_HALFMOON_READ: i32 = 1;
/// Writes append nothing to the log, a read is one record.
pub const HM_PROTOCOL_HALFMOON_WRITE: i32 = 2;
/// Everything is logged.
pub const HM_PROTOCOL_BOKI: i32 = 3;
/// Nothing is logged and nothing is promised.
pub const HM_PROTOCOL_UNLOGGED: i32 = 4;

/// The functions and tables of a program.
pub struct hm_app(App);

/// What is to be known about a function. Zero is the engine's to choose.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct hm_options {
    /// Time that one attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// Attempts before an instance is parked with its error.
    pub max_attempts: u32,
    /// Processes of it that one engine runs at once.
    pub concurrency: u32,
    /// It reads and calls other read-only functions, and has no effect.
    pub read_only: bool,
}

/// A function. Its result is what it gives to hm_return, its error what it gives to hm_fail.
/// Returns HM_OK, or the status of the operation because of which it cannot go on.
pub type hm_function = Option<
    unsafe extern "C" fn(
        ctx: *mut hm_ctx<'_>,
        input: *const u8,
        input_len: usize,
        user: *mut c_void,
    ) -> i32,
>;

/// What a C program wants back with each call of a function.
#[derive(Clone, Copy)]
pub(crate) struct User(pub(crate) *mut c_void);

// SAFETY: this package only hands the pointer back to the program, on the one thread on which
// `hm_serve` runs; what it points to is never touched here.
unsafe impl Send for User {}
// SAFETY: as for `Send`.
unsafe impl Sync for User {}

impl User {
    /// The pointer. A method, so that a closure captures the whole and not its field.
    pub(crate) const fn pointer(self) -> *mut c_void {
        self.0
    }
}

/// Text that a C program passes: not null and UTF-8.
pub(crate) unsafe fn text<'a>(pointer: *const c_char) -> Option<&'a str> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, so by the header's rules it ends with a NUL and stays as it is during the
    // call, which is as long as the result is used.
    unsafe { CStr::from_ptr(pointer) }.to_str().ok()
}

/// Bytes that a C program passes: null only if there are none.
pub(crate) unsafe fn bytes<'a>(pointer: *const u8, len: usize) -> Option<&'a [u8]> {
    if len == 0 {
        return Some(&[]);
    }
    if pointer.is_null() || isize::try_from(len).is_err() {
        return None;
    }
    // SAFETY: not null, so by the header's rules it points to `len` bytes that stay as they are
    // during the call, which is as long as the result is used.
    Some(unsafe { std::slice::from_raw_parts(pointer, len) })
}

/// Gives a value to the place that a C program names. False if there is none.
pub(crate) unsafe fn give<T>(place: *mut T, value: T) -> bool {
    if place.is_null() {
        return false;
    }
    // SAFETY: not null, so by the header's rules it may be written. What it held before is C's,
    // and is not dropped.
    unsafe { place.write(value) };
    true
}

/// A program without functions and tables. Never null.
#[unsafe(no_mangle)]
pub extern "C" fn hm_app_new() -> *mut hm_app {
    Box::into_raw(Box::new(hm_app(App::new())))
}

/// Frees a program that is not served. Null is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_app_free(app: *mut hm_app) {
    if !app.is_null() {
        // SAFETY: by the header's rules it came from `hm_app_new` and is not used again.
        drop(unsafe { Box::from_raw(app) });
    }
}

/// Adds a table. `transactional`: transactions use it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_app_table(
    app: *mut hm_app,
    name: *const c_char,
    protocol: i32,
    relaxed: bool,
    transactional: bool,
) -> i32 {
    // SAFETY: by the header's rules it is null or came from `hm_app_new`, and this call is the only
    // one that uses it now.
    let (Some(app), Some(name)) = (unsafe { app.as_mut() }, unsafe { text(name) }) else {
        return HM_INVALID;
    };
    let protocol = match protocol {
        HM_PROTOCOL_AUTO => Protocol::Auto,
        HM_PROTOCOL_HALFMOON_READ => Protocol::HalfmoonRead,
        HM_PROTOCOL_HALFMOON_WRITE => Protocol::HalfmoonWrite,
        HM_PROTOCOL_BOKI => Protocol::Boki,
        HM_PROTOCOL_UNLOGGED => Protocol::Unlogged,
        _ => return HM_INVALID,
    };
    let order = if relaxed { Order::Relaxed } else { Order::Sequential };
    let table = Table::new(name).protocol(protocol).order(order);
    let table = if transactional { table.transactional() } else { table };
    app.0 = std::mem::take(&mut app.0).table(table);
    HM_OK
}

/// Adds a function. `user` is handed to it with each call. `options` may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_app_function(
    app: *mut hm_app,
    name: *const c_char,
    function: hm_function,
    user: *mut c_void,
    options: *const hm_options,
) -> i32 {
    // SAFETY: as in `hm_app_table`.
    let (Some(app), Some(name)) = (unsafe { app.as_mut() }, unsafe { text(name) }) else {
        return HM_INVALID;
    };
    let Some(function) = function else { return HM_INVALID };
    // SAFETY: by the header's rules it is null or points to options.
    let options = unsafe { options.as_ref() }.copied().unwrap_or_default();
    let user = User(user);
    let mut added = Function::new(name, move |ctx: &mut Ctx, input: &[u8]| {
        let mut border = hm_ctx::new(ctx);
        let (data, len) = (input.as_ptr(), input.len());
        // SAFETY: the program promised a function of this type (header); all that it is given
        // lives until it returns.
        let status = unsafe { function(&raw mut border, data, len, user.pointer()) };
        border.into_result(status)
    });
    if options.timeout_ms != 0 {
        added = added.timeout(Duration::from_millis(options.timeout_ms));
    }
    if options.max_attempts != 0 {
        added = added.max_attempts(options.max_attempts);
    }
    if options.concurrency != 0 {
        added = added.concurrency(options.concurrency);
    }
    if options.read_only {
        added = added.read_only();
    }
    app.0 = std::mem::take(&mut app.0).function_with(added);
    HM_OK
}

/// Serves the program's functions to the engine that started it, until the engine ends it. Frees
/// the program. Returns the exit status for the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_serve(app: *mut hm_app) -> i32 {
    if app.is_null() {
        return HM_INVALID;
    }
    // SAFETY: by the header's rules it came from `hm_app_new` and is not used again.
    let app = unsafe { Box::from_raw(app) };
    match halfmoon::serve_worker(&app.0, concat!("c ", env!("CARGO_PKG_VERSION"))) {
        Ok(()) => 0,
        Err(error) => {
            say(&error);
            error.exit_code()
        }
    }
}

#[expect(clippy::print_stderr, reason = "the program's last words")]
fn say(error: &ServeError) {
    if matches!(error, ServeError::NoEngine) {
        eprintln!(
            "This program holds Halfmoon functions and is run by an engine, not by hand.\n\
             Deploy it with `halfmoon deploy PROGRAM`; {DESCRIBE_ENV}=1 shows what it holds."
        );
    } else {
        eprintln!("halfmoon: {error}");
    }
}
