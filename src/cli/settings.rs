//! Where rdma-httpd's settings come from: the command line, else the environment, else a TOML file (`--config`), else the
//! defaults. A file's values become the defaults of the command line's parser, so all of them are checked by the same code.

use std::ffi::OsString;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::de::{DeTable, DeValue};

/// What a variable's name begins with; the rest is the flag's.
const PREFIX: &str = "RDMA_HTTPD_";

/// Flags that say what the program is to do, and are no settings.
const NO_SETTINGS: [&str; 6] = ["config", "print-config", "completions", "man", "help", "version"];

/// All settings, and where each comes from.
pub(super) struct Settings {
    /// As the parser has them.
    pub(super) matches: ArgMatches,
    command: Command,
    file: Option<File>,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    /// The command line or the environment is wrong, or asks for help.
    #[error(transparent)]
    Parser(#[from] clap::Error),
    /// The file is wrong, or not there: a text for the user, with the place.
    #[error("{0}")]
    File(String),
}

/// A file of settings.
#[derive(Debug)]
struct File {
    path: PathBuf,
    entries: Vec<Entry>,
}

/// `key = value`, and the line that it stands on.
#[derive(Debug, PartialEq)]
struct Entry {
    key: String,
    values: Vec<String>,
    line: usize,
}

impl Settings {
    /// Reads the settings of `command`, whose flag `config` names a file. The first of `args` is the program's name.
    pub(super) fn load(command: Command, args: &[OsString]) -> Result<Self, SettingsError> {
        let mut command = with_variables(command);
        // Only to find the file; what is wrong is said below.
        let early = command.clone().ignore_errors(true).try_get_matches_from(args);
        let path = early.ok().and_then(|early| early.get_one::<PathBuf>("config").cloned());
        let file = path.map(|path| File::read(&path, &command)).transpose().map_err(SettingsError::File)?;
        if let Some(file) = &file {
            command = command.mut_args(|arg| match file.entry(arg.get_long()) {
                Some(entry) => arg.required(false).default_values(entry.values.clone()),
                None => arg,
            });
        }
        match command.clone().try_get_matches_from(args) {
            Ok(matches) => Ok(Self { matches, command, file }),
            Err(error) => Err(match file.and_then(|file| file.blamed(&error)) {
                Some(text) => SettingsError::File(text),
                None => error.into(),
            }),
        }
    }

    /// What holds, as a file that could be given to `--config`, and behind each where it comes from.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        for arg in self.command.get_arguments() {
            let (Some(key), id) = (arg.get_long(), arg.get_id().as_str()) else { continue };
            if NO_SETTINGS.contains(&key) {
                continue;
            }
            let values = self.matches.get_raw(id).into_iter().flatten();
            let values: Vec<_> = values.map(|value| quoted(&value.to_string_lossy())).collect();
            let value = match values.as_slice() {
                [value] if !is_list(arg) => value.clone(),
                values => format!("[{}]", values.join(", ")),
            };
            // Writing to a string cannot fail.
            let _ = match self.matches.value_source(id).filter(|_| !values.is_empty()) {
                Some(source) => writeln!(out, "{key} = {value} # {}", self.origin(arg, key, source)),
                None => writeln!(out, "# {key} is not set"),
            };
        }
        out
    }

    fn origin(&self, arg: &Arg, key: &str, source: ValueSource) -> String {
        let in_file = || {
            let file = self.file.as_ref()?;
            let entry = file.entry(Some(key))?;
            Some(format!("{}:{}", file.path.display(), entry.line))
        };
        match source {
            ValueSource::CommandLine => format!("--{key}"),
            ValueSource::EnvVariable => arg.get_env().unwrap_or_default().to_string_lossy().into_owned(),
            _ => in_file().unwrap_or_else(|| "default".into()),
        }
    }
}

/// Gives each flag whose variable both programs have one of its own too, which goes first.
fn with_variables(command: Command) -> Command {
    command.mut_args(|arg| {
        let Some(name) = arg.get_long().filter(|name| !NO_SETTINGS.contains(name)) else { return arg };
        let own = format!("{PREFIX}{}", name.to_ascii_uppercase().replace('-', "_"));
        if std::env::var_os(&own).is_some() { arg.env(own) } else { arg }
    })
}

fn setting<'c>(command: &'c Command, key: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(key) && !NO_SETTINGS.contains(&key))
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl File {
    fn read(path: &Path, command: &Command) -> Result<Self, String> {
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("--config {}: {error}", path.display()))?;
        let entries = entries(&text, command);
        let entries = entries.map_err(|(line, what)| format!("{}:{line}: {what}", path.display()))?;
        Ok(Self { path: path.to_owned(), entries })
    }

    fn entry(&self, key: Option<&str>) -> Option<&Entry> {
        self.entries.iter().find(|entry| Some(entry.key.as_str()) == key)
    }

    /// What the parser says, if it is one of our values that it does not take.
    fn blamed(&self, error: &clap::Error) -> Option<String> {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let (flag, value) = (context(ContextKind::InvalidArg)?, context(ContextKind::InvalidValue)?);
        let flag = flag.trim_start_matches("--").split([' ', '=', '[']).next()?;
        let ours = |entry: &&Entry| entry.key == flag && entry.values.iter().any(|ours| ours == value);
        let line = self.entries.iter().find(ours)?.line;
        let text = error.to_string();
        let text = text.split("\n\nFor more").next()?.trim_start_matches("error: ");
        Some(format!("{}:{line}: {text}", self.path.display()))
    }
}

