//! The shell around the index: lanes to sequencer and storage, appends and state operations as
//! futures.
//!
//! One [`Driver`](#) per node owns the endpoint; cloneable handles on the same thread make futures
//! that a tiny executor runs. Signatures (all handles are `Clone`, `Rc` inside, `!Send`):
//!
//! ```text
//! // executor
//! impl Executor {                                     // Clone
//!     fn new(now_ns: u64) -> Self;
//!     fn spawn<T: 'static>(&self, f: impl Future<Output = T> + 'static) -> Result<JoinHandle<T>, TooManyTasks>;
//!     fn run_ready(&self, now_ns: u64) -> bool;       // true: budget used up, call again
//!     fn now_ns(&self) -> u64;                        // the last that was passed in
//!     fn sleep_until(&self, at_ns: u64) -> Sleep;
//!     fn timeout_at<F: Future>(&self, at_ns: u64, f: F) -> Timeout<F>;   // Result<F::Output, Elapsed>
//!     fn next_deadline_ns(&self) -> Option<u64>;
//! }
//! JoinHandle<T>: Future<Output = Result<T, Aborted>>; abort(); dropping it detaches the task.
//!
//! // log
//! struct AppendRequest<'a> { floor: SeqNum, conditions: &'a [Condition], tags: &'a [Tag], payload: &'a [u8] }
//! enum Appended { At(SeqNum), Conflict { condition: u16, winner: SeqNum }, Gap { condition: u16, length: u64 },
//!                 RootGone { safe_point: SeqNum }, Evicted, Invalid }
//! enum LogError { Busy, Unknown, Closed, Diverged, .. }
//! impl Log {
//!     fn append(&self, request: &AppendRequest<'_>) -> Append;  // Future<Output = Result<Appended, LogError>>;
//!                                                               // framed at once; dropping it detaches
//!     fn post(&self, request: &AppendRequest<'_>) -> Result<(), LogError>;
//!     fn applied(&self) -> SeqNum;  fn committed(&self) -> SeqNum;  fn epoch(&self) -> Epoch;
//!     fn safe_point(&self) -> SeqNum;                  // P, as applied
//!     fn is_evicted(&self) -> bool;
//!     async fn wait_applied(&self, seq: SeqNum) -> Result<(), LogError>;
//!     async fn tail(&self) -> Result<SeqNum, LogError>;
//!     fn with_cached<R>(&self, seq: SeqNum, f: impl FnOnce(RecordRef<'_>) -> R) -> Option<R>;
//!     async fn record(&self, seq: SeqNum, deadline_ns: u64) -> Result<Record, LogError>;  // Record::view() -> RecordRef
//!     fn tag_len(&self, tag: Tag) -> u64;
//!     fn at(&self, tag: Tag, position: u64) -> Option<SeqNum>;
//!     fn steps(&self, tag: Tag) -> Vec<SeqNum>;        // all, ascending; `positions(tag)` with the first position
//!     async fn read_prev(&self, tag: Tag, max: SeqNum) -> Result<Option<SeqNum>, LogError>;
//!     async fn read_next(&self, tag: Tag, min: SeqNum) -> Result<Option<SeqNum>, LogError>;
//!     fn on_apply(&self, fold: impl FnMut(RecordRef<'_>) + 'static);  // every record, in order, before any task sees it
//!     fn set_safe_point(&self, least: Option<SeqNum>); // what reports say; None: the applied position
//! }
//!
//! // state; every operation ends by `deadline_ns`
//! enum Value { Bytes(Vec<u8>), Landed { len: u32 } }
//! enum ValueIn { Bytes(Rc<[u8]>), Memory { memory: Arc<dyn Memory>, offset: u64, len: u32, hold: Rc<dyn Any> } }
//! struct Lend { region: RegionId, memory: Arc<dyn Memory>, offset: u64, capacity: u32, hold: Rc<dyn Any> }
//!     // `hold` is kept until no node can write there any more, also when the future is dropped
//! enum StateError { Unknown, Unavailable, NeedRoom { len: u32 }, TooLarge { .. }, Closed, .. }
//! impl State {
//!     async fn get_cell(&self, table: &str, key: &[u8], lend: Option<Lend>, deadline_ns: u64)
//!         -> Result<Option<Cell>, StateError>;          // Cell { tuple: CellTuple, value: Option<Value> }
//!     async fn put_cell(&self, table, key, tuple: CellTuple, value: Option<ValueIn>, deadline_ns) -> Result<(), StateError>;
//!     async fn get_version(&self, table, key, VersionId, lend, deadline_ns) -> Result<Option<Value>, StateError>;
//!     async fn put_version(&self, table, key, VersionId, value: ValueIn, deadline_ns) -> Result<(), StateError>;
//!     async fn base(&self, table, key, floor: SeqNum, lend, deadline_ns) -> Result<Option<Base>, StateError>;
//!                                                       // Base { seq: SeqNum, value: Option<Value> }
//!     async fn put_blob(&self, hash: [u8; 32], bytes: Rc<[u8]>, deadline_ns) -> Result<(), StateError>;
//!     async fn get_blob(&self, hash: [u8; 32], deadline_ns) -> Result<Option<Vec<u8>>, StateError>;
//! }
//!
//! // driver
//! impl<T: Transport, D: Directory> Driver<T, D> {
//!     fn new(transport: T, directory: D, options: Options, now_ns: u64) -> Self;
//!         // Options { cluster: u128, role: Role, node: NodeId, incarnation: Incarnation, seed: u64, limits.. }
//!     fn executor(&self) -> Executor;  fn log(&self) -> Log;  fn state(&self) -> State;
//!     fn expose(&mut self, memory: Arc<dyn Memory>) -> Result<RegionId, ExposeError>;  fn withdraw(&mut self, RegionId);
//!     fn turn(&mut self, now_ns: u64) -> Pace;          // Pace { busy: bool, wake_at_ns: Option<u64> }
//!     fn close(&mut self);                              // pending appends end as Unknown
//!     fn endpoint_mut(&mut self) -> &mut Endpoint<T>;   // e.g. for the reactor's wait
//!     fn metrics(&self) -> Metrics;
//! }
//! ```

#![forbid(unsafe_code)]
