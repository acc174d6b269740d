//! The smallest program: one function, one table. `halfmoon deploy target/debug/examples/counter`.

use halfmoon::{App, Ctx, Table};

/// Adds one to the counter that the input names; answers the new count as text.
fn count(ctx: &mut Ctx, input: &[u8]) -> halfmoon::Result<Vec<u8>> {
    ctx.update("counters", input, |old| {
        let old = old.and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        let count: u64 = old.unwrap_or(0);
        (count + 1).to_string().into_bytes()
    })
}

/// The count, without changing it.
fn look(ctx: &mut Ctx, input: &[u8]) -> halfmoon::Result<Vec<u8>> {
    let count = ctx.read("counters", input)?;
    Ok(count.map_or_else(|| b"0".to_vec(), |count| count.to_vec()))
}

fn main() {
    let app = App::new()
        .table(Table::new("counters").transactional())
        .function("count", count)
        .function_with(halfmoon::Function::new("look", look).read_only());
    halfmoon::serve(app)
}
