//! The raw configuration: files, environment and flags, merged; each value keeps its origin.
//!
//! figment merges and tracks origins; no value is extracted through it, since its errors print the value that they
//! reject. For the same reason a TOML error is reported by its message and position alone: the parser's own rendering
//! quotes the line, and the line may hold a secret someone pasted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Tag, Value as Raw};
use figment::{Figment, Metadata, Profile, Provider};

use super::problem::{ConfigProblem, ProblemScope, ValueOrigin};
use super::table::key_text;

/// Begins the name of every environment variable that is a setting.
const PREFIX: &str = "FEEDMIRROR_";

/// Variables with this prefix that the command line reads.
const NOT_SETTINGS: &[&str] = &["FEEDMIRROR_CONFIG", "FEEDMIRROR_DB"];

/// Tables that an included file may hold: with anything global in it, the order of files would matter.
const INCLUDABLE: &[&str] = &["feeds", "providers", "hosts"];

/// Settings given on the command line: dotted keys and values as text. They override everything else.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<(String, String)>);

impl Overrides {
    /// Sets `key` (dotted, as `log.level`); the value is parsed as one from the environment is.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0.push((key.to_owned(), value.into()));
        self
    }
}

/// The merged values and where each came from.
pub(super) struct Layers {
    figment: Figment,
    /// Everything merged.
    pub(super) values: Dict,
    /// Each file read, the main one first.
    pub(super) files: Vec<PathBuf>,
}

/// One layer, as figment takes it.
struct ConfigLayer {
    metadata: Metadata,
    values: Dict,
}

impl Provider for ConfigLayer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Layers {
    /// Reads the file at `path` and the files that it includes, and merges environment and flags over them.
    pub(super) fn read(
        path: &Path,
        environment: &[(String, String)],
        overrides: &Overrides,
        problems: &mut Vec<ConfigProblem>,
    ) -> Self {
        let main = read_file(path, problems).unwrap_or_default();
        let include = environment_include(environment).or_else(|| main.get("include").cloned());
        let mut files = vec![(path.to_owned(), main)];
        if let Some(include) = include {
            let base = path.parent().unwrap_or(Path::new(""));
            files.extend(read_included(&include, path, base, problems));
        }
        report_duplicates(&files, problems);
        let environment = environment_values(environment, &referenced_variables(&files, environment));
        Self::merge(files, environment, flag_values(overrides))
    }

    fn merge(files: Vec<(PathBuf, Dict)>, environment: Dict, flags: Dict) -> Self {
        let names = files.iter().map(|(path, _)| path.clone()).collect();
        let mut figment = Figment::new()
            .join(ConfigLayer { metadata: Metadata::named("flags"), values: flags })
            .join(ConfigLayer { metadata: Metadata::named("environment"), values: environment });
        for (path, values) in files {
            figment = figment.join(ConfigLayer { metadata: Metadata::from("file", path.as_path()), values });
        }
        let values = figment.data().ok().and_then(|mut data| data.remove(&Profile::Default));
        Self { figment, values: values.unwrap_or_default(), files: names }
    }

    /// Values without a file, for finding out which keys there are.
    pub(super) fn of(values: Dict) -> Self {
        Self::merge(vec![(PathBuf::new(), values)], Dict::new(), Dict::new())
    }

    /// The origin of `value` at the key `path`; for a table, the lowest layer that has a value in it, since that layer
    /// began the table.
    pub(super) fn origin(&self, value: &Raw, path: &[String]) -> Option<ValueOrigin> {
        let lowest = match value {
            Raw::Dict(_, inner) => inner.values().filter_map(|v| self.origin(v, path)).min_by_key(ValueOrigin::rank),
            _ => None,
        };
        lowest.or_else(|| self.origin_of_tag(value.tag(), path))
    }

    fn origin_of_tag(&self, tag: Tag, path: &[String]) -> Option<ValueOrigin> {
        let metadata = self.figment.get_metadata(tag)?;
        let file = metadata.source.as_ref().and_then(|s| s.file_path());
        Some(match file {
            Some(file) => ValueOrigin::File(file.to_owned()),
            None if metadata.name == "environment" => ValueOrigin::Environment(variable(path)),
            None => ValueOrigin::Flag,
        })
    }
}

fn variable(path: &[String]) -> String {
    format!("{PREFIX}{}", path.join("__").to_uppercase())
}

