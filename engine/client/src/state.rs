//! The handle to the state store: quorum operations over the nodes that hold the log.
//!
//! - A write is complete when a quorum answered, applied or refused as overtaken.
//! - A cell is read from one node, and its tuple from a second. Unless they agree, the newer is
//!   written back to a quorum before anyone hears of it: else a later reader might see the older.
//! - A version is immutable, so one node that has it is enough; that it is *absent* takes two.
//! - Voices and acknowledgements make a quorum only of the members of one epoch.
//! - A base is answered by any node that has folded as far as the reader's floor.

mod quorum;

use std::cell::Cell as Counter;
use std::fmt;
use std::rc::Rc;

use halfmoon_wire::limits::VALUE_MAX_BYTES;
use halfmoon_wire::limits::{BLOB_CHUNK_BYTES, KEY_MAX_BYTES, TABLE_NAME_MAX_BYTES};
use halfmoon_wire::{CellTuple, Epoch, NodeId, ObjectKey, SeqNum, StateRequest, VersionId, broken};
use thiserror::Error;

use crate::calls::{Bytes, Reply};
use crate::core::{Backoff, Core, Ended, bump};
use crate::value::{Base, Cell, Lend, Value, ValueIn};
use quorum::{Attempt, Put, What};

/// The state store as tasks of one thread use it. Clones are handles to the same client.
#[derive(Clone)]
pub struct State(pub(crate) Rc<Core>);

/// Why the state store did not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StateError {
    /// No quorum had answered a write by the deadline: it may have taken effect.
    #[error("it is not known whether the write took effect: no quorum answered in time")]
    Unknown,
    /// Not enough nodes had answered a read by the deadline.
    #[error("not enough storage nodes answered in time")]
    Unavailable,
    /// The value is longer than the memory lent for it. Ask again with this much.
    #[error("the value has {len} bytes, more than was lent")]
    NeedRoom {
        /// Bytes of the value.
        len: u32,
    },
    /// A name, key or value is over its limit. Nothing was done.
    #[error("{what} of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The value's range does not lie within its memory. Nothing was done.
    #[error("the value does not lie within the memory that it was said to be in")]
    OutOfBounds,
    /// A blob has no bytes. Nothing was done.
    #[error("a blob without bytes cannot be put")]
    Empty,
    /// The client has ended; a write under way may have taken effect.
    #[error("the engine has stopped")]
    Closed,
}

impl State {
    /// The cell of an object; `None` when it was never written.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unknown`.
    pub async fn get_cell(
        &self,
        table: &str,
        key: &[u8],
        lend: Option<Lend>,
        deadline_ns: u64,
    ) -> Result<Option<Cell>, StateError> {
        let object = object(table, key)?;
        self.read_until(deadline_ns, self.settled_cell(object, lend.as_ref())).await
    }

    /// Puts a cell under a tuple; `None` deletes it. Being overtaken by a larger tuple is success.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unavailable`.
    pub async fn put_cell(
        &self,
        table: &str,
        key: &[u8],
        tuple: CellTuple,
        value: Option<ValueIn>,
        deadline_ns: u64,
    ) -> Result<(), StateError> {
        let put = Put { object: object(table, key)?, what: What::Cell(tuple), value };
        self.write_until(deadline_ns, self.put(&put)).await
    }

    /// An immutable version; `None` when two nodes do not have it.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unknown`.
    pub async fn get_version(
        &self,
        table: &str,
        key: &[u8],
        version: VersionId,
        lend: Option<Lend>,
        deadline_ns: u64,
    ) -> Result<Option<Value>, StateError> {
        let object = object(table, key)?;
        let landing = lend.as_ref().map(Lend::landing);
        let read = async {
            let request = StateRequest::GetVersion { object, version, landing };
            let found = self.any_value(&request, lend.as_ref(), 2).await?;
            Ok(found.and_then(|(_, value)| value.map(value_out)))
        };
        self.read_until(deadline_ns, read).await
    }

