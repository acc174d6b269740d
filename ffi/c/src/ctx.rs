//! What a function can do.

use std::ffi::{CString, c_char, c_void};

use halfmoon::{Ctx, Error, Level, Pending, Result, Txn, Value};

use crate::app::{
    HM_ABSENT, HM_ENDED, HM_FAILED, HM_INVALID, HM_OK, HM_REFUSED, User, bytes, give, text,
};

/// The world as one attempt of one invocation sees it. Valid until its function returns.
pub struct hm_ctx<'a> {
    /// Taken while a transaction's body or a side effect runs, so that these cannot use it.
    ctx: Option<&'a mut Ctx>,
    result: Vec<u8>,
    failure: Option<Vec<u8>>,
    last: Option<Error>,
    last_text: CString,
}

/// What the body of a transaction can use. Valid until the body returns.
pub struct hm_txn<'a, 'b> {
    txn: &'a mut Txn<'b>,
    last: Option<Error>,
}

/// A value that came from the engine. To be freed.
pub struct hm_value(Value);

/// A call that was begun. To be joined.
pub struct hm_pending(Pending);

/// Where a side effect puts its result.
pub struct hm_output(Vec<u8>);

/// The body of a transaction. HM_OK commits, anything else forgets its writes. May run again.
pub type hm_body = Option<unsafe extern "C" fn(txn: *mut hm_txn<'_, '_>, user: *mut c_void) -> i32>;

/// Does something to the world outside and puts its result into `output`.
pub type hm_effect = Option<unsafe extern "C" fn(output: *mut hm_output, user: *mut c_void)>;

impl<'a> hm_ctx<'a> {
    pub(crate) fn new(ctx: &'a mut Ctx) -> Self {
        let (result, last_text) = (Vec::new(), CString::default());
        Self { ctx: Some(ctx), result, failure: None, last: None, last_text }
    }

    /// What the function's status means.
    pub(crate) fn into_result(self, status: i32) -> Result<Vec<u8>> {
        if status == HM_OK {
            return Ok(self.result);
        }
        match (self.failure, self.last) {
            (_, Some(ended @ Error::Ended(_))) => Err(ended),
            (Some(failure), _) => Err(Error::app_bytes(failure)),
            (None, Some(last)) => Err(last),
            (None, None) => Err(Error::app(format!("the function returned {status}"))),
        }
    }

    /// Notes an operation's error; its status.
    fn failed(&mut self, error: Error) -> i32 {
        let status = status_of(&error);
        let text = error.to_string().replace('\0', " ");
        self.last_text = CString::new(text).unwrap_or_default();
        self.last = Some(error);
        status
    }

    /// Runs an operation and hands its value on.
    fn with<T>(
        &mut self,
        operation: impl FnOnce(&mut Ctx) -> Result<T>,
        hand: impl FnOnce(T) -> i32,
    ) -> i32 {
        let Some(ctx) = self.ctx.as_deref_mut() else {
            return self.failed("inside a transaction or side effect".into());
        };
        match operation(ctx) {
            Ok(value) => hand(value),
            Err(error) => self.failed(error),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "errors to come are refusals, too")]
fn status_of(error: &Error) -> i32 {
    match error {
        Error::App(_) | Error::Callee { .. } => HM_FAILED,
        Error::Ended(_) | Error::Channel(_) => HM_ENDED,
        Error::TooLong(_) => HM_INVALID,
        _ => HM_REFUSED,
    }
}

fn hand<T>(given: bool, _: T) -> i32 {
    if given { HM_OK } else { HM_INVALID }
}

/// Hands a value to C.
unsafe fn hand_value(value: Value, out: *mut *mut hm_value) -> i32 {
    if out.is_null() {
        return HM_INVALID;
    }
    // SAFETY: not null, so by the header's rules it may be written.
    hand(unsafe { give(out, Box::into_raw(Box::new(hm_value(value)))) }, ())
}

/// A context that C passes: null or one that this package made, used by one call at a time.
macro_rules! context {
    ($pointer:expr) => {{
        // SAFETY: by the header's rules the pointer is null or was given to the function or body
        // that runs now, and no other call uses it at the same time.
        let context = unsafe { $pointer.as_mut() };
        match context {
            Some(context) => context,
            None => return HM_INVALID,
        }
    }};
}

/// Text or bytes that C passes.
macro_rules! parse {
    ($parsed:expr) => {{
        // SAFETY: by the header's rules texts end with a NUL, bytes are as many as their length
        // says, and both stay as they are during the call.
        let parsed = unsafe { $parsed };
        match parsed {
            Some(parsed) => parsed,
            None => return HM_INVALID,
        }
    }};
}

/// The bytes of a value; they stay valid until it is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_value_data(value: *const hm_value) -> *const u8 {
    // SAFETY: by the header's rules it is null or a value that was not freed.
    unsafe { value.as_ref() }.map_or(std::ptr::null(), |value| value.0.as_ptr())
}

