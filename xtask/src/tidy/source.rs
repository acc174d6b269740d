//! Limits on Rust sources: lengths of functions and files, width, unsafe code.
//!
//! A line scanner, not a parser: it blanks comments and literals, and then follows braces. For
//! sources that rustfmt has formatted that is enough.

use super::{TextFile, Violation};

/// Longest function, in lines from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest file, in lines before its tests.
const FILE_LINES_MAX: usize = 500;
/// Longest tests at the end of a file; longer ones are a file of their own.
const TEST_LINES_MAX: usize = 300;
/// Longest line, in characters. rustfmt wraps code at 100; this is for what it leaves alone.
const COLUMNS_MAX: usize = 110;

/// Whether a file has nothing but tests.
pub(super) fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

pub(super) fn check(file: &TextFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut add = |line, what: String| violations.push(Violation::new(&file.path, line, what));
    for (index, line) in file.text.lines().enumerate() {
        let columns = line.chars().count();
        // A table in documentation cannot be wrapped.
        let table = ["//! |", "/// |"].iter().any(|start| line.trim_start().starts_with(start));
        if columns > COLUMNS_MAX && !table {
            add(index + 1, format!("{columns} columns; at most {COLUMNS_MAX}"));
        }
    }
    let blanked = blank(&file.text);
    for (line, lines) in functions(&blanked) {
        if lines > FUNCTION_LINES_MAX {
            add(line, format!("a function of {lines} lines; at most {FUNCTION_LINES_MAX}"));
        }
    }
    if !is_test_file(&file.path) {
        let total = file.text.lines().count();
        let code = inline_tests(&blanked).unwrap_or(total);
        if code > FILE_LINES_MAX {
            add(0, format!("{code} lines before its tests; at most {FILE_LINES_MAX}"));
        }
        if total - code > TEST_LINES_MAX {
            let tests = total - code;
            add(
                code + 1,
                format!("{tests} lines of tests; more than {TEST_LINES_MAX} go to tests.rs"),
            );
        }
    }
    if file.path.ends_with("/mod.rs") {
        add(0, "a module's file is foo.rs, not foo/mod.rs".to_owned());
    }
    violations
}

/// How many lines come before `#[cfg(test)]` in front of an inline module.
fn inline_tests(blanked: &str) -> Option<usize> {
    let lines: Vec<&str> = blanked.lines().collect();
    lines.iter().enumerate().position(|(index, line)| {
        let next = lines.get(index + 1).copied().unwrap_or_default();
        *line == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{')
    })
}

/// Whether the keyword `unsafe` is used, other than to forbid or to lint.
pub(super) fn has_unsafe_code(text: &str) -> bool {
    words(&blank(text)).any(|(_, word)| word == "unsafe")
}

/// Identifiers and keywords with their byte positions.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(move |word| (word.as_ptr().addr() - text.as_ptr().addr(), word))
}

/// Line and length of each function with a body.
fn functions(blanked: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in words(blanked).filter(|(_, word)| *word == "fn") {
        let rest = blanked.get(at..).unwrap_or_default();
        if let Some(len) = body_end(rest) {
            let line = blanked.get(..at).unwrap_or_default().matches('\n').count() + 1;
            let lines = rest.get(..len).unwrap_or_default().matches('\n').count() + 1;
            found.push((line, lines));
        }
    }
    found
}

