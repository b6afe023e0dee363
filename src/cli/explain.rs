//! `explain`: where an item came from, and why it is as it is. With `--live` its source is asked again.

mod live;

use std::io::{BufWriter, Write};

use jiff::Timestamp;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, UsageError, into_anyhow, stdout};
use crate::output::explain::{self, Explanation, ItemQuery};
use crate::output::write_json_line;

/// Arguments of `explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The feed; with a URL and no ID, the item that is called so in any feed
    #[arg(value_name = "FEED|URL")]
    feed: String,
    /// The publisher's id, or the URL that the item's data call it; one that begins with a hyphen follows --
    #[arg(allow_negative_numbers = true)]
    id: Option<String>,
    /// Of this kind alone
    #[arg(long, allow_negative_numbers = true)]
    kind: Option<String>,
    /// Ask the source again and compare; nothing is written
    #[arg(long)]
    live: bool,
    /// With --live, give up after so many pages
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pages: u32,
    /// Print all that is known as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

impl Args {
    fn item_query(&self) -> Result<ItemQuery, UsageError> {
        let (feed, id) = match &self.id {
            Some(id) => (Some(self.feed.clone()), id.clone()),
            None if self.feed.contains("://") => (None, self.feed.clone()),
            None => return Err(UsageError(format!("name the item: feedmirror explain {} ID", self.feed))),
        };
        Ok(ItemQuery { feed, id, kind: self.kind.clone() })
    }
}

/// The whole explanation, as `--json` prints it.
#[derive(serde::Serialize)]
struct ExplainOutput<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<&'a [live::SourceCheck]>,
}

/// Prints the explanation; exits 1 where there is no such item.
///
/// # Errors
/// When the file can't be read or has no such feed, or standard output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let query = args.item_query()?;
    let reader = args.database_path.open(globals)?;
    let explanation = Explanation::of(&reader, &query, || print_search_notice(globals)).map_err(into_anyhow)?;
    let source_checks = match args.live {
        true => Some(live::ask(globals, &args.database_path, &explanation, &query, args.pages)?),
        false => None,
    };
    let mut out = BufWriter::new(stdout(args.json));
    if args.json {
        write_json_line(&mut out, &ExplainOutput { explanation: &explanation, live: source_checks.as_deref() })?;
    } else {
        explain::print(&mut out, &explanation, Timestamp::now())?;
        source_checks.iter().flatten().try_for_each(|check| check.print(&mut out))?;
    }
    out.flush()?;
    Ok(if explanation.items.is_empty() { Exit::Failed } else { Exit::Done })
}

#[expect(clippy::print_stderr, reason = "a search may take half a minute: the user is told why")]
fn print_search_notice(globals: &GlobalArgs) {
    if !globals.quiet {
        eprintln!("feedmirror: no item has this id: searching what items call themselves, for up to 30 s");
    }
}
