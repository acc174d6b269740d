//! Requests and their answers, in whatever order these come.

use std::collections::BTreeMap;

use halfmoon_channel::limits::OUTSTANDING_MAX;
use halfmoon_channel::{
    AllocError, Answer, Data, Draft, EndReason, Finish, Incoming, Invocation, Level, Operation,
    WorkerError, WorkerSide,
};

use crate::{Error, Result};

/// What is sent along with an operation and must stay as it is until the answer has come.
pub(crate) enum Payload<'a> {
    /// Short bytes, or none: nothing to keep.
    Bytes(&'a [u8]),
    Draft(Draft),
}

impl<'a> Payload<'a> {
    pub(crate) fn data(&self) -> Data<'a> {
        match *self {
            Self::Bytes(bytes) => Data::Inline(bytes),
            Self::Draft(ref draft) => Data::Shared(draft.buffer()),
        }
    }

    fn draft(self) -> Option<Draft> {
        match self {
            Self::Bytes(_) => None,
            Self::Draft(draft) => Some(draft),
        }
    }
}

/// The channel, and what is under way on it.
pub(crate) struct Link {
    worker: WorkerSide,
    /// Answers that nobody has taken yet.
    answers: BTreeMap<u64, Answer>,
    /// Requests without an answer, with what must be kept for them.
    unanswered: BTreeMap<u64, Option<Draft>>,
    /// Kept until the next invocation.
    result: Option<Draft>,
    ended: Option<EndReason>,
}

impl Link {
    pub(crate) const fn new(worker: WorkerSide) -> Self {
        Self {
            worker,
            answers: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            result: None,
            ended: None,
        }
    }

    /// The next invocation; none when the engine wants this process to end.
    pub(crate) fn next_invocation(&mut self) -> Result<Option<Invocation>, WorkerError> {
        loop {
            match self.worker.receive()? {
                Incoming::Invoke(invocation) => {
                    self.result = None;
                    self.ended = None;
                    return Ok(Some(invocation));
                }
                Incoming::Shutdown => return Ok(None),
                // The answer to something that was asked before the last finish: a mistake of the
                // engine that harms nobody.
                Incoming::Reply { .. } => {}
            }
        }
    }

    pub(crate) const fn ended(&self) -> Option<EndReason> {
        self.ended
    }

    /// Bytes to be sent: long ones are put into a state buffer.
    pub(crate) fn payload<'a>(&self, bytes: &'a [u8]) -> Result<Payload<'a>> {
        let draft = self.worker.place(bytes)?;
        Ok(draft.map_or(Payload::Bytes(bytes), Payload::Draft))
    }

    pub(crate) fn draft(&self, len: usize) -> Result<Draft, AllocError> {
        self.worker.draft(len)
    }

    /// Sends an operation that names nothing to be kept.
    pub(crate) fn send(&mut self, operation: &Operation<'_>) -> Result<u64> {
        self.check()?;
        let id = self.worker.ask(operation)?;
        self.unanswered.insert(id, None);
        Ok(id)
    }

    /// Sends an operation with its payload, which is kept until the answer has come.
    pub(crate) fn send_payload<'p>(
        &mut self,
        payload: Payload<'p>,
        operation: impl FnOnce(Data<'p>) -> Operation<'p>,
    ) -> Result<u64> {
        self.check()?;
        let id = self.worker.ask(&operation(payload.data()))?;
        self.unanswered.insert(id, payload.draft());
        Ok(id)
    }

    fn check(&mut self) -> Result<()> {
        while self.unanswered.len() >= OUTSTANDING_MAX {
            self.receive()?;
        }
        self.ended.map_or(Ok(()), |reason| Err(Error::Ended(reason)))
    }

    /// The answer to a request, waited for.
    #[expect(clippy::wildcard_enum_match_arm, reason = "every answer but the named is one")]
    pub(crate) fn answer(&mut self, id: u64) -> Result<Answer> {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return match answer {
                    Answer::Refused { code, text } => Err(Error::Refused { code, text }),
                    Answer::Ended(reason) => Err(Error::Ended(reason)),
                    answer => Ok(answer),
                };
            }
            self.receive()?;
        }
    }

    /// Sends an operation and waits for its answer.
    pub(crate) fn ask(&mut self, operation: &Operation<'_>) -> Result<Answer> {
        let id = self.send(operation)?;
        self.answer(id)
    }

    fn receive(&mut self) -> Result<()> {
        match self.worker.receive()? {
            Incoming::Reply { id, answer } => {
                if let Answer::Ended(reason) = answer {
                    self.ended = Some(reason);
                }
                // Dropping a draft is what makes its place free.
                if self.unanswered.remove(&id).is_some() {
                    self.answers.insert(id, answer);
                }
                Ok(())
            }
            // The engine may not say this now; as it has, this process is of no use to it.
            Incoming::Invoke(_) | Incoming::Shutdown => {
                Err(Error::Channel(WorkerError::EngineGone))
            }
        }
    }

    /// Waits for every answer and forgets them.
    pub(crate) fn settle(&mut self) -> Result<()> {
        while !self.unanswered.is_empty() {
            self.receive()?;
        }
        self.answers.clear();
        Ok(())
    }

    pub(crate) fn log(&mut self, level: Level, text: &str) -> Result<()> {
        Ok(self.worker.log(level, text)?)
    }

    /// Sends the result of the function; every answer has come.
    pub(crate) fn finish(&mut self, returned: Result<Vec<u8>>) -> Result<(), WorkerError> {
        if self.ended.is_some() {
            return self.worker.finish(&Finish::Unwound);
        }
        let (bytes, failed) = match returned {
            Ok(bytes) => (bytes, false),
            Err(Error::Channel(error)) => return Err(error),
            Err(error) if error.is_of_attempt() => return self.crashed(&error.to_string()),
            Err(error) => (error.into_bytes(), true),
        };
        let payload = match self.payload(&bytes) {
            Ok(payload) => payload,
            Err(error) => return self.crashed(&format!("the result cannot be sent: {error}")),
        };
        let data = payload.data();
        self.worker.finish(&if failed { Finish::Failed(data) } else { Finish::Returned(data) })?;
        self.result = payload.draft();
        Ok(())
    }

    /// Says that the attempt is lost.
    pub(crate) fn crashed(&mut self, text: &str) -> Result<(), WorkerError> {
        self.worker.crashed(text)
    }
}
