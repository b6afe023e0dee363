//! References to secrets, and values that may be one. Each secret is read once here, so that an unreadable one is an
//! error of the configuration, and dropped again: settings keep only the reference.
//!
//! No message shows the value given, except the path or name of a reference: someone may have written the secret
//! itself.

use std::path::Path;

use reqwest::header::{HeaderName, HeaderValue};
use secrecy::ExposeSecret;

use super::table::{ConfigValue, Table};
use crate::source::secret::{ConfiguredValue, SecretSource};

const REFERENCE: &str = "{ file = \"…\" }, { env = \"…\" } or { credential = \"…\" }";

/// Headers that the client sets itself; another value would break its requests.
const OWN_HEADERS: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "upgrade",
    "accept-encoding",
    "range",
    "if-none-match",
    "if-modified-since",
];

/// A secret, which must be a reference. `key_file = "…"` is short for `key = { file = "…" }`.
pub(super) fn secret(table: &Table<'_>, key: &str) -> Option<SecretSource> {
    table.ask(key);
    table.accept(&format!("{key}_file"));
    match value_of_key(table, key)? {
        ConfiguredValue::Secret(source) => {
            read(table, key, &source)?;
            Some(source)
        }
        ConfiguredValue::Plain(_) => {
            table.problem(key, format!("must be {REFERENCE}, never the secret itself (not shown here)"));
            None
        }
    }
}

/// A secret that gives control of the mirror: as [`secret`], and other users must not be able to read or write its
/// file.
pub(super) fn guarded_secret(table: &Table<'_>, key: &str) -> Option<SecretSource> {
    let source = secret(table, key)?;
    match source.read_guarded() {
        Ok(_) => Some(source),
        Err(error) => {
            table.problem(key, error.to_string());
            None
        }
    }
}

/// Secrets of which any is accepted, each a reference: one or a list, at `key` or, as paths, at `key_file`.
pub(super) fn secrets(table: &Table<'_>, key: &str) -> Option<Vec<SecretSource>> {
    let short = format!("{key}_file");
    let (long, files) = (table.peek(key), table.peek(&short));
    let is_list = |config_value: &Option<ConfigValue<'_>>| config_value.as_ref().is_some_and(ConfigValue::is_list);
    if !is_list(&long) && !is_list(&files) {
        return secret(table, key).map(|source| vec![source]);
    }
    table.ask(key);
    table.accept(&short);
    let rank = |config_value: &Option<ConfigValue<'_>>| {
        config_value.as_ref().map(|config_value| config_value.origin().map_or(0, super::ValueOrigin::rank))
    };
    if long.is_some() && rank(&long) == rank(&files) {
        table.problem(key, "is given in more than one way: keep one".to_owned());
        return None;
    }
    let sources = if rank(&long) > rank(&files) {
        table.elements(key).iter().map(|element| element.as_ref().and_then(one_reference)).collect::<Option<Vec<_>>>()
    } else {
        files.and_then(|files| files.paths()).map(|paths| paths.into_iter().map(SecretSource::File).collect())
    };
    match sources.filter(|sources| !sources.is_empty()) {
        Some(sources) => sources.into_iter().map(|source| read(table, key, &source).map(|()| source)).collect(),
        None => {
            let message = format!("must be {REFERENCE}, or a list of these (what was given is not shown)");
            table.problem(key, message);
            None
        }
    }
}

fn one_reference(element: &Table<'_>) -> Option<SecretSource> {
    match references(element).ok()?.pop()?.value {
        ConfiguredValue::Secret(source) if element.keys().count() == 1 => Some(source),
        _ => None,
    }
}

