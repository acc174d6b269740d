//! Documents that must agree with the tree.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::packages::{members, relative};
use super::{TextFile, Violation};

/// The commands that the README must show, as they are typed.
const README_COMMANDS: &[&str] = &["cargo run --release -- demo", "cargo xtask test"];

const DEPENDENCIES: &str = "docs/decisions/0002-dependencies.md";

const HEADER: &str = "ffi/c/include/halfmoon.h";

pub(super) fn check(metadata: &Value, files: &[TextFile]) -> anyhow::Result<Vec<Violation>> {
    let find = |path: &str| files.iter().find(|file| file.path == path);
    let mut violations = Vec::new();
    if let Some(architecture) = find("ARCHITECTURE.md") {
        for package in members(metadata)? {
            let name = package["name"].as_str().unwrap_or_default();
            if !architecture.text.contains(&format!("`{name}`")) {
                let what = format!("package `{name}` is not in it");
                violations.push(Violation::new(&architecture.path, 0, what));
            }
        }
    }
    if let Some(readme) = find("README.md") {
        for command in README_COMMANDS.iter().filter(|command| !readme.text.contains(**command)) {
            violations.push(Violation::new("README.md", 0, format!("`{command}` is missing")));
        }
    }
    if let Some(page) = find(DEPENDENCIES) {
        violations.extend(dependencies(metadata, page)?);
    }
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        violations.extend(links(file));
    }
    for package in members(metadata)? {
        let manifest = relative(package["manifest_path"].as_str().unwrap_or_default());
        violations.extend(dead_files(&manifest, package, files));
    }
    if let Some(header) = find(HEADER) {
        violations.extend(exports(header, files));
    }
    Ok(violations)
}

/// Dependencies without a line that says why, and lines about none.
fn dependencies(metadata: &Value, page: &TextFile) -> anyhow::Result<Vec<Violation>> {
    let ours: BTreeSet<&str> = members(metadata)?.filter_map(|p| p["name"].as_str()).collect();
    let used: BTreeSet<&str> = members(metadata)?
        .flat_map(|package| package["dependencies"].as_array().into_iter().flatten())
        .filter_map(|dependency| dependency["name"].as_str())
        .filter(|name| !ours.contains(name))
        .collect();
    let listed: BTreeSet<&str> = page
        .text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
        .collect();
    let missing = used.difference(&listed).map(|name| format!("dependency `{name}` is not in it"));
    let unused = listed.difference(&used).map(|name| format!("no package depends on `{name}`"));
    Ok(missing.chain(unused).map(|what| Violation::new(DEPENDENCIES, 0, what)).collect())
}

/// Links to files that are not there.
fn links(file: &TextFile) -> Vec<Violation> {
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    let mut violations = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !elsewhere && !folder.join(target).exists() {
                let what = format!("links to {target}, which is not there");
                violations.push(Violation::new(&file.path, index + 1, what));
            }
        }
    }
    violations
}

/// Rust files below `src/` that nobody declares as a module.
fn dead_files(manifest: &str, package: &Value, files: &[TextFile]) -> Vec<Violation> {
    let folder = format!("{}src/", manifest.strip_suffix("Cargo.toml").unwrap_or(manifest));
    let roots: Vec<String> = package["targets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|target| relative(target["src_path"].as_str().unwrap_or_default()))
        .collect();
    let own: Vec<&TextFile> = files
        .iter()
        .filter(|file| file.path.starts_with(&folder) && file.path.ends_with(".rs"))
        .collect();
    let declared = |name: &str| {
        let needle = format!("mod {name};");
        own.iter().any(|file| file.text.lines().any(|line| line.trim_end().ends_with(&needle)))
    };
    own.iter()
        .filter(|file| !roots.contains(&file.path))
        .filter(|file| {
            let stem = Path::new(&file.path).file_stem().unwrap_or_default();
            !declared(&stem.to_string_lossy())
        })
        .map(|file| Violation::new(&file.path, 0, "no module: nobody declares it"))
        .collect()
}

/// The functions of the C header and the exported ones are the same.
fn exports(header: &TextFile, files: &[TextFile]) -> Vec<Violation> {
    let source = files
        .iter()
        .filter(|file| file.path.starts_with("ffi/c/src/") && file.path.ends_with(".rs"));
    let exported: Vec<String> = source.flat_map(|file| exported(&file.text)).collect();
    let missing = exported
        .iter()
        .filter(|name| !header.text.contains(&format!("{name}(")))
        .map(|name| Violation::new(HEADER, 0, format!("{name} is exported and not in it")));
    let dangling = declared(&header.text)
        .into_iter()
        .filter(|(_, name)| !exported.contains(name))
        .map(|(line, name)| Violation::new(HEADER, line, format!("{name} is not exported")));
    missing.chain(dangling).collect()
}

/// Names of functions with an unmangled name.
fn exported(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in source.split("#[unsafe(no_mangle)]").skip(1) {
        let name = part.split_once("fn ").map_or("", |(_, rest)| rest);
        let name = name.split(['(', '<']).next().unwrap_or_default();
        names.push(name.trim().to_owned());
    }
    names
}

/// Functions `hm_…` and `halfmoon_…` that a header declares, with their lines.
fn declared(header: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for (index, line) in header.lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with(['*', '/', '#']) {
            continue;
        }
        let Some((before, _)) = code.split_once('(') else { continue };
        let name = before.rsplit([' ', '*']).next().unwrap_or_default();
        if name.starts_with("hm_") || name.starts_with("halfmoon_") {
            names.push((index + 1, name.to_owned()));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_and_the_exports_are_compared_both_ways() {
        let header = "/* hm_old( */\nint hm_read(hm_context *context);\nvoid *hm_gone(void);\n";
        let source = "#[unsafe(no_mangle)]\npub extern \"C\" fn hm_read(a: u8) {}\n\
                      #[unsafe(no_mangle)]\npub unsafe extern \"C\" fn hm_write() {}\n";
        assert_eq!(exported(source), ["hm_read", "hm_write"]);
        let file = |path: &str, text: &str| TextFile { path: path.into(), text: text.into() };
        let found = exports(&file(HEADER, header), &[file("ffi/c/src/lib.rs", source)]);
        let what: Vec<_> = found.iter().map(|violation| violation.what.as_str()).collect();
        assert_eq!(what, ["hm_write is exported and not in it", "hm_gone is not exported"]);
    }
}
