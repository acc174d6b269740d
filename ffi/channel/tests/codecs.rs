//! Messages survive a round trip, and bytes that are no message are an error, whatever they are.

use halfmoon_channel::limits::{
    ENTRY_MAX_BYTES, FUNCTION_NAME_MAX_BYTES, INLINE_MAX_BYTES, KEY_MAX_BYTES,
    TABLE_NAME_MAX_BYTES, TEXT_MAX_BYTES,
};
use halfmoon_channel::{
    Buffer, Data, EndReason, Finish, Invoke, Level, Operation, Outcome, Refusal, Request, ToWorker,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// The raw material of any message.
#[derive(Clone, Debug)]
struct Parts {
    table: String,
    key: Vec<u8>,
    function: String,
    text: String,
    bytes: Vec<u8>,
    buffer: Option<Buffer>,
    number: u64,
    wide: u128,
    small: u32,
    code: usize,
    draw: [u8; 32],
}

impl Parts {
    fn data(&self) -> Data<'_> {
        self.buffer.map_or(Data::Inline(&self.bytes), Data::Shared)
    }

    fn to_worker(&self) -> Vec<ToWorker<'_>> {
        let invoke = Invoke {
            function: &self.function,
            instance: self.wide,
            attempt: self.small,
            deadline_ms: self.number,
            input: self.data(),
        };
        let code = Refusal::ALL[self.code % Refusal::ALL.len()];
        let reason = EndReason::ALL[self.code % EndReason::ALL.len()];
        let outcomes = [
            Outcome::Done,
            Outcome::Value(self.data()),
            Outcome::Absent,
            Outcome::Committed,
            Outcome::Conflict,
            Outcome::Go,
            Outcome::Time(self.number),
            Outcome::Instance(self.wide),
            Outcome::Draw(self.draw),
            Outcome::CalleeFailed(self.data()),
            Outcome::Refused { code, text: &self.text },
            Outcome::Ended(reason),
        ];
        let mut messages = vec![ToWorker::Invoke(invoke), ToWorker::Shutdown];
        messages.extend(outcomes.map(|outcome| ToWorker::Reply { id: self.number, outcome }));
        messages
    }

    fn requests(&self) -> Vec<Request<'_>> {
        let (table, key, function) = (self.table.as_str(), self.key.as_slice(), &self.function);
        let input = self.data();
        let operations = [
            Operation::Read { table, key },
            Operation::Write { table, key, value: None },
            Operation::Write { table, key, value: Some(self.data()) },
            Operation::TxnBegin,
            Operation::TxnCommit,
            Operation::TxnAbort,
            Operation::Call { function, input },
            Operation::CallBegin { function, input },
            Operation::Join { call: self.number },
            Operation::Spawn { function, input },
            Operation::SideEffectBegin,
            Operation::SideEffectDone { result: self.data() },
            Operation::Fence,
            Operation::Now,
            Operation::Random,
        ];
        let level = Level::ALL[self.code % Level::ALL.len()];
        let offset = Buffer { offset: self.small, len: self.small, generation: self.small };
        let mut requests = vec![
            Request::Hello { layout: self.small, sdk: &self.text },
            Request::Release(self.buffer.unwrap_or(offset)),
            Request::Log { level, text: &self.text },
            Request::Finish(Finish::Returned(self.data())),
            Request::Finish(Finish::Failed(self.data())),
            Request::Finish(Finish::Unwound),
            Request::Finish(Finish::Crashed { text: &self.text }),
        ];
        requests.extend(operations.map(|operation| Request::Ask { id: self.number, operation }));
        requests
    }
}

prop_compose! {
    fn buffers()(offset: u32, len: u32, generation: u32) -> Buffer {
        Buffer { offset, len, generation }
    }
}

prop_compose! {
    fn parts()(
        table in "[a-z/é]{0,120}",
        key in vec(any::<u8>(), 0..=KEY_MAX_BYTES),
        function in "[a-z]{0,256}",
        text in "[ -~]{0,1024}",
        bytes in vec(any::<u8>(), 0..=INLINE_MAX_BYTES),
        buffer in proptest::option::of(buffers()),
        numbers: (u64, u128, u32, usize),
        draw: [u8; 32],
    ) -> Parts {
        let (number, wide, small, code) = numbers;
        Parts { table, key, function, text, bytes, buffer, number, wide, small, code, draw }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_survives_a_round_trip_and_no_part_of_it_does(parts in parts(), cut: usize) {
        let mut bytes = Vec::new();
        for message in parts.to_worker() {
            message.encode(&mut bytes).unwrap();
            prop_assert!(bytes.len() <= ENTRY_MAX_BYTES);
            prop_assert_eq!(ToWorker::decode(&bytes).unwrap(), message);
            prop_assert!(ToWorker::decode(&bytes[..cut % bytes.len()]).is_err());
            bytes.push(0);
            prop_assert!(ToWorker::decode(&bytes).is_err());
        }
        for message in parts.requests() {
            message.encode(&mut bytes).unwrap();
            prop_assert!(bytes.len() <= ENTRY_MAX_BYTES);
            prop_assert_eq!(Request::decode(&bytes).unwrap(), message);
            prop_assert!(Request::decode(&bytes[..cut % bytes.len()]).is_err());
            bytes.push(0);
            prop_assert!(Request::decode(&bytes).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_are_parsed_without_a_panic(bytes in vec(any::<u8>(), 0..200), kind in 0_u8..6) {
        let mut bytes = bytes;
        drop(Request::decode(&bytes));
        drop(ToWorker::decode(&bytes));
        bytes.insert(0, kind);
        drop(Request::decode(&bytes));
        drop(ToWorker::decode(&bytes));
    }

    #[test]
    fn a_damaged_message_is_parsed_without_a_panic(parts in parts(), at: usize, with: u8) {
        let mut bytes = Vec::new();
        for message in parts.requests() {
            message.encode(&mut bytes).unwrap();
            let at = at % bytes.len();
            bytes[at] = with;
            drop(Request::decode(&bytes));
        }
    }
}

#[test]
fn what_exceeds_a_limit_is_not_encoded() {
    let mut into = Vec::new();
    let name = "n".repeat(TABLE_NAME_MAX_BYTES.max(FUNCTION_NAME_MAX_BYTES) + 1);
    let (key, long) = ([0; KEY_MAX_BYTES + 1], [0; INLINE_MAX_BYTES + 1]);
    let text = "t".repeat(TEXT_MAX_BYTES + 1);
    let requests = [
        Operation::Read { table: &name, key: b"" },
        Operation::Read { table: "", key: &key },
        Operation::Call { function: &name, input: Data::Inline(b"") },
        Operation::SideEffectDone { result: Data::Inline(&long) },
    ];
    for operation in requests {
        Request::Ask { id: 1, operation }.encode(&mut into).unwrap_err();
    }
    Request::Log { level: Level::Info, text: &text }.encode(&mut into).unwrap_err();
}

#[test]
fn the_largest_message_fits_into_an_entry() {
    let (table, key) = ("t".repeat(TABLE_NAME_MAX_BYTES), [0; KEY_MAX_BYTES]);
    let value = Some(Data::Inline(&[0; INLINE_MAX_BYTES]));
    let operation = Operation::Write { table: &table, key: &key, value };
    let mut into = Vec::new();
    Request::Ask { id: 1, operation }.encode(&mut into).unwrap();
    assert!(into.len() <= ENTRY_MAX_BYTES);
}
