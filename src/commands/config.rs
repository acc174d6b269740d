//! `halfmoon config`: what the settings are, and where each comes from.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::Config;
use crate::commands::show::print;
use crate::config::{From, Origins, SETTINGS};
use crate::layout::Layout;

pub(crate) fn run(
    options: &Config,
    log: Option<&str>,
    origins: &Origins,
) -> anyhow::Result<ExitCode> {
    let root = Layout::new(options.machine.data_dir.clone())?;
    let values = [
        json!(options.server),
        json!(root.root()),
        json!(options.machine.meta.clone().map_or_else(|| root.meta(), Ok)?),
        json!(options.machine.engines),
        json!(options.machine.standbys),
        json!(options.machine.spares),
        json!(options.machine.replace_after_s),
        json!(options.port),
        json!(options.machine.durability.name()),
        json!(options.machine.segment_mib),
        json!(options.machine.log_table_mib),
        json!(options.machine.transport.name()),
        json!(options.machine.polling.name()),
        json!(log),
    ];
    let settings = SETTINGS.into_iter().zip(values);
    let path = origins.path.as_ref().map(|path| path.display().to_string());
    if options.json {
        let settings: serde_json::Map<String, Value> = settings
            .map(|(name, value)| {
                let from = name_of(origins.of(name));
                (name.to_owned(), json!({ "value": value, "from": from }))
            })
            .collect();
        let file = json!({ "path": path, "found": origins.found });
        print(&json!({ "file": file, "settings": settings }).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    for (name, value) in settings {
        let text = match (value.as_str(), value.is_null()) {
            (Some(text), _) => text.to_owned(),
            (None, true) if name == "server" => "found in the data directory".to_owned(),
            (None, true) => "info for dev and run, else error".to_owned(),
            (None, false) => value.to_string(),
        };
        let from = match origins.of(name) {
            From::Default => "default".to_owned(),
            From::File => path.clone().unwrap_or_default(),
            From::Environment => format!("HALFMOON_{}", name.to_uppercase()),
            From::Flag => format!("--{}", name.replace('_', "-")),
        };
        print(&format!("{name:<15} {text:<40} {from}"));
    }
    let path = path.as_deref().unwrap_or("none: neither XDG_CONFIG_HOME nor HOME is set");
    let there = if origins.found { "" } else { " (not there)" };
    print(&format!("file: {path}{there}"));
    Ok(ExitCode::SUCCESS)
}

const fn name_of(from: From) -> &'static str {
    match from {
        From::Default => "default",
        From::File => "file",
        From::Environment => "environment",
        From::Flag => "flag",
    }
}
