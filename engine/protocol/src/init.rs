//! Init: the record that makes one run of a root win, before any effect of its tree.
//!
//! - I1. Init stands at position 0 of `Step(root)`, alone or merged into the first step, so at most
//!   one run ever has one.
//! - I2. Every step of a callee, log-free write, side effect, acknowledgement and keyed reply comes
//!   after an Init *of its own run* is durable.
//! - I3. Init alone is no step: it moves neither cursor nor counter.

use halfmoon_wire::{Condition, SeqNum, tag};

use crate::ops::{Append, AppendOutcome, Value};
use crate::payload::{Body, Init, Stored};
use crate::step_log::{collision, parse};
use crate::{Attempt, Done, Fault, INPUT_INLINE_MAX_BYTES, Mode, Ops, Stop, ids};

/// What an attempt knows of the Init of its run.
pub(crate) enum InitState<P> {
    /// Not in the log, as far as it knows.
    Unknown,
    /// On its way, alone (roots only).
    Posted(P),
    /// Committed here.
    Known(SeqNum),
}

impl<O: Ops> Attempt<O> {
    /// Waits until the Init of this run is durable; its place. Of an unlogged tree it is 0.
    pub(crate) async fn init_known(&mut self) -> Done<SeqNum, O> {
        loop {
            match self.init {
                InitState::Known(seq) => return Ok(seq),
                InitState::Posted(_) => self.settle_init().await?,
                InitState::Unknown if self.identity.mode == Mode::Unlogged => {
                    return Ok(SeqNum::ZERO);
                }
                InitState::Unknown if self.is_root() => {
                    let append = self.init_append().await?;
                    let outcome = self.ops.append(append).await.map_err(Stop::Ops)?;
                    self.init_outcome(outcome)?;
                }
                InitState::Unknown => self.wait_for_init().await?,
            }
        }
    }

    /// What a step needs: a root's may carry Init, a callee's must find it.
    pub(crate) async fn init_of_step(&mut self) -> Done<(), O> {
        if !self.is_root() {
            if !broken!(NoInitCondition) {
                self.init_known().await?;
            }
            return Ok(());
        }
        self.settle_init().await
    }

    /// Sends Init in the background, alone.
    pub(crate) async fn post_init(&mut self) -> Done<(), O> {
        let logged = self.identity.mode != Mode::Unlogged;
        if self.is_root() && logged && matches!(self.init, InitState::Unknown) {
            let append = self.init_append().await?;
            self.init = InitState::Posted(self.ops.post(append));
        }
        Ok(())
    }

    /// Waits for the answer to an Init that is on its way; for ever, if none is.
    pub(crate) async fn init_answered(&mut self) -> Done<(), O> {
        if !matches!(self.init, InitState::Posted(_)) || broken!(NeverWatchesInit) {
            return std::future::pending().await;
        }
        self.settle_init().await
    }

    /// Waits for an Init that is on its way.
    pub(crate) async fn settle_init(&mut self) -> Done<(), O> {
        if let InitState::Posted(posted) = &mut self.init {
            let outcome = posted.await;
            // The answer comes once: whoever asks again must not wait for it.
            self.init = InitState::Unknown;
            self.init_outcome(outcome.map_err(Stop::Ops)?)?;
        }
        Ok(())
    }

    fn init_outcome(&mut self, outcome: AppendOutcome) -> Done<(), O> {
        match outcome {
            AppendOutcome::Appended(seq) => {
                self.init = InitState::Known(seq);
                self.log.next = self.log.next.max(1);
                if broken!(InitMovesCursor) {
                    self.point.cursor = seq;
                }
                Ok(())
            }
            AppendOutcome::Conflict { condition: 0, winner: Some(winner) } => {
                self.log.learn([winner]);
                self.peek().map(drop)
            }
            AppendOutcome::Conflict { condition: 1, .. } => Err(Stop::Cancelled),
            AppendOutcome::Conflict { .. } | AppendOutcome::Gap { .. } => {
                Err(Fault::Gap { position: 0 }.into())
            }
            AppendOutcome::RootGone => Err(Stop::RootGone),
        }
    }

    async fn init_append(&self) -> Done<Append, O> {
        let root = self.identity.root;
        let mut entry = self.entry(Body::Init);
        entry.init = Some(self.draft_init().await?);
        Ok(Append {
            tags: vec![tag::step(root), tag::init(self.identity.run), tag::intent()],
            conditions: vec![
                Condition::Length { tag: tag::step(root), length: 0 },
                Condition::Length { tag: tag::cancel(root), length: 0 },
            ],
            floor: self.identity.floor,
            payload: entry.encode(),
        })
    }

    /// The Init that this root would have; a large input is durable when this returns.
    pub(crate) async fn draft_init(&self) -> Done<Init, O> {
        let identity = &self.identity;
        let input = self.keep_input(identity.root, identity.run, &self.input).await?;
        Ok(Init {
            root: identity.root,
            cursor: Some(identity.floor),
            function: identity.function.clone(),
            version: identity.version,
            input,
            fingerprint: self.input.fingerprint,
            mode: identity.mode,
            read_only: identity.read_only,
        })
    }

    /// As [`Attempt::keep`], for an input.
    pub(crate) async fn keep_input(
        &self,
        root: halfmoon_wire::InstanceId,
        run: halfmoon_wire::RunId,
        input: &crate::call::Input<O::Value>,
    ) -> Done<Stored, O> {
        if input.value.len_bytes() <= INPUT_INLINE_MAX_BYTES {
            let mut bytes = Vec::with_capacity(input.value.len_bytes());
            input.value.copy_to(&mut bytes);
            return Ok(Stored::Inline(bytes));
        }
        let version = ids::input_version(run);
        self.keep(&ids::own_object(root), version, &input.value).await
    }

    /// A callee waits until its index shows an Init of the root: its own run's, or it has lost.
    async fn wait_for_init(&mut self) -> Done<(), O> {
        let (root, run) = (self.identity.root, self.identity.run);
        let stream = tag::step(root);
        let shown = self.ops.stream(stream).await.map_err(Stop::Ops)?;
        let found = match shown.into_iter().next() {
            Some(found) => found,
            None => {
                if !broken!(NeverAsksForInit) {
                    self.ops.need_init(root, run);
                }
                self.ops.first(stream).await.map_err(Stop::Ops)?
            }
        };
        if found.position > 0 {
            return Err(Stop::RootGone);
        }
        let entry = parse(&found)?;
        let Some(init) = entry.init_of(root) else {
            return Err(collision(root, entry.instance, found.seq));
        };
        if init.run() != run && !broken!(ConditionNamesRoot) {
            return Err(Stop::RunLost);
        }
        self.init = InitState::Known(found.seq);
        Ok(())
    }
}
