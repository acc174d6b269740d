//! What a function binary says about itself, and the record that deploys it.

use serde::{Deserialize, Deserializer, Serialize};

use crate::names::{self, BadName};

/// Functions in one binary.
pub const FUNCTIONS_MAX: usize = 256;
/// Tables declared by one binary.
pub const TABLES_MAX: usize = 256;
/// Bytes of a deployment's record.
pub const DEPLOY_MAX_BYTES: usize = 128 * 1024;
/// Longest time limit that a function may declare.
pub const TIMEOUT_MAX_MS: u64 = 10 * 60 * 1000;
/// Time limit of a function that declares none.
pub const TIMEOUT_DEFAULT_MS: u64 = 30_000;
/// Attempts of a root before it is parked, unless its function declares otherwise.
pub const ATTEMPTS_DEFAULT: u32 = 10;

/// How the operations on a table are logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// The system chooses.
    #[default]
    Auto,
    /// Reads append nothing.
    HalfmoonRead,
    /// Writes append nothing.
    HalfmoonWrite,
    /// Both append.
    Boki,
    /// Nothing is logged, and nothing is exactly once.
    Unlogged,
}

/// In which order others see the log-free operations of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As in some sequential history.
    #[default]
    Sequential,
    /// Per object only.
    Relaxed,
}

/// A function, as its binary declares it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// Its name within the namespace.
    pub name: String,
    /// It neither writes nor has other effects.
    #[serde(default)]
    pub read_only: bool,
    /// Longest time of one attempt, in ms.
    #[serde(default = "timeout_default", deserialize_with = "timeout")]
    pub timeout_ms: u64,
    /// Attempts before an unfinished root is parked.
    #[serde(default = "attempts_default", deserialize_with = "attempts")]
    pub max_attempts: u32,
    /// Most invocations at once on one engine; 0: as many as there are workers.
    #[serde(default, deserialize_with = "null_is_zero")]
    pub concurrency: u32,
}

/// A table, as a binary declares it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableDecl {
    /// Its name within the namespace.
    pub name: String,
    /// How it is logged; the namespace's protocol when left out or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Which order it promises.
    #[serde(default)]
    pub order: Order,
    /// Transactions use it.
    #[serde(default)]
    pub transactional: bool,
}

/// What a binary prints when it is asked to describe itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Its functions.
    pub functions: Vec<FunctionSpec>,
    /// Its tables.
    #[serde(default)]
    pub tables: Vec<TableDecl>,
}

/// The payload of a registry record: a binary has become the current version of its functions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deploy {
    /// Where its names live.
    pub namespace: String,
    /// BLAKE3 of the binary.
    pub version: Version,
    /// Bytes of the binary.
    pub bytes: u64,
    /// The protocol of the namespace's tables, unless they declare one of their own.
    pub protocol: Protocol,
    /// What the binary says about itself.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// BLAKE3 of a binary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub [u8; 32]);

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that was expected.
    #[error("the manifest does not parse: {0}")]
    Json(#[from] serde_json::Error),
    /// A name breaks the rules.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Two functions or two tables of one name.
    #[error("{0:?} is declared twice")]
    Twice(String),
    /// Nothing to call.
    #[error("the binary declares no function")]
    Empty,
    /// Over a limit.
    #[error("{what}: {value} is over the limit of {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// What was declared.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
    /// Transactions need `halfmoon-read`.
    #[error(
        "table {0:?} is transactional, so its protocol can only be halfmoon-read; leave the \
         protocol out, or make the table not transactional"
    )]
    Transactional(String),
}

impl Manifest {
    /// Parses and checks what a binary printed.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        limit("manifest bytes", bytes.len() as u64, DEPLOY_MAX_BYTES as u64)?;
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks names and limits.
    pub fn check(&self) -> Result<(), ManifestError> {
        limit("functions", self.functions.len() as u64, FUNCTIONS_MAX as u64)?;
        limit("tables", self.tables.len() as u64, TABLES_MAX as u64)?;
        if self.functions.is_empty() {
            return Err(ManifestError::Empty);
        }
        unique(self.functions.iter().map(|function| function.name.as_str()))?;
        unique(self.tables.iter().map(|table| table.name.as_str()))?;
        for function in &self.functions {
            limit("timeout_ms", function.timeout_ms, TIMEOUT_MAX_MS)?;
        }
        for table in &self.tables {
            let pinned =
                matches!(table.protocol, None | Some(Protocol::Auto | Protocol::HalfmoonRead));
            if table.transactional && !pinned {
                return Err(ManifestError::Transactional(table.name.clone()));
            }
        }
        Ok(())
    }
}

impl Deploy {
    /// The record's payload.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let bytes = serde_json::to_vec(self)?;
        limit("deployment bytes", bytes.len() as u64, DEPLOY_MAX_BYTES as u64)?;
        Ok(bytes)
    }

    /// Parses a record's payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        limit("deployment bytes", bytes.len() as u64, DEPLOY_MAX_BYTES as u64)?;
        let deploy: Self = serde_json::from_slice(bytes)?;
        names::check(&deploy.namespace)?;
        deploy.manifest.check()?;
        Ok(deploy)
    }
}

