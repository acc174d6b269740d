//! Words that do not belong into the tree.

use super::{TextFile, Violation};

/// A text that must not occur, spelled in two parts so that this file passes its own check.
struct Banned {
    parts: (&'static str, &'static str),
    /// Only in Rust sources.
    rust_only: bool,
    why: &'static str,
}

const fn banned(parts: (&'static str, &'static str), rust_only: bool, why: &'static str) -> Banned {
    Banned { parts, rust_only, why }
}

const UNFINISHED: &str = "unfinished work; do it, or decide against it in docs/decisions";
const OUTSIDE: &str = "speaks of a place outside the repository";

const BANNED: &[Banned] = &[
    banned(("TO", "DO"), false, UNFINISHED),
    banned(("FIX", "ME"), false, UNFINISHED),
    banned(("X", "XX"), false, UNFINISHED),
    banned(("todo", "!("), true, UNFINISHED),
    banned(("unimplemented", "!("), true, UNFINISHED),
    banned(("#[ign", "ore"), true, "a test that cannot run says so when it runs"),
    banned(("#[all", "ow("), true, "#[expect(…, reason = \"…\")] instead"),
    banned(("#![all", "ow("), true, "#![expect(…, reason = \"…\")] instead"),
    banned(("Box<dyn Er", "ror"), true, "an error enum of the operation instead"),
    banned(("../sha", "red"), false, OUTSIDE),
    banned(("/wo", "rk/"), false, OUTSIDE),
    banned(("/hom", "e/"), false, OUTSIDE),
    banned(("static.crates", ".io"), false, OUTSIDE),
];

/// Files whose text is not ours.
const FOREIGN: &[&str] = &["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];

pub(super) fn check(file: &TextFile) -> Vec<Violation> {
    if FOREIGN.contains(&file.path.as_str()) {
        return vec![];
    }
    let rust = file.path.ends_with(".rs");
    let mut violations = Vec::new();
    for banned in BANNED.iter().filter(|banned| rust || !banned.rust_only) {
        let needle = [banned.parts.0, banned.parts.1].concat();
        for (index, line) in file.text.lines().enumerate() {
            if contains_word(line, &needle) {
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
