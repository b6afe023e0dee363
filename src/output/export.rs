//! Items as a file: four formats, streamed in the order of their seq, from one snapshot of the mirror.
//!
//! Memory stays constant however many items there are: one item at a time is held. In NDJSON, JSON and GeoJSON `data`
//! is the publisher's JSON, in CSV its text. Each item carries its feed's publisher, licence and dataset site, so that
//! whoever passes the item on can attribute it. No location is looked up or made up: an item without a usable one has
//! none.

mod geo;

use std::collections::HashMap;
use std::io::{self, Write};

use super::{OutputError, data_field, field};
use crate::json;
use crate::store::read::{FeedKindFilter, FeedRow, ItemRow, MirrorRow, Reader, Seq};

/// The format of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// One JSON object a line.
    #[default]
    Ndjson,
    /// One JSON array.
    Json,
    /// RFC 4180, with a header; the JSON is one column.
    Csv,
    /// A FeatureCollection (RFC 7946); items without a location have no geometry.
    Geojson,
}

/// What to export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportRequest {
    /// Feeds and kinds.
    pub filter: FeedKindFilter,
    /// Only items that changed after this change number.
    pub since: Seq,
    /// Whether tombstones are included.
    pub deleted: bool,
    pub format: ExportFormat,
    /// Whether CSV cells stay as they are, also those that a spreadsheet would take for formulas.
    pub raw_cells: bool,
}

/// The result of an export.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportSummary {
    /// Items written.
    pub items: u64,
    /// The mirror's row in the snapshot that was exported.
    pub mirror: MirrorRow,
}

const CSV_HEADER: &[u8] = b"feed,kind,id,modified,state,data,seq,changed_at,publisher,license,dataset_url\r\n";

/// The attribution of an item, from its feed.
#[derive(Clone, Copy, Default)]
struct ItemAttribution<'a> {
    publisher: Option<&'a str>,
    license: Option<&'a str>,
    dataset_url: Option<&'a str>,
}

impl<'a> ItemAttribution<'a> {
    fn of(feed: &'a FeedRow) -> Self {
        Self {
            publisher: feed.publisher.as_deref(),
            license: feed.license.as_deref(),
            dataset_url: feed.dataset_url.as_deref(),
        }
    }
}

/// Writes every item that the request selects.
///
/// # Errors
/// For a feed that is not in the mirror; when the file can't be read or `out` not be written.
pub fn export(reader: &Reader, request: &ExportRequest, out: &mut impl Write) -> Result<ExportSummary, OutputError> {
    let format = request.format;
    let feeds = reader.feeds(&[])?;
    let attributions: HashMap<&str, ItemAttribution<'_>> =
        feeds.iter().map(|feed| (feed.name.as_str(), ItemAttribution::of(feed))).collect();
    let mut items = 0;
    // The output begins with the first item, so that a refused request writes nothing.
    let mirror = reader.export_items(request.since, &request.filter, request.deleted, |row| {
        begin_or_separate(out, format, items == 0)?;
        item(out, request, &row, attributions.get(row.feed.as_str()).copied().unwrap_or_default())?;
        items += 1;
        Ok::<(), OutputError>(())
    })?;
    if items == 0 {
        begin_or_separate(out, format, true)?;
    }
    out.write_all(match format {
        ExportFormat::Ndjson | ExportFormat::Csv => b"",
        ExportFormat::Json if items == 0 => b"]\n",
        ExportFormat::Json => b"\n]\n",
        ExportFormat::Geojson if items == 0 => b"]}\n",
        ExportFormat::Geojson => b"\n]}\n",
    })?;
    Ok(ExportSummary { items, mirror })
}

fn begin_or_separate(out: &mut impl Write, format: ExportFormat, first: bool) -> io::Result<()> {
    out.write_all(match (format, first) {
        (ExportFormat::Ndjson, _) | (ExportFormat::Csv, false) => b"",
        (ExportFormat::Csv, true) => CSV_HEADER,
        (ExportFormat::Json, true) => b"[",
        (ExportFormat::Geojson, true) => b"{\"type\":\"FeatureCollection\",\"features\":[",
        (ExportFormat::Json | ExportFormat::Geojson, false) => b",",
    })
}

fn item(
    out: &mut impl Write,
    request: &ExportRequest,
    row: &ItemRow,
    attribution: ItemAttribution<'_>,
) -> io::Result<()> {
    match request.format {
        ExportFormat::Ndjson => attributed(out, row, attribution).and_then(|()| out.write_all(b"\n")),
        ExportFormat::Json => out.write_all(b"\n").and_then(|()| attributed(out, row, attribution)),
        ExportFormat::Csv => csv(out, request.raw_cells, row, attribution),
        ExportFormat::Geojson => out.write_all(b"\n").and_then(|()| feature(out, row, attribution)),
    }
}

