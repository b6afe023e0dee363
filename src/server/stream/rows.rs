//! Rows as they are sent: lines of JSON, or events that carry such a line and the position behind it.

use std::time::{Duration, Instant};

use crate::feed::ItemState;
use crate::output::changes::{ChangeSelection, LogPosition, change, mark, read};
use crate::output::{OutputError, export, write_json_line};
use crate::store::read::{FeedKindFilter, ItemRow, QuarantineFilter, Reader};

/// Rows of one page, at most: each client holds one, and there may be many who are slow.
const PAGE_ROWS: usize = 250;
/// How soon a followed log shows a change.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a client that follows is told where it is, changes or not.
const POSITION_INTERVAL: Duration = Duration::from_secs(15);
/// The state of a row that removes a whole feed.
const PURGED: &str = "purged";

/// Something that is read page by page.
pub(super) trait PagedRows: Sized + Send + 'static {
    /// The next page, which may be empty, and what is left; blocking.
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
    /// Those with this id alone.
    pub(super) id: Option<String>,
    pub(super) after: LogPosition,
    /// Tombstones too.
    pub(super) deleted: bool,
    /// Those in this state alone.
    pub(super) state: Option<ItemState>,
    /// Rows still to be sent.
    pub(super) left: usize,
}

impl PagedRows for ItemRows {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.left == 0 {
            return Ok((text, None));
        }
        if let Some(id) = self.id.take() {
            return self.with_id(&id).map(|text| (text, None));
        }
        let page = self.reader.items(self.after.seq, self.left.min(PAGE_ROWS), &self.filter, self.tombstones())?;
        self.after.check(&page.epoch, page.mirror_seq)?;
        self.after = LogPosition { epoch: Some(page.epoch), seq: page.last_seq };
        for item in page.rows.iter().filter(|item| matches_state(&item.state, self.state)) {
            push_item(&mut text, item)?;
            self.left -= 1;
        }
        Ok((text, (!page.end).then_some(self)))
    }
}

impl ItemRows {
    fn tombstones(&self) -> bool {
        self.deleted || self.state == Some(ItemState::Deleted)
    }

    /// As many as there are feeds and kinds that have it: they need no pages.
    fn with_id(self, id: &str) -> Result<Vec<u8>, OutputError> {
        let mut text = Vec::new();
        let mirror = self.reader.mirror()?;
        self.after.check(&mirror.epoch, mirror.seq)?;
        let items = self.reader.items_with_id(id, &self.filter, self.tombstones())?;
        let wanted = items.iter().filter(|item| item.seq > self.after.seq && matches_state(&item.state, self.state));
        for item in wanted.take(self.left) {
            push_item(&mut text, item)?;
        }
        Ok(text)
    }
}

fn matches_state(state: &str, wanted: Option<ItemState>) -> bool {
    wanted.is_none_or(|wanted| wanted.as_str() == state)
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
    pub(super) left: usize,
}

impl PagedRows for QuarantineRows {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.left == 0 {
            return Ok((text, None));
        }
        let (rows, end) = self.reader.quarantine_after(self.after, self.left.min(PAGE_ROWS), &self.filter)?;
        for row in &rows {
            write_json_line(&mut text, row)?;
            self.after = row.id;
        }
        self.left -= rows.len();
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
    /// Items that are in this state now alone; purges stay, since they change every state.
    pub(super) state_filter: Option<ItemState>,
    /// Rows still to be sent.
    pub(super) left: usize,
    pub(super) form: ChangeFormat,
    pub(super) log_progress: LogProgress,
}

/// How far a change log has come.
#[derive(Default)]
pub(super) struct LogProgress {
    /// The file's version when the log's end was read.
    end_version: Option<i64>,
    /// When the client was last told where it is.
    position_sent_at: Option<Instant>,
}

impl PagedRows for ChangeRows {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        // The file that is open would never change again; who comes back is told to read everything anew.
        if self.left == 0 || self.reader.is_replaced() {
            return Ok((text, None));
        }
        // Looked at first: what is committed while the page is read shows next time.
        let version = self.reader.data_version()?;
        let mut rows = 0;
        if self.log_progress.end_version != Some(version) {
            rows = self.push_page(&mut text, version)?;
        }
        if rows > 0 || self.is_due() {
            self.push_position(&mut text)?;
        }
        let done = self.left == 0 || (self.form == ChangeFormat::Lines && self.log_progress.end_version.is_some());
        Ok((text, (!done).then_some(self)))
    }

    fn wait(&self) -> Duration {
        if self.log_progress.end_version.is_some() { LOOK_EVERY } else { Duration::ZERO }
    }
}

impl ChangeRows {
    fn push_page(&mut self, text: &mut Vec<u8>, version: i64) -> Result<usize, OutputError> {
        let page = read(&self.reader, &self.after, &self.selection, self.left.min(PAGE_ROWS))?;
        self.after = LogPosition { epoch: Some(page.epoch), seq: page.last_seq };
        let wanted = |state: &str| state == PURGED || matches_state(state, self.state_filter);
        let mut rows = 0;
        for (row, data) in page.rows.iter().filter(|(row, _)| wanted(&row.state)) {
            rows += 1;
            let position = LogPosition { seq: row.seq, ..self.after.clone() };
            self.head(text, None, &position);
            change(text, row, self.selection.data.then_some(data.as_deref()))?;
            self.tail(text);
        }
        self.left -= rows;
        self.log_progress.end_version = page.end.then_some(version);
        Ok(rows)
    }

    /// How far the log has been read, matching rows or not.
    fn push_position(&mut self, text: &mut Vec<u8>) -> Result<(), OutputError> {
        self.head(text, Some("position"), &self.after);
        mark(text, &self.after)?;
        self.tail(text);
        self.log_progress.position_sent_at = Some(Instant::now());
        Ok(())
    }

    /// Whether the client is to be told where it is though nothing matched.
    fn is_due(&self) -> bool {
        self.form == ChangeFormat::Lines
            || self.log_progress.position_sent_at.is_none_or(|told| told.elapsed() >= POSITION_INTERVAL)
    }

    /// What stands before a line in an event (HTML Standard, "server-sent events").
    fn head(&self, text: &mut Vec<u8>, event: Option<&str>, position: &LogPosition) {
        if self.form == ChangeFormat::Lines {
            return;
        }
        if let Some(event) = event {
            text.extend_from_slice(format!("event: {event}\n").as_bytes());
        }
        text.extend_from_slice(format!("id: {position}\ndata: ").as_bytes());
    }

    fn tail(&self, text: &mut Vec<u8>) {
        if self.form == ChangeFormat::Events {
            text.push(b'\n');
        }
    }
}
