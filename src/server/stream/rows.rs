//! Rows as they are sent: lines of JSON, or events that carry such a line and the position after it.

use std::time::{Duration, Instant};

use crate::feed::ItemState;
use crate::output::changes::{ChangeSelection, LogPosition, change, mark, read};
use crate::output::{OutputError, export, write_json_line};
use crate::store::read::{FeedKindFilter, ItemRow, QuarantineFilter, Reader};

/// The most rows of one page: one page per client is in memory, and there may be many slow clients.
const PAGE_ROWS: usize = 250;
/// How soon a followed log shows a change.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a client that follows the log is sent its position, changes or not.
const POSITION_INTERVAL: Duration = Duration::from_secs(15);
/// The state of a row that removes a whole feed.
const PURGED: &str = "purged";

/// Rows that are read page by page.
pub(super) trait PagedRows: Sized + Send + 'static {
    /// The next page, which may be empty, and the rest; blocking.
    fn next_page(self) -> Result<(Vec<u8>, Option<Self>), OutputError>;

    /// How long to wait before the next page.
    fn wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// Items after a position.
pub(super) struct ItemRows {
    pub(super) reader: Reader,
    pub(super) filter: FeedKindFilter,
    /// Only items with this id.
    pub(super) id: Option<String>,
    pub(super) after: LogPosition,
    /// Whether to send tombstones too.
    pub(super) deleted: bool,
    /// Only items in this state.
    pub(super) state: Option<ItemState>,
    /// Rows still to be sent.
    pub(super) remaining: usize,
}

impl PagedRows for ItemRows {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.remaining == 0 {
            return Ok((text, None));
        }
        if let Some(id) = self.id.take() {
            return self.with_id(&id).map(|text| (text, None));
        }
        let page = self.reader.items(self.after.seq, self.remaining.min(PAGE_ROWS), &self.filter, self.tombstones())?;
        self.after.check(&page.epoch, page.mirror_seq)?;
        self.after = LogPosition { epoch: Some(page.epoch), seq: page.last_seq };
        for item in page.rows.iter().filter(|item| matches_state(&item.state, self.state)) {
            push_item(&mut text, item)?;
            self.remaining -= 1;
        }
        Ok((text, (!page.end).then_some(self)))
    }
}

impl ItemRows {
    fn tombstones(&self) -> bool {
        self.deleted || self.state == Some(ItemState::Deleted)
    }

    /// The items with this id: at most one for each feed and kind, so that they need no pages.
    fn with_id(self, id: &str) -> Result<Vec<u8>, OutputError> {
        let mut text = Vec::new();
        let mirror = self.reader.mirror()?;
        self.after.check(&mirror.epoch, mirror.seq)?;
        let items = self.reader.items_with_id(id, &self.filter, self.tombstones())?;
        let matching = items.iter().filter(|item| item.seq > self.after.seq && matches_state(&item.state, self.state));
        for item in matching.take(self.remaining) {
            push_item(&mut text, item)?;
        }
        Ok(text)
    }
}

fn matches_state(state: &str, filter: Option<ItemState>) -> bool {
    filter.is_none_or(|filter| filter.as_str() == state)
}

fn push_item(text: &mut Vec<u8>, item: &ItemRow) -> Result<(), OutputError> {
    export::object(text, item)?;
    text.push(b'\n');
    Ok(())
}

/// Quarantined records after a number.
pub(super) struct QuarantineRows {
    pub(super) reader: Reader,
    pub(super) filter: QuarantineFilter,
    pub(super) after: i64,
    /// Rows still to be sent.
    pub(super) remaining: usize,
}

impl PagedRows for QuarantineRows {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.remaining == 0 {
            return Ok((text, None));
        }
        let (rows, end) = self.reader.quarantine_after(self.after, self.remaining.min(PAGE_ROWS), &self.filter)?;
        for row in &rows {
            write_json_line(&mut text, row)?;
            self.after = row.id;
        }
        self.remaining -= rows.len();
        Ok((text, (!end).then_some(self)))
    }
}