    /// Puts an immutable version: one id names one value for ever.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unavailable`.
    pub async fn put_version(
        &self,
        table: &str,
        key: &[u8],
        version: VersionId,
        value: ValueIn,
        deadline_ns: u64,
    ) -> Result<(), StateError> {
        let what = What::Version(version);
        let put = Put { object: object(table, key)?, what, value: Some(value) };
        self.write_until(deadline_ns, self.put(&put)).await
    }

    /// What the object was before the window of the log, from a node that has folded up to
    /// `floor`; `None` when it was nothing.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unknown`.
    pub async fn base(
        &self,
        table: &str,
        key: &[u8],
        floor: SeqNum,
        lend: Option<Lend>,
        deadline_ns: u64,
    ) -> Result<Option<Base>, StateError> {
        let object = object(table, key)?;
        let landing = lend.as_ref().map(Lend::landing);
        let read = async {
            let request = StateRequest::GetBase { object, floor, landing };
            let found = self.any_value(&request, lend.as_ref(), 1).await?;
            Ok(found.map(|(seq, value)| Base { seq, value: value.map(value_out) }))
        };
        self.read_until(deadline_ns, read).await
    }

    /// Puts a function binary, named by its BLAKE3, on all nodes; a quorum has it at the end.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unavailable`.
    pub async fn put_blob(
        &self,
        hash: [u8; 32],
        bytes: Rc<[u8]>,
        deadline_ns: u64,
    ) -> Result<(), StateError> {
        if bytes.is_empty() {
            return Err(StateError::Empty);
        }
        let bytes = &bytes;
        let one = move |node: NodeId| async move { self.put_blob_on(node, hash, bytes).await };
        self.write_until(deadline_ns, self.on_quorum(one)).await
    }

    /// A function binary, from any node that has it whole; `None` when two nodes do not. The
    /// caller compares its hash.
    ///
    /// # Errors
    /// See [`StateError`]; never `Unknown`.
    pub async fn get_blob(
        &self,
        hash: [u8; 32],
        deadline_ns: u64,
    ) -> Result<Option<Vec<u8>>, StateError> {
        self.read_until(deadline_ns, self.blob(hash)).await
    }

    async fn read_until<T>(
        &self,
        deadline_ns: u64,
        read: impl Future<Output = Result<T, StateError>>,
    ) -> Result<T, StateError> {
        let end = self.0.executor.timeout_at(deadline_ns, read).await;
        end.unwrap_or(Err(StateError::Unavailable))
    }

    async fn write_until(
        &self,
        deadline_ns: u64,
        write: impl Future<Output = Result<(), StateError>>,
    ) -> Result<(), StateError> {
        let end = self.0.executor.timeout_at(deadline_ns, write).await;
        end.unwrap_or(Err(StateError::Unknown))
    }

    /// The newest cell of two nodes, on a quorum before it is returned.
    async fn settled_cell(
        &self,
        object: ObjectKey<'_>,
        lend: Option<&Lend>,
    ) -> Result<Option<Cell>, StateError> {
        loop {
            let nodes = self.nodes_in_turn().await?;
            let epoch = self.0.epoch();
            let ask = StateRequest::GetCell { object, landing: lend.map(Lend::landing) };
            let voice = Counter::new(None);
            let first = self.value_of_cell((epoch, &nodes), &ask, lend);
            let second = self.second_voice((epoch, &nodes), object, &voice);
            let (Some((from, cell)), ()) = quorum::both(first, second).await? else { continue };
            if nodes.len() == 1 || broken!(CellFromOne) {
                return Ok(cell.map(cell_out));
            }
            let tuple = match voice.get() {
                Some((node, tuple)) if node != from => tuple,
                // Both came from one node: another has to be asked.
                Some(_) | None => {
                    let others: Vec<_> =
                        nodes.iter().copied().filter(|node| *node != from).collect();
                    voice.set(None);
                    self.second_voice((epoch, &others), object, &voice).await?;
                    let Some((_, tuple)) = voice.get() else { continue };
                    tuple
                }
            };
            let found = cell.as_ref().map(|(tuple, _)| *tuple);
            if found == tuple {
                return Ok(cell.map(cell_out));
            }
            bump(&self.0.counts.write_backs);
            let newest = if found > tuple {
                cell
            } else {
                let Some((newer, _)) = voice.get() else { continue };
                // From the node that has it; when that one is gone, all over again.
                match self.attempt(newer, &ask, lend).await? {
                    Attempt::Reply(Reply::Cell(Some(cell))) => Some(cell),
                    Attempt::Reply(_) | Attempt::Failed => continue,
                }
            };
            let Some((tuple, bytes)) = newest else { continue };
            let value = bytes.as_ref().map(|bytes| value_back(bytes, lend)).transpose()?;
            if !broken!(CellNotWrittenBack) {
                self.put(&Put { object, what: What::Cell(tuple), value }).await?;
            }
            return Ok(Some(cell_out((tuple, bytes))));
        }
    }