impl Protocol {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 5] = [
        ("auto", Self::Auto),
        ("halfmoon-read", Self::HalfmoonRead),
        ("halfmoon-write", Self::HalfmoonWrite),
        ("boki", Self::Boki),
        ("unlogged", Self::Unlogged),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, protocol)| *protocol == self).map_or("auto", |(name, _)| name)
    }

    /// The protocol of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, protocol)| *protocol)
    }
}

fn limit(what: &'static str, value: u64, limit: u64) -> Result<(), ManifestError> {
    if value <= limit { Ok(()) } else { Err(ManifestError::Limit { what, value, limit }) }
}

fn unique<'a>(all: impl Iterator<Item = &'a str>) -> Result<(), ManifestError> {
    let mut seen: Vec<&str> = Vec::new();
    for name in all {
        names::check(name)?;
        if seen.contains(&name) {
            return Err(ManifestError::Twice(name.to_owned()));
        }
        seen.push(name);
    }
    Ok(())
}

/// A number that is `null` is the engine's to choose.
fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(TIMEOUT_DEFAULT_MS))
}

fn attempts<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(ATTEMPTS_DEFAULT))
}

fn null_is_zero<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(0))
}

const fn timeout_default() -> u64 {
    TIMEOUT_DEFAULT_MS
}

const fn attempts_default() -> u32 {
    ATTEMPTS_DEFAULT
}

mod version {
    use std::fmt;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::Version;

    impl Version {
        /// The version that these bytes are.
        #[must_use]
        pub fn of(binary: &[u8]) -> Self {
            Self(*blake3::hash(binary).as_bytes())
        }
    }

    impl fmt::Display for Version {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }

    impl fmt::Debug for Version {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Version({self})")
        }
    }

    /// Text that is not 64 hexadecimal digits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
    #[error("a version is 64 hexadecimal digits")]
    pub struct BadVersion;

    impl FromStr for Version {
        type Err = BadVersion;

        fn from_str(text: &str) -> Result<Self, BadVersion> {
            blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|_| BadVersion)
        }
    }

    impl Serialize for Version {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for Version {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            String::deserialize(from)?.parse().map_err(de::Error::custom)
        }
    }
}

pub use version::BadVersion;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(text.as_bytes())
    }

    #[test]
    fn a_short_manifest_gets_defaults() {
        let manifest = parse(r#"{"functions":[{"name":"hello"}]}"#).unwrap();
        let hello = &manifest.functions[0];
        assert_eq!(
            (hello.read_only, hello.timeout_ms, hello.max_attempts, hello.concurrency),
            (false, TIMEOUT_DEFAULT_MS, ATTEMPTS_DEFAULT, 0)
        );
    }

    #[test]
    fn what_the_sdk_prints_is_understood() {
        let manifest = parse(
            r#"{"sdk":"rust 0.1.0","layout":1,"functions":[{"name":"f","read_only":false,
                "timeout_ms":null,"max_attempts":3,"concurrency":null}],"tables":[{"name":"t",
                "protocol":"auto","order":"sequential","transactional":true}]}"#,
        )
        .unwrap();
        let f = &manifest.functions[0];
        assert_eq!((f.timeout_ms, f.max_attempts, f.concurrency), (TIMEOUT_DEFAULT_MS, 3, 0));
        assert!(manifest.tables[0].transactional);
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        for bad in [
            "",
            "{}",
            r#"{"functions":[]}"#,
            r#"{"functions":[{"name":"a.b"}]}"#,
            r#"{"functions":[{"name":"a"},{"name":"a"}]}"#,
            r#"{"functions":[{"name":"a","timeout_ms":999999999}]}"#,
            r#"{"functions":[{"name":"a"}],"tables":[{"name":"t"},{"name":"t"}]}"#,
            r#"{"functions":[{"name":"a"}],"tables":[{"name":"t","protocol":"raft"}]}"#,
            r#"{"functions":[{"name":"a"}],
                "tables":[{"name":"t","protocol":"boki","transactional":true}]}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_deployment_survives_its_record() {
        let manifest = parse(
            r#"{"functions":[{"name":"a","read_only":true}],
                "tables":[{"name":"t","protocol":"halfmoon-write","order":"relaxed"}]}"#,
        )
        .unwrap();
        let deploy = Deploy {
            namespace: "travel".into(),
            version: Version::of(b"binary"),
            bytes: 6,
            protocol: Protocol::Boki,
            manifest,
        };
        assert_eq!(Deploy::parse(&deploy.to_bytes().unwrap()).unwrap(), deploy);
        assert_eq!(deploy.version.to_string().parse(), Ok(deploy.version));
        for protocol in Protocol::ALL {
            assert_eq!(serde_json::to_value(protocol.1).unwrap(), protocol.0);
        }
    }
}
