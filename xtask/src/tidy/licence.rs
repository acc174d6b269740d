//! Licences of all dependencies, against a list of permissive ones.

use anyhow::Context as _;
use serde_json::Value;

use super::Violation;

/// Licences that ask for no more than their text and a notice.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that have their licence in a file only, which was read.
const IN_A_FILE: &[(&str, &str)] = &[("rdma-sys", "MIT")];

pub(super) fn check(metadata: &Value) -> anyhow::Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let read = IN_A_FILE.iter().find(|(package, _)| *package == name).map(|(_, read)| *read);
        match package["license"].as_str().or(read) {
            Some(expression) if allowed(expression) => {}
            Some(other) => {
                let what = format!("{name} is under {other}, which is not on the allow list");
                violations.push(Violation::new("Cargo.lock", 0, what));
            }
            None => {
                violations.push(Violation::new("Cargo.lock", 0, format!("{name} has no licence")));
            }
        }
    }
    Ok(violations)
}

/// Whether an SPDX expression can be met with what is on the list. What it cannot read is refused.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest) == Some(true) && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> Option<bool> {
    let mut met = all_of(words)?;
    while let Some(rest) = words.strip_prefix(&["OR"]) {
        *words = rest;
        met |= all_of(words)?;
    }
    Some(met)
}

fn all_of(words: &mut &[&str]) -> Option<bool> {
    let mut met = one(words)?;
    while let Some(rest) = words.strip_prefix(&["AND"]) {
        *words = rest;
        met &= one(words)?;
    }
    Some(met)
}

fn one(words: &mut &[&str]) -> Option<bool> {
    let (&first, rest) = words.split_first()?;
    *words = rest;
    if first == "(" {
        let met = any_of(words)?;
        *words = words.strip_prefix(&[")"])?;
        return Some(met);
    }
    if let [with, exception, rest @ ..] = *words
        && *with == "WITH"
    {
        *words = rest;
        return Some(ALLOWED.contains(&format!("{first} WITH {exception}").as_str()));
    }
    Some(ALLOWED.contains(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_allowed_when_the_list_can_meet_it() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 OR GPL-2.0-only",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(allowed(good), "{good}");
        }
        for bad in [
            "GPL-3.0-only",
            "MIT AND GPL-2.0",
            "(MIT OR Apache-2.0) AND LGPL-2.1-or-later",
            "Apache-2.0 WITH Something-exception",
            "",
            "MIT OR",
            "(MIT",
            "MIT Apache-2.0",
        ] {
            assert!(!allowed(bad), "{bad}");
        }
    }
}
