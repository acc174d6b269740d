//! placeholder
use crate::run::Tally;
#[derive(clap::Args, Default)]
pub(crate) struct Arguments {}
pub(crate) fn run(_: &Arguments) -> anyhow::Result<Tally> {
    Ok(Tally::default())
}
pub(crate) fn command(a: Arguments) -> anyhow::Result<Tally> {
    run(&a)
}
