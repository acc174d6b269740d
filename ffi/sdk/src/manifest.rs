//! What a program says about itself when it is deployed: one line of JSON.
//!
//! Written by hand, so that it does not depend on the feature `json`.

use std::fmt::Write;

use halfmoon_channel::LAYOUT_VERSION;

use crate::SDK;
use crate::app::{App, Function, Order, Table};

impl App {
    /// The manifest. A number that is `null` is the engine's to choose.
    ///
    /// ```json
    /// {"sdk":"rust 0.1.0","layout":1,
    ///  "functions":[{"name":"f","read_only":false,"timeout_ms":null,"max_attempts":null,
    ///    "concurrency":null}],
    ///  "tables":[{"name":"t","protocol":"auto","order":"sequential","transactional":false}]}
    /// ```
    #[must_use]
    pub fn manifest(&self) -> String {
        self.manifest_of(SDK)
    }

    /// The manifest of a program that was written with another SDK on top of this one.
    #[must_use]
    pub fn manifest_of(&self, sdk: &str) -> String {
        let functions: Vec<String> = self.functions.iter().map(function).collect();
        let tables: Vec<String> = self.tables.iter().map(table).collect();
        format!(
            "{{\"sdk\":{},\"layout\":{LAYOUT_VERSION},\"functions\":[{}],\"tables\":[{}]}}",
            text(sdk),
            functions.join(","),
            tables.join(",")
        )
    }
}

fn function(function: &Function) -> String {
    let timeout_ms =
        function.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    format!(
        "{{\"name\":{},\"read_only\":{},\"timeout_ms\":{},\"max_attempts\":{},\"concurrency\":{}}}",
        text(&function.name),
        function.read_only,
        number(timeout_ms.map(|ms| ms.max(1))),
        number(function.max_attempts.map(|attempts| u64::from(attempts.max(1)))),
        number(function.concurrency.map(|processes| u64::from(processes.max(1)))),
    )
}

fn table(table: &Table) -> String {
    let order = match table.order {
        Order::Sequential => "sequential",
        Order::Relaxed => "relaxed",
    };
    format!(
        "{{\"name\":{},\"protocol\":{},\"order\":{},\"transactional\":{}}}",
        text(&table.name),
        text(table.protocol.name()),
        text(order),
        table.transactional
    )
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "null".to_owned(), |number| number.to_string())
}

fn text(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("writing to a string succeeds");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
