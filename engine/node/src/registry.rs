//! Which functions and tables exist, as of any place in the log.
//!
//! Folded by every engine from the records of the registry's tag, so every engine gives the same
//! answer for the same cursor. Rules of the fold:
//!
//! - G1. A function's version at a cursor is that of the last deployment at or before the cursor
//!   that declares it.
//! - G2. A namespace keeps the protocol of its first deployment, and a table the settings of its
//!   first declaration: data written under one protocol is not found by another.
//! - G3. A table exists from its first declaration on: a root that started before does not have it,
//!   whichever attempt asks. In a namespace that logs nothing every table exists.
//! - G4. A record that does not parse or breaks G2 is skipped, by every engine alike.

use std::collections::BTreeMap;

use halfmoon_protocol::{self as protocol, Mode, TableSpec};
use halfmoon_wire::SeqNum;

use crate::manifest::{Deploy, FunctionSpec, ManifestError, Order, Protocol, TableDecl, Version};
use crate::names::{self, BadName, FunctionName};

/// Functions of a whole cluster; a deployment beyond that is refused.
pub const CLUSTER_FUNCTIONS_MAX: usize = 16 * 1024;
/// Tables of a whole cluster.
pub const CLUSTER_TABLES_MAX: usize = 16 * 1024;

/// A function as of a cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// Its full name.
    pub name: FunctionName,
    /// The binary that has it.
    pub version: Version,
    /// Bytes of the binary.
    pub bytes: u64,
    /// What the binary declares.
    pub spec: FunctionSpec,
}

/// All deployments so far.
#[derive(Debug, Default)]
pub struct Registry {
    functions: BTreeMap<FunctionName, Vec<(SeqNum, Function)>>,
    namespaces: BTreeMap<String, Protocol>,
    /// With where each was declared first.
    tables: BTreeMap<String, (SeqNum, TableDecl)>,
}

/// Why a deployment cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The namespace has another protocol.
    #[error(
        "namespace {namespace:?} is logged by {current}, not {wanted}; deploy without a protocol, \
         or into another namespace"
    )]
    NamespaceProtocol {
        /// Which.
        namespace: String,
        /// What it has.
        current: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The table has other settings.
    #[error(
        "table {table:?} exists with other settings; give it another name, or keep its settings"
    )]
    Table {
        /// Its full name.
        table: String,
    },
    /// More than a cluster holds.
    #[error("the cluster holds as many {what} as it may: {limit}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// A name breaks the rules.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The record does not parse.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl Registry {
    /// Folds the registry record at `seq`. Records come in ascending order.
    pub fn apply(&mut self, seq: SeqNum, payload: &[u8]) -> Result<Deploy, DeployError> {
        let deploy = Deploy::parse(payload)?;
        self.check(&deploy)?;
        self.namespaces.entry(deploy.namespace.clone()).or_insert(deploy.protocol);
        for table in &deploy.manifest.tables {
            let name = names::table(&deploy.namespace, &table.name);
            self.tables.entry(name).or_insert_with(|| (seq, table.clone()));
        }
        for spec in &deploy.manifest.functions {
            let name = FunctionName::new(&deploy.namespace, &spec.name)?;
            let (version, bytes) = (deploy.version, deploy.bytes);
            let function = Function { name: name.clone(), version, bytes, spec: spec.clone() };
            self.functions.entry(name).or_default().push((seq, function));
        }
        Ok(deploy)
    }

    /// Whether a deployment keeps to G2 and to the limits.
    pub fn check(&self, deploy: &Deploy) -> Result<(), DeployError> {
        let namespace = &deploy.namespace;
        names::check(namespace)?;
        deploy.manifest.check()?;
        if let Some(current) = self.namespaces.get(namespace)
            && *current != deploy.protocol
        {
            return Err(DeployError::NamespaceProtocol {
                namespace: namespace.clone(),
                current: current.name(),
                wanted: deploy.protocol.name(),
            });
        }
        for table in &deploy.manifest.tables {
            let full = names::table(namespace, &table.name);
            if self.tables.get(&full).is_some_and(|(_, known)| known != table) {
                return Err(DeployError::Table { table: full });
            }
        }
        let room = |known: usize, more: usize, limit: usize| known.saturating_add(more) <= limit;
        let Deploy { manifest, .. } = deploy;
        if !room(self.functions.len(), manifest.functions.len(), CLUSTER_FUNCTIONS_MAX) {
            return Err(DeployError::Full { what: "functions", limit: CLUSTER_FUNCTIONS_MAX });
        }
        if !room(self.tables.len(), manifest.tables.len(), CLUSTER_TABLES_MAX) {
            return Err(DeployError::Full { what: "tables", limit: CLUSTER_TABLES_MAX });
        }
        Ok(())
    }

    /// The function as of `cursor`: G1.
    #[must_use]
    pub fn function(&self, name: &FunctionName, cursor: SeqNum) -> Option<&Function> {
        let versions = self.functions.get(name)?;
        let after = versions.partition_point(|(seq, _)| *seq <= cursor);
        versions.get(after.checked_sub(1)?).map(|(_, function)| function)
    }

    /// The function in the version with this hash, whenever it was deployed.
    #[must_use]
    pub fn function_of(&self, name: &FunctionName, version: Version) -> Option<&Function> {
        let versions = self.functions.get(name)?;
        versions.iter().map(|(_, function)| function).rfind(|found| found.version == version)
    }

    /// The table `table` of `namespace`, as of `cursor`: G3.
    #[must_use]
    pub fn table(&self, namespace: &str, table: &str, cursor: SeqNum) -> Option<TableSpec> {
        let name = names::table(namespace, table);
        let inherited = self.protocol(namespace);
        match self.tables.get(&name) {
            Some((seq, declared)) if *seq <= cursor => Some(table_spec(name, declared, inherited)),
            // Nothing is promised there, so nothing is lost when it is declared later.
            Some(_) | None if inherited == Protocol::Unlogged => {
                Some(TableSpec::new(&name, inherited.into()))
            }
            Some(_) | None => None,
        }
    }

    /// The protocol of a namespace's tables, unless they declare one of their own.
    #[must_use]
    pub fn protocol(&self, namespace: &str) -> Protocol {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    /// The protocol of a namespace, if it exists.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> Option<Protocol> {
        self.namespaces.get(namespace).copied()
    }

    /// How the trees of a namespace's roots are logged.
    #[must_use]
    pub fn mode(&self, namespace: &str) -> Mode {
        match self.protocol(namespace) {
            Protocol::Auto | Protocol::HalfmoonRead | Protocol::HalfmoonWrite => Mode::Halfmoon,
            Protocol::Boki => Mode::Boki,
            Protocol::Unlogged => Mode::Unlogged,
        }
    }

    /// Names like `wanted`, for whoever mistyped one.
    #[must_use]
    pub fn near(&self, wanted: &FunctionName) -> Vec<String> {
        let known: Vec<String> = self.functions.keys().map(ToString::to_string).collect();
        let mut found = names::near(&wanted.to_string(), known.iter().map(String::as_str));
        // The right name in the wrong namespace.
        for name in self.functions.keys() {
            if name.name() == wanted.name() && found.len() < names::SUGGESTIONS_MAX {
                found.push(name.to_string());
            }
        }
        found.dedup();
        found
    }

    /// Every function in its current version, by name.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.values().filter_map(|versions| versions.last()).map(|(_, found)| found)
    }

    /// Every declared table, by name.
    pub fn tables(&self) -> impl Iterator<Item = TableSpec> {
        self.tables.iter().map(|(name, (_, declared))| {
            let namespace = name.split('/').next().unwrap_or_default();
            table_spec(name.clone(), declared, self.protocol(namespace))
        })
    }
}