fn about_file(path: &Path, message: String) -> ConfigProblem {
    let origin = Some(ValueOrigin::File(path.to_owned()));
    ConfigProblem { scope: ProblemScope::Fatal, origin, key: String::new(), value: None, message }
}

fn read_file(path: &Path, problems: &mut Vec<ConfigProblem>) -> Option<Dict> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(about_file(path, format!("cannot be read: {error}")));
            return None;
        }
    };
    match toml::from_str::<toml::Table>(&text) {
        Ok(table) => Some(dict(table)),
        Err(error) => {
            problems.push(about_file(path, toml_error(&text, &error)));
            None
        }
    }
}

fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let message = error.message().trim().replace('\n', ", ");
    format!("not TOML at line {line}, column {column}: {message}")
}

fn dict(table: toml::Table) -> Dict {
    table.into_iter().map(|(key, value)| (key, raw(value))).collect()
}

fn raw(value: toml::Value) -> Raw {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        // No setting is a date: it stays text, for the error message.
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(list) => list.into_iter().map(raw).collect::<Vec<_>>().into(),
        toml::Value::Table(table) => dict(table).into(),
    }
}

fn read_included(include: &Raw, main: &Path, base: &Path, problems: &mut Vec<ConfigProblem>) -> Vec<(PathBuf, Dict)> {
    let patterns: Option<Vec<&str>> = include.as_array().map(|list| list.iter().filter_map(Raw::as_str).collect());
    let all_text = include.as_array().is_some_and(|list| list.iter().all(|v| v.as_str().is_some()));
    let Some(patterns) = patterns.filter(|_| all_text) else {
        let message = "must be a list of file patterns, as [\"feeds.d/*.toml\"]".to_owned();
        problems.push(ConfigProblem { key: "include".to_owned(), ..about_file(main, message) });
        return Vec::new();
    };
    let mut found = BTreeSet::new();
    for pattern in patterns {
        match matching(base, pattern) {
            Ok(paths) => found.extend(paths),
            Err(message) => {
                let value = Some(format!("{pattern:?}"));
                problems.push(ConfigProblem { key: "include".to_owned(), value, ..about_file(main, message) });
            }
        }
    }
    // `*.toml` beside the main file is a natural pattern, and matches the main file.
    let itself = main.canonicalize().ok();
    found.retain(|path| path.canonicalize().ok() != itself || itself.is_none());
    found.into_iter().filter_map(|path| read_file_of_feeds(&path, problems).map(|values| (path, values))).collect()
}

fn matching(base: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let full = if Path::new(pattern).is_absolute() || base.as_os_str().is_empty() {
        pattern.to_owned()
    } else {
        format!("{}/{pattern}", glob::Pattern::escape(&base.to_string_lossy()))
    };
    let paths = glob::glob(&full).map_err(|error| format!("not a file pattern: {}", error.msg))?;
    let paths: Result<Vec<_>, _> = paths.collect();
    let paths = paths.map_err(|error| error.to_string())?;
    // A directory that holds no file yet is fine; a file named in full is meant to exist.
    if paths.is_empty() && !pattern.contains(['*', '?', '[']) {
        return Err("there is no such file".to_owned());
    }
    Ok(paths.into_iter().filter(|path| !path.is_dir()).collect())
}

fn read_file_of_feeds(path: &Path, problems: &mut Vec<ConfigProblem>) -> Option<Dict> {
    let mut values = read_file(path, problems)?;
    values.retain(|key, _| {
        let allowed = INCLUDABLE.contains(&key.as_str());
        if !allowed {
            let message = "an included file holds [feeds.*], [providers.*] and [hosts.*] only".to_owned();
            let key = key_text(std::slice::from_ref(key));
            problems.push(ConfigProblem { key, ..about_file(path, message) });
        }
        allowed
    });
    Some(values)
}

fn report_duplicates(files: &[(PathBuf, Dict)], problems: &mut Vec<ConfigProblem>) {
    let mut seen: BTreeMap<(&str, &str), &Path> = BTreeMap::new();
    for (path, values) in files {
        for section in INCLUDABLE {
            for name in values.get(*section).and_then(Raw::as_dict).into_iter().flat_map(Dict::keys) {
                let Some(first) = seen.insert((section, name), path) else { continue };
                let key = key_text(&[(*section).to_owned(), name.clone()]);
                let message = format!("already stands in {}: names are unique over all files", first.display());
                problems.push(ConfigProblem { key, ..about_file(path, message) });
            }
        }
    }
}