/// How the change log is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeFormat {
    /// Lines of JSON, to the log's end.
    Lines,
    /// Server-Sent Events, for as long as the client listens.
    Events,
}

/// The change log after a position.
pub(super) struct ChangeRows {
    pub(super) reader: Reader,
    pub(super) after: LogPosition,
    pub(super) selection: ChangeSelection,
    /// Only items that are in this state now, and purges, since these change every state.
    pub(super) state_filter: Option<ItemState>,
    /// Rows still to be sent.
    pub(super) remaining: usize,
    pub(super) format: ChangeFormat,
    pub(super) log_progress: LogProgress,
}

/// How far a client has been sent the change log.
#[derive(Default)]
pub(super) struct LogProgress {
    /// The file's version when the log's end was read.
    end_version: Option<i64>,
    /// When the client was last sent its position.
    position_sent_at: Option<Instant>,
}

impl PagedRows for ChangeRows {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        // The open file would never change again; a client that connects again gets a 410 and reads everything again.
        if self.remaining == 0 || self.reader.is_replaced() {
            return Ok((text, None));
        }
        // Read before the page: a commit during the read is found the next time.
        let version = self.reader.data_version()?;
        let mut rows = 0;
        if self.log_progress.end_version != Some(version) {
            rows = self.push_page(&mut text, version)?;
        }
        if rows > 0 || self.is_due() {
            self.push_position(&mut text)?;
        }
        let done =
            self.remaining == 0 || (self.format == ChangeFormat::Lines && self.log_progress.end_version.is_some());
        Ok((text, (!done).then_some(self)))
    }

    fn wait(&self) -> Duration {
        if self.log_progress.end_version.is_some() { POLL_INTERVAL } else { Duration::ZERO }
    }
}

impl ChangeRows {
    fn push_page(&mut self, text: &mut Vec<u8>, version: i64) -> Result<usize, OutputError> {
        let page = read(&self.reader, &self.after, &self.selection, self.remaining.min(PAGE_ROWS))?;
        self.after = LogPosition { epoch: Some(page.epoch), seq: page.last_seq };
        let is_wanted = |state: &str| state == PURGED || matches_state(state, self.state_filter);
        let mut rows = 0;
        for (row, data) in page.rows.iter().filter(|(row, _)| is_wanted(&row.state)) {
            rows += 1;
            let position = LogPosition { seq: row.seq, ..self.after.clone() };
            self.head(text, None, &position);
            change(text, row, self.selection.data.then_some(data.as_deref()))?;
            self.tail(text);
        }
        self.remaining -= rows;
        self.log_progress.end_version = page.end.then_some(version);
        Ok(rows)
    }

    /// Sends how far the log has been read, matching rows or not.
    fn push_position(&mut self, text: &mut Vec<u8>) -> Result<(), OutputError> {
        self.head(text, Some("position"), &self.after);
        mark(text, &self.after)?;
        self.tail(text);
        self.log_progress.position_sent_at = Some(Instant::now());
        Ok(())
    }

    /// Whether to send the client its position although nothing matched.
    fn is_due(&self) -> bool {
        self.format == ChangeFormat::Lines
            || self.log_progress.position_sent_at.is_none_or(|sent_at| sent_at.elapsed() >= POSITION_INTERVAL)
    }

    /// The fields before the line in an event (HTML Standard, "server-sent events").
    fn head(&self, text: &mut Vec<u8>, event: Option<&str>, position: &LogPosition) {
        if self.format == ChangeFormat::Lines {
            return;
        }
        if let Some(event) = event {
            text.extend_from_slice(format!("event: {event}\n").as_bytes());
        }
        text.extend_from_slice(format!("id: {position}\ndata: ").as_bytes());
    }

    fn tail(&self, text: &mut Vec<u8>) {
        if self.format == ChangeFormat::Events {
            text.push(b'\n');
        }
    }
}
