//! A table of the raw configuration that is read key by key: what can't be read is reported, what isn't asked for
//! is unknown. So the keys that exist are exactly those that some code reads.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value as Raw};

use super::layers::Layers;
use super::problem::{ConfigProblem, ProblemScope, ValueOrigin};

/// Collects what reading a configuration finds.
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

/// A value as given, on its way to its type.
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
            // The value is not shown: where a table is due, what stands there may be anything.
            let key = key_text(&table.path);
            let message = format!("must be a table, [{key}], not {}", sort(raw));
            table.push_problem(key, table.origin.clone(), None, message);
        }
        table
    }

    /// The table at `key`.
    pub(super) fn table(&self, key: &str) -> Self {
        self.ask(key);
        self.below(key, key, self.raw(key), self.scope.clone())
    }

    /// The table at a name the operator chose, which is no key to be known.
    pub(super) fn table_of_name(&self, name: &str) -> Self {
        self.below(name, "*", self.raw(name), self.scope.clone())
    }

    /// The elements of the list at `key`, as far as they are tables.
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

    /// What stands at `key`, and takes the key as known.
    pub(super) fn ask(&self, key: &str) -> Option<ConfigValue<'a>> {
        let mut pattern = self.pattern.clone();
        pattern.push(key.to_owned());
        self.report.known.borrow_mut().insert(pattern.join("."));
        self.read_keys.borrow_mut().push(key.to_owned());
        self.given(key)
    }

    /// What stands at `key`, which is no key of its own: a name the operator chose, or another spelling.
    pub(super) fn given(&self, key: &str) -> Option<ConfigValue<'a>> {
        let raw = self.raw(key)?;
        Some(ConfigValue { raw, origin: self.report.layers.origin(raw, &self.at(key)) })
    }

    fn raw(&self, key: &str) -> Option<&'a Raw> {
        self.values?.get(key)
    }

    /// Takes the key as read, though it is not one of those to suggest.
    pub(super) fn accept(&self, key: &str) {
        self.read_keys.borrow_mut().push(key.to_owned());
    }

    /// The keys that stand here.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.values.into_iter().flat_map(Dict::keys)
    }

    /// Whether any layer has this table.
    pub(super) fn stands(&self) -> bool {
        self.values.is_some()
    }

    /// The value at `key` as `parse` understands it; a mistake is reported with the value.
    pub(super) fn get<T>(&self, key: &str, parse: impl FnOnce(&ConfigValue<'_>) -> Result<T, String>) -> Option<T> {
        let given = self.ask(key)?;
        match parse(&given) {
            Ok(value) => Some(value),
            Err(message) => {
                self.push_problem(self.key(key), given.origin.clone(), Some(given.display_text()), message);
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
        let given = self.ask(key)?;
        parse(&given).map_err(|message| self.push_problem(self.key(key), given.origin.clone(), None, message)).ok()
    }

    /// Puts the value at `key` into `slot`; whether it did.
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

    /// Reports `key`, should it stand here, as a mistake of its own kind.
    pub(super) fn refuse(&self, key: &'static str, message: &str) {
        self.forbidden_keys.borrow_mut().push(key);
        if self.raw(key).is_some() {
            self.problem(key, message.to_owned());
        }
    }

    /// Reports a mistake at `key` without its value.
    pub(super) fn problem(&self, key: &str, message: String) {
        let origin = self.given(key).and_then(|given| given.origin).or_else(|| self.origin.clone());
        self.push_problem(self.key(key), origin, None, message);
    }

    /// Reports something unwise at `key`.
    pub(super) fn warn(&self, key: &str, message: String) {
        let origin = self.given(key).and_then(|given| given.origin).or_else(|| self.origin.clone());
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

    /// Reports what nobody asked for, by key alone: the value may be a secret at a mistyped key.
    pub(super) fn finish(self) {
        let (asked, refused) = (self.read_keys.borrow(), self.forbidden_keys.borrow());
        for key in self.keys() {
            if !asked.contains(key) && !refused.contains(&key.as_str()) {
                self.problem(key, unknown(key, &asked));
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
        // A file says what it means; environment and flags know only text.
        let loose = || self.loose().and_then(|text| text.trim().parse().ok());
        self.raw.to_i128().or_else(loose)
    }

    pub(super) fn number(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "settings are far below 2^53")]
        let whole = || self.integer().map(|n| n as f64);
        let loose = || self.loose().and_then(|text| text.trim().parse().ok());
        self.raw.to_f64().or_else(whole).or_else(loose)
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

    /// The value as a path; a relative one is relative to the file it stands in, or to the working directory.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.text().and_then(|text| self.resolve_path(text))
    }

    /// A list of such paths, or one.
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

    fn loose(&self) -> Option<&'a str> {
        self.text().filter(|_| !matches!(self.origin, Some(ValueOrigin::File(_))))
    }

    /// The value for a message, kept to one short line.
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
                _ => sort(raw).to_owned(),
            },
        }
    }
}

fn sort(raw: &Raw) -> &'static str {
    match raw {
        Raw::String(..) | Raw::Char(..) => "text",
        Raw::Bool(..) => "true or false",
        Raw::Num(..) => "a number",
        Raw::Empty(..) => "nothing",
        Raw::Dict(..) => "a table",
        Raw::Array(..) => "a list",
    }
}

fn unknown(key: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "unknown key".to_owned();
    }
    match nearest(key, known.iter().map(String::as_str)) {
        Some(near) => format!("unknown key; did you mean {near:?}?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// The one of `known` that `word` was probably meant to be.
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
