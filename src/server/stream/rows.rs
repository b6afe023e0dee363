//! Rows as they are sent: lines of JSON, or events that carry such a line and the position behind it.

use std::time::{Duration, Instant};

use crate::feed::State as ItemState;
use crate::output::changes::{Position, Selection, change, mark, read};
use crate::output::{OutputError, export, line};
use crate::store::read::{Filter, ItemRow, QuarantineFilter, Reader};

/// Rows of one page, at most: each client holds one, and there may be many who are slow.
const PAGE_ROWS: usize = 250;
/// How soon a followed log shows a change.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a client that follows is told where it is, changes or not.
const TELL_EVERY: Duration = Duration::from_secs(15);
/// The state of a row that removes a whole feed.
const PURGED: &str = "purged";

/// Something that is read page by page.
pub(super) trait Rows: Sized + Send + 'static {
    /// The next page, which may be empty, and what is left; blocking.
    fn page(self) -> Result<(Vec<u8>, Option<Self>), OutputError>;

    /// How long to wait before the next page.
    fn wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// Items after a position.
pub(super) struct Items {
    pub(super) reader: Reader,
    pub(super) filter: Filter,
    /// Those with this id alone.
    pub(super) id: Option<String>,
    pub(super) after: Position,
    /// Tombstones too.
    pub(super) deleted: bool,
    /// Those in this state alone.
    pub(super) state: Option<ItemState>,
    /// Rows still to be sent.
    pub(super) left: usize,
}

impl Rows for Items {
    fn page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.left == 0 {
            return Ok((text, None));
        }
        if let Some(id) = self.id.take() {
            return self.with_id(&id).map(|text| (text, None));
        }
        let page = self.reader.items(self.after.seq, self.left.min(PAGE_ROWS), &self.filter, self.tombstones())?;
        self.after.check(&page.epoch, page.mirror_seq)?;
        self.after = Position { epoch: Some(page.epoch), seq: page.last_seq };
        for item in page.rows.iter().filter(|item| is(&item.state, self.state)) {
            push_item(&mut text, item)?;
            self.left -= 1;
        }
        Ok((text, (!page.end).then_some(self)))
    }
}

impl Items {
    fn tombstones(&self) -> bool {
        self.deleted || self.state == Some(ItemState::Deleted)
    }

    /// As many as there are feeds and kinds that have it: they need no pages.
    fn with_id(self, id: &str) -> Result<Vec<u8>, OutputError> {
        let mut text = Vec::new();
        let mirror = self.reader.mirror()?;
        self.after.check(&mirror.epoch, mirror.seq)?;
        let items = self.reader.items_with_id(id, &self.filter, self.tombstones())?;
        let wanted = items.iter().filter(|item| item.seq > self.after.seq && is(&item.state, self.state));
        for item in wanted.take(self.left) {
            push_item(&mut text, item)?;
        }
        Ok(text)
    }
}

fn is(state: &str, wanted: Option<ItemState>) -> bool {
    wanted.is_none_or(|wanted| wanted.as_str() == state)
}

fn push_item(text: &mut Vec<u8>, item: &ItemRow) -> Result<(), OutputError> {
    export::object(text, item)?;
    text.push(b'\n');
    Ok(())
}

/// Quarantined records after a number.
pub(super) struct Quarantine {
    pub(super) reader: Reader,
    pub(super) filter: QuarantineFilter,
    pub(super) after: i64,
    /// Rows still to be sent.
    pub(super) left: usize,
}

impl Rows for Quarantine {
    fn page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.left == 0 {
            return Ok((text, None));
        }
        let (rows, end) = self.reader.quarantine_after(self.after, self.left.min(PAGE_ROWS), &self.filter)?;
        for row in &rows {
            line(&mut text, row)?;
            self.after = row.id;
        }
        self.left -= rows.len();
        Ok((text, (!end).then_some(self)))
    }
}

/// How the change log is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Lines of JSON, to the log's end.
    Lines,
    /// Server-Sent Events, for as long as the client listens.
    Events,
}

/// The change log after a position.
pub(super) struct Changes {
    pub(super) reader: Reader,
    pub(super) after: Position,
    pub(super) selection: Selection,
    /// Items that are in this state now alone; purges stay, since they change every state.
    pub(super) wanted: Option<ItemState>,
    /// Rows still to be sent.
    pub(super) left: usize,
    pub(super) form: Form,
    pub(super) state: State,
}

/// How far a change log has come.
#[derive(Default)]
pub(super) struct State {
    /// The file's version when the log's end was read.
    end: Option<i64>,
    /// When the client was last told where it is.
    told: Option<Instant>,
}

impl Rows for Changes {
    fn page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        // The file that is open would never change again; who comes back is told to read everything anew.
        if self.left == 0 || self.reader.is_replaced() {
            return Ok((text, None));
        }
        // Looked at first: what is committed while the page is read shows next time.
        let version = self.reader.data_version()?;
        let mut rows = 0;
        if self.state.end != Some(version) {
            rows = self.push_page(&mut text, version)?;
        }
        if rows > 0 || self.is_due() {
            self.push_position(&mut text)?;
        }
        let done = self.left == 0 || (self.form == Form::Lines && self.state.end.is_some());
        Ok((text, (!done).then_some(self)))
    }

    fn wait(&self) -> Duration {
        if self.state.end.is_some() { LOOK_EVERY } else { Duration::ZERO }
    }
}

impl Changes {
    fn push_page(&mut self, text: &mut Vec<u8>, version: i64) -> Result<usize, OutputError> {
        let page = read(&self.reader, &self.after, &self.selection, self.left.min(PAGE_ROWS))?;
        self.after = Position { epoch: Some(page.epoch), seq: page.last_seq };
        let wanted = |state: &str| state == PURGED || is(state, self.wanted);
        let mut rows = 0;
        for (row, data) in page.rows.iter().filter(|(row, _)| wanted(&row.state)) {
            rows += 1;
            let position = Position { seq: row.seq, ..self.after.clone() };
            self.head(text, None, &position);
            change(text, row, self.selection.data.then_some(data.as_deref()))?;
            self.tail(text);
        }
        self.left -= rows;
        self.state.end = page.end.then_some(version);
        Ok(rows)
    }

    /// How far the log has been read, matching rows or not.
    fn push_position(&mut self, text: &mut Vec<u8>) -> Result<(), OutputError> {
        self.head(text, Some("position"), &self.after);
        mark(text, &self.after)?;
        self.tail(text);
        self.state.told = Some(Instant::now());
        Ok(())
    }

    /// Whether the client is to be told where it is though nothing matched.
    fn is_due(&self) -> bool {
        self.form == Form::Lines || self.state.told.is_none_or(|told| told.elapsed() >= TELL_EVERY)
    }

    /// What stands before a line in an event (HTML Standard, "server-sent events").
    fn head(&self, text: &mut Vec<u8>, event: Option<&str>, position: &Position) {
        if self.form == Form::Lines {
            return;
        }
        if let Some(event) = event {
            text.extend_from_slice(format!("event: {event}\n").as_bytes());
        }
        text.extend_from_slice(format!("id: {position}\ndata: ").as_bytes());
    }

    fn tail(&self, text: &mut Vec<u8>) {
        if self.form == Form::Events {
            text.push(b'\n');
        }
    }
}