/// The number of bytes of a value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_value_len(value: *const hm_value) -> usize {
    // SAFETY: as in `hm_value_data`.
    unsafe { value.as_ref() }.map_or(0, |value| value.0.len())
}

/// Frees a value. Null is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_value_free(value: *mut hm_value) {
    if !value.is_null() {
        // SAFETY: by the header's rules it came from this package and is not used again.
        drop(unsafe { Box::from_raw(value) });
    }
}

/// Which execution of the function this is, 16 bytes: the same in every attempt of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_instance(ctx: *mut hm_ctx<'_>, out: *mut u8) -> i32 {
    let ctx = context!(ctx);
    // SAFETY: by the header's rules it is null or may be written, 16 bytes.
    let given = |id: u128| unsafe { give(out.cast::<[u8; 16]>(), id.to_le_bytes()) };
    ctx.with(|ctx| Ok(ctx.instance()), |id| hand(given(id), ()))
}

/// Which attempt of the execution this is, from 1. Not the same in every attempt: for logging.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_attempt(ctx: *mut hm_ctx<'_>, out: *mut u32) -> i32 {
    let ctx = context!(ctx);
    // SAFETY: by the header's rules it is null or may be written.
    ctx.with(|ctx| Ok(ctx.attempt()), |attempt| hand(unsafe { give(out, attempt) }, ()))
}

/// The text of the last error of an operation; valid until the next one. Empty if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_error_text(ctx: *const hm_ctx<'_>) -> *const c_char {
    // SAFETY: as for `context!`, and nothing is changed.
    unsafe { ctx.as_ref() }.map_or(c"".as_ptr(), |ctx| ctx.last_text.as_ptr())
}

/// Sets the result of the function, for when it returns HM_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_return(ctx: *mut hm_ctx<'_>, data: *const u8, len: usize) -> i32 {
    context!(ctx).result = parse!(bytes(data, len)).to_vec();
    HM_OK
}

/// Sets the error of the function, for when it returns something else. Returns HM_FAILED. The error
/// is a result: it is recorded, and the function is not attempted again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_fail(ctx: *mut hm_ctx<'_>, data: *const u8, len: usize) -> i32 {
    context!(ctx).failure = Some(parse!(bytes(data, len)).to_vec());
    HM_FAILED
}

/// Reads an object. HM_OK and a value, or HM_ABSENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_read(
    ctx: *mut hm_ctx<'_>,
    table: *const c_char,
    key: *const u8,
    key_len: usize,
    out: *mut *mut hm_value,
) -> i32 {
    let (table, key) = (parse!(text(table)), parse!(bytes(key, key_len)));
    context!(ctx).with(
        |ctx| ctx.read(table, key),
        // SAFETY: by the header's rules it is null or may be written.
        |value| value.map_or(HM_ABSENT, |value| unsafe { hand_value(value, out) }),
    )
}

/// Writes an object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_write(
    ctx: *mut hm_ctx<'_>,
    table: *const c_char,
    key: *const u8,
    key_len: usize,
    data: *const u8,
    len: usize,
) -> i32 {
    let (table, key) = (parse!(text(table)), parse!(bytes(key, key_len)));
    let data = parse!(bytes(data, len));
    context!(ctx).with(|ctx| ctx.write(table, key, data), |()| HM_OK)
}

/// Deletes an object. That it does not exist is no error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_delete(
    ctx: *mut hm_ctx<'_>,
    table: *const c_char,
    key: *const u8,
    key_len: usize,
) -> i32 {
    let (table, key) = (parse!(text(table)), parse!(bytes(key, key_len)));
    context!(ctx).with(|ctx| ctx.delete(table, key), |()| HM_OK)
}

