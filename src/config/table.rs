//! A table of the raw configuration, read key by key: a value that can't be read is reported, and a key that no code
//! asks for is unknown. So the keys that exist are exactly those that some code reads.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value as Raw};

use super::layers::Layers;
use super::problem::{ConfigProblem, ProblemScope, ValueOrigin};

/// Collects the mistakes and warnings of reading a configuration.
pub(super) struct ConfigReport<'a> {
    pub(super) layers: &'a Layers,
    pub(super) problems: RefCell<Vec<ConfigProblem>>,
    pub(super) warnings: RefCell<Vec<ConfigProblem>>,
    /// Every key asked for, names replaced by `*`.
    pub(super) known: RefCell<BTreeSet<String>>,
}

impl<'a> ConfigReport<'a> {
    pub(super) fn new(layers: &'a Layers, problems: Vec<ConfigProblem>) -> Self {
        let known = RefCell::default();
        Self { layers, problems: RefCell::new(problems), warnings: RefCell::default(), known }
    }
}

/// A table at a path; an absent one reads as empty.
pub(super) struct Table<'a> {
    report: &'a ConfigReport<'a>,
    values: Option<&'a Dict>,
    origin: Option<ValueOrigin>,
    path: Vec<String>,
    pattern: Vec<String>,
    scope: ProblemScope,
    read_keys: RefCell<Vec<String>>,
    forbidden_keys: RefCell<Vec<&'static str>>,
}

/// A value as given, not parsed yet.
pub(super) struct ConfigValue<'a> {
    raw: &'a Raw,
    origin: Option<ValueOrigin>,
}

impl<'a> Table<'a> {
    pub(super) fn root(report: &'a ConfigReport<'a>) -> Self {
        Self {
            report,
            values: Some(&report.layers.values),
            origin: report.layers.files.first().cloned().map(ValueOrigin::File),
            path: Vec::new(),
            pattern: Vec::new(),
            scope: ProblemScope::Fatal,
            read_keys: RefCell::default(),
            forbidden_keys: RefCell::default(),
        }
    }

    fn below(&self, key: &str, pattern: &str, raw: Option<&'a Raw>, scope: ProblemScope) -> Self {
        let joined = |path: &[String], last: &str| path.iter().cloned().chain([last.to_owned()]).collect::<Vec<_>>();
        let path = joined(&self.path, key);
        let table = Self {
            report: self.report,
            values: raw.and_then(Raw::as_dict),
            origin: raw.and_then(|raw| self.report.layers.origin(raw, &path)),
            path,
            pattern: joined(&self.pattern, pattern),
            scope,
            read_keys: RefCell::default(),
            forbidden_keys: RefCell::default(),
        };
        if let (Some(raw), None) = (raw, table.values) {
            // The value is not shown: where a table is expected, it may be anything, also a secret.
            let key = key_text(&table.path);
            let message = format!("must be a table, [{key}], not {}", type_name(raw));
            table.push_problem(key, table.origin.clone(), None, message);
        }
        table
    }

    /// The table at `key`.
    pub(super) fn table(&self, key: &str) -> Self {
        self.ask(key);
        self.below(key, key, self.raw(key), self.scope.clone())
    }

    /// The table at a name that the operator chose, which is no known key.
    pub(super) fn table_of_name(&self, name: &str) -> Self {
        self.below(name, "*", self.raw(name), self.scope.clone())
    }

    /// The elements of the list at `key`; none for an element that is no table.
    pub(super) fn elements(&self, key: &str) -> Vec<Option<Self>> {
        let list = self.raw(key).and_then(Raw::as_array).unwrap_or_default();
        let table = |raw: &'a Raw| raw.as_dict().map(|_| self.below(key, "*", Some(raw), self.scope.clone()));
        list.iter().map(table).collect()
    }

    /// The tables in the table at `key`, by name, each with the scope of its own mistakes.
    pub(super) fn entries(&self, key: &str, scope: impl Fn(&str) -> ProblemScope) -> Vec<(String, Self)> {
        let parent = self.table(key);
        let entries = parent.values.into_iter().flatten();
        entries.map(|(name, raw)| (name.clone(), parent.below(name, "*", Some(raw), scope(name)))).collect()
    }

