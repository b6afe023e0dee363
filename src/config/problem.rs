//! Mistakes in a configuration: each with its key and origin, never with a value that may be a secret.

use std::fmt;
use std::path::PathBuf;

/// Which feeds a mistake affects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemScope {
    /// `run` refuses to start, a reload changes nothing.
    Fatal,
    /// Every feed of the provider fails; the others run.
    Provider(String),
    /// The feed fails; the others run.
    Feed(String),
}

/// Which layer a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ValueOrigin {
    /// A configuration file.
    File(PathBuf),
    /// An environment variable, by name.
    Environment(String),
    /// A command-line flag.
    Flag,
}

impl ValueOrigin {
    /// The layer's rank in the order of precedence; a higher one wins.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::File(_) => 0,
            Self::Environment(_) => 1,
            Self::Flag => 2,
        }
    }
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// One mistake or one warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Which feeds the mistake affects; meaningless for a warning.
    pub scope: ProblemScope,
    /// The layer that has the value; none when no layer has one.
    pub origin: Option<ValueOrigin>,
    /// The full key, dotted; empty when the problem concerns a whole file.
    pub key: String,
    /// The value given, shortened; never one that may be a secret.
    pub value: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        match (self.key.as_str(), &self.value) {
            ("", _) => f.write_str(&self.message),
            (key, Some(value)) => write!(f, "{key} = {value}: {}", self.message),
            (key, None) => write!(f, "{key}: {}", self.message),
        }
    }
}

/// A configuration that `run` refuses: every mistake found, those confined to a feed included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// Every mistake; at least one is [`ProblemScope::Fatal`].
    pub problems: Vec<ConfigProblem>,
    /// What is allowed but unwise.
    pub warnings: Vec<ConfigProblem>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for problem in &self.problems {
            if !std::mem::take(&mut first) {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
