//! Log lines on standard error.

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. A filter (of `tracing`) counts in place of `--verbose`. Lines of a `node` begin
/// with its name: all nodes of a machine may write to one place.
pub(crate) fn start(verbose: u8, wanted: bool, filter: Option<&str>, node: Option<String>) {
    let level = match (verbose, wanted) {
        (0, true) => "info",
        (0, false) => "error",
        (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    // Colours are for eyes; in a file they are in the way.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .with_env_filter(EnvFilter::new(filter.unwrap_or(level)))
        .with_writer(Lines { begin: node.map_or_else(String::new, |node| format!("{node} ")) })
        .with_target(false)
        .init();
}

/// A filter that can be used.
pub(crate) fn parse_filter(filter: &str) -> Result<String, String> {
    match EnvFilter::builder().parse(filter) {
        Ok(_) => Ok(filter.to_owned()),
        Err(error) => Err(format!(
            "{filter:?} is no log filter ({error}); allowed are error, warn, info, debug and trace, \
             also by module as in warn,halfmoon_storage=debug"
        )),
    }
}

/// Standard error; each line begins with the name of who says it.
struct Lines {
    begin: String,
}

struct Line<'a> {
    begin: &'a str,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { begin: &self.begin }
    }
}

impl Write for Line<'_> {
    /// An event comes whole, and leaves in one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = [self.begin.as_bytes(), event].concat();
        io::stderr().lock().write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<u8>>>);

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().map_err(|_| io::ErrorKind::Other)?.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_gets_lines_with_colours() {
        let heard = Heard::default();
        let to = heard.clone();
        let lines =
            tracing_subscriber::fmt().with_ansi(true).with_writer(move || to.clone()).finish();
        tracing::subscriber::with_default(lines, || tracing::warn!("here"));
        assert!(heard.0.lock().unwrap().contains(&0x1b));
    }
}
