//! The status page: one HTML document, whole without scripts or anything from elsewhere.
//!
//! Guarantees: names, reasons and URLs are text, whatever they hold; feeds that need attention stand first, with the
//! reason in words; nothing on it changes anything.

use std::fmt::{self, Write};

use jiff::Timestamp;

use super::metrics::Stored;
use super::status::next_poll_at;
use super::words::{number, seconds_since, span};
use crate::feed::Health;
use crate::store::read::FeedRow;

/// The media type.
pub const MEDIA_TYPE: &str = "text/html; charset=utf-8";

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the page may load and do; `nonce` is its own word, new for each page.
pub fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The page. `blocked` is why the database takes no writes; `stored` is what it holds, or why it can't be read.
pub fn html(now: Timestamp, nonce: &str, blocked: Option<&str>, stored: Result<&Stored, &str>) -> String {
    let mut page = String::with_capacity(8192);
    // Writing to memory can't fail.
    let _ = document(&mut page, now, nonce, blocked.or(stored.err()), stored.ok());
    page
}

fn document(
    page: &mut String,
    now: Timestamp,
    nonce: &str,
    trouble: Option<&str>,
    stored: Option<&Stored>,
) -> fmt::Result {
    let feeds = stored.map_or(Vec::new(), |stored| stored.status.by_attention());
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title} · feedmirror</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>\n\
         <style nonce=\"{nonce}\">\n{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>feedmirror</h1>\n<div id=\"summary\">\n",
        title = Text(&title(&feeds, trouble)),
    )?;
    if let Some(trouble) = trouble {
        writeln!(
            page,
            "<p class=\"notice\" role=\"alert\"><span class=\"bad\">not ready</span> {}</p>",
            Text(trouble)
        )?;
    }
    if let Some(stored) = stored {
        writeln!(page, "<p>{}</p>", Text(&stored.status.summary()))?;
    }
    write!(
        page,
        "</div>\n<p id=\"old\" class=\"notice\" role=\"status\" hidden>The mirror does not answer: what is shown is \
         old.</p>\n</header>\n<main>\n\
         <div class=\"scroll\" role=\"region\" aria-labelledby=\"caption\" tabindex=\"0\">\n<table>\n\
         <caption id=\"caption\">Feeds, those that need attention first</caption>\n",
    )?;
    heads(page)?;
    page.push_str("<tbody id=\"rows\">\n");
    for feed in feeds {
        let (reason, quarantined) = match stored {
            Some(stored) => (stored.status.reason(feed), stored.quarantined(&feed.name)),
            None => (None, 0),
        };
        row(page, now, feed, reason.as_deref(), quarantined)?;
    }
    page.push_str("</tbody>\n</table>\n</div>\n</main>\n<footer id=\"foot\">\n");
    foot(page, now, stored)?;
    write!(page, "</footer>\n<script nonce=\"{nonce}\">\n{SCRIPT}</script>\n</body>\n</html>\n")
}

/// The columns: head and attributes.
const COLUMNS: [(&str, &str); 8] = [
    ("Feed", ""),
    ("Health", ""),
    ("Mode", ""),
    ("Items", NUMBER),
    ("Tombstones", NUMBER),
    ("Quarantine", NUMBER),
    ("Lag", NUMBER),
    ("Next poll", NUMBER),
];
const NUMBER: &str = " class=\"number\"";

fn heads(page: &mut String) -> fmt::Result {
    page.push_str("<thead><tr>");
    for (head, attributes) in COLUMNS {
        write!(page, "<th scope=\"col\"{attributes}>{head}</th>")?;
    }
    page.push_str("</tr></thead>\n");
    Ok(())
}

/// The cells behind a row's head. Each carries its column's head, for pages too narrow for a table.
struct Cells<'a> {
    page: &'a mut String,
    columns: std::iter::Skip<std::array::IntoIter<(&'static str, &'static str), 8>>,
}

