//! `include/halfmoon.h` says what the sources say. `HALFMOON_BLESS=1 cargo test -p halfmoon-c`
//! writes it anew.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write;
use std::path::Path;

const PREAMBLE: &str = "\
/* The C interface of Halfmoon: exactly-once stateful functions.
 *
 * Made from the sources of the package halfmoon-c; not to be edited.
 *
 * Rules for all functions:
 * - A pointer that is passed is null where that is said to be allowed, or points to what its type
 *   says, for as long as the call lasts. A pair of pointer and length is that many bytes; the
 *   pointer may be null if the length is 0. Texts are UTF-8 and end with a NUL.
 * - Everything is used on the thread that called hm_serve, by one call at a time.
 * - Handles are opaque. What must be freed says so; it is freed once and not used after that.
 * - Functions that return int32_t return one of the HM_ statuses below. What a status other than
 *   HM_OK leaves in places for results is undefined, unless said otherwise.
 * - No function unwinds or jumps over the caller: a fault inside aborts the process, and the
 *   engine attempts the invocation again. Callbacks must not unwind or jump over this library.
 *
 * A function may be attempted more than once. Each attempt must do the same operations with the
 * same arguments; time, random numbers and results of side effects are the same in every attempt.
 */
#ifndef HALFMOON_H
#define HALFMOON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern \"C\" {
#endif
";

const END: &str = "
#ifdef __cplusplus
}
#endif

#endif
";

/// An item of the interface, as it was found.
struct Item {
    docs: Vec<String>,
    /// One line: everything up to the body, or with the fields of a struct.
    code: String,
}

/// The public items of a source file that are part of the interface, formatted by rustfmt.
fn items(source: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let mut docs = Vec::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some(doc) = line.strip_prefix("/// ") {
            docs.push(doc.to_owned());
        } else if line.starts_with("#[") {
        } else if ["pub const HM_", "pub struct hm_", "pub type hm_", "pub extern", "pub unsafe"]
            .iter()
            .any(|start| line.starts_with(start))
        {
            let mut code = line.to_owned();
            while !(code.ends_with(';')
                || code.ends_with('}')
                || code.ends_with(" {") && is_fn(&code))
            {
                let next = lines.next().expect("an item ends");
                code.push(' ');
                code.push_str(next.trim());
            }
            items.push(Item { docs: std::mem::take(&mut docs), code });
        } else {
            docs.clear();
        }
    }
    items
}

fn is_fn(code: &str) -> bool {
    code.contains(" fn ") && !code.starts_with("pub type")
}

/// A Rust type in C, without the space that a name needs behind it.
fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(inner) = rust.strip_prefix("*const ") {
        return format!("const {}*", spaced(inner));
    }
    if let Some(inner) = rust.strip_prefix("*mut ") {
        return format!("{}*", spaced(inner));
    }
    let plain = rust.split('<').next().expect("a split has a first part");
    match plain {
        "u8" => "uint8_t",
        "u32" => "uint32_t",
        "u64" => "uint64_t",
        "i32" => "int32_t",
        "usize" => "size_t",
        "bool" => "bool",
        "c_char" => "char",
        "c_void" => "void",
        named if named.starts_with("hm_") => named,
        other => panic!("no C for the type {other}"),
    }
    .to_owned()
}

/// A type as it stands before a name or a star.
fn spaced(rust: &str) -> String {
    let c = c_type(rust);
    if c.ends_with('*') { c } else { format!("{c} ") }
}

/// `name: type, name: type` in C; lifetimes have no comma followed by a colon.
fn parameters(rust: &str) -> String {
    let mut list: Vec<String> = Vec::new();
    for part in rust.replace("<'_, '_>", "").replace("<'_>", "").split(',') {
        let Some((name, of)) = part.split_once(':') else { continue };
        list.push(format!("{}{}", spaced(of), name.trim()));
    }
    if list.is_empty() { "void".to_owned() } else { list.join(", ") }
}

fn comment(out: &mut String, docs: &[String], indent: &str) {
    match docs {
        [] => {}
        [one] => writeln!(out, "{indent}/* {one} */").unwrap(),
        [first, rest @ ..] => {
            writeln!(out, "{indent}/* {first}").unwrap();
            let (last, middle) = rest.split_last().unwrap();
            for line in middle {
                writeln!(out, "{indent} * {line}").unwrap();
            }
            writeln!(out, "{indent} * {last} */").unwrap();
        }
    }
}

