//! Which package may depend on which, and what it may contain.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde_json::Value;

use super::source::has_unsafe_code;
use super::{TextFile, Violation};

/// What a package may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No I/O, no clock, no lock, no unsafe code.
    Pure,
    /// I/O, but no unsafe code.
    Shell,
    /// Unsafe code in at most so many files; the rest of the package is safe over them.
    Unsafe { files: usize },
}

struct Package {
    name: &'static str,
    kind: Kind,
    /// The packages of this workspace that it may depend on: always ones further up in this table.
    may_use: &'static [&'static str],
    /// Whether it may also depend on all of [`NODE`].
    node: bool,
}

impl Package {
    fn may_use(&self, name: &str) -> bool {
        self.may_use.contains(&name) || self.node && NODE.contains(&name)
    }
}

const fn package(name: &'static str, kind: Kind, may_use: &'static [&'static str]) -> Package {
    Package { name, kind, may_use, node: false }
}

/// A package that runs in a node, on transports and the metadata store.
const fn node(name: &'static str, may_use: &'static [&'static str]) -> Package {
    Package { name, kind: Shell, may_use, node: true }
}

use Kind::{Pure, Shell, Unsafe};

/// The packages, lowest first.
const PACKAGES: &[Package] = &[
    package("halfmoon-wire", Pure, &[]),
    package("halfmoon-order", Pure, &["halfmoon-wire"]),
    package("halfmoon-log", Pure, &["halfmoon-wire"]),
    package("halfmoon-index", Pure, &["halfmoon-wire"]),
    package("halfmoon-protocol", Pure, &["halfmoon-wire"]),
    package("halfmoon-transport", Shell, &["halfmoon-wire"]),
    package("halfmoon-reactor", Unsafe { files: 2 }, &["halfmoon-transport"]),
    package("halfmoon-meta", Shell, &["halfmoon-wire"]),
    package(
        "halfmoon-tcp",
        Shell,
        &["halfmoon-wire", "halfmoon-transport", "halfmoon-reactor", "halfmoon-meta"],
    ),
    package(
        "halfmoon-rdma",
        Unsafe { files: 2 },
        &["halfmoon-wire", "halfmoon-transport", "halfmoon-reactor", "halfmoon-tcp"],
    ),
    package("halfmoon-channel", Unsafe { files: 2 }, &["halfmoon-wire", "halfmoon-transport"]),
    package("halfmoon", Shell, &["halfmoon-channel"]),
    package("halfmoon-c", Unsafe { files: 2 }, &["halfmoon", "halfmoon-channel"]),
    node("halfmoon-sequencer", &["halfmoon-order"]),
    node("halfmoon-storage", &["halfmoon-log"]),
    node("halfmoon-verify", &["halfmoon-order", "halfmoon-protocol", "halfmoon-storage"]),
    node("halfmoon-client", &["halfmoon-index"]),
    node(
        "halfmoon-engine",
        &["halfmoon-index", "halfmoon-protocol", "halfmoon-channel", "halfmoon-client"],
    ),
    node("halfmoon-bench", &["halfmoon", "halfmoon-client"]),
    node(
        "halfmoon-cli",
        &[
            "halfmoon-sequencer",
            "halfmoon-storage",
            "halfmoon-client",
            "halfmoon-engine",
            "halfmoon-bench",
            "halfmoon-verify",
            "halfmoon",
        ],
    ),
    node(
        "halfmoon-sim",
        &[
            "halfmoon-log",
            "halfmoon-protocol",
            "halfmoon-sequencer",
            "halfmoon-storage",
            "halfmoon-client",
        ],
    ),
    package("xtask", Shell, &[]),
];

/// What every role stands on.
const NODE: [&str; 6] = [
    "halfmoon-wire",
    "halfmoon-transport",
    "halfmoon-reactor",
    "halfmoon-tcp",
    "halfmoon-rdma",
    "halfmoon-meta",
];

/// What a pure package may depend on besides pure packages: codecs, hashes, error types.
const PURE_MAY_USE: &[&str] =
    &["blake3", "bytemuck", "crc32c", "rustc-hash", "thiserror", "xxhash-rust"];

pub(super) fn check(metadata: &Value, files: &[TextFile]) -> anyhow::Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for found in members(metadata)? {
        let name = found["name"].as_str().context("a package without a name")?;
        let manifest = relative(found["manifest_path"].as_str().unwrap_or_default());
        let Some(package) = PACKAGES.iter().find(|package| package.name == name) else {
            let what = format!("package {name} is not in the table of xtask/src/tidy/packages.rs");
            violations.push(Violation::new(&manifest, 0, what));
            continue;
        };
        violations.extend(dependencies(package, found, &manifest));
        violations.extend(unsafe_code(package, found, &manifest, files));
        if package.kind == Pure {
            violations.extend(bans(&manifest, files));
        }
    }
    Ok(violations)
}

/// The packages of the workspace.
pub(super) fn members(metadata: &Value) -> anyhow::Result<impl Iterator<Item = &Value>> {
    let ids: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .context("no workspace members")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let packages = metadata["packages"].as_array().context("no packages")?;
    Ok(packages.iter().filter(move |found| found["id"].as_str().is_some_and(|id| ids.contains(id))))
}

/// A path below the root of the workspace, as git writes it.
pub(super) fn relative(path: &str) -> String {
    let root = crate::run::root().to_string_lossy();
    path.strip_prefix(&*root).unwrap_or(path).trim_start_matches('/').to_owned()
}

fn dependencies(package: &Package, found: &Value, manifest: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for dependency in found["dependencies"].as_array().into_iter().flatten() {
        let name = dependency["name"].as_str().unwrap_or_default();
        let ours = PACKAGES.iter().any(|package| package.name == name);
        // Tests may stand on more than what they test.
        if dependency["kind"] == "dev" {
            continue;
        }
        if ours && !package.may_use(name) {
            let what = format!("{} must not depend on {name}", package.name);
            violations.push(Violation::new(manifest, 0, what));
        }
        if !ours && package.kind == Pure && !PURE_MAY_USE.contains(&name) {
            let what = format!("{} is pure and must not depend on {name}", package.name);
            violations.push(Violation::new(manifest, 0, what));
        }
    }
    violations
}

/// Unsafe code is forbidden by the compiler in each root of a package, or counted here by files.
fn unsafe_code(
    package: &Package,
    found: &Value,
    manifest: &str,
    files: &[TextFile],
) -> Vec<Violation> {
    let folder = manifest.strip_suffix("Cargo.toml").unwrap_or(manifest);
    if let Unsafe { files: most } = package.kind {
        let inside = |file: &&TextFile| {
            file.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with("src/"))
                && file.path.ends_with(".rs")
                && !super::source::is_test_file(&file.path)
        };
        let with: Vec<&str> = files
            .iter()
            .filter(inside)
            .filter(|file| has_unsafe_code(&file.text))
            .map(|file| file.path.as_str())
            .collect();
        if with.len() > most {
            let what = format!("unsafe code in more than {most} files: {}", with.join(", "));
            return vec![Violation::new(manifest, 0, what)];
        }
        return vec![];
    }
    let mut violations = Vec::new();
    for target in found["targets"].as_array().into_iter().flatten() {
        let path = relative(target["src_path"].as_str().unwrap_or_default());
        let Some(file) = files.iter().find(|file| file.path == path) else { continue };
        let in_source = path.strip_prefix(folder).is_some_and(|rest| rest.starts_with("src/"));
        if in_source && !file.text.contains("#![forbid(unsafe_code)]") {
            violations.push(Violation::new(&path, 1, "#![forbid(unsafe_code)] is missing"));
        }
        if !in_source && has_unsafe_code(&file.text) {
            violations.push(Violation::new(&path, 1, "unsafe code"));
        }
    }
    violations
}