impl Cells<'_> {
    fn cell(&mut self, content: fmt::Arguments<'_>) -> fmt::Result {
        let (head, attributes) = self.columns.next().unwrap_or_default();
        write!(self.page, "<td{attributes} data-head=\"{head}\">{content}</td>")
    }

    /// A stored time, in words for the seconds since; a dash where there is none.
    fn time(&mut self, now: Timestamp, at: Option<&str>, words: impl FnOnce(i64) -> String) -> fmt::Result {
        match (at, seconds_since(at, now)) {
            (Some(at), Some(ago)) => {
                let (at, words) = (Text(at), words(ago));
                self.cell(format_args!("<time datetime=\"{at}\" title=\"{at}\">{words}</time>"))
            }
            _ => self.cell(format_args!("–")),
        }
    }
}

fn row(page: &mut String, now: Timestamp, feed: &FeedRow, reason: Option<&str>, quarantined: i64) -> fmt::Result {
    write!(page, "<tr><th scope=\"row\">{}<small>{}</small></th>", Text(&feed.name), Text(&feed.url))?;
    let mut cells = Cells { page, columns: COLUMNS.into_iter().skip(1) };
    let (class, health) = (class(&feed.health), Text(&feed.health));
    match reason.map(Text) {
        Some(reason) => cells.cell(format_args!("<span class=\"{class}\">{health}</span><small>{reason}</small>"))?,
        None => cells.cell(format_args!("<span class=\"{class}\">{health}</span>"))?,
    }
    cells.cell(format_args!("{}", Text(&feed.mode)))?;
    for count in [feed.items, feed.tombstones, quarantined] {
        cells.cell(format_args!("{}", number(count)))?;
    }
    cells.time(now, feed.level_at.as_deref(), span)?;
    let ahead = |ago: i64| if ago < 0 { format!("in {}", span(-ago)) } else { "now".into() };
    cells.time(now, next_poll_at(feed), ahead)?;
    page.push_str("</tr>\n");
    Ok(())
}

fn foot(page: &mut String, now: Timestamp, stored: Option<&Stored>) -> fmt::Result {
    if let Some(stored) = stored {
        let mirror = &stored.status.mirror;
        let (epoch, version) = (Text(&mirror.epoch), Text(&mirror.version));
        write!(page, "<p>Position {epoch}:{} · version {version}", mirror.seq)?;
        if let Some(up) = seconds_since(mirror.started_at.as_deref(), now) {
            write!(page, " · up for {}", span(up))?;
        }
        page.push_str("</p>\n");
    }
    page.push_str("<p><a href=\"/metrics\">metrics</a> · <a href=\"/api/feeds\">feeds as JSON</a></p>\n");
    Ok(())
}

/// How a health looks; one of a later version looks bad.
fn class(health: &str) -> &'static str {
    match Health::from_word(health) {
        Some(Health::Ok) => "good",
        Some(Health::Retrying | Health::Paused | Health::Removed) => "odd",
        _ => "bad",
    }
}

fn title(feeds: &[&FeedRow], trouble: Option<&str>) -> String {
    let wrong = feeds.iter().filter(|feed| feed.health != Health::Ok.as_str()).count();
    match (trouble, wrong) {
        (Some(_), _) => "not ready".to_owned(),
        (None, 0) => "all well".to_owned(),
        (None, wrong) => format!("{wrong} of {} feeds not ok", feeds.len()),
    }
}

/// Text in an element or a quoted attribute.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sign in self.0.chars() {
            match sign {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                sign => f.write_char(sign)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_of_a_later_version_looks_bad() {
        assert_eq!(class("ok"), "good");
        assert_eq!(class("a-health-of-a-later-version"), "bad");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_said() {
        let page = html(Timestamp::UNIX_EPOCH, "n", None, Err("the file is <gone>"));
        assert!(page.contains("not ready</span> the file is &lt;gone&gt;"));
        assert!(page.contains("<title>not ready"));
    }
}