/// Writes an item as a JSON object without a line break at its end.
///
/// # Errors
/// When `out` can't be written.
pub fn object(out: &mut impl Write, row: &ItemRow) -> io::Result<()> {
    fields(out, row)?;
    out.write_all(b"}")
}

fn attributed(out: &mut impl Write, row: &ItemRow, attribution: ItemAttribution<'_>) -> io::Result<()> {
    fields(out, row)?;
    attribution_fields(out, attribution)?;
    out.write_all(b"}")
}

fn fields(out: &mut impl Write, row: &ItemRow) -> io::Result<()> {
    out.write_all(b"{")?;
    columns(out, row)?;
    data_field(out, row.data.as_deref())?;
    field(out, false, "seq", &row.seq)?;
    field(out, false, "changed_at", &row.changed_at)
}

fn attribution_fields(out: &mut impl Write, attribution: ItemAttribution<'_>) -> io::Result<()> {
    field(out, false, "publisher", &attribution.publisher)?;
    field(out, false, "license", &attribution.license)?;
    field(out, false, "dataset_url", &attribution.dataset_url)
}

fn columns(out: &mut impl Write, row: &ItemRow) -> io::Result<()> {
    field(out, true, "feed", &row.feed)?;
    field(out, false, "kind", &row.kind)?;
    field(out, false, "id", &row.id)?;
    field(out, false, "modified", &row.modified)?;
    field(out, false, "state", &row.state)
}

fn feature(out: &mut impl Write, row: &ItemRow, attribution: ItemAttribution<'_>) -> io::Result<()> {
    let data = row.data.as_deref();
    out.write_all(b"{\"type\":\"Feature\",\"geometry\":")?;
    match data.and_then(geo::of) {
        // RFC 7946 §3.1.1: longitude first.
        Some((latitude, longitude)) => {
            write!(out, "{{\"type\":\"Point\",\"coordinates\":[{longitude},{latitude}]}}")?;
        }
        None => out.write_all(b"null")?,
    }
    out.write_all(b",\"properties\":{")?;
    columns(out, row)?;
    if let Some(name) = data.and_then(|data| json::unescape_lossy(json::member(data, "name")?)) {
        field(out, false, "name", &name)?;
    }
    data_field(out, data)?;
    attribution_fields(out, attribution)?;
    out.write_all(b"}}")
}

fn csv(out: &mut impl Write, raw: bool, row: &ItemRow, attribution: ItemAttribution<'_>) -> io::Result<()> {
    let (modified, seq) = (row.modified.to_string(), row.seq.to_string());
    let data = row.data.as_deref().unwrap_or_default();
    let cells: [&str; 8] = [&row.feed, &row.kind, &row.id, &modified, &row.state, data, &seq, &row.changed_at];
    let attribution =
        [attribution.publisher, attribution.license, attribution.dataset_url].map(Option::unwrap_or_default);
    for (at, text) in cells.into_iter().chain(attribution).enumerate() {
        if at > 0 {
            out.write_all(b",")?;
        }
        let prefix = if raw || !is_formula(text) { "" } else { "'" };
        cell(out, prefix, text)?;
    }
    out.write_all(b"\r\n")
}

/// Whether a spreadsheet would evaluate the text as a formula (CWE-1236); a number is none.
fn is_formula(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let number = digits(text) && text.parse::<f64>().is_ok();
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) && !number
}

