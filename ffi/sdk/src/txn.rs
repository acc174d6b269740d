//! The body of a transaction.

use halfmoon_channel::Operation;

use crate::{Ctx, Result, Value};

/// What the body of a transaction can do: see [`Ctx::transaction`].
pub struct Txn<'a> {
    ctx: &'a mut Ctx,
    /// Writes whose answers have not been looked at.
    writes: Vec<u64>,
}

impl<'a> Txn<'a> {
    pub(crate) const fn new(ctx: &'a mut Ctx) -> Self {
        Self { ctx, writes: Vec::new() }
    }

    pub(crate) fn into_writes(self) -> Vec<u64> {
        self.writes
    }

    /// Reads an object: what this body wrote, else what stands at the transaction's moment.
    pub fn read(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.ctx.read(table, key)
    }

    /// Writes an object when the transaction commits. What is wrong with it may be said only then.
    pub fn write(
        &mut self,
        table: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        let payload = self.ctx.link.payload(value.as_ref())?;
        let id = self.ctx.link.send_write(table, key.as_ref(), payload)?;
        self.writes.push(id);
        Ok(())
    }

    /// Deletes an object when the transaction commits.
    pub fn delete(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<()> {
        let write = Operation::Write { table, key: key.as_ref(), value: None };
        self.writes.push(self.ctx.link.send(&write)?);
        Ok(())
    }

    /// Calls a function that takes part in the transaction.
    pub fn call(&mut self, function: &str, input: impl AsRef<[u8]>) -> Result<Value> {
        self.ctx.call(function, input)
    }

    /// The time at the transaction's moment, in ns since 1970.
    pub fn now_ns(&mut self) -> Result<u64> {
        self.ctx.now_ns()
    }
}
