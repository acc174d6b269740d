//! Large values: what a function reads lies in memory that it shares with its engine, where the
//! network has put it. `halfmoon deploy target/debug/examples/large_values`, then
//! `halfmoon invoke store 1048576` and `halfmoon invoke look`.

use halfmoon::{App, Ctx, Table};

const KEY: &str = "one";

/// Stores as many bytes as the input says.
fn store(ctx: &mut Ctx, len: u32) -> halfmoon::Result<u32> {
    let bytes: Vec<u8> = (0..len).map(|index| index.to_le_bytes()[0]).collect();
    ctx.write("large", KEY, &bytes)?;
    Ok(len)
}

/// How long the value is, where in the shared memory it lies, and the sum of its bytes.
fn look(ctx: &mut Ctx, _: serde_json::Value) -> halfmoon::Result<serde_json::Value> {
    let Some(value) = ctx.read("large", KEY)? else { return Ok(serde_json::Value::Null) };
    let sum: u64 = value.iter().map(|byte| u64::from(*byte)).sum();
    Ok(serde_json::json!({
        "len": value.len(),
        "sum": sum,
        "arena_offset": value.arena_offset(),
    }))
}

fn main() {
    let app = App::new()
        .table(Table::new("large"))
        .function("store", halfmoon::json(store))
        .function_with(halfmoon::Function::new("look", halfmoon::json(look)).read_only());
    halfmoon::serve(app)
}