/// Variables that hold a secret some layer refers to: `{ env = "FEEDMIRROR_ACME_KEY" }` is a natural name for one, and
/// such a variable must be neither taken for a setting nor merged.
fn referenced_variables(files: &[(PathBuf, Dict)], environment: &[(String, String)]) -> BTreeSet<String> {
    fn collect_references(value: &Raw, names: &mut BTreeSet<String>) {
        match value {
            Raw::Dict(_, inner) => {
                names.extend(inner.get("env").and_then(Raw::as_str).map(str::to_owned));
                inner.values().for_each(|v| collect_references(v, names));
            }
            Raw::Array(_, list) => list.iter().for_each(|v| collect_references(v, names)),
            _ => {}
        }
    }
    let references = environment.iter().filter(|(name, _)| name.starts_with(PREFIX) && name.ends_with("__ENV"));
    let mut names: BTreeSet<String> = references.map(|(_, value)| value.clone()).collect();
    files.iter().flat_map(|(_, values)| values.values()).for_each(|v| collect_references(v, &mut names));
    names
}

fn environment_include(environment: &[(String, String)]) -> Option<Raw> {
    let (_, value) = environment.iter().find(|(name, _)| name == "FEEDMIRROR_INCLUDE")?;
    Some(from_text(value))
}

fn environment_values(environment: &[(String, String)], secrets: &BTreeSet<String>) -> Dict {
    let mut values = Dict::new();
    for (name, text) in environment {
        let Some(key) = name.strip_prefix(PREFIX) else { continue };
        if NOT_SETTINGS.contains(&name.as_str()) || secrets.contains(name) || is_kubernetes_service(key, text) {
            continue;
        }
        let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
        insert(&mut values, &path, from_text(text));
    }
    values
}

/// Kubernetes gives every container its namespace's services, in variables that begin with a service's name: those of a
/// service called `feedmirror` or `feedmirror-ops` look like settings. No setting looks like them.
fn is_kubernetes_service(key: &str, text: &str) -> bool {
    if key == "SERVICE_HOST" || key.ends_with("_SERVICE_HOST") {
        return true;
    }
    if let Some((_, port)) = key.split_once("SERVICE_PORT")
        && (port.is_empty() || port.starts_with('_'))
    {
        return true;
    }
    let protocols = ["tcp", "udp", "sctp"];
    if key == "PORT" || key.ends_with("_PORT") {
        let linked = text.split_once("://").is_some_and(|(protocol, _)| protocols.contains(&protocol));
        if linked {
            return true;
        }
    }
    // `PORT_8470_TCP`, and what follows it.
    key.match_indices("PORT_").filter(|(at, _)| *at == 0 || key[..*at].ends_with('_')).any(|(at, port)| {
        let mut parts = key[at + port.len()..].splitn(3, '_');
        let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        let protocol = parts.next().is_some_and(|word| protocols.iter().any(|known| word.eq_ignore_ascii_case(known)));
        number && protocol && matches!(parts.next(), None | Some("ADDR" | "PORT" | "PROTO"))
    })
}

fn flag_values(overrides: &Overrides) -> Dict {
    let mut values = Dict::new();
    for (key, text) in &overrides.0 {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        insert(&mut values, &path, from_text(text));
    }
    values
}

fn insert(values: &mut Dict, path: &[String], value: Raw) {
    let [key, rest @ ..] = path else { return };
    if rest.is_empty() {
        values.insert(key.clone(), value);
        return;
    }
    let slot = values.entry(key.clone()).or_insert_with(|| Dict::new().into());
    if slot.as_dict().is_none() {
        *slot = Dict::new().into();
    }
    if let Raw::Dict(_, inner) = slot {
        insert(inner, rest, value);
    }
}

/// Lists, tables and quoted strings are parsed as TOML. A bare scalar stays text, which [`super::table::ConfigValue`]
/// parses where a number is expected: a header's `1.10` must not become `1.1`.
fn from_text(text: &str) -> Raw {
    let structured = text.trim_start().starts_with(['[', '{', '"', '\'']);
    let parsed = structured.then(|| toml::from_str::<toml::Table>(&format!("value = {text}")).ok()).flatten();
    match parsed {
        // More than one key comes from a line break in the value, which must not add a setting.
        Some(mut table) if table.len() == 1 => table.remove("value").map_or_else(|| text.into(), raw),
        _ => text.into(),
    }
}