/// The table of headers at `key`, merged over the provider's.
pub(super) fn headers(
    table: &Table<'_>,
    key: &str,
    base: &[(String, ConfiguredValue)],
) -> Vec<(String, ConfiguredValue)> {
    let mut headers = base.to_vec();
    let inner = table.table(key);
    let mut seen = Vec::new();
    for (name, value) in values(&inner) {
        if let Some(message) = header_mistake(&name, &value) {
            inner.problem(&name, message);
            continue;
        }
        if seen.contains(&name.to_ascii_lowercase()) {
            inner.problem(&name, "stands here twice: a header's name has no case".to_owned());
            continue;
        }
        seen.push(name.to_ascii_lowercase());
        warn_of_plain_secret(&inner, &name, &value);
        // Header names are case-insensitive: a feed's `x-key` replaces its provider's `X-Key`.
        headers.retain(|(other, _)| !other.eq_ignore_ascii_case(&name));
        headers.push((name, value));
    }
    headers
}

/// The table of query parameters at `key`, merged over the provider's.
pub(super) fn query(
    table: &Table<'_>,
    key: &str,
    base: &[(String, ConfiguredValue)],
) -> Vec<(String, ConfiguredValue)> {
    let mut query = base.to_vec();
    let inner = table.table(key);
    for (name, value) in values(&inner) {
        if name.is_empty() {
            inner.problem(&name, "a query parameter needs a name".to_owned());
            continue;
        }
        warn_of_plain_secret(&inner, &name, &value);
        query.retain(|(other, _)| *other != name);
        query.push((name, value));
    }
    query
}

fn values(table: &Table<'_>) -> Vec<(String, ConfiguredValue)> {
    let mut names: Vec<&str> = table.keys().map(|key| key.strip_suffix("_file").unwrap_or(key)).collect();
    names.sort_unstable();
    names.dedup();
    let read_one = |name: &str| {
        let value = value_of_key(table, name)?;
        if let ConfiguredValue::Secret(source) = &value {
            read(table, name, source)?;
        }
        Some((name.to_owned(), value))
    };
    names.into_iter().filter_map(read_one).collect()
}

/// One value for a key, and the rank of its layer.
struct Candidate {
    rank: u8,
    value: ConfiguredValue,
}

/// The value of `key`. The highest layer wins, whichever way it gives the value: a variable `…TOKEN__ENV` replaces a
/// file's `token_file`, though merging leaves both. Two ways in one layer are a mistake.
fn value_of_key(table: &Table<'_>, key: &str) -> Option<ConfiguredValue> {
    let mut candidates = Vec::new();
    let mut valid = true;
    if let Some(config_value) = table.peek(&format!("{key}_file")) {
        match config_value.path() {
            Some(path) => {
                candidates.push(Candidate::new(&config_value, ConfiguredValue::Secret(SecretSource::File(path))))
            }
            None => {
                table.problem(&format!("{key}_file"), "must be the path of a file".to_owned());
                valid = false;
            }
        }
    }
    if let Some(config_value) = table.peek(key) {
        match plain_or_references(table, key, &config_value) {
            Ok(found) => candidates.extend(found),
            Err(message) => {
                table.problem(key, message);
                valid = false;
            }
        }
    }
    let highest = candidates.iter().map(|c| c.rank).max()?;
    candidates.retain(|c| c.rank == highest);
    if candidates.len() > 1 {
        table.problem(key, "is given in more than one way: keep one".to_owned());
        return None;
    }
    candidates.pop().filter(|_| valid).map(|c| c.value)
}

impl Candidate {
    fn new(config_value: &ConfigValue<'_>, value: ConfiguredValue) -> Self {
        Self { rank: config_value.origin().map_or(0, super::ValueOrigin::rank), value }
    }
}

fn plain_or_references(table: &Table<'_>, key: &str, config_value: &ConfigValue<'_>) -> Result<Vec<Candidate>, String> {
    let wrong = || format!("must be text or {REFERENCE} (what was given is not shown: it may be secret)");
    let Some(dict) = config_value.dict() else {
        let plain = config_value.text().map(str::to_owned).or_else(|| config_value.integer().map(|n| n.to_string()));
        let plain = plain.ok_or_else(wrong)?;
        return Ok(vec![Candidate::new(config_value, ConfiguredValue::Plain(plain))]);
    };
    if dict.is_empty() {
        return Err(wrong());
    }
    references(&table.table_of_name(key))
}

