//! Where settings come from: flags, then the environment, then one TOML file, then what is usual.
//!
//! A setting has one name everywhere: `segment_mib` in the file is `HALFMOON_SEGMENT_MIB` in the
//! environment and `--segment-mib` on the command line. The file's values become the defaults of the
//! command line, so that all of them are judged by the same rules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use serde::{Deserialize, Deserializer, de};

use crate::cli::{
    Cli, Command, Durability, ENGINES, LOG_TABLE_MIBS, PollingName, REPLACE_AFTER_S, SEGMENT_MIBS,
    SPARES, STANDBYS, Transport,
};

/// Every setting, as the file names it.
pub(crate) const SETTINGS: [&str; 14] = [
    "server",
    "data_dir",
    "meta",
    "engines",
    "standbys",
    "spares",
    "replace_after_s",
    "port",
    "durability",
    "segment_mib",
    "log_table_mib",
    "transport",
    "polling",
    "log",
];

/// What the file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    data_dir: Option<PathBuf>,
    meta: Option<String>,
    #[serde(default, deserialize_with = "engines")]
    engines: Option<u32>,
    #[serde(default, deserialize_with = "standbys")]
    standbys: Option<u32>,
    #[serde(default, deserialize_with = "spares")]
    spares: Option<u32>,
    #[serde(default, deserialize_with = "replace_after_s")]
    replace_after_s: Option<u32>,
    port: Option<u16>,
    durability: Option<Durability>,
    #[serde(default, deserialize_with = "segment_mib")]
    segment_mib: Option<u32>,
    #[serde(default, deserialize_with = "log_table_mib")]
    log_table_mib: Option<u32>,
    transport: Option<Transport>,
    polling: Option<PollingName>,
    #[serde(default, deserialize_with = "log")]
    log: Option<String>,
}

/// Where a value comes from, the weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum From {
    Default,
    File,
    Environment,
    Flag,
}

/// The file, if there is one, and where the settings of this command come from.
#[derive(Debug)]
pub(crate) struct Origins {
    /// The file that was looked for.
    pub(crate) path: Option<PathBuf>,
    /// It is there.
    pub(crate) found: bool,
    settings: BTreeMap<&'static str, From>,
}

impl Origins {
    /// Where a setting's value comes from.
    pub(crate) fn of(&self, setting: &str) -> From {
        self.settings.get(setting).copied().unwrap_or(From::Default)
    }
}

/// Parses the command line, with what the file says in place of the defaults.
pub(crate) fn parse() -> anyhow::Result<(Cli, Origins)> {
    let first = Cli::command().get_matches();
    let named = first.get_one::<PathBuf>("config").cloned();
    let must_be_there = named.is_some();
    let path = named.or_else(usual_path);
    let values = match &path {
        Some(path) => read(path, must_be_there)?,
        None => None,
    };
    let found = values.is_some();
    let values = values.unwrap_or_default();
    let matches = with_defaults(Cli::command(), &values).get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let origins = Origins { path, found, settings: origins(&matches, &values) };
    settle(&mut cli, &origins);
    Ok((cli, origins))
}

/// Of two settings that exclude each other, the one that was said closer to the command counts.
fn settle(cli: &mut Cli, origins: &Origins) {
    if let Some(target) = cli.command.target_mut()
        && origins.of("data_dir") > origins.of("server")
    {
        target.server = None;
    }
    if let Command::Node(node) = &mut cli.command
        && origins.of("data_dir") > origins.of("meta")
    {
        node.whose_mut().meta = None;
    }
    if cli.verbose > 0 && origins.of("log") < From::Flag {
        cli.log = None;
    }
}

fn usual_path() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(base.join("halfmoon/config.toml"))
}

/// The settings in the file, as text; `None` when it is not there and need not be.
fn read(
    path: &Path,
    must_be_there: bool,
) -> anyhow::Result<Option<BTreeMap<&'static str, String>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_be_there => {
            return Ok(None);
        }
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot read the configuration file {}", path.display()));
        }
    };
    let file: File = toml::from_str(&text)
        .with_context(|| format!("the configuration file {} is wrong", path.display()))?;
    Ok(Some(file.into_values(path)))
}

impl File {
    fn into_values(self, path: &Path) -> BTreeMap<&'static str, String> {
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        // A relative directory is meant as seen from the file, wherever the command is run.
        let seen_from_it = |directory: PathBuf| {
            path.parent().unwrap_or(Path::new("")).join(directory).display().to_string()
        };
        let data_dir = self.data_dir.map(seen_from_it);
        let is_directory = |meta: &String| !meta.contains("://");
        let meta = match self.meta {
            Some(meta) if is_directory(&meta) => Some(seen_from_it(meta.into())),
            meta => meta,
        };
        let values = [
            self.server,
            data_dir,
            meta,
            number(self.engines),
            number(self.standbys),
            number(self.spares),
            number(self.replace_after_s),
            number(self.port.map(u32::from)),
            self.durability.map(|durability| durability.name().to_owned()),
            number(self.segment_mib),
            number(self.log_table_mib),
            self.transport.map(|transport| transport.name().to_owned()),
            self.polling.map(|polling| polling.name().to_owned()),
            self.log,
        ];
        let named = SETTINGS.into_iter().zip(values);
        named.filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn engines<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, ENGINES)
}

fn standbys<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, STANDBYS)
}

fn spares<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, SPARES)
}

fn replace_after_s<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, REPLACE_AFTER_S)
}

fn segment_mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, SEGMENT_MIBS)
}

fn log_table_mib<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within(from, LOG_TABLE_MIBS)
}