/// Runs `body` so that all it reads and writes happens at one moment, or not at all. It runs again
/// when it met a conflict. Inside of it use hm_txn_ functions only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_transaction(
    ctx: *mut hm_ctx<'_>,
    body: hm_body,
    user: *mut c_void,
) -> i32 {
    let Some(body) = body else { return HM_INVALID };
    let Some(inner) = context!(ctx).ctx.take() else {
        return context!(ctx).failed("inside a transaction or side effect".into());
    };
    let user = User(user);
    let mut status = HM_OK;
    let done = inner.transaction(|txn| {
        let mut border = hm_txn { txn, last: None };
        // SAFETY: the program promised a body of this type (header); what it is given lives until
        // it returns.
        status = unsafe { body(&raw mut border, user.pointer()) };
        match (status, border.last) {
            (HM_OK, _) => Ok(()),
            (_, Some(error)) => Err(error),
            (_, None) => Err(Error::app(format!("the transaction's body returned {status}"))),
        }
    });
    let ctx = context!(ctx);
    ctx.ctx = Some(inner);
    match done {
        Ok(()) => HM_OK,
        Err(error) => {
            let of_error = ctx.failed(error);
            if status == HM_OK { of_error } else { status }
        }
    }
}

impl hm_txn<'_, '_> {
    fn with<T>(&mut self, done: Result<T>, hand: impl FnOnce(T) -> i32) -> i32 {
        match done {
            Ok(value) => hand(value),
            Err(error) => {
                let status = status_of(&error);
                self.last = Some(error);
                status
            }
        }
    }
}

/// Reads an object inside a transaction. HM_OK and a value, or HM_ABSENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_txn_read(
    txn: *mut hm_txn<'_, '_>,
    table: *const c_char,
    key: *const u8,
    key_len: usize,
    out: *mut *mut hm_value,
) -> i32 {
    let (table, key) = (parse!(text(table)), parse!(bytes(key, key_len)));
    let txn = context!(txn);
    let read = txn.txn.read(table, key);
    // SAFETY: by the header's rules it is null or may be written.
    txn.with(read, |value| value.map_or(HM_ABSENT, |value| unsafe { hand_value(value, out) }))
}

/// Writes an object when the transaction commits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_txn_write(
    txn: *mut hm_txn<'_, '_>,
    table: *const c_char,
    key: *const u8,
    key_len: usize,
    data: *const u8,
    len: usize,
) -> i32 {
    let (table, key) = (parse!(text(table)), parse!(bytes(key, key_len)));
    let data = parse!(bytes(data, len));
    let txn = context!(txn);
    let written = txn.txn.write(table, key, data);
    txn.with(written, |()| HM_OK)
}

/// Deletes an object when the transaction commits.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_txn_delete(
    txn: *mut hm_txn<'_, '_>,
    table: *const c_char,
    key: *const u8,
    key_len: usize,
) -> i32 {
    let (table, key) = (parse!(text(table)), parse!(bytes(key, key_len)));
    let txn = context!(txn);
    let deleted = txn.txn.delete(table, key);
    txn.with(deleted, |()| HM_OK)
}

/// Calls a function and waits for its result. HM_OK and a value, or HM_FAILED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_call(
    ctx: *mut hm_ctx<'_>,
    function: *const c_char,
    input: *const u8,
    input_len: usize,
    out: *mut *mut hm_value,
) -> i32 {
    let (function, input) = (parse!(text(function)), parse!(bytes(input, input_len)));
    context!(ctx).with(
        |ctx| ctx.call(function, input),
        // SAFETY: by the header's rules it is null or may be written.
        |value| unsafe { hand_value(value, out) },
    )
}

/// Begins to call a function. It runs meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_call_async(
    ctx: *mut hm_ctx<'_>,
    function: *const c_char,
    input: *const u8,
    input_len: usize,
    out: *mut *mut hm_pending,
) -> i32 {
    let (function, input) = (parse!(text(function)), parse!(bytes(input, input_len)));
    if out.is_null() {
        return HM_INVALID;
    }
    let boxed = |pending| Box::into_raw(Box::new(hm_pending(pending)));
    context!(ctx).with(
        |ctx| ctx.call_async(function, input),
        // SAFETY: by the header's rules it is null or may be written.
        |pending| hand(unsafe { give(out, boxed(pending)) }, ()),
    )
}