/// Every reference in a table that may hold nothing else.
fn references(inner: &Table<'_>) -> Result<Vec<Candidate>, String> {
    let wrong = || format!("must be text or {REFERENCE} (what was given is not shown: it may be secret)");
    let mut candidates = Vec::new();
    for word in inner.keys() {
        let source = match (word.as_str(), inner.peek(word)) {
            (_, None) => None,
            ("file", Some(config_value)) => config_value.path().map(SecretSource::File).map(|s| (config_value, s)),
            ("env", Some(config_value)) => variable(&config_value).map(SecretSource::Env).map(|s| (config_value, s)),
            ("credential", Some(config_value)) => {
                credential(&config_value).map(SecretSource::Credential).map(|s| (config_value, s))
            }
            (_, Some(_)) => return Err(format!("unknown key {word:?}: {}", wrong())),
        };
        let (config_value, source) = source.ok_or_else(|| reference_mistake(word))?;
        candidates.push(Candidate::new(&config_value, ConfiguredValue::Secret(source)));
    }
    Ok(candidates)
}

fn reference_mistake(word: &str) -> String {
    let right = match word {
        "file" => "the path of a file",
        "env" => "the name of an environment variable",
        _ => "the name of a systemd credential",
    };
    format!("{word} must be {right} (what was given is not shown: it may be secret)")
}

fn variable(config_value: &ConfigValue<'_>) -> Option<String> {
    let name = config_value.text()?;
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = name.bytes().all(is_allowed) && name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    ok.then(|| name.to_owned())
}

fn credential(config_value: &ConfigValue<'_>) -> Option<String> {
    let name = config_value.text()?;
    let ok = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    ok.then(|| name.to_owned())
}

fn read(table: &Table<'_>, key: &str, source: &SecretSource) -> Option<()> {
    match source.read() {
        Ok(_) => {
            if let SecretSource::File(path) = source {
                warn_of_readable_by_all(table, key, path);
            }
            Some(())
        }
        Err(error) => {
            table.problem(key, error.to_string());
            None
        }
    }
}

#[cfg(unix)]
fn warn_of_readable_by_all(table: &Table<'_>, key: &str, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = path.metadata() else { return };
    let mode = metadata.permissions().mode() & 0o777;
    let who = if mode & 0o004 != 0 {
        "read by everyone"
    } else if mode & 0o022 != 0 {
        "written by others"
    } else {
        return;
    };
    let path = path.display();
    table.warn(key, format!("secret file {path} can be {who} (mode {mode:04o}): chmod 0600 {path}"));
}

#[cfg(not(unix))]
fn warn_of_readable_by_all(_: &Table<'_>, _: &str, _: &Path) {}

fn header_mistake(name: &str, value: &ConfiguredValue) -> Option<String> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Some("not a header's name".to_owned());
    }
    if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        return Some("is a header that the client sets itself".to_owned());
    }
    let is_valid = match value {
        ConfiguredValue::Plain(text) => HeaderValue::from_str(text).is_ok(),
        ConfiguredValue::Secret(source) => {
            source.read().is_ok_and(|s| HeaderValue::from_str(s.expose_secret()).is_ok())
        }
    };
    (!is_valid).then(|| "holds characters that no header may (not shown: it may be secret)".to_owned())
}

fn warn_of_plain_secret(table: &Table<'_>, name: &str, value: &ConfiguredValue) {
    let lower = name.to_ascii_lowercase();
    let looks_secret = ["auth", "cookie", "key", "token", "secret", "password"].iter().any(|word| lower.contains(word));
    if looks_secret && matches!(value, ConfiguredValue::Plain(_)) {
        table.warn(name, format!("looks like a secret in plain text: better {REFERENCE}"));
    }
}

/// Whether any of the values is a secret.
pub(super) fn any_secret(values: &[(String, ConfiguredValue)]) -> bool {
    values.iter().any(|(_, value)| matches!(value, ConfiguredValue::Secret(_)))
}