/// Bytes from the keyword `fn` to the end of the body; `None` for a function type or a declaration.
fn body_end(text: &str) -> Option<usize> {
    let after = text.strip_prefix("fn")?.trim_start();
    if !after.starts_with(|c: char| c.is_alphabetic() || c == '_') {
        return None;
    }
    let mut depth = 0usize;
    let mut in_body = false;
    for (index, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '{' if depth == 0 => {
                in_body = true;
                depth += 1;
            }
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if in_body && depth == 0 {
                    return Some(index + 1);
                }
            }
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The text with comments and the contents of literals replaced by spaces, line for line.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = literal_len(rest);
        if skip > 0 && !after_word(&out, first) {
            let literal = rest.get(..skip).unwrap_or(rest);
            out.extend(literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = rest.get(skip..).unwrap_or_default();
        } else {
            out.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
    }
    out
}

/// Whether `first` goes on with an identifier, so that an `r` or `b` begins no literal.
fn after_word(out: &str, first: char) -> bool {
    first.is_alphabetic() && out.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Bytes of the comment or literal that begins here; 0 when none does.
fn literal_len(text: &str) -> usize {
    let to = |end: &str, from: usize| {
        let found = text.get(from..).and_then(|rest| rest.find(end));
        found.map_or(text.len(), |at| from + at + end.len())
    };
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return to("*/", 2);
    }
    let prefix = text.find(|c| c != 'b' && c != 'c').filter(|len| *len <= 1).unwrap_or(0);
    let body = text.get(prefix..).unwrap_or_default();
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw.get(hashes..).is_some_and(|rest| rest.starts_with('"')) {
            return to(&format!("\"{}", "#".repeat(hashes)), prefix + hashes + 2);
        }
        return 0;
    }
    if body.starts_with('"') {
        return prefix + quoted_len(body, '"');
    }
    // A quote and one character, perhaps escaped; otherwise it is a lifetime.
    let mut inner = body.strip_prefix('\'').unwrap_or_default().chars();
    match (inner.next(), inner.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => prefix + quoted_len(body, '\''),
        _ => 0,
    }
}

/// Bytes of a literal that begins and ends with `quote`.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return index + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_line_for_line() {
        // Every blanked byte is a dot here, so that it can be counted.
        for (source, expected) in [
            ("a // unsafe {\nb", "a ...........\nb"),
            ("x /* { \n } */ y", "x .....\n..... y"),
            ("f(\"}\\\"{\") {", "f(......) {"),
            ("f(r#\"{\"}\"#) {", "f(........) {"),
            ("m('{', '\\'', b'}') <'a>", "m(..., ...., ....) <'a>"),
            ("for b in b\"x\" {}", "for b in .... {}"),
        ] {
            assert_eq!(blank(source), expected.replace('.', " "));
        }
    }

    #[test]
    fn functions_are_measured_from_their_keyword_to_their_last_brace() {
        let source = "type F = fn(u8) -> u8;\ntrait T {\n    fn a(&self, x: [u8; 2]);\n}\n\
                      fn b<'a>(x: &'a str)\nwhere\n    X: Y,\n{\n    if x { y }\n}\nfn c() {}\n";
        assert_eq!(functions(&blank(source)), [(5, 6), (11, 1)]);
    }

    #[test]
    fn long_functions_files_and_lines_are_violations() {
        let file = |lines: usize| TextFile {
            path: "a/src/b.rs".to_owned(),
            text: format!("fn a() {{\n{}}}\n", "    b();\n".repeat(lines)),
        };
        assert_eq!(check(&file(68)), []);
        let what: Vec<_> = check(&file(69)).into_iter().map(|violation| violation.what).collect();
        assert_eq!(what, ["a function of 71 lines; at most 70"]);
        let long = check(&file(500));
        assert!(long.iter().any(|violation| violation.what.contains("502 lines before its tests")));
        let wide = TextFile {
            path: "b.rs".to_owned(),
            text: format!("// {}\n", "ä".repeat(COLUMNS_MAX)),
        };
        assert_eq!(check(&wide).len(), 1);
    }

    #[test]
    fn unsafe_in_a_comment_or_an_attribute_is_none() {
        assert!(!has_unsafe_code("#![forbid(unsafe_code)]\n// unsafe\nlet x = \"unsafe\";"));
        assert!(has_unsafe_code("#[unsafe(no_mangle)] fn a() {}"));
        assert!(has_unsafe_code("unsafe { b() }"));
    }
}