/// Waits for the result of a call, and frees `pending`. HM_OK and a value, or HM_FAILED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_join(
    ctx: *mut hm_ctx<'_>,
    pending: *mut hm_pending,
    out: *mut *mut hm_value,
) -> i32 {
    if pending.is_null() {
        return HM_INVALID;
    }
    // SAFETY: by the header's rules it came from `hm_call_async` and is not used again.
    let pending = unsafe { Box::from_raw(pending) }.0;
    context!(ctx).with(
        |ctx| ctx.join(pending),
        // SAFETY: by the header's rules it is null or may be written.
        |value| unsafe { hand_value(value, out) },
    )
}

/// Starts a function for which nobody waits, exactly once. `out`, 16 bytes or null, gets its
/// instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_spawn(
    ctx: *mut hm_ctx<'_>,
    function: *const c_char,
    input: *const u8,
    input_len: usize,
    out: *mut u8,
) -> i32 {
    let (function, input) = (parse!(text(function)), parse!(bytes(input, input_len)));
    context!(ctx).with(
        |ctx| ctx.spawn(function, input),
        |id| {
            // SAFETY: by the header's rules it is null or may be written, 16 bytes. Null is fine.
            let _: bool = unsafe { give(out.cast::<[u8; 16]>(), id.to_le_bytes()) };
            HM_OK
        },
    )
}

/// The time, in ns since 1970: the same in every attempt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_now_ns(ctx: *mut hm_ctx<'_>, out: *mut u64) -> i32 {
    // SAFETY: by the header's rules it is null or may be written.
    context!(ctx).with(Ctx::now_ns, |ns| hand(unsafe { give(out, ns) }, ()))
}

/// A random number, the same in every attempt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_random(ctx: *mut hm_ctx<'_>, out: *mut u64) -> i32 {
    // SAFETY: by the header's rules it is null or may be written.
    context!(ctx).with(Ctx::random, |number| hand(unsafe { give(out, number) }, ()))
}

/// A random UUID (version 4), 16 bytes, the same in every attempt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_uuid(ctx: *mut hm_ctx<'_>, out: *mut u8) -> i32 {
    // SAFETY: by the header's rules it is null or may be written, 16 bytes.
    let given = |id: u128| unsafe { give(out.cast::<[u8; 16]>(), id.to_be_bytes()) };
    context!(ctx).with(Ctx::uuid, |uuid| hand(given(uuid.0), ()))
}

/// Sets the result of a side effect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_output_set(output: *mut hm_output, data: *const u8, len: usize) -> i32 {
    context!(output).0 = parse!(bytes(data, len)).to_vec();
    HM_OK
}

/// Runs `effect` and records its result; `out` gets what is recorded. Once it is recorded, `effect`
/// is not run again in any attempt; until then it may be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_side_effect(
    ctx: *mut hm_ctx<'_>,
    effect: hm_effect,
    user: *mut c_void,
    out: *mut *mut hm_value,
) -> i32 {
    let Some(effect) = effect else { return HM_INVALID };
    let Some(inner) = context!(ctx).ctx.take() else {
        return context!(ctx).failed("inside a transaction or side effect".into());
    };
    let done = inner.side_effect(|| {
        let mut output = hm_output(Vec::new());
        // SAFETY: the program promised an effect of this type (header); what it is given lives
        // until it returns.
        unsafe { effect(&raw mut output, user) };
        output.0
    });
    let ctx = context!(ctx);
    ctx.ctx = Some(inner);
    match done {
        // SAFETY: by the header's rules it is null or may be written.
        Ok(value) => unsafe { hand_value(value, out) },
        Err(error) => ctx.failed(error),
    }
}

/// What was written before is seen by others before what comes after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_fence(ctx: *mut hm_ctx<'_>) -> i32 {
    context!(ctx).with(Ctx::fence, |()| HM_OK)
}

/// Writes a line to the engine's log. `level`: 1 error, 2 warning, 3 information, 4 debugging.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hm_log(ctx: *mut hm_ctx<'_>, level: i32, line: *const c_char) -> i32 {
    let line = parse!(text(line));
    let level = u8::try_from(level).ok().and_then(Level::from_code);
    let Some(level) = level else { return HM_INVALID };
    context!(ctx).with(|ctx| ctx.log(level, line), |()| HM_OK)
}