    /// The value at `key`; records the key as known and read.
    pub(super) fn ask(&self, key: &str) -> Option<ConfigValue<'a>> {
        let mut pattern = self.pattern.clone();
        pattern.push(key.to_owned());
        self.report.known.borrow_mut().insert(pattern.join("."));
        self.read_keys.borrow_mut().push(key.to_owned());
        self.peek(key)
    }

    /// The value at `key` without recording the key: a name that the operator chose, or an alternative form.
    pub(super) fn peek(&self, key: &str) -> Option<ConfigValue<'a>> {
        let raw = self.raw(key)?;
        Some(ConfigValue { raw, origin: self.report.layers.origin(raw, &self.at(key)) })
    }

    fn raw(&self, key: &str) -> Option<&'a Raw> {
        self.values?.get(key)
    }

    /// Records the key as read, without suggesting it as a known one.
    pub(super) fn accept(&self, key: &str) {
        self.read_keys.borrow_mut().push(key.to_owned());
    }

    /// The keys in this table.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.values.into_iter().flat_map(Dict::keys)
    }

    /// Whether any layer has this table.
    pub(super) fn is_present(&self) -> bool {
        self.values.is_some()
    }

    /// The value at `key` as `parse` reads it; a mistake is reported with the value.
    pub(super) fn get<T>(&self, key: &str, parse: impl FnOnce(&ConfigValue<'_>) -> Result<T, String>) -> Option<T> {
        let config_value = self.ask(key)?;
        match parse(&config_value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.push_problem(
                    self.key(key),
                    config_value.origin.clone(),
                    Some(config_value.display_text()),
                    message,
                );
                None
            }
        }
    }

    /// As [`Table::get`], but the value given is never shown: it may hold a secret.
    pub(super) fn get_unshown<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&ConfigValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let config_value = self.ask(key)?;
        parse(&config_value)
            .map_err(|message| self.push_problem(self.key(key), config_value.origin.clone(), None, message))
            .ok()
    }

    /// Sets `slot` to the value at `key`; returns whether there was one.
    pub(super) fn set<T>(
        &self,
        key: &str,
        slot: &mut T,
        parse: impl FnOnce(&ConfigValue<'_>) -> Result<T, String>,
    ) -> bool {
        let value = self.get(key, parse);
        let set = value.is_some();
        if let Some(value) = value {
            *slot = value;
        }
        set
    }

    /// Reports `key`, if it is present, as a mistake with its own message.
    pub(super) fn refuse(&self, key: &'static str, message: &str) {
        self.forbidden_keys.borrow_mut().push(key);
        if self.raw(key).is_some() {
            self.problem(key, message.to_owned());
        }
    }

    /// Reports a mistake at `key` without its value.
    pub(super) fn problem(&self, key: &str, message: String) {
        let origin = self.peek(key).and_then(|config_value| config_value.origin).or_else(|| self.origin.clone());
        self.push_problem(self.key(key), origin, None, message);
    }

    /// Reports something unwise at `key`.
    pub(super) fn warn(&self, key: &str, message: String) {
        let origin = self.peek(key).and_then(|config_value| config_value.origin).or_else(|| self.origin.clone());
        let problem = ConfigProblem { scope: self.scope.clone(), origin, key: self.key(key), value: None, message };
        self.report.warnings.borrow_mut().push(problem);
    }

    /// Reports a mistake about the table as a whole.
    pub(super) fn problem_here(&self, message: String) {
        self.push_problem(key_text(&self.path), self.origin.clone(), None, message);
    }

    fn push_problem(&self, key: String, origin: Option<ValueOrigin>, value: Option<String>, message: String) {
        let problem = ConfigProblem { scope: self.scope.clone(), origin, key, value, message };
        self.report.problems.borrow_mut().push(problem);
    }

    /// Reports the keys that no code asked for, without their values: a secret may be at a mistyped key.
    pub(super) fn finish(self) {
        let (read_keys, forbidden_keys) = (self.read_keys.borrow(), self.forbidden_keys.borrow());
        for key in self.keys() {
            if !read_keys.contains(key) && !forbidden_keys.contains(&key.as_str()) {
                self.problem(key, unknown_key(key, &read_keys));
            }
        }
    }

    fn at(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    fn key(&self, key: &str) -> String {
        key_text(&self.at(key))
    }
}

impl<'a> ConfigValue<'a> {
    pub(super) fn text(&self) -> Option<&'a str> {
        self.raw.as_str()
    }

    pub(super) fn integer(&self) -> Option<i128> {
        // A file's values have types; environment and flags have only text.
        let from_text = || self.untyped_text().and_then(|text| text.trim().parse().ok());
        self.raw.to_i128().or_else(from_text)
    }

    pub(super) fn number(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "settings are far below 2^53")]
        let whole = || self.integer().map(|n| n as f64);
        let from_text = || self.untyped_text().and_then(|text| text.trim().parse().ok());
        self.raw.to_f64().or_else(whole).or_else(from_text)
    }

    pub(super) fn list(&self) -> Option<Vec<&'a str>> {
        self.raw.as_array()?.iter().map(Raw::as_str).collect()
    }

    pub(super) fn is_list(&self) -> bool {
        self.raw.as_array().is_some()
    }

    pub(super) fn dict(&self) -> Option<&'a Dict> {
        self.raw.as_dict()
    }

    /// The value as a path; a relative one is relative to the file that has it, or to the working directory.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.text().and_then(|text| self.resolve_path(text))
    }

    /// One such path or a list of them.
    pub(super) fn paths(&self) -> Option<Vec<PathBuf>> {
        let texts = self.list().or_else(|| self.text().map(|text| vec![text]))?;
        texts.into_iter().map(|text| self.resolve_path(text)).collect()
    }

    fn resolve_path(&self, text: &str) -> Option<PathBuf> {
        let path = Some(text).filter(|text| !text.is_empty()).map(Path::new)?;
        Some(match &self.origin {
            Some(ValueOrigin::File(file)) => file.parent().unwrap_or(Path::new("")).join(path),
            _ => path.to_owned(),
        })
    }

    pub(super) fn origin(&self) -> Option<&ValueOrigin> {
        self.origin.as_ref()
    }

    fn untyped_text(&self) -> Option<&'a str> {
        self.text().filter(|_| !matches!(self.origin, Some(ValueOrigin::File(_))))
    }

    /// The value for a message, shortened to one line.
    fn display_text(&self) -> String {
        match self.raw {
            Raw::String(_, text) if text.chars().count() > 60 => {
                format!("{:?}", text.chars().take(60).chain(['…']).collect::<String>())
            }
            Raw::String(_, text) => format!("{text:?}"),
            Raw::Bool(_, flag) => flag.to_string(),
            raw => match (raw.to_i128(), raw.to_f64()) {
                (Some(number), _) => number.to_string(),
                (_, Some(number)) => number.to_string(),
                _ => type_name(raw).to_owned(),
            },
        }
    }
}

fn type_name(raw: &Raw) -> &'static str {
    match raw {
        Raw::String(..) | Raw::Char(..) => "text",
        Raw::Bool(..) => "true or false",
        Raw::Num(..) => "a number",
        Raw::Empty(..) => "nothing",
        Raw::Dict(..) => "a table",
        Raw::Array(..) => "a list",
    }
}

fn unknown_key(key: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "unknown key".to_owned();
    }
    match nearest(key, known.iter().map(String::as_str)) {
        Some(near) => format!("unknown key; did you mean {near:?}?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// The word of `known` that is nearest to `word`, if it is near enough to be meant.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let scored = known.map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= 0.75).then_some(best.1)
}

/// A path as a dotted TOML key, quoted where TOML needs it.
pub(super) fn key_text(path: &[String]) -> String {
    let bare = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let quoted = path.iter().map(|s| if bare(s) { s.clone() } else { format!("{s:?}") });
    quoted.collect::<Vec<_>>().join(".")
}