/// A cell by RFC 4180 §2: quoted where it must be, quotes doubled.
fn cell(out: &mut impl Write, prefix: &str, text: &str) -> io::Result<()> {
    if !text.contains(['"', ',', '\r', '\n']) {
        out.write_all(prefix.as_bytes())?;
        return out.write_all(text.as_bytes());
    }
    out.write_all(b"\"")?;
    out.write_all(prefix.as_bytes())?;
    for (at, part) in text.split('"').enumerate() {
        if at > 0 {
            out.write_all(b"\"\"")?;
        }
        out.write_all(part.as_bytes())?;
    }
    out.write_all(b"\"")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::read::StoredModified;

    fn row(data: Option<&str>) -> ItemRow {
        ItemRow {
            feed: "acme".into(),
            kind: "Session".into(),
            id: "a\"1".into(),
            modified: StoredModified::Integer(7),
            state: if data.is_some() { "updated" } else { "deleted" }.into(),
            data: data.map(str::to_owned),
            seq: 3,
            changed_at: "2026-01-02T03:04:05.678Z".into(),
            transport: "poll".into(),
            swept: false,
        }
    }

    fn written(format: ExportFormat, row: &ItemRow) -> String {
        let mut out = Vec::new();
        let attribution =
            ItemAttribution { publisher: Some("Acme, Ltd"), license: Some("https://l.example/"), dataset_url: None };
        item(&mut out, &ExportRequest { format, ..ExportRequest::default() }, row, attribution).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_has_the_publisher_s_own_bytes() {
        assert_eq!(
            written(ExportFormat::Ndjson, &row(Some("{\"n\": 1.50}"))),
            "{\"feed\":\"acme\",\"kind\":\"Session\",\"id\":\"a\\\"1\",\"modified\":7,\"state\":\"updated\",\
             \"data\":{\"n\": 1.50},\"seq\":3,\"changed_at\":\"2026-01-02T03:04:05.678Z\",\"publisher\":\"Acme, Ltd\",\
             \"license\":\"https://l.example/\",\"dataset_url\":null}\n"
        );
    }

    #[test]
    fn csv_quotes_what_rfc_4180_says() {
        assert_eq!(
            written(ExportFormat::Csv, &row(Some("{\"n\":1,\n\"m\":2}"))),
            "acme,Session,\"a\"\"1\",7,updated,\"{\"\"n\"\":1,\n\"\"m\"\":2}\",3,2026-01-02T03:04:05.678Z,\"Acme, Ltd\",https://l.example/,\r\n"
        );
        assert_eq!(
            written(ExportFormat::Csv, &row(None)),
            "acme,Session,\"a\"\"1\",7,deleted,,3,2026-01-02T03:04:05.678Z,\"Acme, Ltd\",https://l.example/,\r\n"
        );
    }

    #[test]
    fn no_cell_is_a_formula_and_numbers_stay() {
        for formula in
            ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\tx", "\r=1", "\n=1", "-", "-inf", "+nan", "＝1"]
        {
            assert!(is_formula(formula), "{formula}");
        }
        for harmless in ["", "-5", "+5", "-1.5e-3", "-.5", "a=1", " x", "2026-01-02", "{\"a\":\"=1\"}", "\"=1\""] {
            assert!(!is_formula(harmless), "{harmless}");
        }
        let hostile = ItemRow { id: "=HYPERLINK(\"x\")".into(), kind: "@k".into(), ..row(None) };
        let ended = "7,deleted,,3,2026-01-02T03:04:05.678Z,\"Acme, Ltd\",https://l.example/,\r\n";
        assert_eq!(written(ExportFormat::Csv, &hostile), format!("acme,'@k,\"'=HYPERLINK(\"\"x\"\")\",{ended}"));
        let mut out = Vec::new();
        let raw = ExportRequest { format: ExportFormat::Csv, raw_cells: true, ..ExportRequest::default() };
        item(&mut out, &raw, &hostile, ItemAttribution::default()).unwrap();
        assert!(out.starts_with(b"acme,@k,\"=HYPERLINK"), "{}", String::from_utf8_lossy(&out));
    }

    #[test]
    fn a_feature_has_its_place_with_longitude_first() {
        let data = "{\"name\":\"Yoga\",\"location\":{\"geo\":{\"latitude\":51.5,\"longitude\":\"-0.12\"}}}";
        let feature: serde_json::Value =
            serde_json::from_str(&written(ExportFormat::Geojson, &row(Some(data)))).unwrap();
        assert_eq!(feature["geometry"]["coordinates"], serde_json::json!([-0.12, 51.5]));
        assert_eq!(feature["properties"]["name"], "Yoga");
        assert_eq!(feature["properties"]["data"]["location"]["geo"]["longitude"], "-0.12");
    }

    #[test]
    fn what_other_readers_refuse_costs_an_item_neither_name_nor_place() {
        let data = "{\"name\":\"Yoga \\ud83d\",\"description\":\"\\ud83d\",\"\\udead\":1e400,\
                    \"geo\":{\"latitude\":51.5,\"longitude\":-0.12,\"x\":1e999}}";
        let text = written(ExportFormat::Geojson, &row(Some(data)));
        assert!(text.contains("\"coordinates\":[-0.12,51.5]"), "{text}");
        assert!(text.contains("\"name\":\"Yoga \u{fffd}\""), "{text}");
        assert!(text.contains(data), "its data are as published: {text}");
    }

    #[test]
    fn what_has_no_place_is_a_feature_without_geometry() {
        let feature: serde_json::Value = serde_json::from_str(&written(ExportFormat::Geojson, &row(None))).unwrap();
        assert!(feature.get("geometry").unwrap().is_null());
        assert_eq!(feature["properties"]["state"], "deleted");
        assert_eq!(feature["properties"]["publisher"], "Acme, Ltd");
    }
}
