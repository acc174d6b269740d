//! Names of namespaces, functions and tables.

use std::fmt;

/// Bytes of a namespace's, a function's or a table's own name.
pub const NAME_MAX_BYTES: usize = 64;

/// The namespace that a plain name means.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Near names that are offered when one is not known.
pub const SUGGESTIONS_MAX: usize = 3;

/// A name that breaks the rules: 1 to [`NAME_MAX_BYTES`] letters, digits, `_` and `-`, the first of
/// them a letter or `_`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{name:?} is not a name: 1 to {NAME_MAX_BYTES} letters, digits, '_' and '-', beginning with a \
     letter or '_'"
)]
pub struct BadName {
    name: String,
}

/// A function: its namespace and its name in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FunctionName {
    namespace: String,
    name: String,
}

/// Checks one part of a name.
pub fn check(name: &str) -> Result<(), BadName> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if first && rest && name.len() <= NAME_MAX_BYTES {
        return Ok(());
    }
    Err(BadName { name: name.chars().take(NAME_MAX_BYTES).collect() })
}

impl FunctionName {
    /// The function `name` of `namespace`.
    pub fn new(namespace: &str, name: &str) -> Result<Self, BadName> {
        check(namespace)?;
        check(name)?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Parses `name` or `namespace.name`; a plain name is looked for in `home`.
    pub fn parse(text: &str, home: &str) -> Result<Self, BadName> {
        match text.split_once('.') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new(home, text),
        }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// As it is called from outside: without the default namespace.
impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace == DEFAULT_NAMESPACE {
            f.write_str(&self.name)
        } else {
            write!(f, "{}.{}", self.namespace, self.name)
        }
    }
}

/// The full name of a table, as it stands in tags, records and the state store.
#[must_use]
pub fn table(namespace: &str, table: &str) -> String {
    format!("{namespace}/{table}")
}

/// The names nearest to `wanted`, nearest first: those that differ in a third of their letters at
/// most, or that contain it.
#[must_use]
pub fn near<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = known
        .filter_map(|name| {
            let distance = distance(wanted, name);
            let close = distance * 3 <= name.len().max(wanted.len());
            let inside = wanted.len() >= 3 && (name.contains(wanted) || wanted.contains(name));
            (close || inside).then_some((distance, name))
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name.to_owned()).collect()
}

/// Insertions, deletions and replacements that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_means_the_callers_namespace() {
        let name = FunctionName::parse("search", "travel").unwrap();
        assert_eq!(name.to_string(), "travel.search");
        let name = FunctionName::parse("travel.search", "default").unwrap();
        assert_eq!((name.namespace(), name.name()), ("travel", "search"));
        assert_eq!(FunctionName::parse("hello", "default").unwrap().to_string(), "hello");
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "a b", "a.b.c", ".x", "x.", "1st", "é", &"x".repeat(65), "a/b"] {
            assert!(FunctionName::parse(bad, "default").is_err(), "{bad}");
        }
    }

    #[test]
    fn near_names_come_nearest_first() {
        let known = ["search", "reserve", "research", "geo"];
        assert_eq!(near("serch", known.into_iter()), ["search"]);
        assert_eq!(near("search", known.into_iter()), ["search", "research"]);
        assert!(near("zzzzzz", known.into_iter()).is_empty());
    }
}
