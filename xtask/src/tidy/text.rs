//! Words that do not belong into the tree.

use super::source::is_test_file;
use super::{TextFile, Violation};

/// A text that must not occur, spelled in two parts so that this file passes its own check.
struct Banned {
    parts: (&'static str, &'static str),
    scope: Scope,
    why: &'static str,
}

/// Where a text is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// In every file.
    All,
    /// In Rust sources.
    Rust,
    /// In Rust sources other than tests, whose lints depend on how they are built.
    Code,
}

impl Scope {
    fn covers(self, path: &str) -> bool {
        let rust = path.ends_with(".rs");
        match self {
            Self::All => true,
            Self::Rust => rust,
            Self::Code => rust && !is_test_file(path) && !path.contains("/examples/"),
        }
    }
}

const fn banned(parts: (&'static str, &'static str), scope: Scope, why: &'static str) -> Banned {
    Banned { parts, scope, why }
}

const UNFINISHED: &str = "unfinished work; do it, or decide against it in docs/decisions";
const OUTSIDE: &str = "speaks of a place outside the repository";

const BANNED: &[Banned] = &[
    banned(("TO", "DO"), Scope::All, UNFINISHED),
    banned(("FIX", "ME"), Scope::All, UNFINISHED),
    banned(("X", "XX"), Scope::All, UNFINISHED),
    banned(("todo", "!("), Scope::Rust, UNFINISHED),
    banned(("unimplemented", "!("), Scope::Rust, UNFINISHED),
    banned(("#[ign", "ore"), Scope::Rust, "a test that cannot run says so when it runs"),
    banned(("#[all", "ow("), Scope::Code, "#[expect(…, reason = \"…\")] instead"),
    banned(("#![all", "ow("), Scope::Code, "#![expect(…, reason = \"…\")] instead"),
    banned(("Box<dyn Er", "ror"), Scope::Rust, "an error enum of the operation instead"),
    banned(("../sha", "red"), Scope::All, OUTSIDE),
    banned(("/wo", "rk/"), Scope::All, OUTSIDE),
    banned(("/hom", "e/"), Scope::All, OUTSIDE),
    banned(("static.crates", ".io"), Scope::All, OUTSIDE),
];

/// A test that is none: other tests start it, as another process.
const HELPER: &str = "= \"run by other tests";

/// Files whose text is not ours.
const FOREIGN: &[&str] = &["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];

pub(super) fn check(file: &TextFile) -> Vec<Violation> {
    if FOREIGN.contains(&file.path.as_str()) {
        return vec![];
    }
    let mut violations = Vec::new();
    for banned in BANNED.iter().filter(|banned| banned.scope.covers(&file.path)) {
        let needle = [banned.parts.0, banned.parts.1].concat();
        for (index, line) in file.text.lines().enumerate() {
            if contains_word(line, &needle) && !line.contains(HELPER) {
                let what = format!("{needle}: {}", banned.why);
                violations.push(Violation::new(&file.path, index + 1, what));
            }
        }
    }
    for (index, line) in file.text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            violations.push(Violation::new(&file.path, index + 1, "space at the end of the line"));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        violations.push(Violation::new(&file.path, 0, "no line end at the end of the file"));
    }
    violations
}

/// Whether the needle occurs and is not a part of a longer word.
fn contains_word(line: &str, needle: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(needle).any(|(at, found)| {
        let before = line.get(..at).unwrap_or_default();
        let after = line.get(at + found.len()..).unwrap_or_default();
        let opens = needle.starts_with(is_word) && before.ends_with(is_word);
        let closes = needle.ends_with(is_word) && after.starts_with(is_word);
        !opens && !closes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_words_are_found_where_they_stand_alone() {
        let marker = ["TO", "DO"].concat();
        let file = |text: String| TextFile { path: "a.rs".to_owned(), text };
        assert_eq!(check(&file(format!("// x\n// {marker}: y\n")))[0].line, 2);
        assert_eq!(check(&file(format!("let A{marker}S = 1;\n"))), []);
        assert_eq!(check(&file("a \n".to_owned())).len(), 1);
        assert_eq!(check(&file("a".to_owned())).len(), 1);
    }
}