/// A table that transactions use is pinned to `halfmoon-read`, except in a namespace that is a
/// baseline: there it follows the namespace, and transactions over it are refused.
fn table_spec(name: String, declared: &TableDecl, inherited: Protocol) -> TableSpec {
    let baseline = matches!(inherited, Protocol::Boki | Protocol::Unlogged);
    let own = declared.protocol.filter(|protocol| *protocol != Protocol::Auto);
    let follows = own.is_none() && baseline;
    TableSpec {
        name,
        protocol: own.unwrap_or(inherited).into(),
        order: declared.order.into(),
        transactional: declared.transactional && !follows,
    }
}

impl From<Protocol> for protocol::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Auto => Self::Auto,
            Protocol::HalfmoonRead => Self::HalfmoonRead,
            Protocol::HalfmoonWrite => Self::HalfmoonWrite,
            Protocol::Boki => Self::Boki,
            Protocol::Unlogged => Self::Unlogged,
        }
    }
}

impl From<Order> for protocol::Order {
    fn from(order: Order) -> Self {
        match order {
            Order::Sequential => Self::Sequential,
            Order::Relaxed => Self::Relaxed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    fn deploy(namespace: &str, binary: &str, protocol: Protocol, manifest: &str) -> Vec<u8> {
        let deploy = Deploy {
            namespace: namespace.into(),
            version: Version::of(binary.as_bytes()),
            bytes: binary.len() as u64,
            protocol,
            manifest: Manifest::parse(manifest.as_bytes()).unwrap(),
        };
        deploy.to_bytes().unwrap()
    }

    fn name(text: &str) -> FunctionName {
        FunctionName::parse(text, names::DEFAULT_NAMESPACE).unwrap()
    }

    #[test]
    fn a_cursor_sees_the_version_that_was_current_then() {
        let mut registry = Registry::default();
        let both = r#"{"functions":[{"name":"a"},{"name":"b"}]}"#;
        let one = r#"{"functions":[{"name":"a"}]}"#;
        registry.apply(SeqNum(5), &deploy("ns", "v1", Protocol::Auto, both)).unwrap();
        registry.apply(SeqNum(9), &deploy("ns", "v2", Protocol::Auto, one)).unwrap();
        let at = |function: &str, cursor| {
            registry.function(&name(function), SeqNum(cursor)).map(|found| found.version)
        };
        assert_eq!(at("ns.a", 4), None);
        assert_eq!(at("ns.a", 5), Some(Version::of(b"v1")));
        assert_eq!(at("ns.a", 8), Some(Version::of(b"v1")));
        assert_eq!(at("ns.a", 9), Some(Version::of(b"v2")));
        assert_eq!(at("ns.b", 9), Some(Version::of(b"v1")));
        assert_eq!(at("b", 9), None);
        let old = registry.function_of(&name("ns.a"), Version::of(b"v1")).unwrap();
        assert_eq!(old.bytes, 2);
    }

    #[test]
    fn a_table_keeps_its_first_settings() {
        let mut registry = Registry::default();
        let first = r#"{"functions":[{"name":"a"}],
            "tables":[{"name":"t","protocol":"halfmoon-write"},{"name":"x","transactional":true}]}"#;
        let other = r#"{"functions":[{"name":"a"}],"tables":[{"name":"t","protocol":"boki"}]}"#;
        registry.apply(SeqNum(1), &deploy("ns", "v1", Protocol::Auto, first)).unwrap();
        let second = deploy("ns", "v2", Protocol::Auto, other);
        assert!(matches!(registry.apply(SeqNum(2), &second), Err(DeployError::Table { .. })));
        let third = deploy("ns", "v2", Protocol::Boki, first);
        assert!(matches!(
            registry.apply(SeqNum(3), &third),
            Err(DeployError::NamespaceProtocol { .. })
        ));
        let protocol_of = |table: &str| registry.table("ns", table, SeqNum(9)).unwrap().effective();
        assert_eq!(protocol_of("t"), protocol::Protocol::HalfmoonWrite);
        assert_eq!(protocol_of("x"), protocol::Protocol::HalfmoonRead);
        assert_eq!(
            registry.function(&name("ns.a"), SeqNum(9)).unwrap().version,
            Version::of(b"v1"),
            "a skipped record deploys nothing"
        );
    }

    #[test]
    fn a_cursor_sees_the_tables_that_were_declared_then() {
        let mut registry = Registry::default();
        let without = r#"{"functions":[{"name":"a"}]}"#;
        let with = r#"{"functions":[{"name":"a"}],"tables":[{"name":"t"}]}"#;
        registry.apply(SeqNum(5), &deploy("ns", "v1", Protocol::Auto, without)).unwrap();
        registry.apply(SeqNum(9), &deploy("ns", "v2", Protocol::Auto, with)).unwrap();
        registry.apply(SeqNum(12), &deploy("ns", "v3", Protocol::Auto, with)).unwrap();
        let at = |cursor| registry.table("ns", "t", SeqNum(cursor)).is_some();
        assert_eq!([5, 8, 9, 12].map(at), [false, false, true, true]);
    }

    #[test]
    fn a_baseline_namespace_gives_its_protocol_to_all_tables() {
        let mut registry = Registry::default();
        let manifest =
            r#"{"functions":[{"name":"a"}],"tables":[{"name":"x","transactional":true}]}"#;
        registry.apply(SeqNum(1), &deploy("raw", "v1", Protocol::Unlogged, manifest)).unwrap();
        let table = |table: &str| registry.table("raw", table, SeqNum(1)).unwrap();
        assert_eq!(table("x").effective(), protocol::Protocol::Unlogged);
        assert_eq!(table("new").effective(), protocol::Protocol::Unlogged);
        assert_eq!(table("new").name, "raw/new");
        assert_eq!(registry.mode("raw"), Mode::Unlogged);
        assert_eq!(registry.mode("unheard-of"), Mode::Halfmoon);
    }

    #[test]
    fn a_record_that_does_not_parse_changes_nothing() {
        let mut registry = Registry::default();
        assert!(registry.apply(SeqNum(1), b"\xff{").is_err());
        assert_eq!(registry.functions().count() + registry.tables().count(), 0);
    }

    #[test]
    fn a_mistyped_name_is_answered_with_near_ones() {
        let mut registry = Registry::default();
        let manifest = r#"{"functions":[{"name":"search"},{"name":"reserve"}]}"#;
        registry.apply(SeqNum(1), &deploy("travel", "v1", Protocol::Auto, manifest)).unwrap();
        assert_eq!(registry.near(&name("travel.serach")), ["travel.search"]);
        assert_eq!(registry.near(&name("reserve")), ["travel.reserve"]);
    }
}