fn within<'de, D: Deserializer<'de>>(
    from: D,
    allowed: std::ops::RangeInclusive<i64>,
) -> Result<Option<u32>, D::Error> {
    let value = i64::deserialize(from)?;
    let (low, high) = (allowed.start(), allowed.end());
    u32::try_from(value).ok().filter(|_| allowed.contains(&value)).map(Some).ok_or_else(|| {
        de::Error::custom(format_args!("{value} is not allowed, only {low} to {high} are"))
    })
}

fn log<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let filter = String::deserialize(from)?;
    let parsed = crate::logging::parse_filter(&filter).map_err(de::Error::custom)?;
    Ok(Some(parsed))
}

/// Every argument that is a setting gets the file's value as its default. Arguments of the same name
/// that are no settings have no variable in the environment.
fn with_defaults(mut command: clap::Command, values: &BTreeMap<&str, String>) -> clap::Command {
    let settings: Vec<(&str, String)> = values
        .iter()
        .filter(|(name, _)| is_setting(&command, name))
        .map(|(name, value)| (*name, value.clone()))
        .collect();
    for (name, value) in settings {
        command = command.mut_arg(name, |arg| arg.default_value(value));
    }
    let below: Vec<String> =
        command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    for name in below {
        command = command.mut_subcommand(name, |below| with_defaults(below, values));
    }
    command
}

fn is_setting(command: &clap::Command, name: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == name && arg.get_env().is_some())
}

fn origins(
    matches: &ArgMatches,
    values: &BTreeMap<&'static str, String>,
) -> BTreeMap<&'static str, From> {
    let mut leaf = matches;
    while let Some((_, below)) = leaf.subcommand() {
        leaf = below;
    }
    let mut origins = BTreeMap::new();
    for name in SETTINGS {
        if leaf.try_contains_id(name).is_err() {
            continue;
        }
        let from = match leaf.value_source(name) {
            Some(ValueSource::CommandLine) => From::Flag,
            Some(ValueSource::EnvVariable) => From::Environment,
            _ if values.contains_key(name) => From::File,
            _ => From::Default,
        };
        origins.insert(name, from);
    }
    origins
}

impl Command {
    /// The cluster that the command talks to, if it talks to one.
    fn target_mut(&mut self) -> Option<&mut crate::cli::Target> {
        match self {
            Self::Deploy(deploy) => Some(&mut deploy.target),
            Self::Invoke(invoke) => Some(&mut invoke.target),
            Self::Functions(target) | Self::Status(target) => Some(target),
            Self::Demo(_)
            | Self::Dev(_)
            | Self::Verify(_)
            | Self::Bench(_)
            | Self::Doctor(_)
            | Self::Run(_)
            | Self::Node(_)
            | Self::Config(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(file: &str) -> Result<BTreeMap<&'static str, String>, String> {
        let file: File = toml::from_str(file).map_err(|error| error.to_string())?;
        Ok(file.into_values(Path::new("/etc/halfmoon/config.toml")))
    }

    #[test]
    fn a_file_may_set_everything_and_its_paths_are_seen_from_it() {
        let all = "server = \"h:1\"\ndata_dir = \"data\"\nmeta = \"meta\"\nengines = 3\n\
                   standbys = 2\nspares = 1\nreplace_after_s = 0\nport = 0\n\
                   durability = \"memory-quorum\"\nsegment_mib = 4\nlog_table_mib = 9\n\
                   transport = \"tcp\"\npolling = \"busy\"\n\
                   log = \"warn\"\n";
        let values = parse(all).unwrap();
        assert_eq!(values.len(), SETTINGS.len());
        assert_eq!(values["data_dir"], "/etc/halfmoon/data");
        assert_eq!(values["meta"], "/etc/halfmoon/meta");
        assert_eq!(parse("meta = \"etcd://h:1/p\"").unwrap()["meta"], "etcd://h:1/p");
        assert_eq!(values["durability"], "memory-quorum");
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_what_is_allowed() {
        for (wrong, parts) in [
            ("prot = 1", &["line 2", "prot", "`port`"][..]),
            ("engines = 17", &["line 2", "17 is not allowed", "1 to 16"]),
            ("standbys = 5", &["line 2", "5 is not allowed", "0 to 4"]),
            ("segment_mib = -1", &["line 2", "-1 is not allowed", "1 to 1024"]),
            ("port = 65536", &["line 2", "65536", "u16"]),
            ("durability = \"flsh\"", &["line 2", "flsh", "`flush`", "`memory-quorum`"]),
            ("transport = \"udp\"", &["line 2", "udp", "`auto`", "`rdma`"]),
            ("polling = \"lazy\"", &["line 2", "lazy", "`adaptive`", "`sleeping`"]),
            ("log = \"a=b=c\"", &["line 2", "a=b=c"]),
            ("port = ", &["line 2"]),
        ] {
            let said = parse(&format!("server = \"h:1\"\n{wrong}\n")).unwrap_err();
            for part in parts {
                assert!(said.contains(part), "{part:?} in {said}");
            }
        }
    }

    #[test]
    fn every_setting_is_a_flag_with_a_variable_of_its_name() {
        let command = Cli::command();
        let config = command.find_subcommand("config").unwrap();
        for name in SETTINGS {
            let of = if name == "log" { &command } else { config };
            let arg = of.get_arguments().find(|arg| arg.get_id() == name).unwrap();
            let variable = arg.get_env().unwrap().to_str().unwrap();
            assert_eq!(variable, format!("HALFMOON_{}", name.to_uppercase()));
            assert_eq!(arg.get_long().unwrap(), name.replace('_', "-"));
        }
    }
}