    /// A cell with its value, from the first of these nodes that answers.
    async fn value_of_cell(
        &self,
        nodes: (Epoch, &[NodeId]),
        ask: &StateRequest<'_>,
        lend: Option<&Lend>,
    ) -> Result<Option<(NodeId, Option<(CellTuple, Option<Bytes>)>)>, StateError> {
        self.first_of(nodes, ask, lend, |reply| {
            if let Reply::Cell(cell) = reply { Some(cell) } else { None }
        })
        .await
    }

    /// The tuple of the cell as a second node has it: the last of these that can be asked, so
    /// that it is not the one whose value is read.
    async fn second_voice(
        &self,
        (epoch, nodes): (Epoch, &[NodeId]),
        object: ObjectKey<'_>,
        voice: &Counter<Option<(NodeId, Option<CellTuple>)>>,
    ) -> Result<(), StateError> {
        let mut nodes = nodes.to_vec();
        if nodes.len() > 1 {
            nodes.rotate_left(1);
        }
        let ask = StateRequest::GetTuple { object };
        let found = self
            .first_of((epoch, &nodes), &ask, None, |reply| {
                if let Reply::Tuple(tuple) = reply { Some(tuple) } else { None }
            })
            .await?;
        voice.set(found);
        Ok(())
    }

    /// A version or base, from any node; that it is absent, from so many.
    async fn any_value(
        &self,
        request: &StateRequest<'_>,
        lend: Option<&Lend>,
        absent_from: usize,
    ) -> Result<Option<(SeqNum, Option<Bytes>)>, StateError> {
        let mut absent: Vec<NodeId> = Vec::new();
        let mut heard_in = Epoch(0);
        loop {
            let mut nodes = self.nodes_in_turn().await?;
            let epoch = self.0.epoch();
            if std::mem::replace(&mut heard_in, epoch) != epoch {
                absent.clear();
            }
            nodes.retain(|node| !absent.contains(node));
            let answer = self
                .first_of((epoch, &nodes), request, lend, |reply| {
                    if let Reply::Value(found) = reply { Some(found) } else { None }
                })
                .await?;
            let Some((node, found)) = answer else { continue };
            if found.is_some() {
                return Ok(found);
            }
            absent.push(node);
            if absent.len() >= absent_from.min(self.0.storage_nodes().len()) {
                return Ok(None);
            }
        }
    }

    async fn put_blob_on(
        &self,
        node: NodeId,
        hash: [u8; 32],
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let total = bytes.len() as u64;
        let mut offset = 0;
        loop {
            let end = bytes.len().min(offset + BLOB_CHUNK_BYTES);
            let piece = bytes.get(offset..end).unwrap_or_default();
            let request =
                StateRequest::PutBlob { hash, total, offset: offset as u64, bytes: piece };
            self.until_done(node, &request).await?;
            offset = end;
            if offset == bytes.len() {
                return Ok(());
            }
        }
    }