/// The settings in a file's text; or the line of the first mistake, and what it is.
fn entries(text: &str, command: &Command) -> Result<Vec<Entry>, (usize, String)> {
    let line = |span: Range<usize>| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
    let table = DeTable::parse(text)
        .map_err(|error| (error.span().map_or(1, line), error.message().to_owned()))?
        .into_inner();
    let mut table: Vec<_> = table.into_iter().collect();
    table.sort_by_key(|(key, _)| key.span().start);
    let read = |(key, value): (toml::Spanned<toml::de::DeString<'_>>, toml::Spanned<DeValue<'_>>)| {
        let (line, name) = (line(key.span()), key.into_inner());
        let Some(arg) = setting(command, &name) else { return Err((line, unknown(&name, command))) };
        let values = match value.into_inner() {
            DeValue::Array(values) if is_list(arg) => {
                values.into_iter().map(|value| scalar(value.into_inner())).collect()
            }
            value => scalar(value).map(|value| vec![value]),
        };
        let expected = if is_list(arg) { "a string, or a list of strings" } else { "a string or a number" };
        let values = values.ok_or_else(|| (line, format!("`{name}` takes {expected}")))?;
        Ok(Entry { key: name.into_owned(), values, line })
    };
    table.into_iter().map(read).collect()
}

/// A value as it would stand on the command line.
fn scalar(value: DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.into_owned()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            i64::from_str_radix(&digits, number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().replace('_', "")),
        DeValue::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

fn unknown(key: &str, command: &Command) -> String {
    let flags = command.get_arguments().filter_map(Arg::get_long);
    let known: Vec<&str> = flags.filter(|flag| !NO_SETTINGS.contains(flag)).collect();
    let near = |name: &&&str| strsim::jaro_winkler(name, &key.replace('_', "-")) > 0.8;
    let distance = |name: &&&str| strsim::damerau_levenshtein(name, key);
    match known.iter().filter(near).min_by_key(distance) {
        Some(meant) => format!("there is no setting `{key}`; did you mean `{meant}`?"),
        None => format!("there is no setting `{key}`; there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::value_parser;

    use super::*;

    fn command() -> Command {
        let path = |name| Arg::new(name).long(name).value_parser(value_parser!(PathBuf));
        Command::new("x").args([
            path("config"),
            path("root").required(true),
            Arg::new("chunk-size").long("chunk-size").default_value("1").value_parser(value_parser!(u16)),
            Arg::new("allow").long("allow").action(ArgAction::Append).value_delimiter(','),
        ])
    }

    fn load(text: &str, args: &[&str]) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut all = vec!["x".into(), "--config".into(), file.path().as_os_str().to_owned()];
        all.extend(args.iter().map(OsString::from));
        Settings::load(command(), &all)
    }

    fn mistake(text: &str) -> String {
        let Err(SettingsError::File(text)) = load(text, &[]) else { panic!("{text} is not refused") };
        // The file has a name of its own each time.
        text.split_once(':').unwrap().1.to_owned()
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let text = "# a comment\nroot = \"/srv\"\nchunk-size = 6_5\nallow = [\"a\", \"b\"]\n";
        let settings = load(text, &["--chunk-size", "7"]).unwrap();
        assert_eq!(settings.matches.get_one::<u16>("chunk-size"), Some(&7));
        assert_eq!(settings.matches.get_one::<PathBuf>("root"), Some(&"/srv".into()));
        let printed = settings.print();
        let lines: Vec<&str> = printed.lines().collect();
        assert!(lines[0].starts_with("root = \"/srv\" # ") && lines[0].ends_with(":2"), "{printed}");
        assert_eq!(lines[1], "chunk-size = \"7\" # --chunk-size");
        assert!(lines[2].starts_with("allow = [\"a\", \"b\"] # ") && lines[2].ends_with(":4"), "{printed}");
        // What is printed is a file that says the same.
        let again = load(&printed, &[]).unwrap();
        assert_eq!(again.matches.get_one::<u16>("chunk-size"), Some(&7));
        assert_eq!(load(text, &[]).unwrap().matches.get_one::<u16>("chunk-size"), Some(&65));
        assert!(
            load("root = \"/\"", &[])
                .unwrap()
                .print()
                .contains("chunk-size = \"1\" # default\n# allow is not")
        );
    }

    #[test]
    fn mistakes_have_their_line() {
        assert_eq!(
            mistake("\n\nchunk_size = 5"),
            "3: there is no setting `chunk_size`; did you mean `chunk-size`?"
        );
        assert_eq!(
            mistake("colour = 5"),
            "1: there is no setting `colour`; there are root, chunk-size, allow"
        );
        assert_eq!(
            mistake("config = \"/x\""),
            "1: there is no setting `config`; there are root, chunk-size, allow"
        );
        assert_eq!(mistake("root = [\"/srv\"]"), "1: `root` takes a string or a number");
        assert_eq!(mistake("allow = [[1]]"), "1: `allow` takes a string, or a list of strings");
        let text = mistake("root = \"/srv\"\nchunk-size = 70000");
        assert!(text.starts_with("2: invalid value '70000' for '--chunk-size <chunk-size>'"), "{text}");
        let text = mistake("root = \"/srv\"\nchunk-size = = 1");
        assert!(text.starts_with("2: "), "{text}");
        let missing = Settings::load(command(), &["x".into(), "--config=/nowhere/at/all".into()]);
        assert!(
            matches!(missing, Err(SettingsError::File(text)) if text.starts_with("--config /nowhere/at/all: "))
        );
        assert!(matches!(load("", &[]), Err(SettingsError::Parser(_))), "the root is still required");
    }
}
