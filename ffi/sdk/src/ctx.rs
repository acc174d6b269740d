//! What a function can do.
#![expect(clippy::wildcard_enum_match_arm, reason = "every answer but the named is unexpected")]

use std::fmt;
use std::time::{Duration, SystemTime};

use halfmoon_channel::{Answer, Draft, Level, Operation};

use crate::link::{Link, Payload};
use crate::{Error, Result, Txn, Value};

/// The world as one attempt of one invocation sees it.
///
/// Every operation may answer [`Error::Ended`]; then return, by `?`.
pub struct Ctx {
    pub(crate) link: Link,
    instance: u128,
    attempt: u32,
    deadline: Option<Duration>,
    /// Calls that were begun and not joined, oldest first.
    begun: Vec<u64>,
}

/// A call that was begun with [`Ctx::call_async`]. To be given to [`Ctx::join`]; what is not joined
/// is joined when the function ends, and its result dropped.
#[must_use = "join it to get its result"]
#[derive(Debug)]
pub struct Pending {
    id: u64,
    function: String,
}

/// A random UUID (version 4), the same in every attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Uuid(pub u128);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl Ctx {
    pub(crate) const fn new(link: Link) -> Self {
        Self { link, instance: 0, attempt: 0, deadline: None, begun: Vec::new() }
    }

    pub(crate) fn begin(&mut self, instance: u128, attempt: u32, deadline_ms: u64) {
        self.instance = instance;
        self.attempt = attempt;
        self.deadline = (deadline_ms != 0).then(|| Duration::from_millis(deadline_ms));
        self.begun.clear();
    }

    /// Waits for what is under way, so that the function can end.
    pub(crate) fn end(&mut self) -> Result<()> {
        for call in std::mem::take(&mut self.begun) {
            if self.link.ended().is_none() {
                self.link.send(&Operation::Join { call })?;
            }
        }
        self.link.settle()
    }

    /// Which execution of the function this is: the same in every attempt of it.
    #[must_use]
    pub const fn instance(&self) -> u128 {
        self.instance
    }

    /// Which attempt of the execution this is, from 1. Not the same in every attempt: for logging.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Time that this attempt was given at its beginning; none is without end.
    #[must_use]
    pub const fn time_limit(&self) -> Option<Duration> {
        self.deadline
    }

    /// Reads an object.
    pub fn read(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        match self.link.ask(&Operation::Read { table, key: key.as_ref() })? {
            Answer::Value(value) => Ok(Some(Value::new(value))),
            Answer::Absent => Ok(None),
            other => Err(unexpected("a read", &other)),
        }
    }

    /// Writes an object.
    pub fn write(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        let payload = self.link.payload(value.as_ref())?;
        let id = self.link.send_write(table, key.as_ref(), payload)?;
        self.done(id)
    }

    /// Memory to build a long value in, from where it goes to storage without another copy.
    pub fn draft(&self, len: usize) -> Result<Draft> {
        Ok(self.link.draft(len)?)
    }

    /// Writes an object from memory that [`Ctx::draft`] gave.
    pub fn write_draft(&mut self, table: &str, key: impl AsRef<[u8]>, value: Draft) -> Result<()> {
        let id = self.link.send_write(table, key.as_ref(), Payload::Draft(value))?;
        self.done(id)
    }

    /// Deletes an object. That it does not exist is no error.
    pub fn delete(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<()> {
        let id = self.link.send(&Operation::Write { table, key: key.as_ref(), value: None })?;
        self.done(id)
    }

    pub(crate) fn done(&mut self, id: u64) -> Result<()> {
        match self.link.answer(id)? {
            Answer::Done => Ok(()),
            other => Err(unexpected("an operation", &other)),
        }
    }

    /// Replaces an object by what `change` makes of it, as one step: nobody writes it in between.
    /// `change` may run more than once. Returns the new value. The table must be transactional.
    pub fn update(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        mut change: impl FnMut(Option<&[u8]>) -> Vec<u8>,
    ) -> Result<Vec<u8>> {
        let key = key.as_ref();
        self.transaction(|txn| {
            let old = txn.read(table, key)?;
            let new = change(old.as_deref());
            drop(old);
            txn.write(table, key, &new)?;
            Ok(new)
        })
    }

    /// Runs `body` so that all it reads and writes happens at one moment, or not at all.
    ///
    /// `body` runs again when it met a conflict, so it has no other effects; up to a limit, after
    /// which this answers [`crate::Refusal::TooManyConflicts`]. Its writes are seen by others, and
    /// by reads outside of it, once this returns `Ok`. An `Err` of the body forgets its writes.
    pub fn transaction<T>(&mut self, mut body: impl FnMut(&mut Txn<'_>) -> Result<T>) -> Result<T> {
        loop {
            match self.link.ask(&Operation::TxnBegin)? {
                Answer::Done => {}
                other => return Err(unexpected("a transaction's begin", &other)),
            }
            let mut txn = Txn::new(self);
            let result = body(&mut txn);
            let writes = txn.into_writes();
            let result = self.written(writes, result);
            if self.link.ended().is_some() {
                return result;
            }
            let end = if result.is_ok() { Operation::TxnCommit } else { Operation::TxnAbort };
            match self.link.ask(&end)? {
                Answer::Committed => return result,
                Answer::Conflict => {}
                other => return Err(unexpected("a commit", &other)),
            }
        }
    }

    /// Waits for the answers to a transaction's writes; its result is the first failure.
    fn written<T>(&mut self, writes: Vec<u64>, result: Result<T>) -> Result<T> {
        writes.into_iter().fold(result, |result, id| {
            let done = self.done(id);
            result.and_then(|value| done.map(|()| value))
        })
    }

    /// Calls a function and waits for its result.
    pub fn call(&mut self, function: &str, input: impl AsRef<[u8]>) -> Result<Value> {
        let payload = self.link.payload(input.as_ref())?;
        let id = self.link.send_call(CallKind::Wait, function, payload)?;
        self.result(function, id)
    }

    /// Begins to call a function. It runs meanwhile.
    pub fn call_async(&mut self, function: &str, input: impl AsRef<[u8]>) -> Result<Pending> {
        let payload = self.link.payload(input.as_ref())?;
        let id = self.link.send_call(CallKind::Begin, function, payload)?;
        self.begun.push(id);
        Ok(Pending { id, function: function.to_owned() })
    }

    /// Waits for the result of a call. From here on this function sees what the callee wrote.
    pub fn join(&mut self, pending: Pending) -> Result<Value> {
        let id = self.send_join(&pending)?;
        self.joined(&pending, id)
    }

    /// Waits for the results of several calls; they come in the order of `pending`.
    pub fn join_all(
        &mut self,
        pending: impl IntoIterator<Item = Pending>,
    ) -> Result<Vec<Result<Value>>> {
        let mut joins = Vec::new();
        for pending in pending {
            let id = self.send_join(&pending)?;
            joins.push((pending, id));
        }
        Ok(joins.into_iter().map(|(pending, id)| self.joined(&pending, id)).collect())
    }

    fn send_join(&mut self, pending: &Pending) -> Result<u64> {
        self.begun.retain(|id| *id != pending.id);
        self.link.send(&Operation::Join { call: pending.id })
    }

    fn joined(&mut self, pending: &Pending, join: u64) -> Result<Value> {
        // Why the call could not begin says more than that there is nothing to join.
        let begun = self.done(pending.id);
        let result = self.result(&pending.function, join);
        begun.and(result)
    }

    fn result(&mut self, function: &str, id: u64) -> Result<Value> {
        match self.link.answer(id)? {
            Answer::Value(value) => Ok(Value::new(value)),
            Answer::CalleeFailed(error) => {
                Err(Error::Callee { function: function.to_owned(), error: error.to_vec() })
            }
            other => Err(unexpected("a call", &other)),
        }
    }

    /// Starts a function for which nobody waits, exactly once. Returns its instance.
    pub fn spawn(&mut self, function: &str, input: impl AsRef<[u8]>) -> Result<u128> {
        let payload = self.link.payload(input.as_ref())?;
        let id = self.link.send_call(CallKind::Spawn, function, payload)?;
        match self.link.answer(id)? {
            Answer::Instance(instance) => Ok(instance),
            other => Err(unexpected("a spawn", &other)),
        }
    }

    /// The time, in ns since 1970: that of the last record this execution has seen. It is the same
    /// in every attempt, never goes back, and stands still between steps.
    pub fn now_ns(&mut self) -> Result<u64> {
        match self.link.ask(&Operation::Now)? {
            Answer::Time(ns) => Ok(ns),
            other => Err(unexpected("the time", &other)),
        }
    }

    /// [`Ctx::now_ns`] as a point in time.
    pub fn now(&mut self) -> Result<SystemTime> {
        Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(self.now_ns()?))
    }

    /// Random bytes, the same in every attempt.
    pub fn random_bytes(&mut self) -> Result<[u8; 32]> {
        match self.link.ask(&Operation::Random)? {
            Answer::Draw(bytes) => Ok(bytes),
            other => Err(unexpected("a draw", &other)),
        }
    }

    /// A random number, the same in every attempt.
    pub fn random(&mut self) -> Result<u64> {
        let [a, b, c, d, e, f, g, h, ..] = self.random_bytes()?;
        Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// A random UUID, the same in every attempt.
    pub fn uuid(&mut self) -> Result<Uuid> {
        let bytes = self.random_bytes()?;
        let bits = u128::from_le_bytes(*bytes.first_chunk().expect("32 bytes have 16"));
        let version = 0x4 << 76;
        let variant = 0x2 << 62;
        let fixed = (0xf << 76) | (0x3 << 62);
        Ok(Uuid((bits & !fixed) | version | variant))
    }

    /// Does something to the world outside, or takes something from it, and records the result.
    ///
    /// Once the result is recorded, `effect` is not run again in any attempt, and this returns what
    /// was recorded. Until then it may run again: the *effect* happens at least once, its *result*
    /// is one. An effect that can fail returns that as its result; one that should be tried again
    /// panics.
    pub fn side_effect(&mut self, effect: impl FnOnce() -> Vec<u8>) -> Result<Value> {
        match self.link.ask(&Operation::SideEffectBegin)? {
            Answer::Value(recorded) => return Ok(Value::new(recorded)),
            Answer::Go => {}
            other => return Err(unexpected("a side effect", &other)),
        }
        let result = effect();
        let payload = self.link.payload(&result)?;
        let id = self.link.send_payload(payload, |result| Operation::SideEffectDone { result })?;
        match self.link.answer(id)? {
            Answer::Done => Ok(Value::own(&result)),
            Answer::Value(recorded) => Ok(Value::new(recorded)),
            other => Err(unexpected("a side effect's result", &other)),
        }
    }

    /// What was written before is seen by others before what comes after. Only needed with
    /// [`crate::Order::Relaxed`].
    pub fn fence(&mut self) -> Result<()> {
        let id = self.link.send(&Operation::Fence)?;
        self.done(id)
    }

    /// Writes a line to the engine's log. Not recorded: every attempt writes its own.
    pub fn log(&mut self, level: Level, text: &str) -> Result<()> {
        self.link.log(level, text)
    }
}

/// How a function is called.
#[derive(Clone, Copy)]
pub(crate) enum CallKind {
    Wait,
    Begin,
    Spawn,
}

impl Link {
    pub(crate) fn send_write<'a>(
        &mut self,
        table: &'a str,
        key: &'a [u8],
        payload: Payload<'a>,
    ) -> Result<u64> {
        self.send_payload(payload, |data| Operation::Write { table, key, value: Some(data) })
    }

    pub(crate) fn send_call<'a>(
        &mut self,
        kind: CallKind,
        function: &'a str,
        payload: Payload<'a>,
    ) -> Result<u64> {
        self.send_payload(payload, |input| match kind {
            CallKind::Wait => Operation::Call { function, input },
            CallKind::Begin => Operation::CallBegin { function, input },
            CallKind::Spawn => Operation::Spawn { function, input },
        })
    }
}

/// The engine answered what does not fit the question: the two do not belong together.
fn unexpected(question: &'static str, answer: &Answer) -> Error {
    let text = format!("the engine answered {question} with {answer:?}");
    Error::Refused { code: halfmoon_channel::Refusal::NotAllowed, text }
}
