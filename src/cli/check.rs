//! `check`: reports every mistake of the configuration at once, each with its file and key.

mod online;

use std::io::{self, Write};

use serde::Serialize;

use super::{Exit, GlobalArgs, stdout};
use crate::config::{self, Config, ConfigErrors, ConfigProblem, Overrides, ProblemScope};

/// Arguments of `check`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Also ask every endpoint once
    #[arg(long)]
    pub online: bool,
    /// Print rows as JSON
    #[arg(long)]
    pub json: bool,
}

/// What one endpoint answered; the prober makes sure that no secret is in it.
#[derive(Clone, Debug)]
pub struct EndpointProbe {
    pub feed: String,
    /// The endpoint's key in the configuration: `url`, `sse.url`, `amqp.queue`.
    pub key: &'static str,
    /// The URL or queue asked, as configured.
    pub url: String,
    /// What came, or why nothing usable did.
    pub answer: Result<String, String>,
}

/// The result of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckVerdict {
    /// Nothing is wrong, warnings aside.
    Valid,
    /// The configuration is fine, and an endpoint did not answer as it should (exit code 1).
    Unreachable,
    /// The configuration has mistakes (exit code 2).
    Invalid,
}

/// One thing found, as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    /// `error`, `warning` or `probe`.
    level: &'static str,
    /// `all`, `provider` or `feed`: what the mistake keeps from running.
    scope: &'static str,
    name: Option<&'a str>,
    file: Option<String>,
    key: &'a str,
    value: Option<&'a str>,
    message: &'a str,
}

/// Loads the configuration, probes every endpoint with `--online`, and prints what was found.
///
/// # Errors
/// When standard output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let loaded = config::load(globals.config.as_deref(), &Overrides::default());
    let probes = match &loaded {
        Ok(config) if args.online => super::runtime()?.block_on(online::probe(&super::run::fleet(config))),
        _ => Vec::new(),
    };
    let verdict = print(&mut stdout(args.json), &args, &loaded, &probes)?;
    Ok(match verdict {
        CheckVerdict::Valid => Exit::Done,
        CheckVerdict::Unreachable => Exit::Failed,
        CheckVerdict::Invalid => Exit::Usage,
    })
}

/// Prints what loading the configuration found, and the results of the probes, if there were any.
///
/// # Errors
/// When `out` can't be written.
pub fn print(
    out: &mut impl Write,
    args: &Args,
    loaded: &Result<Config, ConfigErrors>,
    probes: &[EndpointProbe],
) -> io::Result<CheckVerdict> {
    let (problems, warnings) = match loaded {
        Ok(config) => (&config.problems, &config.warnings),
        Err(errors) => (&errors.problems, &errors.warnings),
    };
    if args.json {
        print_rows(out, problems, warnings, probes)?;
    } else {
        print_lines(out, problems, warnings, probes)?;
        print_summary(out, loaded, problems.len(), warnings.len())?;
    }
    Ok(match () {
        () if !problems.is_empty() || loaded.is_err() => CheckVerdict::Invalid,
        () if probes.iter().any(|probe| probe.answer.is_err()) => CheckVerdict::Unreachable,
        () => CheckVerdict::Valid,
    })
}

fn print_lines(
    out: &mut impl Write,
    problems: &[ConfigProblem],
    warnings: &[ConfigProblem],
    probes: &[EndpointProbe],
) -> io::Result<()> {
    for problem in problems {
        writeln!(out, "error: {problem}")?;
    }
    for warning in warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for EndpointProbe { feed, url, answer, .. } in probes {
        match answer {
            Ok(answer) => writeln!(out, "ok: {feed}: {url}: {answer}")?,
            Err(reason) => writeln!(out, "failed: {feed}: {url}: {reason}")?,
        }
    }
    Ok(())
}

fn print_rows(
    out: &mut impl Write,
    problems: &[ConfigProblem],
    warnings: &[ConfigProblem],
    probes: &[EndpointProbe],
) -> io::Result<()> {
    let errors = problems.iter().map(|problem| row("error", problem));
    let rows = errors.chain(warnings.iter().map(|warning| row("warning", warning))).chain(probes.iter().map(probe_row));
    for row in rows {
        serde_json::to_writer(&mut *out, &row)?;
        writeln!(out)?;
    }
    Ok(())
}