/// A pure package has a `clippy.toml` that bans clocks, locks and files, the same in all of them.
fn bans(manifest: &str, files: &[TextFile]) -> Option<Violation> {
    let folder = manifest.strip_suffix("Cargo.toml").unwrap_or(manifest);
    let find = |path: &str| files.iter().find(|file| file.path == path);
    let own = format!("{folder}clippy.toml");
    let Some(file) = find(&own) else {
        return Some(Violation::new(
            &own,
            0,
            "missing: a pure package bans clocks, locks and files",
        ));
    };
    let model = find("transport/wire/clippy.toml")?;
    let differs = file.text != model.text;
    differs.then(|| Violation::new(&own, 0, format!("differs from {}", model.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_points_down_only() {
        for (index, package) in PACKAGES.iter().enumerate() {
            for used in package.may_use {
                let at = PACKAGES.iter().position(|other| other.name == *used);
                assert!(at.is_some_and(|at| at < index), "{} on {used}", package.name);
            }
            let pure = |name: &str| PACKAGES.iter().any(|p| p.name == name && p.kind == Pure);
            assert!(package.kind != Pure || package.may_use.iter().all(|name| pure(name)));
        }
    }

    #[test]
    fn a_dependency_that_points_up_is_a_violation() {
        let wire = PACKAGES.first().unwrap();
        let found = serde_json::json!({"dependencies": [
            {"name": "halfmoon-order", "kind": null},
            {"name": "tokio", "kind": null},
            {"name": "bytemuck", "kind": null},
            {"name": "proptest", "kind": "dev"},
        ]});
        let what: Vec<_> =
            dependencies(wire, &found, "Cargo.toml").into_iter().map(|v| v.what).collect();
        assert_eq!(
            what,
            [
                "halfmoon-wire must not depend on halfmoon-order",
                "halfmoon-wire is pure and must not depend on tokio"
            ]
        );
    }
}