/// Breaks a declaration that is too long after its commas.
fn wrapped(declaration: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for (index, part) in declaration.split(", ").enumerate() {
        if index > 0 && width + part.len() + 2 > 100 {
            out.push_str(",\n    ");
            width = 4;
        } else if index > 0 {
            out.push_str(", ");
            width += 2;
        }
        out.push_str(part);
        width += part.len();
    }
    out
}

fn declare(out: &mut String, item: &Item) {
    out.push('\n');
    comment(out, &item.docs, "");
    let code = &item.code;
    if let Some(rest) = code.strip_prefix("pub const ") {
        let (name, rest) = rest.split_once(": i32 = ").expect("constants are i32");
        writeln!(out, "#define {name} {}", rest.trim_end_matches(';')).unwrap();
    } else if let Some(rest) = code.strip_prefix("pub struct ") {
        structure(out, rest);
    } else if let Some(rest) = code.strip_prefix("pub type ") {
        let name = rest.split(' ').next().expect("a type has a name");
        let (_, signature) = rest.split_once("fn(").expect("types are functions");
        let (arguments, after) = signature.rsplit_once(')').expect("a function has arguments");
        let result = after.split_once("-> ").map_or("void", |(_, result)| result);
        let result = result.trim_end_matches([',', '>', ';', ' ']);
        let result =
            if result == "void" || result.is_empty() { "void".into() } else { c_type(result) };
        let arguments = parameters(arguments);
        writeln!(out, "{};", wrapped(&format!("typedef {result} (*{name})({arguments})"))).unwrap();
    } else {
        let (_, signature) = code.split_once(" fn ").expect("what is left are functions");
        let (name, rest) = signature.split_once('(').expect("a function has arguments");
        let (arguments, after) = rest.rsplit_once(')').expect("arguments end");
        let result = after.trim().trim_end_matches('{').trim();
        let result = result.strip_prefix("-> ").map_or("void ".to_owned(), spaced);
        let arguments = parameters(arguments);
        writeln!(out, "{};", wrapped(&format!("{result}{name}({arguments})"))).unwrap();
    }
}

/// A struct: opaque if it is a handle, with its fields if they are public.
fn structure(out: &mut String, rest: &str) {
    let name = rest.split(['(', '<', ' ']).next().expect("a struct has a name");
    if !rest.contains("pub ") {
        writeln!(out, "typedef struct {name} {name};").unwrap();
        return;
    }
    writeln!(out, "typedef struct {name} {{").unwrap();
    let (_, fields) = rest.split_once('{').expect("fields");
    for field in fields.split("/// ").skip(1) {
        let (docs, field) = field.split_once(" pub ").expect("fields are public");
        let docs = docs.to_owned();
        comment(out, &[docs], "    ");
        let (name, of) = field.split_once(':').expect("a field has a type");
        let of = of.trim_end_matches(['}', ',', ' ']);
        writeln!(out, "    {}{name};", spaced(of)).unwrap();
    }
    writeln!(out, "}} {name};").unwrap();
}

fn generated() -> String {
    let sources = [include_str!("../src/app.rs"), include_str!("../src/ctx.rs")];
    let items: Vec<Item> = sources.iter().flat_map(|source| items(source)).collect();
    // What is named must be declared before: numbers, handles, callbacks, functions.
    let kinds: [fn(&str) -> bool; 4] = [
        |code| code.starts_with("pub const"),
        |code| code.starts_with("pub struct"),
        |code| code.starts_with("pub type"),
        is_fn,
    ];
    let mut out = PREAMBLE.to_owned();
    for is_kind in kinds {
        for item in items.iter().filter(|item| is_kind(&item.code)) {
            declare(&mut out, item);
        }
    }
    out.push_str(END);
    out
}

#[test]
fn the_header_says_what_the_sources_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/halfmoon.h");
    let wanted = generated();
    if std::env::var_os("HALFMOON_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
    assert_eq!(differs, None, "run HALFMOON_BLESS=1 cargo test -p halfmoon-c");
    assert_eq!(found, wanted, "run HALFMOON_BLESS=1 cargo test -p halfmoon-c");
}