fn row<'a>(level: &'static str, problem: &'a ConfigProblem) -> Row<'a> {
    let (scope, name) = match &problem.scope {
        ProblemScope::Fatal => ("all", None),
        ProblemScope::Provider(name) => ("provider", Some(name.as_str())),
        ProblemScope::Feed(name) => ("feed", Some(name.as_str())),
    };
    Row {
        level,
        scope,
        name,
        file: problem.origin.as_ref().map(ToString::to_string),
        key: &problem.key,
        value: problem.value.as_deref(),
        message: &problem.message,
    }
}

fn probe_row(probe: &EndpointProbe) -> Row<'_> {
    let (level, message) = match &probe.answer {
        Ok(answer) => ("ok", answer),
        Err(reason) => ("failed", reason),
    };
    Row { level, scope: "feed", name: Some(&probe.feed), file: None, key: probe.key, value: Some(&probe.url), message }
}

fn print_summary(
    out: &mut impl Write,
    loaded: &Result<Config, ConfigErrors>,
    errors: usize,
    warnings: usize,
) -> io::Result<()> {
    let found = format!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
    match loaded {
        Err(_) => writeln!(out, "{found}; run would refuse to start"),
        Ok(config) => {
            let files = config.files.len();
            let (feeds, failed) = (config.feeds.len(), config.feeds.iter().filter(|feed| feed.is_err()).count());
            let failed = if failed == 0 { String::new() } else { format!(", {failed} of them would fail") };
            writeln!(out, "{}, {}{failed}; {found}", counted(files, "file"), counted(feeds, "feed"))
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{self, Overrides};

    fn check(text: &str, args: &Args, probes: &[EndpointProbe]) -> (CheckVerdict, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("feedmirror.toml");
        std::fs::write(&path, text).unwrap();
        let loaded = config::load(Some(&path), &Overrides::default());
        let mut out = Vec::new();
        let verdict = print(&mut out, args, &loaded, probes).unwrap();
        let out = String::from_utf8(out).unwrap();
        (verdict, out.replace(&format!("{}/", directory.path().display()), ""))
    }

    const GOOD: &str = "[feeds.a]\nurl = \"https://a.example/\"\n";

    #[test]
    fn a_sound_configuration_is_a_line() {
        let (verdict, out) = check(GOOD, &Args::default(), &[]);
        assert_eq!(verdict, CheckVerdict::Valid);
        assert_eq!(out, "1 file, 1 feed; 0 errors, 0 warnings\n");
    }

    #[test]
    fn a_feed_s_mistake_is_told_with_file_and_key() {
        let (verdict, out) = check(&format!("{GOOD}pol.min = \"9s\"\n"), &Args::default(), &[]);
        assert_eq!(verdict, CheckVerdict::Invalid);
        assert_eq!(
            out,
            "error: feedmirror.toml: feeds.a.pol: unknown key; did you mean \"poll\"?\n\
             1 file, 1 feed, 1 of them would fail; 1 error, 0 warnings\n"
        );
    }

    #[test]
    fn a_fatal_mistake_says_so() {
        let (verdict, out) = check("databse = \"x\"\n", &Args::default(), &[]);
        assert_eq!(verdict, CheckVerdict::Invalid);
        assert!(out.ends_with("1 error, 1 warning; run would refuse to start\n"), "{out}");
    }

    #[test]
    fn json_rows_name_scope_and_key() {
        let args = Args { json: true, ..Args::default() };
        let (_, out) = check(&format!("{GOOD}ties = \"drop\"\n"), &args, &[]);
        let row: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
        let expected = serde_json::json!({
            "level": "error", "scope": "feed", "name": "a", "file": "feedmirror.toml", "key": "feeds.a.ties",
            "value": "\"drop\"", "message": "must be \"keep\" or \"replace\"",
        });
        assert_eq!(row, expected);
    }

    #[test]
    fn an_endpoint_that_does_not_answer_fails_the_check() {
        let url = "https://a.example/".to_owned();
        let probe =
            EndpointProbe { feed: "a".to_owned(), key: "url", url, answer: Err("timeout: no answer".to_owned()) };
        let (verdict, out) = check(GOOD, &Args { online: true, json: false }, &[probe]);
        assert_eq!(verdict, CheckVerdict::Unreachable);
        assert!(out.starts_with("failed: a: https://a.example/: timeout: no answer\n"), "{out}");
    }
}
