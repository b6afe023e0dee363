//! Rows as they are sent: lines of JSON, or events that carry such a line and the position behind it.

use std::time::{Duration, Instant};

use crate::feed::Seq;
use crate::output::changes::{Position, Selection, change, mark, read};
use crate::output::{OutputError, export};
use crate::store::read::{Filter, Reader};

/// Rows of one page, at most.
const PAGE_ROWS: usize = 1_000;
/// How soon a followed log shows a change.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a client that follows is told where it is, changes or not.
const TELL_EVERY: Duration = Duration::from_secs(15);

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
    pub(super) after: Seq,
    /// Tombstones too.
    pub(super) deleted: bool,
    /// Rows still to be sent.
    pub(super) left: usize,
}

impl Rows for Items {
    fn page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        if self.left == 0 {
            return Ok((text, None));
        }
        let page = self.reader.items(self.after, self.left.min(PAGE_ROWS), &self.filter, self.deleted)?;
        for item in &page.rows {
            export::object(&mut text, item)?;
            text.push(b'\n');
        }
        self.after = page.last_seq;
        self.left -= page.rows.len();
        Ok((text, (!page.end).then_some(self)))
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
        for (row, data) in &page.rows {
            let position = Position { seq: row.seq, ..self.after.clone() };
            self.head(text, None, &position);
            change(text, row, self.selection.data.then_some(data.as_deref()))?;
            self.tail(text);
        }
        self.left -= page.rows.len();
        self.state.end = page.end.then_some(version);
        Ok(page.rows.len())
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