    /// A blob never changes, so pieces of several nodes make one: whoever does not answer, the
    /// next one goes on where it was left. A round in which none answers is followed by one with
    /// more patience: a node reads a blob whole, and compares its hash, before it gives any of it.
    async fn blob(&self, hash: [u8; 32]) -> Result<Option<Vec<u8>>, StateError> {
        let mut whole = Vec::new();
        let mut absent: Vec<NodeId> = Vec::new();
        let mut heard_in = Epoch(0);
        let mut giver = None;
        let mut patience_ns = quorum::READ_PATIENCE_NS;
        let mut backoff = Backoff::new();
        loop {
            let mut nodes = self.nodes_in_turn().await?;
            let epoch = self.0.epoch();
            if std::mem::replace(&mut heard_in, epoch) != epoch {
                absent.clear();
            }
            nodes.retain(|node| !absent.contains(node));
            // Who gave the last piece has the next at hand.
            nodes.sort_by_key(|node| giver != Some(*node));
            let mut heard = false;
            for node in nodes {
                heard = true;
                match self.piece(node, hash, &mut whole, patience_ns).await? {
                    Piece::Last => return Ok(Some(whole)),
                    Piece::More => giver = Some(node),
                    Piece::Absent => absent.push(node),
                    Piece::Failed => heard = false,
                }
                if heard {
                    break;
                }
                bump(&self.0.counts.state_retries);
            }
            if absent.len() >= 2.min(self.0.storage_nodes().len()) {
                return Ok(None);
            }
            if heard {
                backoff = Backoff::new();
            } else {
                giver = None;
                patience_ns = (patience_ns * 2).min(quorum::BLOB_PATIENCE_MAX_NS);
                self.0.executor.sleep(backoff.next_ns(&self.0)).await;
            }
        }
    }

    /// Asks a node for the piece that follows what is there.
    async fn piece(
        &self,
        node: NodeId,
        hash: [u8; 32],
        whole: &mut Vec<u8>,
        patience_ns: u64,
    ) -> Result<Piece, StateError> {
        let request = StateRequest::GetBlob { hash, offset: whole.len() as u64 };
        let attempt = self.attempt_within(node, &request, None, patience_ns).await?;
        #[expect(clippy::wildcard_enum_match_arm, reason = "all others are no answers to this")]
        Ok(match attempt {
            Attempt::Reply(Reply::Blob { total, bytes }) if !bytes.is_empty() => {
                whole.extend_from_slice(&bytes);
                if whole.len() as u64 >= total { Piece::Last } else { Piece::More }
            }
            Attempt::Reply(Reply::NoBlob) => Piece::Absent,
            _ => Piece::Failed,
        })
    }
}

/// What came of asking for a piece of a blob.
enum Piece {
    More,
    Last,
    /// The node does not have the blob.
    Absent,
    /// It did not answer, or not this.
    Failed,
}

fn object<'a>(table: &'a str, key: &'a [u8]) -> Result<ObjectKey<'a>, StateError> {
    within("table name", table.len(), TABLE_NAME_MAX_BYTES)?;
    within("key", key.len(), KEY_MAX_BYTES)?;
    Ok(ObjectKey { table, key })
}

fn within(what: &'static str, len: usize, limit: usize) -> Result<(), StateError> {
    if len > limit { Err(StateError::TooLarge { what, len, limit }) } else { Ok(()) }
}

/// Refuses a value that no node takes.
fn check_value(value: Option<&ValueIn>) -> Result<(), StateError> {
    value.map_or(Ok(()), |value| within("value", value.len() as usize, VALUE_MAX_BYTES))
}

fn value_out(bytes: Bytes) -> Value {
    match bytes {
        Bytes::Here(bytes) => Value::Bytes(bytes),
        Bytes::Landed(len) => Value::Landed { len },
    }
}

fn cell_out((tuple, bytes): (CellTuple, Option<Bytes>)) -> Cell {
    Cell { tuple, value: bytes.map(value_out) }
}

/// A value that was read, to be written again. A copy: what has landed lies where a worker can change
/// it, and each node would be sent what is there at the time.
fn value_back(bytes: &Bytes, lend: Option<&Lend>) -> Result<ValueIn, StateError> {
    match (bytes, lend) {
        (Bytes::Here(bytes), _) => Ok(ValueIn::Bytes(bytes.as_slice().into())),
        (Bytes::Landed(len), Some(lend)) => {
            let copy = lend.landed(*len).copy().ok_or(StateError::OutOfBounds)?;
            Ok(ValueIn::Bytes(copy.into()))
        }
        (Bytes::Landed(_), None) => Err(StateError::OutOfBounds),
    }
}

impl From<Ended> for StateError {
    fn from(_: Ended) -> Self {
        Self::Closed
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("nodes", &self.0.storage_nodes()).finish()
    }
}
